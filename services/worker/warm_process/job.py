"""The job variables of the worker type, and the configuration of a run that is made of them."""

from __future__ import annotations

from typing import Any, Literal

from prefect.workers.process import ProcessJobConfiguration, ProcessVariables
from pydantic import BaseModel, Field, PrivateAttr

DEFAULT_RERUNS = 2
LateRuns = Literal["newest", "all"]
DEFAULT_LATE_RUNS: LateRuns = "newest"
DEFAULT_WALL_TIME_SECONDS = 86400.0
"""A run that hangs does not hold its slot and its locks for ever."""


class RunVariables(BaseModel):
    """The job variables that the process worker does not have."""

    reruns_after_crash: int = Field(
        default=DEFAULT_RERUNS,
        ge=0,
        description=(
            "How often a run that crashed is run again. With 0, which is for runs that must not be repeated, a run that"
            " the worker has to stop is crashed too instead of being returned to the queue."
        ),
    )
    late_runs: LateRuns = Field(
        default=DEFAULT_LATE_RUNS,
        description=(
            "Which runs of a schedule are run when several are due at once, after a downtime for example: the newest, or"
            " all, the oldest first. Runs that were triggered otherwise are always run."
        ),
    )
    memory_mib: int | None = Field(
        default=None,
        ge=16,
        title="Memory in MiB",
        description=(
            "The memory that the run may use, with all processes that it starts. A run that uses more is ended as"
            " crashed, alone, and is not run again. By default it may use the memory of the worker's container, less"
            " 512 MiB or 15 %. Linux only."
        ),
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description=(
            "The threads that BLAS and OpenMP use in the run, and the cores that joblib's n_jobs=-1 stands for. By"
            " default as many as the worker has cores. Variables such as OMP_NUM_THREADS that the run itself sets go"
            " first."
        ),
    )
    wall_time_seconds: float | None = Field(
        default=DEFAULT_WALL_TIME_SECONDS,
        ge=1,
        description=(
            "The time that the run may take from the start of its process, with what it waits for. A run that takes"
            " longer is ended as crashed and is not run again."
        ),
    )


class WarmProcessVariables(RunVariables, ProcessVariables):
    """The job variables of the worker type."""


class WarmProcessJobConfiguration(RunVariables, ProcessJobConfiguration):
    """The configuration of a run."""

    _has_command: bool = PrivateAttr(default=False)

    @property
    def has_command(self) -> bool:
        """Whether the job variables set a command."""
        return self._has_command

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what depends on the flow run, the command among it."""
        self._has_command = self.command is not None
        super().prepare_for_flow_run(*args, **kwargs)
