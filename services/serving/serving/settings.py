"""The service's settings, all of them environment variables."""

from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Types that skops asks about in the files of scikit-learn's trees, forests and boosting. Reviewed: trees of plain
# arrays, the table of bin edges, losses without state of their own, and numpy's types. A model's own list of trusted
# types is written by its author; only this list counts.
REVIEWED_TYPES = frozenset(
    {
        "numpy.dtype",
        "sklearn._loss._loss.CyHalfBinomialLoss",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.tree._tree.Tree",
    }
)


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
    serving_require_key: bool = True
    """Whether predictions and their records require the key; health, metrics and the documentation never do."""

    serving_poll_seconds: float = Field(default=2.0, ge=0.1)
    """How often MLflow is polled for the champions."""
    serving_max_rows: int = Field(default=10_000, ge=1)
    serving_max_body_bytes: int = Field(default=8 * 2**20, ge=1024)

    serving_trusted_types: Annotated[frozenset[str], NoDecode] = frozenset()
    """Types that models' files may hold beyond the reviewed ones, separated by commas in the variable."""
    serving_allow_pickle: bool = False
    """Whether pickled models are loaded: everybody who may register a model can then run code in this service."""

    serving_database_url: SecretStr | None = None
    """Where predictions are recorded, as postgresql://user:password@host/database; empty records none."""
    serving_keep_days: int = Field(default=30, ge=0, le=36500)
    """How long a recorded prediction is kept; 0 records none, and deletes what was recorded."""

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

    @property
    def trusted_types(self) -> frozenset[str]:
        """All types that a model's file may hold beyond those that skops itself trusts."""
        return REVIEWED_TYPES | self.serving_trusted_types
