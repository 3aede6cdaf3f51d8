"""Prefect flows: when and where the stages run. The only place that imports prefect."""
