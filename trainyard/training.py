"""Train a model for a problem, in a flow: search, holdout, gate, registration and report, in cached steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import pandas as pd
from prefect import Task, task
from sklearn.base import BaseEstimator

from trainyard import explain, fitting, registry, tracking
from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Score, Space
from trainyard.comparison import make_comparison
from trainyard.contract import Artifact, Tag
from trainyard.data import read_csv
from trainyard.fingerprint import fingerprint, key_fingerprint
from trainyard.fitting import Evaluation
from trainyard.gate import Decision, Thresholds
from trainyard.metrics import scores_table
from trainyard.outcome import Outcome, log_proposal, report
from trainyard.problem import Parts, Problem, divide
from trainyard.provenance import describe_code, keep_data, keep_problem
from trainyard.registry import Proposal
from trainyard.retries import RETRIES
from trainyard.search import SearchResult, search, search_once
from trainyard.space_search import search_space

__all__ = ["STEPS", "Details", "Outcome", "Steps", "read", "train"]

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Details:
    """What is logged of a training besides what the problem and its data tell."""

    source: str = ""
    """Where the data comes from: a URL, a file's path, or the name of the function that makes it."""
    dataset: str = ""
    """The data set's name; without it the name of the model."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the MLflow run."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the MLflow run and the model version."""
    description: str = ""
    """What people should know about the version besides what its model card says: Markdown, also for the report."""


@task(name="read", persist_result=False, **RETRIES)
def read(location: str, block: str = "") -> pd.DataFrame:
    """Read a CSV (`trainyard.data.read_csv`); not cached, because it may change at any time."""
    return read_csv(location, block=block)


