"""The page that shows what MLflow and Prefect logged."""
