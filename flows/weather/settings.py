"""Settings of the weather flows, read from environment variables of the same names in capitals."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class WeatherSettings(BaseSettings):
    """The addresses of Open-Meteo, or of another server with its API."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    weather_archive_url: str = "https://archive-api.open-meteo.com/v1/archive"
    weather_forecast_url: str = "https://api.open-meteo.com/v1/forecast"
    weather_geocoding_url: str = "https://geocoding-api.open-meteo.com/v1/search"
    weather_timeout_seconds: float = Field(default=15.0, gt=0)
    """Timeout of a request; a fifth of it is the timeout of the connection."""
