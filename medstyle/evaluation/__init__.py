"""Named metric protocols, baselines, statistics and the report."""
