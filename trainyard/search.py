"""The search for the best candidate: each is judged by a task run of its own, side by side."""

import os
from collections.abc import Sequence
from typing import Any

from prefect import Task, get_run_logger, unmapped
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainyard.candidates import Candidate, Score
from trainyard.errors import SearchError
from trainyard.tracking import Trial


class SearchSettings(BaseSettings):
    """Where candidates are evaluated."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    dask_scheduler_address: str | None = None
    """A Dask scheduler such as tcp://scheduler:8786; without it candidates run on this machine's cores."""


SearchResult = tuple[list[Score], list[Trial]]
"""The candidates' scores, without those that failed, and all candidates as MLflow shall know them."""


def search(judge: Task[..., Score], candidates: Sequence[Candidate], **same: Any) -> SearchResult:
    """Return the candidates' scores, and all candidates as MLflow shall know them.

    One that fails is left out of the scores, with a warning.

    Args:
        judge: A task with a parameter `candidate`.
        candidates: Who is judged.
        same: The task's other arguments, the same for all.

    Raises:
        SearchError: All failed.
    """
    arguments = {name: unmapped(value) for name, value in same.items()}
    results = side_by_side(judge, candidate=candidates, **arguments)
    scores, trials = [], []
    for candidate, result in zip(candidates, results, strict=True):
        params = {"family": candidate.family, **dict(candidate.params)}
        if isinstance(result, BaseException):
            get_run_logger().warning("The candidate %s failed: %s", candidate.name, result)
            trials.append(Trial(candidate.name, params, {}, error=str(result)))
        else:
            scores.append(result)
            trials.append(Trial(candidate.name, params, result.metrics))
    if not scores:
        raise SearchError(f"No candidate could be judged. The first failed with: {results[0]}")
    return scores, trials


def search_once(step: Task[..., SearchResult], *arguments: Any) -> SearchResult:
    """Run a cached task that searches; where one from the cache had a candidate that failed, try that one again."""
    state: Any = step(*arguments, return_state=True)
    found: SearchResult = state.result()
    if state.name == "Cached" and any(trial.error for trial in found[1]):
        return step.with_options(refresh_cache=True)(*arguments)
    return found


def side_by_side(task: Task[..., Any], **parameters: Any) -> list[Any]:
    """Run a task for each item of its parameters at once, and wait; return each result, or what it failed with.

    A parameter in `unmapped(...)` is the same for all, as in `task.map`.
    """
    with candidate_runner() as runner:
        futures = runner.map(task, parameters)
        futures.wait()
        return [future.state.result(raise_on_failure=False) for future in futures]


def candidate_runner() -> TaskRunner[Any]:
    """Return what runs tasks side by side: this machine's cores, or a Dask cluster where one is set."""
    if address := SearchSettings().dask_scheduler_address:
        from prefect_dask.task_runners import DaskTaskRunner

        return DaskTaskRunner(address=address)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolTaskRunner(max_workers=cores)
