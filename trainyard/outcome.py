"""What a training came to: logged once, judged, and told to people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.artifacts import create_markdown_artifact

from trainyard import tracking
from trainyard.gate import Decision
from trainyard.tracking import Registered


@dataclass(frozen=True)
class Outcome:
    """A registered version, and what was decided about it."""

    registered: Registered
    decision: Decision
    metrics: Mapping[str, float]
    reused: bool
    """Whether nothing had changed, so that the version is that of an earlier run."""

    @property
    def is_champion(self) -> bool:
        """Whether the version is the champion now."""
        return self.decision.promote


def log_once(log: Task[..., Registered], *arguments: Any) -> tuple[Registered, bool]:
    """Run a cached task that logs a training; return what it registered, and whether an earlier run had.

    What somebody has deleted from MLflow since then is logged anew.
    """
    state: Any = log(*arguments, return_state=True)
    registered: Registered = state.result()
    if state.name != "Cached":
        return registered, False
    if tracking.mark_reused(registered):
        return registered, True
    return log.with_options(refresh_cache=True)(*arguments), False


def report(outcome: Outcome, about: str, table: str) -> None:
    """Tell the run's page and its log what came out, with links to MLflow.

    Args:
        outcome: What came out.
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
