"""Which cultivar is a wine of? The tasks and flows, in the order in which they run."""

from typing import Annotated, Any

import mlflow
import pandas as pd
from prefect import flow, runtime, tags, task
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.wine import model
from flows.wine.model import FittedModel, Split
from trainyard import metrics, registry, tracking
from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Score
from trainyard.gate import Decision, Thresholds, decide
from trainyard.outcome import Outcome, log_once, report
from trainyard.search import search

EXPERIMENT, MODEL, METRIC = "wine", "wine-cultivar", "log_loss"
Folds = Annotated[int, Field(ge=2, le=20)]


@task(name="cross-validate", task_run_name="{candidate.name}", **cached(model))
def cross_validate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Judge one candidate by cross-validation."""
    return model.cross_validate_candidate(train, candidate, folds)


@task(name="fit", **cached(model))
def fit(data: Split, candidate: Candidate) -> FittedModel:
    """Fit the best candidate, and judge it and the baseline on the holdout."""
    return model.fit(data, candidate)


@task(name="log-to-mlflow", **cached(model, tracking))
def log_run(data: Split, training: FittedModel, trials: list[tracking.Trial], folds: int) -> tracking.Registered:
    """Log run and candidates to MLflow and register the model."""
    candidate = training.candidate
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment=EXPERIMENT,
            model=MODEL,
            estimator=training.estimator,
            inputs=data.holdout.drop(columns=model.TARGET).head(5),
            dataset=tracking.Dataset("wine", model.SOURCE, pd.concat([data.train, data.holdout]), model.TARGET),
            params={"family": candidate.family, **dict(candidate.params), "folds": folds},
            metrics=training.metrics,
            tables=model.tables(data, training),
            trials=trials,
            tags={"train_rows": data.train_rows},
            trusted_types=model.TRUSTED_TYPES,
        )
    )


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(data: Split, training: FittedModel, logged: tracking.Registered, gate: Thresholds) -> Decision:
    """Let the model take the champion's place if it is better on the holdout, which neither was fitted on."""

    def compare(reigning: Any) -> Decision:
        champion = None
        if reigning:
            if reigning.tags.get("train_rows") != data.train_rows:
                reason = f"The champion, version {reigning.version}, was fitted on other wines: a person must compare."
                return Decision(promote=False, reason=reason)
            estimator = mlflow.sklearn.load_model(f"models:/{MODEL}/{reigning.version}")
            champion = model.score(estimator, data.holdout)[METRIC]
        candidate, baseline = (training.metrics[f"{who}_{METRIC}"] for who in ("model", "baseline"))
        return decide(METRIC, candidate, baseline, champion, gate)

    return registry.apply_gate(MODEL, logged.version, compare)


@flow(name="load-wine", log_prints=True, persist_result=False)
def load_wine() -> Split:
    """Read the wines, check them, and set some apart to judge on."""
    data = model.split(model.read_wines())
    print(f"{len(data.train)} wines to fit on, {len(data.holdout)} to judge on")
    return data


@flow(name="train-wine", log_prints=True, persist_result=False)
def train_wine(
    data: SkipJsonSchema[Split | None] = None,
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
) -> Outcome:
    """Search for the best candidate, judge it on a holdout, log and register it; better, it becomes champion.

    Args:
        data: What `load_wine` returns; it is called where there is none.
        folds: Folds of the cross-validation.
        gate: By how much the model must be better than champion and baseline.
    """
    tracking.require_server()
    data = data or load_wine()
    scores, trials = search(cross_validate, model.CANDIDATES, train=data.train, folds=folds)
    training = fit(data, model.choose(scores))
    logged, reused = log_once(log_run, data, training, trials, folds)
    outcome = Outcome(logged, promote(data, training, logged, gate), training.metrics, reused)
    about = f"Best of {len(trials)} candidates: {training.candidate.name}. Judged on {len(data.holdout)} wines."
    report(outcome, about, metrics.scores_table(training.metrics, ("model", "baseline")))
    return outcome


@flow(name="wine-pipeline", log_prints=True, persist_result=False)
def wine_pipeline(
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
    refresh: bool = False,
) -> Outcome:
    """Train a model that tells a wine's cultivar from its chemistry.

    Args:
        folds: Folds of the cross-validation.
        gate: By how much the model must be better than champion and baseline.
        refresh: Compute everything anew, even what has not changed.
    """
    with refreshing(refresh), tags(*runtime.flow_run.tags):  # the components carry the pipeline's tags
        return train_wine(load_wine(), folds, gate)
