"""The service's settings, all of them environment variables."""

from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving.limits import Limits
from serving.memory import MODELS_SHARE, memory_limit
from trainyard.reviewed_types import REVIEWED_TYPES


class Settings(BaseSettings):
    """Settings of the service; each is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, hide_input_in_errors=True)

    mlflow_tracking_uri: str
    mlflow_tracking_username: str | None = None
    mlflow_tracking_password: SecretStr = SecretStr("")

    serving_host: str = "127.0.0.1"
    serving_port: int = Field(default=8000, ge=1, le=65535)

    serving_api_key: SecretStr | None = None
    """What callers send as `Authorization: Bearer ...` or `X-API-Key`."""
    serving_reading_key: SecretStr | None = None
    """A second key, which opens `GET /traffic` and `GET /models/NAME/shadow` alone: the dashboard's."""
    serving_require_key: bool = True
    """Whether predictions and their records require the key; health, metrics and the documentation never do."""

    serving_poll_seconds: float = Field(default=2.0, ge=0.1)
    """How often MLflow is polled for the champions."""
    serving_max_rows: int = Field(default=10_000, ge=1)
    serving_max_body_bytes: int = Field(default=8 * 2**20, ge=1024)

    serving_max_queue: int = Field(default=128, ge=1)
    """How many requests may wait for a model; further ones are answered with 503."""
    serving_max_wait_seconds: float = Field(default=10.0, gt=0)
    """How long a request may wait for its model; then it is answered with 503."""
    serving_max_versions: int = Field(default=2, ge=1)
    """How many versions that requests name by number are kept in memory beside the champions."""
    serving_shadow_fraction: float = Field(default=0.0, ge=0, le=1)
    """The share of a model's requests that its challenger predicts too; its predictions are only recorded."""
    serving_model_bytes: int | None = Field(default=None, ge=2**20)
    """How much memory the loaded models may take together; by default 40 % of the container's, or the machine's."""

    serving_trusted_types: Annotated[frozenset[str], NoDecode] = frozenset()
    """Types that models' files may hold beyond the reviewed ones, separated by commas in the variable."""
    serving_allow_pickle: bool = False
    """Whether pickled models are loaded: everybody who may register a model can then run code in this service."""

    serving_database_url: SecretStr | None = None
    """Where predictions are recorded, as postgresql://user:password@host/database; empty records none."""
    serving_keep_days: int = Field(default=30, ge=0, le=36500)
    """How long a recorded prediction is kept, in whole days; 0 records none, and deletes what was recorded."""
    serving_records_max_bytes: int = Field(default=2 * 2**30, ge=2**20)
    """Size in the database at which the oldest days are dropped; a day's requests may take an eighth of it."""
    serving_records_rate: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are recorded. Forecasts, which the monitor scores, are always recorded."""

    @field_validator("serving_trusted_types", mode="before")
    @classmethod
    def split_at_commas(cls, given: object) -> object:
        """Split the variable's text."""
        return {name.strip() for name in given.split(",") if name.strip()} if isinstance(given, str) else given

    @model_validator(mode="after")
    def require_api_key(self) -> Self:
        """Refuse to serve without a key unless a setting asks for that."""
        if self.serving_require_key and self.serving_api_key is None:
            raise ValueError("SERVING_API_KEY is empty: give one, or set SERVING_REQUIRE_KEY=false")
        return self

    @cached_property
    def model_memory(self) -> int:
        """How much memory the loaded models may take together, in bytes."""
        return self.serving_model_bytes or int(MODELS_SHARE * memory_limit())

    @property
    def limits(self) -> Limits:
        """The limits of a request's body."""
        return Limits(self.serving_max_rows, self.serving_max_body_bytes)

    @property
    def trusted_types(self) -> frozenset[str]:
        """All types that a model's file may hold beyond those that skops itself trusts."""
        return self.serving_trusted_types | REVIEWED_TYPES.keys()
