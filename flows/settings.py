"""What the flows read from the environment, all of it here."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the flows; each is an environment variable of the same name in capitals.

    Prefect and MLflow read their own (PREFECT_API_URL, PREFECT_UI_URL, MLFLOW_TRACKING_URI and so on).
    """

    model_config = SettingsConfigDict(env_ignore_empty=True)

    weather_archive_url: str = "https://archive-api.open-meteo.com/v1/archive"
    weather_geocoding_url: str = "https://geocoding-api.open-meteo.com/v1/search"
    weather_timeout_seconds: float = Field(default=15.0, gt=0)
    """Longest wait for an answer; a connection must stand after a fifth of it."""

    mlflow_ui_url: str = "http://localhost:5001"
    """MLflow's address as a person's browser sees it; the links of a run lead there."""
