"""Settings of provisioning; nothing else in this package reads the environment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from infra.object_store import ObjectStore
from trainyard.contract import MAIL_EVENTS


class Settings(BaseSettings):
    """The installation's addresses and accounts, from the environment.

    An installation without an object store or without accounts in MLflow, such as that of `make demo`, leaves those
    fields empty; the steps that need them are skipped.
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

    # Empty where the installation has no such service.
    serving_ui_url: str = ""
    dashboard_ui_url: str = ""

    minio_address: str | None = None
    minio_root_user: str = ""
    minio_root_password: SecretStr = SecretStr("")

    # An external S3, with the account of MLflow and backups, and that of the runs' results.
    s3_endpoint: str = ""
    s3_region: str = ""
    s3_bucket: str = ""
    s3_prefix: str = ""
    s3_path_style: bool = True
    s3_ca: Path | None = None
    minio_user: str = ""
    minio_password: SecretStr = SecretStr("")
    results_user: str = ""
    results_password: SecretStr = SecretStr("")
    mlflow_s3_secret_key: SecretStr = SecretStr("")
    prefect_s3_secret_key: SecretStr = SecretStr("")
    backup_s3_reading_key: SecretStr = SecretStr("")
    metrics_s3_key: SecretStr = SecretStr("")

    mail_events: Annotated[tuple[str, ...], NoDecode] = ()
    """The ends of a run with the tag `mail` about which a mail is sent; separated by commas in the variable."""

    schedules_active: bool = True
    """Whether the deployments' schedules start runs."""

    first_run: str = ""
    """A tag of deployments, or one FLOW/DEPLOYMENT, to run once in an installation's life; empty for none."""

    work_queue: str | None = Field(default=None, pattern="^[a-z0-9_-]+$")
    """The work queue of a further project's deployments; None for the first project, whose deployments name their queues."""

    @property
    def store(self) -> ObjectStore | None:
        """Where the installation's objects are; None where it has no object store."""
        if self.s3_endpoint:
            return ObjectStore(self.s3_endpoint, self.s3_region, self.s3_bucket, self.s3_prefix, self.s3_path_style)
        return ObjectStore(self.minio_address) if self.minio_address else None

    @field_validator("mail_events", mode="before")
    @classmethod
    def split_at_commas(cls, value: object) -> object:
        """Split the variable's text."""
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("mail_events")
    @classmethod
    def validate_events(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse events that are not ends of a run."""
        for event in events:
            if event not in MAIL_EVENTS:
                raise ValueError(f"{event!r} is none of {', '.join(MAIL_EVENTS)}")
        return events
