"""How long jobs run and survive: bars, worker pools, whole files, resumable states."""
