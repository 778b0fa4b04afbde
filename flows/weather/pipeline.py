"""Will it rain tomorrow? The tasks and flows, in the order in which they run."""

from contextlib import ExitStack
from typing import Annotated, Any, Literal

import mlflow
import pandas as pd
from prefect import flow, get_run_logger, runtime, tags, task, unmapped
from prefect.artifacts import create_link_artifact
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.weather import model, places, plots, promotion
from flows.weather.features import TARGET, Examples
from flows.weather.ingest import Days, FilledShare, GapDays, Millimetres, PlaceName, Years, preprocess
from flows.weather.model import Family, FittedModel
from trainyard import registry, tracking
from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Score
from trainyard.fingerprint import code_fingerprint
from trainyard.gate import Decision, Thresholds
from trainyard.outcome import Outcome, log_once, report
from trainyard.search import SearchResult, search, search_once

HoldoutFraction = Annotated[float, Field(ge=0.05, le=0.5)]
Folds = Annotated[int, Field(ge=2, le=20)]
Families = Annotated[list[Family], Field(min_length=1, max_length=3)]
Places = Annotated[list[PlaceName], Field(min_length=1, max_length=50)]
Overlap = Literal["wait", "skip"]
SKIP_AFTER_SECONDS = 1.0


class PlacesFailedError(Exception):
    """The pipeline failed for some places; the message names them, the others are done."""


