"""The job variables of the worker type, and the configuration of a run that is made of them."""

from __future__ import annotations

from typing import Any, Literal

from prefect.workers.process import ProcessJobConfiguration, ProcessVariables
from pydantic import Field, PrivateAttr

DEFAULT_RERUNS = 2
LateRuns = Literal["newest", "all"]
DEFAULT_LATE_RUNS: LateRuns = "newest"


class WarmProcessVariables(ProcessVariables):
    """The job variables: those of the process worker, and what is done with crashed and with missed runs."""

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
            " all, one after the other. Runs that were triggered otherwise are always run."
        ),
    )


class WarmProcessJobConfiguration(ProcessJobConfiguration):
    """The configuration of a run."""

    reruns_after_crash: int = Field(default=DEFAULT_RERUNS, ge=0)
    late_runs: LateRuns = DEFAULT_LATE_RUNS

    _has_command: bool = PrivateAttr(default=False)

    @property
    def has_command(self) -> bool:
        """Whether the job variables set a command."""
        return self._has_command

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what depends on the flow run, the command among it."""
        self._has_command = self.command is not None
        super().prepare_for_flow_run(*args, **kwargs)