@task(name="cross-validate", task_run_name="{candidate.name}", **cached())
def cross_validate(problem: Problem, train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Evaluate one candidate by cross-validation."""
    return fitting.cross_validate(problem, train, candidate, folds)


@task(name="search", **cached())
def search_candidates(
    problem: Problem, train: pd.DataFrame, candidates: list[Candidate], folds: int, evaluate: Task[..., Score]
) -> SearchResult:
    """Evaluate all candidates in parallel; as one task, an unchanged search costs one cache look-up."""
    return search(evaluate, candidates, problem=problem, train=train, folds=folds)


@task(name="score-fold", task_run_name="{candidate.name}, fold {number}", **cached())
def score_fold(
    problem: Problem, train: pd.DataFrame, candidate: Candidate, folds: int, number: int
) -> dict[str, float] | None:
    """Evaluate one candidate of a search space on one fold."""
    return fitting.score_fold(problem, train, candidate, folds, number)


@task(name="search", **cached())
def search_in_space(
    problem: Problem, train: pd.DataFrame, space: Space, folds: int, evaluate: Task[..., dict[str, float] | None]
) -> SearchResult:
    """Search a space; as one task, an unchanged search costs one cache look-up."""
    metric = f"cv_{problem.search_loss.name}"
    return search_space(evaluate, space, folds, metric, problem=problem, train=train)


@task(name="fit", **cached())
def fit(problem: Problem, parts: Parts, candidate: Candidate) -> Evaluation:
    """Fit the best candidate, and evaluate it and the baselines on the holdout."""
    return fitting.fit(problem, parts, candidate)


@task(name="refit", **cached())
def refit(problem: Problem, parts: Parts, candidate: Candidate) -> BaseEstimator:
    """Fit the model that is served on all rows."""
    return fitting.refit(problem, parts, candidate)


@task(name="log-to-mlflow", **cached())
def log_run(
    problem: Problem,
    parts: Parts,
    evaluation: Evaluation,
    refitted: BaseEstimator | None,
    trials: list[tracking.Trial],
    details: Details,
) -> tracking.Registered:
    """Log the training to MLflow; with a model to serve also its candidates, figures and tables, and register it."""
    tables, figures, card = {}, {}, details.description
    if refitted is not None:
        importance = explain.measure_importance(problem, parts, evaluation)
        tables = fitting.evaluation_tables(problem, parts, evaluation, refitted) | {Artifact.IMPORTANCE: importance}
        figures = {"importance.png": explain.draw_importance(importance, problem.loss.name)}
        figures |= problem.figures(evaluation, parts) if problem.figures else {}
        card = explain.write_card(problem, parts, evaluation, importance, details.source, details.description)
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment=problem.experiment or problem.model,
            model=problem.model,
            estimator=evaluation.estimator if refitted is None else refitted,
            evaluated=evaluation.estimator,
            inputs=problem.select_features(parts.holdout).head(EXAMPLE_ROWS),
            dataset=tracking.Dataset(
                details.dataset or problem.model, details.source or "a flow", parts.all_rows, problem.target
            ),
            params=details.params,
            metrics=evaluation.metrics,
            tables=tables,
            figures=figures,
            trials=trials,
            tags=details.tags,
            trusted_types=problem.trusted_types,
            description=card,
            question=explain.describe_question(problem),
        ),
        register=refitted is not None,
    )


@task(name="compare", retries=2, retry_delay_seconds=1, persist_result=False)
def propose(problem: Problem, parts: Parts, evaluation: Evaluation, tags: dict[str, str], gate: Thresholds) -> Proposal:
    """Decide whether the model is to become the champion, and whether it is worth a version."""
    compare = make_comparison(problem, parts, evaluation, tags, gate)
    return registry.propose(problem.model, tags[Tag.CANDIDATE_DIGEST], tags[Tag.RECIPE], compare, gate)


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(
    problem: Problem,
    parts: Parts,
    evaluation: Evaluation,
    tags: dict[str, str],
    logged: tracking.Registered,
    proposal: Proposal,
    gate: Thresholds,
) -> Decision:
    """Make the model's version the champion, or the challenger."""
    if logged.version is None:
        return proposal.decision
    compare = make_comparison(problem, parts, evaluation, tags, gate)
    return registry.apply_gate(problem.model, logged.version, compare, gate, proposal)


@dataclass(frozen=True)
class Steps:
    """The tasks of a training. Replace one by a task of your own with the same parameters and result."""

    cross_validate: Task[..., Score] = cross_validate
    search: Task[..., SearchResult] = search_candidates
    score_fold: Task[..., dict[str, float] | None] = score_fold
    search_space: Task[..., SearchResult] = search_in_space
    fit: Task[..., Evaluation] = fit
    refit: Task[..., BaseEstimator] = refit
    log: Task[..., tracking.Registered] = log_run
    propose: Task[..., Proposal] = propose
    promote: Task[..., Decision] = promote


STEPS = Steps()
NO_DETAILS = Details()
DEFAULT_GATE = Thresholds()


def train(
    problem: Problem,
    data: pd.DataFrame,
    details: Details = NO_DETAILS,
    gate: Thresholds = DEFAULT_GATE,
    *,
    refresh: bool = False,
    as_of: date | None = None,
    steps: Steps = STEPS,
) -> Outcome:
    """Search for the best candidate, fit it, and promote it if it is better than the champion.

    Call it in a flow. Its steps are tasks of that flow, and those that compute something are cached. A candidate of the
    champion's recipe that is not better is logged as one run, without a version.

    Args:
        problem: What is to be predicted.
        data: A row for each example, with target and features.
        details: What else is to be logged.
        gate: How much better than champion and baselines the model must be.
        refresh: Recompute everything, ignoring cached results.
        as_of: For a backtest: what would have been trained on that day, without the rows after it. It is logged, and neither
            compared with the champion nor registered.
        steps: The tasks, where some are your own.

    Raises:
        TrackingUnreachableError: MLflow does not answer.
        DataError: The data does not fit the problem.
        SearchError: All candidates failed.
    """
    tracking.require_server()
    parts = divide(problem, data if as_of is None else problem.leave_out_after(as_of, data))
    with refreshing(refresh):
        evaluation, trials = search_and_fit(problem, parts, steps)
        best = evaluation.candidate
        tags = describe_version(problem, parts, evaluation, details, steps)
        if as_of is None:
            proposal = steps.propose(problem, parts, evaluation, tags, gate)
        else:
            proposal = Proposal(Decision(promote=False, reason=f"A backtest as of {as_of}."), None, None, is_new=False)
            tags[Tag.AS_OF] = str(as_of)
        refitted, kept = None, {}
        if proposal.is_new and proposal.version is None:
            refitted = steps.refit(problem.for_fitting(best.family), parts, best)
            kept = keep_origin(problem, parts)
        params = describe_run(problem, parts, best, trials) | dict(details.params)
        logged_parts = problem.for_logging(best.family), parts, evaluation, refitted, trials
        with_tags = replace(details, params=params, tags=tags | kept)
        logged, reused = log_proposal(problem.model, proposal, steps.log, *logged_parts, with_tags)
        decision = steps.promote(problem, parts, evaluation, tags, logged, proposal, gate)
    outcome = Outcome(logged, decision, evaluation.metrics, reused)
    report(outcome, summarize(parts, best, trials, details), scores_table(evaluation.metrics, evaluation.owners))
    return outcome


def search_and_fit(problem: Problem, parts: Parts, steps: Steps) -> tuple[Evaluation, list[tracking.Trial]]:
    """Return the best candidate's evaluation on the holdout, and the trials of the search."""
    scores, trials = run_search(problem, parts.train, steps)
    best = fitting.choose_best(problem, scores)
    return steps.fit(problem.for_fitting(best.family), parts, best), trials


def keep_origin(problem: Problem, parts: Parts) -> dict[str, str]:
    """Keep what the model is trained from, and return the tags that name it, and the code."""
    digests = {Tag.DATA_DIGEST: keep_data(parts), Tag.PROBLEM_DIGEST: keep_problem(problem.for_training())}
    return digests | describe_code()


def digest_code(problem: Problem, steps: Steps) -> str:
    """Return a digest of the code that fits and evaluates the candidates of a problem."""
    return key_fingerprint([steps.fit.fn, steps.cross_validate.fn], problem.for_fitting(*problem.families))[:12]


def run_search(problem: Problem, train: pd.DataFrame, steps: Steps) -> SearchResult:
    """Evaluate a problem's candidates, or those that are found in its space."""
    searched = problem.for_fitting(*problem.families)
    if isinstance(space := problem.candidates, Space):
        return search_once(steps.search_space, searched, train, space, problem.folds, steps.score_fold)
    candidates = problem.list_candidates()
    return search_once(steps.search, searched, train, candidates, problem.folds, steps.cross_validate)


def describe_version(
    problem: Problem, parts: Parts, evaluation: Evaluation, details: Details, steps: Steps
) -> dict[str, str]:
    """Return the tags that tell a new recipe from the champion's own, a new candidate from an unchanged one, and the rows."""
    candidates = problem.candidates or problem.list_candidates()
    code = digest_code(problem, steps)
    return {
        **problem.split.describe(parts.train),
        **details.tags,
        Tag.CODE: code,
        Tag.RECIPE: fingerprint([code, candidates, problem.folds, dict(problem.data_params)])[:12],
        Tag.CANDIDATE_DIGEST: fingerprint([evaluation.candidate, parts, evaluation.predictions])[:16],
    }


def describe_run(problem: Problem, parts: Parts, best: Candidate, trials: list[tracking.Trial]) -> dict[str, Any]:
    """Return the parameters of the MLflow run."""
    return {
        **problem.data_params,
        "family": best.family,
        **dict(best.params),
        "estimator": " ".join(repr(problem.make_estimator(best)).split()),
        "folds": problem.folds,
        "candidates": len(trials),
        "training_rows": len(parts.train),
        "holdout_rows": len(parts.holdout),
    }


def summarize(parts: Parts, best: Candidate, trials: list[tracking.Trial], details: Details) -> str:
    """Return the report's paragraphs on data and model."""
    rows = f"{len(parts.train)} rows in the training set, {len(parts.holdout)} in the holdout"
    source = f" from {details.source}" if details.source else ""
    chosen = f"{rows}{source}. Best of {len(trials)} candidates: {best.name}."
    return "\n\n".join(filter(None, [details.description, chosen]))
