"""MLflow: runs, model versions, the gate and the served model. The only place that imports mlflow."""
