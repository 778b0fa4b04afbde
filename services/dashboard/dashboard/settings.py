"""The service's settings: all that it reads from the environment."""

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
    """MLflow's address for people's browsers."""

    prefect_api_url: str
    prefect_api_auth_string: SecretStr | None = None
    """`user:password`."""
    prefect_ui_url: str = "http://localhost:4200"
    """Prefect's address for people's browsers."""

    serving_url: str | None = None
    """Serving's address; None shows no traffic."""
    serving_reading_key: SecretStr | None = None
    """The key of serving that opens `GET /traffic`."""

    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = Field(default=8501, ge=1, le=65535)
    dashboard_proxy: str | None = None
    """Host of the proxy in front, whose X-Forwarded-For is believed; None believes nobody's."""
    dashboard_user: str = "admin"
    dashboard_password: SecretStr = Field(min_length=12)
    dashboard_session_key: SecretStr = Field(min_length=32)
    """Signs the cookies; a new key signs everyone out, as a restart does."""
    dashboard_session_seconds: float = Field(default=12 * 3600, gt=0)
    dashboard_cache_seconds: float = Field(default=10, gt=0)
    """Age from which a snapshot is refreshed."""
    dashboard_rows: int = Field(default=12, ge=1, le=50)
    """Runs per page."""
    metrics_enabled: bool = False
    """Whether requests are counted, for Prometheus."""
    metrics_token: SecretStr = SecretStr("")
    """Opens /metrics."""
    dashboard_bundle: Path = Path(__file__).parent / "static" / "vega.js"
    """The file that `python -m dashboard.bundle` writes."""

    @property
    def mlflow_login(self) -> tuple[str, str] | None:
        """User and password for MLflow's API; None if it asks for none."""
        user = self.mlflow_tracking_username
        return (user, self.mlflow_tracking_password.get_secret_value()) if user else None

    @property
    def prefect_login(self) -> tuple[str, str] | None:
        """User and password for Prefect's API; None if it asks for none."""
        if self.prefect_api_auth_string is None:
            return None
        user, _, password = self.prefect_api_auth_string.get_secret_value().partition(":")
        return user, password
