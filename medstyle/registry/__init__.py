"""Use MLflow: runs, model versions, and the served model; only this package imports mlflow."""
