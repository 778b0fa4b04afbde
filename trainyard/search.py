"""The model search: evaluates candidates in parallel, each in a task run of its own."""

from collections.abc import Sequence
from typing import Any

from prefect import Task, get_run_logger, unmapped
from prefect.task_runners import TaskRunner

from trainyard.cache import run_cached, stored_at_once
from trainyard.candidates import Candidate, Score
from trainyard.cluster import task_runner
from trainyard.errors import SearchError
from trainyard.tracking import Trial

SearchResult = tuple[list[Score], list[Trial]]
"""The scores of the candidates that did not fail, and a trial for each candidate, for MLflow."""


def search(evaluate: Task[..., Score], candidates: Sequence[Candidate], **shared: Any) -> SearchResult:
    """Evaluate the candidates in parallel; those that fail are logged with a warning and have no score.

    Args:
        evaluate: A task with a parameter `candidate`.
        candidates: The candidates to evaluate.
        shared: The task's other arguments, the same for all candidates.

    Raises:
        SearchError: All candidates failed.
    """
    with task_runner() as runner:
        results = evaluate_all(runner, evaluate, candidates, shared)
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
        raise SearchError(f"All candidates failed. The error of the first: {results[0]}")
    return scores, trials


def search_once(task: Task[..., SearchResult], *arguments: Any) -> SearchResult:
    """Run a cached task that returns what `search` does; run it again where a candidate of the cached search failed."""
    result, _ = run_cached(task, *arguments, is_valid=lambda found: not any(trial.error for trial in found[1]))
    return result


def evaluate_all(
    runner: TaskRunner[Any], evaluate: Task[..., Any], candidates: Sequence[Candidate], shared: dict[str, Any]
) -> list[Any]:
    """Return what a task returns for each candidate, or the exception with which it failed."""
    with stored_at_once():
        arguments = {name: unmapped(value) for name, value in shared.items()}
        futures = runner.map(evaluate, {"candidate": candidates, **arguments})
        futures.wait()
        return [future.state.result(raise_on_failure=False) for future in futures]
