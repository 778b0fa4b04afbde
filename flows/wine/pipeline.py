"""The wine pipeline: its tasks and flows, in the order in which they run."""

from typing import Annotated

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from prefect import flow, runtime, tags, task
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.wine import model
from flows.wine.model import FittedModel, Split
from trainyard import registry, tracking
from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Score
from trainyard.gate import Decision, Thresholds, decide
from trainyard.metrics import scores_table
from trainyard.outcome import Outcome, log_once, report
from trainyard.search import search

EXPERIMENT, MODEL, METRIC = "wine", "wine-cultivar", "log_loss"
HOUR = 3600.0
TRAIN_ROWS = "train_rows"
"""The tag of a model version with the digest of its training set."""
Folds = Annotated[int, Field(ge=2, le=20)]


@task(name="cross-validate", task_run_name="{candidate.name}", **cached(model))
def cross_validate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Evaluate one candidate by cross-validation."""
    return model.cross_validate_candidate(train, candidate, folds)


@task(name="fit", **cached(model))
def fit(data: Split, candidate: Candidate) -> FittedModel:
    """Fit the best candidate, and evaluate it and the baseline on the holdout."""
    return model.fit(data, candidate)


@task(name="log-to-mlflow", **cached(model, tracking))
def log_run(data: Split, fitted: FittedModel, trials: list[tracking.Trial], folds: int) -> tracking.Registered:
    """Log the training and its candidates to MLflow, and register the model."""
    candidate = fitted.candidate
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment=EXPERIMENT,
            model=MODEL,
            estimator=fitted.estimator,
            inputs=data.holdout.drop(columns=model.TARGET).head(5),
            dataset=tracking.Dataset("wine", model.SOURCE, pd.concat([data.train, data.holdout]), model.TARGET),
            params={"family": candidate.family, **dict(candidate.params), "folds": folds},
            metrics=fitted.metrics,
            tables=model.evaluation_tables(data, fitted),
            trials=trials,
            tags={TRAIN_ROWS: data.train_rows},
            trusted_types=model.TRUSTED_TYPES,
        )
    )


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(data: Split, fitted: FittedModel, logged: tracking.Registered, gate: Thresholds) -> Decision:
    """Promote the model to champion if it is better on the holdout, which neither of them was fitted on."""

    def compare(champion: ModelVersion | None) -> Decision:
        champion_score = None
        if champion:
            if champion.tags.get(TRAIN_ROWS) != data.train_rows:
                reason = f"The champion, version {champion.version}, was fitted on other wines; compare them by hand."
                return Decision(promote=False, reason=reason)
            estimator = mlflow.sklearn.load_model(f"models:/{MODEL}/{champion.version}")
            champion_score = model.score(estimator, data.holdout)[METRIC]
        candidate, baseline = (fitted.metrics[f"{name}_{METRIC}"] for name in ("model", "baseline"))
        return decide(METRIC, candidate, baseline, champion_score, gate)

    return registry.apply_gate(MODEL, logged.version, compare)


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
    """Search for the best candidate, fit, log and register it, and promote it if it is better than the champion.

    Args:
        data: The result of `load_wine`, which is called if this is missing.
        folds: Number of folds of the cross-validation.
        gate: How much better than champion and baseline the model must be.
    """
    tracking.require_server()
    data = data or load_wine()
    scores, trials = search(cross_validate, model.CANDIDATES, train=data.train, folds=folds)
    fitted = fit(data, model.choose_best(scores))
    logged, reused = log_once(log_run, data, fitted, trials, folds)
    outcome = Outcome(logged, promote(data, fitted, logged, gate), fitted.metrics, reused)
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
