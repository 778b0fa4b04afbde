"""The wine pipeline: its tasks and flows, in the order in which they run."""

from typing import Annotated

import pandas as pd
from prefect import flow, runtime, tags, task
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from sklearn.base import BaseEstimator

from flows.wine import model
from flows.wine.model import FittedModel, Split
from trainyard import registry, tracking
from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Score
from trainyard.contract import Tag
from trainyard.fingerprint import code_fingerprint, fingerprint
from trainyard.gate import FIRST_USE, Decision, Thresholds, decide
from trainyard.metrics import log_losses, scores_table
from trainyard.outcome import Outcome, log_proposal, report
from trainyard.registry import Champion, Proposal
from trainyard.search import search

EXPERIMENT, MODEL, METRIC = "wine", "wine-cultivar", "log_loss"
HOUR = 3600.0
TRAIN_ROWS = "train_rows"
"""The tag of a model version with the digest of its training set."""
Folds = Annotated[int, Field(ge=2, le=20)]


@task(name="cross-validate", task_run_name="{candidate.name}", **cached())
def cross_validate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Evaluate one candidate by cross-validation."""
    return model.cross_validate_candidate(train, candidate, folds)


@task(name="fit", **cached())
def fit(data: Split, candidate: Candidate) -> FittedModel:
    """Fit the best candidate, and evaluate it and the baseline on the holdout."""
    return model.fit(data, candidate)


@task(name="refit", **cached())
def refit(data: Split, candidate: Candidate) -> BaseEstimator:
    """Fit the model that is served on all wines."""
    return model.refit(data, candidate)


@task(name="log-to-mlflow", **cached())
def log_run(
    data: Split,
    fitted: FittedModel,
    refitted: BaseEstimator | None,
    trials: list[tracking.Trial],
    folds: int,
    digests: dict[str, str],
) -> tracking.Registered:
    """Log the training to MLflow; with a model to serve also its candidates, and register it."""
    candidate = fitted.candidate
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment=EXPERIMENT,
            model=MODEL,
            estimator=fitted.estimator if refitted is None else refitted,
            evaluated=fitted.estimator,
            inputs=data.holdout.drop(columns=model.TARGET).head(5),
            dataset=tracking.Dataset("wine", model.SOURCE, pd.concat([data.train, data.holdout]), model.TARGET),
            params={"family": candidate.family, **dict(candidate.params), "folds": folds},
            metrics=fitted.metrics,
            tables={} if refitted is None else model.evaluation_tables(data, fitted, refitted),
            trials=trials,
            tags={TRAIN_ROWS: data.train_rows, **digests},
            trusted_types=model.TRUSTED_TYPES,
        ),
        register=refitted is not None,
    )


def make_comparison(data: Split, fitted: FittedModel, gate: Thresholds) -> registry.Compare:
    """Return what compares the model with the champion on the holdout, which neither of them was fitted on."""

    def compare(champion: Champion | None) -> Decision:
        losses = {name: log_losses(each) for name, each in fitted.holdout_probabilities.items()}
        champion_losses, exception = None, None
        if champion and champion.tags.get(TRAIN_ROWS) != data.train_rows:
            reason = f"The champion, version {champion.version}, was fitted on other wines; compare them by hand."
            exception = Decision(promote=False, reason=reason)
        elif champion:
            try:
                estimator = champion.load_estimator()
                champion_losses = log_losses(model.true_class_probability(estimator, data.holdout))
            except ValueError as error:  # scikit-learn's error where columns differ
                exception = Decision(promote=True, reason=f"The champion does not know these measurements ({error}).")
        return decide(
            METRIC,
            losses["model"],
            {"baseline": losses["baseline"]},
            champion_losses,
            gate,
            champion.reuse if champion else FIRST_USE,
            exception=exception,
        )

    return compare


@task(name="compare", retries=2, retry_delay_seconds=1, persist_result=False)
def propose(data: Split, fitted: FittedModel, digests: dict[str, str], gate: Thresholds) -> Proposal:
    """Decide whether the model is to become the champion, and whether it is worth a version."""
    compare = make_comparison(data, fitted, gate)
    return registry.propose(MODEL, digests[Tag.CANDIDATE_DIGEST], digests[Tag.RECIPE], compare, gate)


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(
    data: Split, fitted: FittedModel, logged: tracking.Registered, proposal: Proposal, gate: Thresholds
) -> Decision:
    """Make the model's version the champion, or the challenger."""
    if logged.version is None:
        return proposal.decision
    return registry.apply_gate(MODEL, logged.version, make_comparison(data, fitted, gate), gate, proposal)


@flow(name="load-wine", log_prints=True, persist_result=False, timeout_seconds=600)
def load_wine() -> Split:
    """Read and validate the wines, and split them into training set and holdout."""
    data = model.split(model.read_wines())
    print(f"{len(data.train)} wines in the training set, {len(data.holdout)} in the holdout")
    return data


@flow(name="train-wine", log_prints=True, persist_result=False, timeout_seconds=2 * HOUR)
def train_wine(
    data: SkipJsonSchema[Split | None] = None,
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
) -> Outcome:
    """Search for the best candidate, fit it, and promote it if it is better than the champion.

    Args:
        data: The result of `load_wine`, which is called if this is missing.
        folds: Number of folds of the cross-validation.
        gate: How much better than champion and baseline the model must be.
    """
    tracking.require_server()
    data = data or load_wine()
    scores, trials = search(cross_validate, model.CANDIDATES, train=data.train, folds=folds)
    fitted = fit(data, model.choose_best(scores))
    digests = {
        Tag.RECIPE: fingerprint([code_fingerprint(model.fit), folds])[:12],
        Tag.CANDIDATE_DIGEST: fingerprint([fitted.candidate, data, fitted.holdout_probabilities])[:16],
    }
    proposal = propose(data, fitted, digests, gate)
    refitted = refit(data, fitted.candidate) if proposal.is_new and proposal.version is None else None
    logged, reused = log_proposal(MODEL, proposal, log_run, data, fitted, refitted, trials, folds, digests)
    outcome = Outcome(logged, promote(data, fitted, logged, proposal, gate), fitted.metrics, reused)
    about = f"Best of {len(trials)} candidates: {fitted.candidate.name}. Evaluated on {len(data.holdout)} wines."
    report(outcome, about, scores_table(fitted.metrics, ("model", "baseline")))
    return outcome


@flow(name="wine-pipeline", log_prints=True, persist_result=False, timeout_seconds=3 * HOUR)
def wine_pipeline(
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
    refresh: bool = False,
) -> Outcome:
    """Train a model that predicts a wine's cultivar from its chemistry.

    Args:
        folds: Number of folds of the cross-validation.
        gate: How much better than champion and baseline the model must be.
        refresh: Recompute everything, ignoring cached results.
    """
    with refreshing(refresh), tags(*runtime.flow_run.tags):  # the subflows carry the pipeline's tags
        return train_wine(load_wine(), folds, gate)
