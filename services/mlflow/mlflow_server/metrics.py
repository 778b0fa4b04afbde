"""MLflow's application with metrics for Prometheus."""

import os

import mlflow.server.auth
from starlette.types import ASGIApp

from trainyard.servers.request_metrics import RequestMetricsMiddleware

MLFLOW_APP = "mlflow.server.auth:create_app"
APP = f"{__name__}:create_app"


def create_app() -> ASGIApp:
    """Create MLflow's application as MLflow does, and count its requests."""
    return RequestMetricsMiddleware(mlflow.server.auth.create_app(), token=os.environ["METRICS_TOKEN"])
