"""What can be set about the warm process, each by an environment variable `WARM_PROCESS_*`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# What flows of tabular training import at their top. Third-party packages only: a preloaded module
# is not read again, so flow code must never stand here. What is not installed is left out.
DEFAULT_PRELOAD = (
    "numpy",
    "pandas",
    "scipy.stats",
    "sklearn.calibration",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.impute",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "skops.io",
    "mlflow",
    "mlflow.data.http_dataset_source",
    "mlflow.data.pandas_dataset",
    "mlflow.models",
    "mlflow.sklearn",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "vega_datasets",
    "pandera.pandas",
    "httpx",
    "pydantic_settings",
    "boto3",
    "prefect_aws",  # the block of the default result storage, which each run loads
)


def _default_state_dir() -> Path:
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "warm-process"


class WarmProcessSettings(BaseSettings):
    """Settings of the warm process, read from the environment of the worker."""

    model_config = SettingsConfigDict(env_prefix="WARM_PROCESS_")

    enabled: bool = Field(
        # Apple's frameworks may not be used after a fork, and numpy is linked to one of them.
        default=sys.platform != "darwin",
        description="Whether runs are forked from a warm process; if not, each starts a new interpreter.",
    )
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        default=DEFAULT_PRELOAD,
        description="Modules that the warm process imports, separated by commas; empty for Prefect alone.",
    )
    start_timeout: float = Field(
        default=20.0,
        description="Seconds for which a run waits for a warm process that is still importing.",
    )
    stop_grace: float = Field(
        default=7.0,
        description="Seconds that runs get to report their end when the worker stops; Docker kills after 10.",
    )
    cancel_grace: float = Field(
        default=30.0,
        description="Seconds that a cancelled run gets to stop before it is killed.",
    )
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        description="Where a worker notes the runs it has taken, for the worker that comes after it.",
    )

    @field_validator("preload", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
