"""Settings of the warm process: environment variables `WARM_PROCESS_*`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trainyard.contract import Resource

# What flows of tabular training import. Modules of the image only: a preloaded module is not read again, so flow code
# must never be listed. Packages that are not installed are skipped.
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
    "trainyard.*",
)

# The worker's stop_grace_period in docker-compose.yml leaves a minute for the rest.
MAX_DRAIN_SECONDS = 540.0


def _default_state_dir() -> Path:
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / Resource.WORK_POOL_TYPE


class WarmProcessSettings(BaseSettings):
    """Settings of the warm process, read from the environment of the worker."""

    model_config = SettingsConfigDict(env_prefix="WARM_PROCESS_")

    enabled: bool = Field(
        # Apple's frameworks must not be used after a fork, and numpy links to one of them.
        default=sys.platform != "darwin",
        description="Whether runs are forked from a warm process; if not, every run is a cold start.",
    )
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        default=DEFAULT_PRELOAD,
        description="Modules that the warm process imports, separated by commas; `PACKAGE.*` stands for those of a package.",
    )
    start_timeout: float = Field(
        default=20.0,
        description="Seconds that a run waits for a warm process that is still importing or does not respond.",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0.0,
        le=MAX_DRAIN_SECONDS,
        description="Seconds that runs get to finish when the worker stops; the others are scheduled again.",
    )
    stop_grace: float = Field(
        default=7.0,
        description="Seconds that the process of a run gets to end once the worker stops it.",
    )
    cancel_grace: float = Field(
        default=30.0,
        description="Seconds that a cancelled run gets to stop before it is killed.",
    )
    hooks_timeout: float = Field(
        default=60.0,
        description="Seconds that the hooks of a run get after its end before they are killed.",
    )
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        description="Where a worker keeps its ledger, for the next worker.",
    )

    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port on which the worker answers scrapes of Prometheus; none by default.",
    )

    @field_validator("preload", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
