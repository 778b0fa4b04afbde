"""The outcome of a training: the registered version, the gate's decision, and the report on both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from prefect import Task
from prefect.artifacts import create_markdown_artifact

from trainyard import tracking
from trainyard.cache import run_cached
from trainyard.contract import Tag
from trainyard.gate import Decision
from trainyard.registry import Proposal
from trainyard.tracking import Registered


@dataclass(frozen=True)
class Outcome:
    """A logged training and the gate's decision about its candidate."""

    registered: Registered
    decision: Decision
    metrics: Mapping[str, float]
    reused: bool
    """Whether nothing has changed since an earlier run, which logged the training."""

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


def log_proposal(
    model: str, proposal: Proposal, log: Task[..., Registered], *arguments: Any
) -> tuple[Registered, bool]:
    """Return the training of a proposed candidate: that of its version, if it has one, or else log it by a cached task.

    Returns:
        The training, and whether an earlier run logged it.
    """
    if proposal.version is not None:
        registered = tracking.find_registered(model, proposal.version)
        if registered and tracking.mark_reused(registered):
            return registered, True
    registered, reused = log_once(log, *arguments)
    if registered.version is None:
        MlflowClient().set_tag(registered.run_id, Tag.GATE_REASON, proposal.decision.reason)
    return registered, reused


def report(outcome: Outcome, about: str, table: str) -> None:
    """Print the outcome to the run's log, and create a report with links to MLflow on the run's page.

    Args:
        outcome: The outcome.
        about: Markdown on the data and the model.
        table: The metrics as a Markdown table.
    """
    registered = outcome.registered
    version = f"{registered.model} version {registered.version}"
    rank = "the champion" if outcome.is_champion else "a challenger"
    if registered.version is None:
        version, rank = f"{registered.model}: the candidate", "not better, and no new version"
    unchanged = " Nothing has changed since it was trained." if outcome.reused else ""
    create_markdown_artifact(
        f"# [{version}]({registered.version_url}): {rank}\n\n{outcome.decision.reason}{unchanged}\n\n"
        f"{about}\n\n{table}\n\n[MLflow run]({registered.run_url})\n",
        key="training-report",
    )
    print(f"{version} is {rank}. {outcome.decision.reason}{unchanged}\n{table}\n{registered.run_url}")
