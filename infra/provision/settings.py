"""What provisioning must know of the installation; nothing else here reads the environment."""

from pydantic import SecretStr
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """The installation's addresses and accounts, from the environment.

    An installation without an object store or without accounts in MLflow, as `make demo` makes one, leaves those
    fields empty, and the steps that need them are left out.
    """

    prefect_api_url: str
    prefect_api_auth_string: SecretStr | None = None
    prefect_ui_url: str = "http://localhost:4200"

    mlflow_tracking_uri: str
    mlflow_tracking_username: str | None = None
    mlflow_tracking_password: SecretStr = SecretStr("")
    mlflow_worker_password: SecretStr = SecretStr("")
    mlflow_ui_url: str = "http://localhost:5001"

    minio_address: str | None = None
    minio_root_user: str = ""
    minio_root_password: SecretStr = SecretStr("")
    mlflow_s3_secret_key: SecretStr = SecretStr("")
    prefect_s3_secret_key: SecretStr = SecretStr("")

    # FLOW/DEPLOYMENT that runs once in an installation's life; empty for none.
    first_run: str = ""
