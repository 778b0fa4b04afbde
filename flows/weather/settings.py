"""Settings of the weather flows; each is an environment variable of the same name in capitals."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class WeatherSettings(BaseSettings):
    """Where the weather comes from: Open-Meteo, or another server with its API."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    weather_archive_url: str = "https://archive-api.open-meteo.com/v1/archive"
    weather_forecast_url: str = "https://api.open-meteo.com/v1/forecast"
    weather_geocoding_url: str = "https://geocoding-api.open-meteo.com/v1/search"
    weather_timeout_seconds: float = Field(default=15.0, gt=0)
    """Timeout of a request; the connection must be established within a fifth of it."""
