"""The dashboard: models, monitoring and runs, as MLflow and Prefect record them."""