@task(name="cross-validate", task_run_name="{candidate.name}", **cached(model))
def cross_validate(train_days: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Judge one candidate over folds of time."""
    return model.cross_validate(train_days, candidate, folds)


@task(name="search", **cached())
def search_candidates(train_days: pd.DataFrame, families: list[Family], folds: int) -> SearchResult:
    """Judge all candidates side by side: one step, so that a search of which nothing has changed is one look-up."""
    return search(cross_validate, model.make_candidates(families), train_days=train_days, folds=folds)


@task(name="fit", **cached(model))
def fit(train_days: pd.DataFrame, holdout: pd.DataFrame, candidate: Candidate) -> FittedModel:
    """Fit the best candidate on the older days and judge it on the newer ones."""
    return model.fit_and_score(train_days, holdout, candidate)


@task(name="log-to-mlflow", **cached(model, plots, promotion, tracking))
def log_run(
    examples: Examples, training: FittedModel, trials: list[tracking.Trial], settings: dict[str, Any]
) -> tracking.Registered:
    """Log run, candidates and plots to MLflow and register the model."""
    question = promotion.describe_question(examples, training)
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment="weather",
            model=places.model_name(examples.origin.place),
            estimator=training.estimator,
            inputs=training.holdout.drop(columns=TARGET).head(5),
            dataset=tracking.Dataset(examples.origin.source, examples.origin.url, examples.frame, TARGET),
            params=describe(examples, training) | settings,
            metrics=training.metrics,
            figures=plots.draw(training),
            tables=model.tables(training),
            trials=trials,
            tags=question | {"code": code_fingerprint(None, [model])[:12]},
            trusted_types=model.TRUSTED_TYPES,
        )
    )


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(examples: Examples, training: FittedModel, logged: tracking.Registered, gate: Thresholds) -> Decision:
    """Let the candidate take the champion's place if it is better on the same holdout."""

    def compare(reigning: Any) -> Decision:
        champion = mlflow.sklearn.load_model(f"models:/{logged.model}/{reigning.version}") if reigning else None
        question = promotion.describe_question(examples, training)
        return promotion.compare_with_champion(question, training, reigning and reigning.tags, champion, gate)

    return registry.apply_gate(logged.model, logged.version, compare, gate)


def describe(examples: Examples, training: FittedModel) -> dict[str, Any]:
    """Return what the model was fitted on, as parameters of its run."""
    place, frame = examples.origin.place, examples.frame
    return {
        "place": place.name,
        "latitude": place.latitude,
        "longitude": place.longitude,
        "wet_day_mm": examples.wet_day_mm,
        "first_day": str(frame.index.min().date()),
        "last_day": str(frame.index.max().date()),
        "train_days": len(training.train),
        "holdout_days": len(training.holdout),
        "holdout_wet_share": round(float(training.holdout[TARGET].mean()), 4),
        "features": len(frame.columns) - 1,
        "family": training.candidate.family,
        **dict(training.candidate.params),
    }


def about(examples: Examples, training: FittedModel) -> str:
    """Return what the report says of data and model."""
    origin, days = examples.origin, examples.frame.index
    return (
        f"Data: {origin.place.name}, {days.min():%F} to {days.max():%F}, from **{origin.source}**. "
        f"Best candidate: {training.candidate.name}, judged on the newest {len(training.holdout)} days."
    )


@flow(name="train", log_prints=True, persist_result=False)
def train(
    examples: SkipJsonSchema[Examples | None] = None,
    holdout_fraction: HoldoutFraction = 0.2,
    families: Families = list(model.FAMILIES),  # noqa: B006 - a form's default
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
) -> Outcome:
    """Search for the best candidate, judge it on a holdout, log and register it; better, it becomes champion.

    Args:
        examples: What `preprocess` returns; without it, those of `preprocess` with its defaults.
        holdout_fraction: Share of the days, the newest, that no candidate is fitted on.
        families: Which families of estimators to search.
        folds: Folds of the cross-validation, each judged on days after those it was fitted on.
        gate: By how much the candidate must be better than champion and baselines.
    """
    tracking.require_server()
    if examples is None:
        examples = preprocess()
    train_days, holdout = model.split_by_time(examples.frame, holdout_fraction)
    scores, trials = search_once(search_candidates, train_days, families, folds)
    training = fit(train_days, holdout, model.choose(scores).candidate)
    settings = {"holdout_fraction": holdout_fraction, "folds": folds, "candidates": len(trials)}
    logged, reused = log_once(log_run, examples, training, trials, settings)
    known = registry.recall_decision(logged.model, logged.version, gate) if reused else None
    decision = known or promote(examples, training, logged, gate)
    outcome = Outcome(logged, decision, training.metrics, reused)
    report(outcome, about(examples, training), model.compare(training.metrics))
    return outcome


@task(name="place", task_run_name="{place}", persist_result=False)
def run_place(
    place: str, overlap: Overlap, data: dict[str, Any], training: dict[str, Any], gate: Thresholds
) -> Outcome | None:
    """Run preprocessing and training for one place, and never twice at once for the same."""
    with ExitStack() as stack:
        try:
            wait = None if overlap == "wait" else SKIP_AFTER_SECONDS
            stack.enter_context(registry.lock(f"weather-{places.slug(place)}", timeout_seconds=wait))
        except TimeoutError:
            get_run_logger().warning("Another run of %s is under way: skipped.", place)
            return None
        outcome: Outcome = train(preprocess(place, **data), gate=gate, **training)
        return outcome


@flow(name="weather-pipeline", log_prints=True, persist_result=False)
def weather_pipeline(
    places: Places = ["Seattle"],  # noqa: B006 - a form's default
    years: Years = 5,
    wet_day_mm: Millimetres = 1.0,
    min_observations: Days = 365,
    holdout_fraction: HoldoutFraction = 0.2,
    families: Families = list(model.FAMILIES),  # noqa: B006
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
    allow_recorded: bool = False,
    overlap: Overlap = "wait",
    refresh: bool = False,
    max_gap_days: GapDays = 3,
    max_filled_share: FilledShare = 0.02,
) -> list[Outcome]:
    """Train a model of tomorrow's rain for each place, on the weather of the last years.

    Args:
        places: Names ("Seattle", "Springfield, Illinois") or "latitude,longitude"; one that fails fails alone.
        years: How many years back from now.
        wet_day_mm: Precipitation from which a day counts as wet, in mm.
        min_observations: Fewest days to learn from; with fewer the run fails.
        holdout_fraction: Share of the days, the newest, that the model is judged on.
        families: Which families of estimators to search.
        folds: Folds of the cross-validation.
        gate: By how much a candidate must be better than champion and baselines.
        allow_recorded: Where Open-Meteo cannot be reached, take recorded observations (Seattle only).
        overlap: What a run does while another of the same place is under way: wait for it, or skip the place.
        refresh: Compute everything anew, even what has not changed.
        max_gap_days: Most days in a row, missing or blank, that are filled; beyond it the run fails.
        max_filled_share: Largest share of all days that is filled; beyond it the run fails.
    """
    data = {
        "years": years,
        "wet_day_mm": wet_day_mm,
        "min_observations": min_observations,
        "allow_recorded": allow_recorded,
        "max_gap_days": max_gap_days,
        "max_filled_share": max_filled_share,
    }
    training = {"holdout_fraction": holdout_fraction, "families": families, "folds": folds}
    names = list(dict.fromkeys(places))
    with refreshing(refresh), tags(*runtime.flow_run.tags):  # the components carry the pipeline's tags
        futures = run_place.map(names, *map(unmapped, (overlap, data, training, gate)))
        futures.wait()
    results = {name: future.state.result(raise_on_failure=False) for name, future in zip(names, futures, strict=True)}
    outcomes = [result for result in results.values() if isinstance(result, Outcome)]
    for name, outcome in results.items():
        if isinstance(outcome, Outcome):
            create_link_artifact(outcome.registered.run_url, f"MLflow run of {name}", key="mlflow-run")
    failed = {name: result for name, result in results.items() if isinstance(result, BaseException)}
    if len(failed) == len(names) == 1:
        raise failed[names[0]]
    if failed:
        reasons = " ".join(f"{name}: {error}" for name, error in failed.items())
        raise PlacesFailedError(f"{len(failed)} of {len(names)} places failed, the others are done. {reasons}")
    return outcomes
