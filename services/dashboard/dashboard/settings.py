"""What the service reads from the environment, all of it here."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the service; each is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, hide_input_in_errors=True)

    mlflow_tracking_uri: str
    mlflow_tracking_username: str | None = None
    mlflow_tracking_password: SecretStr = SecretStr("")
    mlflow_ui_url: str = "http://localhost:5001"
    """Where people's browsers find MLflow."""

    prefect_api_url: str
    prefect_api_auth_string: SecretStr | None = None
    prefect_ui_url: str = "http://localhost:4200"

    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = Field(default=8501, ge=1, le=65535)
    dashboard_user: str = "admin"
    dashboard_password: SecretStr = Field(min_length=12)
    dashboard_session_key: SecretStr = Field(min_length=32)
    """Signs sessions; with another key, everyone signs in again."""
    dashboard_session_seconds: float = Field(default=12 * 3600, gt=0)
    dashboard_cache_seconds: float = Field(default=10, gt=0)
    """How old a reading may grow before it is read anew."""
    dashboard_rows: int = Field(default=12, ge=1, le=50)
    """Runs on a page."""
    dashboard_bundle: Path = Path(__file__).parent / "static" / "vega.js"
    """What `python -m dashboard.bundle` wrote."""
