"""The outcome of a training: the registered version, the gate's decision, and the report on both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.artifacts import create_markdown_artifact

from trainyard import tracking
from trainyard.cache import run_cached
from trainyard.gate import Decision
from trainyard.tracking import Registered


@dataclass(frozen=True)
class Outcome:
    """A registered version and the gate's decision about it."""

    registered: Registered
    decision: Decision
    metrics: Mapping[str, float]
    reused: bool
    """Whether nothing has changed since an earlier run, which registered the version."""

    @property
    def is_champion(self) -> bool:
        """Whether the version is the champion."""
        return self.decision.promote


def log_once(log: Task[..., Registered], *arguments: Any) -> tuple[Registered, bool]:
    """Run a cached task that logs a training; log it again where the logged run or version has been deleted.

    Returns:
        The registered version, and whether an earlier run registered it.
    """
    return run_cached(log, *arguments, is_valid=tracking.mark_reused)


def report(outcome: Outcome, about: str, table: str) -> None:
    """Print the outcome to the run's log, and create a report with links to MLflow on the run's page.

    Args:
        outcome: The outcome.
        about: A paragraph of Markdown on the data and the model.
        table: The metrics as a Markdown table.
    """
    registered, rank = outcome.registered, "the champion" if outcome.is_champion else "a challenger"
    version = f"{registered.model} version {registered.version}"
    unchanged = " Nothing has changed since it was trained." if outcome.reused else ""
    create_markdown_artifact(
        f"# [{version}]({registered.version_url}): {rank}\n\n{outcome.decision.reason}{unchanged}\n\n"
        f"{about}\n\n{table}\n\n[MLflow run]({registered.run_url})\n",
        key="training-report",
    )
    print(f"{version} is {rank}. {outcome.decision.reason}{unchanged}\n{table}\n{registered.run_url}")
