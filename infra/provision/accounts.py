"""MLflow's accounts of the services. The server creates the admin's, and its migration updates the password."""

import httpx

from infra.provision.api import http_client, retry_transient
from infra.provision.settings import Settings
from trainyard.contract import Account

USERS = "/api/2.0/mlflow/users"


def provision_accounts(settings: Settings) -> None:
    """Create the accounts of worker, serving and dashboard, or update their passwords.

    None is an admin: each may read everything. The worker may create experiments and models and change what it created;
    serving and dashboard are refused all writes (`mlflow_server.reading_accounts`).

    Raises:
        httpx.HTTPError: MLflow refused a request or did not answer.
    """
    assert settings.mlflow_tracking_username is not None
    admin = httpx.BasicAuth(settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value())
    passwords = {
        Account.WORKER: settings.mlflow_worker_password,
        Account.SERVING: settings.mlflow_serving_password,
        Account.DASHBOARD: settings.mlflow_dashboard_password,
    }
    with http_client(settings.mlflow_tracking_uri, admin) as mlflow:
        for name, password in passwords.items():
            _ensure_account(mlflow, name, password.get_secret_value())


@retry_transient
def _ensure_account(mlflow: httpx.Client, name: str, password: str) -> None:
    own = mlflow.get(f"{USERS}/get", params={"username": name}, auth=(name, password))
    if own.status_code == httpx.codes.OK:
        return
    existing = mlflow.get(f"{USERS}/get", params={"username": name})
    account = {"username": name, "password": password}
    if existing.status_code == httpx.codes.NOT_FOUND:
        mlflow.post(f"{USERS}/create", json=account).raise_for_status()
    else:
        existing.raise_for_status()
        mlflow.patch(f"{USERS}/update-password", json=account).raise_for_status()
