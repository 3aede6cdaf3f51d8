"""Evaluate translators: metric protocols, baselines, statistics, the gate and the report."""
