"""MLflow's accounts for machines. The admin, for people, is made by the server and its migration."""

import httpx

from infra.provision.settings import Settings

WORKER = "worker"


def provision_accounts(settings: Settings) -> None:
    """Make the worker's account, or give it the password it should have.

    It is no admin: it may make experiments and models, change those it made, and read the others.

    Raises:
        httpx.HTTPError: MLflow refused a step or did not answer.
    """
    assert settings.mlflow_tracking_username is not None
    users, password = "/api/2.0/mlflow/users", settings.mlflow_worker_password.get_secret_value()
    with httpx.Client(base_url=settings.mlflow_tracking_uri, timeout=30) as mlflow:
        itself = mlflow.get(f"{users}/get", params={"username": WORKER}, auth=(WORKER, password))
        if itself.status_code == httpx.codes.OK:
            return
        mlflow.auth = httpx.BasicAuth(
            settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value()
        )
        known = mlflow.get(f"{users}/get", params={"username": WORKER})
        account = {"username": WORKER, "password": password}
        if known.status_code == httpx.codes.NOT_FOUND:
            mlflow.post(f"{users}/create", json=account).raise_for_status()
        else:
            known.raise_for_status()
            mlflow.patch(f"{users}/update-password", json=account).raise_for_status()
