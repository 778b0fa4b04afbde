"""The weather pipeline: its tasks and flows, in the order in which they run."""

from contextlib import ExitStack
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from prefect import flow, get_run_logger, runtime, tags, task, unmapped
from prefect.artifacts import create_link_artifact
from pydantic.json_schema import SkipJsonSchema

from flows.weather import model, parameters, plots, promotion
from flows.weather import places as place_names
from flows.weather.features import TARGET, Examples
from flows.weather.ingest import HOUR, preprocess
from flows.weather.model import Family, FittedModel
from flows.weather.parameters import DATA, TRAINING, DataParameters, Training, TrainingParameters
from trainyard import registry, search, tracking
from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Score
from trainyard.contract import Tag
from trainyard.errors import TrainyardError
from trainyard.fingerprint import code_fingerprint
from trainyard.gate import Decision, Thresholds
from trainyard.locks import lock
from trainyard.outcome import Outcome, log_once, report

EXPERIMENT = "weather"
LOCK_TIMEOUT_SECONDS = {"wait": 3600.0, "skip": 1.0}
"""By `overlap`, how long a run waits for another of the same place."""


class PlacesFailedError(TrainyardError):
    """The pipeline failed for some places; the message names them."""


@task(name="cross-validate", task_run_name="{candidate.name}", **cached(model))
def cross_validate(train_days: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Evaluate one candidate by cross-validation."""
    return model.cross_validate(train_days, candidate, folds)


@task(name="search", **cached(model, search))
def search_candidates(train_days: pd.DataFrame, families: list[Family], folds: int) -> search.SearchResult:
    """Evaluate all candidates in parallel; as one task, an unchanged search costs one cache look-up."""
    return search.search(cross_validate, model.make_candidates(families), train_days=train_days, folds=folds)


@task(name="fit", **cached(model))
def fit(train_days: pd.DataFrame, holdout: pd.DataFrame, candidate: Candidate) -> FittedModel:
    """Fit the best candidate, and evaluate it and the baselines on the holdout."""
    return model.fit_and_score(train_days, holdout, candidate)


@task(name="log-to-mlflow", **cached(model, place_names, plots, promotion, tracking))
def log_run(
    examples: Examples, fitted: FittedModel, trials: list[tracking.Trial], settings: dict[str, Any]
) -> tracking.Registered:
    """Log the training, its candidates and plots to MLflow, and register the model."""
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment=EXPERIMENT,
            model=place_names.model_name(examples.origin.place),
            estimator=fitted.estimator,
            inputs=fitted.holdout.drop(columns=TARGET).head(5),
            dataset=tracking.Dataset(examples.origin.source, examples.origin.url, examples.frame, TARGET),
            params=describe_training(examples, fitted) | settings,
            metrics=fitted.metrics,
            figures=plots.draw(fitted),
            tables=model.evaluation_tables(fitted),
            trials=trials,
            tags=promotion.describe_model(examples, fitted) | {Tag.CODE: code_fingerprint(None, [model])[:12]},
            trusted_types=model.TRUSTED_TYPES,
        )
    )


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(examples: Examples, fitted: FittedModel, logged: tracking.Registered, gate: Thresholds) -> Decision:
    """Promote the model to champion if it is better on days that neither of them was fitted on."""

    def compare(champion: ModelVersion | None) -> Decision:
        estimator = mlflow.sklearn.load_model(f"models:/{logged.model}/{champion.version}") if champion else None
        candidate_tags = promotion.describe_model(examples, fitted)
        return promotion.compare_with_champion(
            candidate_tags, fitted, champion.tags if champion else None, estimator, gate
        )

    return registry.apply_gate(logged.model, logged.version, compare, gate)


def describe_training(examples: Examples, fitted: FittedModel) -> dict[str, Any]:
    """Return the parameters that are logged of data and model."""
    place, frame = examples.origin.place, examples.frame
    return {
        "place": place.name,
        "latitude": place.latitude,
        "longitude": place.longitude,
        "wet_day_mm": examples.wet_day_mm,
        "first_day": str(frame.index.min().date()),
        "last_day": str(frame.index.max().date()),
        "train_days": len(fitted.train),
        "holdout_days": len(fitted.holdout),
        "holdout_wet_share": round(float(fitted.holdout[TARGET].mean()), 4),
        "features": len(frame.columns) - 1,
        "family": fitted.candidate.family,
        **dict(fitted.candidate.params),
    }


def summarize(examples: Examples, fitted: FittedModel) -> str:
    """Return the report's paragraph on data and model."""
    origin, days = examples.origin, examples.frame.index
    return (
        f"Data: {origin.place.name}, {days.min():%F} to {days.max():%F}, from **{origin.source}**. "
        f"Best candidate: {fitted.candidate.name}, evaluated on the newest {len(fitted.holdout)} days."
    )


@flow(name="train", log_prints=True, persist_result=False, timeout_seconds=4 * HOUR)
def train(
    examples: SkipJsonSchema[Examples | None] = None,
    training: Training = TRAINING,
) -> Outcome:
    """Search for the best candidate, fit, log and register it, and promote it if it is better than the champion.

    Without `examples`, those of the default place are used.

    Raises:
        TrackingUnreachableError: MLflow does not answer.
        DataError: The training set, the holdout or all folds have only wet or only dry days.
        SearchError: All candidates failed.
    """
    tracking.require_server()
    if examples is None:
        examples = preprocess()
    train_days, holdout = model.split_by_time(examples.frame, training.holdout_fraction)
    scores, trials = search.search_once(search_candidates, train_days, training.families, training.folds)
    fitted = fit(train_days, holdout, model.choose_best(scores))
    settings = {
        "holdout_fraction": training.holdout_fraction,
        "folds": training.folds,
        "candidates": len(trials),
    }
    logged, reused = log_once(log_run, examples, fitted, trials, settings)
    recalled = registry.recall_decision(logged.model, logged.version, training.gate) if reused else None
    decision = recalled or promote(examples, fitted, logged, training.gate)
    outcome = Outcome(logged, decision, fitted.metrics, reused)
    report(outcome, summarize(examples, fitted), model.metrics_table(fitted.metrics))
    return outcome


@task(name="place", task_run_name="{place}", persist_result=False)
def run_place(
    place: str, overlap: parameters.Overlap, data: DataParameters, training: TrainingParameters
) -> Outcome | None:
    """Run preprocessing and training for one place, under a lock that keeps other runs of the same place out."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(f"weather-{place_names.slug(place)}", LOCK_TIMEOUT_SECONDS[overlap]))
        except TimeoutError:
            if overlap == "wait":
                raise
            get_run_logger().warning("Skipped %s: another run of it is active.", place)
            return None
        outcome: Outcome = train(preprocess(place, data), training)
        return outcome


@flow(name="weather-pipeline", log_prints=True, persist_result=False, timeout_seconds=8 * HOUR)
def weather_pipeline(
    places: parameters.Places = ["Seattle"],  # noqa: B006 - never mutated; Prefect's form needs the default
    years: parameters.Years = DATA.years,
    wet_day_mm: parameters.WetDay = DATA.wet_day_mm,
    min_observations: parameters.MinObservations = DATA.min_observations,
    holdout_fraction: parameters.HoldoutFraction = TRAINING.holdout_fraction,
    families: parameters.Families = TRAINING.families,
    folds: parameters.Folds = TRAINING.folds,
    gate: parameters.Gate = TRAINING.gate,
    allow_recorded: parameters.AllowRecorded = DATA.allow_recorded,
    overlap: parameters.Overlap = "wait",
    refresh: parameters.Refresh = False,
    max_gap_days: parameters.MaxGapDays = DATA.max_gap_days,
    max_filled_share: parameters.MaxFilledShare = DATA.max_filled_share,
) -> list[Outcome]:
    """Train a model for each place that predicts whether it will rain tomorrow.

    Raises:
        PlacesFailedError: Some of several places failed; a single place's own error is raised as it is.
    """
    data = DataParameters(
        years=years,
        wet_day_mm=wet_day_mm,
        min_observations=min_observations,
        allow_recorded=allow_recorded,
        max_gap_days=max_gap_days,
        max_filled_share=max_filled_share,
    )
    training = TrainingParameters(holdout_fraction=holdout_fraction, families=families, folds=folds, gate=gate)
    names = list(dict.fromkeys(places))
    with refreshing(refresh), tags(*runtime.flow_run.tags):  # the subflows carry the pipeline's tags
        futures = run_place.map(names, *map(unmapped, (overlap, data, training)))
        futures.wait()
    results = {name: future.state.result(raise_on_failure=False) for name, future in zip(names, futures, strict=True)}
    outcomes = {name: result for name, result in results.items() if isinstance(result, Outcome)}
    for name, outcome in outcomes.items():
        create_link_artifact(outcome.registered.run_url, f"MLflow run of {name}", key="mlflow-run")
    failed = {name: result for name, result in results.items() if isinstance(result, BaseException)}
    if len(failed) == len(names) == 1:
        raise failed[names[0]]
    if failed:
        reasons = " ".join(f"{name}: {error}" for name, error in failed.items())
        raise PlacesFailedError(f"{len(failed)} of {len(names)} places failed, the others are done. {reasons}")
    return list(outcomes.values())
