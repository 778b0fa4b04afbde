"""MLflow's accounts for machines. The admin, for people, is made by the server and its migration."""

import httpx

from infra.provision.settings import Settings

USERS = "/api/2.0/mlflow/users"


def provision_accounts(settings: Settings) -> None:
    """Make the accounts of worker, serving and dashboard, or give them the passwords they should have.

    None is admin: each may read everything and change what it made. MLflow lets every account make experiments and
    models; serving and dashboard make none, so they can change nothing, aliases and artifacts of others included.

    Raises:
        httpx.HTTPError: MLflow refused a step or did not answer.
    """
    assert settings.mlflow_tracking_username is not None
    admin = httpx.BasicAuth(settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value())
    passwords = {
        "worker": settings.mlflow_worker_password,
        "serving": settings.mlflow_serving_password,
        "dashboard": settings.mlflow_dashboard_password,
    }
    with httpx.Client(base_url=settings.mlflow_tracking_uri, timeout=30) as mlflow:
        for name, password in passwords.items():
            _provide(mlflow, admin, name, password.get_secret_value())


def _provide(mlflow: httpx.Client, admin: httpx.BasicAuth, name: str, password: str) -> None:
    itself = mlflow.get(f"{USERS}/get", params={"username": name}, auth=(name, password))
    if itself.status_code == httpx.codes.OK:
        return
    known = mlflow.get(f"{USERS}/get", params={"username": name}, auth=admin)
    account = {"username": name, "password": password}
    if known.status_code == httpx.codes.NOT_FOUND:
        mlflow.post(f"{USERS}/create", json=account, auth=admin).raise_for_status()
    else:
        known.raise_for_status()
        mlflow.patch(f"{USERS}/update-password", json=account, auth=admin).raise_for_status()
