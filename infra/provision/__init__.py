"""Provisioning: creates what an installation needs in MinIO, MLflow and Prefect, and starts and follows runs."""
