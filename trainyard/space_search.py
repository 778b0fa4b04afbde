"""The search in a space: Optuna suggests candidates, learns from their scores, and gives up those that promise little.

Candidates are suggested in batches, and each batch is evaluated fold by fold, in parallel. With a seed, what is suggested and
pruned depends on the scores alone, not on who was faster. So the study need not be stored: a search that was killed asks the
same questions again, and the folds that were scored before are taken from the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect import Task, get_run_logger

from trainyard.candidates import Candidate, Score, Space
from trainyard.cluster import task_runner
from trainyard.errors import SearchError
from trainyard.fitting import mean_score
from trainyard.search import SearchResult, evaluate_all
from trainyard.tracking import Trial

if TYPE_CHECKING:
    import optuna


@dataclass
class _Attempt:
    """A candidate under evaluation."""

    trial: "optuna.Trial"
    candidate: Candidate
    fold_scores: list[Mapping[str, float]] = field(default_factory=list)
    error: str | None = None
    is_pruned: bool = False

    @property
    def is_live(self) -> bool:
        return self.error is None and not self.is_pruned

    @property
    def means(self) -> dict[str, float]:
        """The means over the folds so far; a score that is not a number on a fold does not count there."""
        return dict(mean_score(self.candidate, self.fold_scores).metrics) if self.fold_scores else {}

    def as_trial(self) -> Trial:
        """Return what MLflow is told."""
        params = {"family": self.candidate.family, **dict(self.candidate.params)}
        return Trial(self.candidate.name, params, self.means, self.error, self.is_pruned)


def search_space(
    evaluate: Task[..., dict[str, float] | None], space: Space, folds: int, metric: str, **shared: Any
) -> SearchResult:
    """Evaluate what Optuna suggests; those that fail are logged with a warning and have no score.

    Args:
        evaluate: A cached task with the parameters `candidate`, `folds` and `number`, which returns the scores of a fold,
            or None for one that does not count.
        space: The space.
        folds: Of the cross-validation.
        metric: Which of the means is minimized, such as `cv_log_loss`.
        shared: The task's other arguments, the same for all candidates.

    Raises:
        SearchError: No candidate was evaluated on all folds.
    """
    study, attempts = _make_study(space), list[_Attempt]()
    with task_runner() as runner:
        while len(attempts) < space.trials:
            size = min(space.batch, space.trials - len(attempts))
            batch = [_suggest(study.ask(), space) for _ in range(size)]
            for number in range(folds):
                live = [attempt for attempt in batch if attempt.is_live]
                arguments = {**shared, "folds": folds, "number": number}
                results = evaluate_all(runner, evaluate, [attempt.candidate for attempt in live], arguments)
                for attempt, result in zip(live, results, strict=True):
                    _take(attempt, result, number, metric, is_last=number == folds - 1)
            for attempt in batch:
                _tell(study, attempt, metric)
            attempts += batch
    scores = [Score(each.candidate, each.means) for each in attempts if each.is_live]
    if not scores:
        raise SearchError(f"All candidates failed. The error of the first: {attempts[0].error}")
    return scores, [attempt.as_trial() for attempt in attempts]


def _make_study(space: Space) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # each trial is a task run with a log of its own
    sampler = optuna.samplers.TPESampler(seed=space.seed, n_startup_trials=max(space.batch, 8), constant_liar=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if space.prune else optuna.pruners.NopPruner()
    return optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)


def _suggest(trial: "optuna.Trial", space: Space) -> _Attempt:
    families = list(space.parameters)
    family = families[0] if len(families) == 1 else str(trial.suggest_categorical("family", families))
    params = space.parameters[family]
    values = tuple((name, _suggest_value(trial, f"{family} {name}", of)) for name, of in params.items())
    return _Attempt(trial, Candidate(family, values))


def _suggest_value(trial: "optuna.Trial", name: str, distribution: Any) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(distribution, FloatDistribution):
        low, high, step = distribution.low, distribution.high, distribution.step
        return trial.suggest_float(name, low, high, step=step, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        low, high, step = distribution.low, distribution.high, distribution.step
        return trial.suggest_int(name, low, high, step=step, log=distribution.log)
    return trial.suggest_categorical(name, distribution.choices)


def _take(attempt: _Attempt, result: Any, number: int, metric: str, *, is_last: bool) -> None:
    """Take the result of a fold."""
    if isinstance(result, BaseException):
        get_run_logger().warning("The candidate %s failed: %s", attempt.candidate.name, result)
        attempt.error = str(result)
    elif result is not None:
        attempt.fold_scores.append(result)
        attempt.trial.report(attempt.means[metric], step=number)
        attempt.is_pruned = not is_last and attempt.trial.should_prune()
    if is_last and attempt.is_live and not attempt.fold_scores:
        attempt.error = "No fold has rows of two classes to fit on."


def _tell(study: "optuna.Study", attempt: _Attempt, metric: str) -> None:
    from optuna.trial import TrialState

    if attempt.is_live:
        study.tell(attempt.trial, attempt.means[metric])
    else:
        study.tell(attempt.trial, state=TrialState.FAIL if attempt.error else TrialState.PRUNED)
