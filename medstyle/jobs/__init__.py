"""Support long jobs: progress bars, worker pools, atomic files, resumable states."""
