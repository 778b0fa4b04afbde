"""What provisioning must know of the installation; nothing else here reads the environment."""

from typing import Annotated

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

MAIL_EVENTS = ("Completed", "Failed", "Crashed")


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
    mlflow_serving_password: SecretStr = SecretStr("")
    mlflow_dashboard_password: SecretStr = SecretStr("")
    mlflow_ui_url: str = "http://localhost:5001"

    # The page of a service that answers with the champions; an installation without one leaves it empty.
    serving_ui_url: str = ""
    # Where people find the dashboard; empty where there is none.
    dashboard_url: str = ""

    minio_address: str | None = None
    minio_root_user: str = ""
    minio_root_password: SecretStr = SecretStr("")
    mlflow_s3_secret_key: SecretStr = SecretStr("")
    prefect_s3_secret_key: SecretStr = SecretStr("")

    # Which ends of a run with the tag `mail` are told by mail; empty for none.
    mail_events: Annotated[tuple[str, ...], NoDecode] = ()

    # Whether the schedules of prefect.yaml start runs.
    schedules_active: bool = True

    # FLOW/DEPLOYMENT that runs once in an installation's life; empty for none.
    first_run: str = ""

    @field_validator("mail_events", mode="before")
    @classmethod
    def split(cls, given: object) -> object:
        """Split the variable's text at its commas."""
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @field_validator("mail_events")
    @classmethod
    def know(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what is no end of a run."""
        for event in events:
            if event not in MAIL_EVENTS:
                raise ValueError(f"{event!r} is none of {', '.join(MAIL_EVENTS)}")
        return events
