"""The weather pipeline: its tasks and flows, in the order in which they run."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from prefect import flow, get_run_logger, runtime, tags, task, unmapped
from prefect.artifacts import create_link_artifact
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic.json_schema import SkipJsonSchema
from sklearn.base import BaseEstimator

from flows.weather import model, parameters, promotion, sources
from flows.weather import places as place_names
from flows.weather.features import Examples
from flows.weather.ingest import HOUR, locate, name_run, preprocess
from flows.weather.parameters import DATA, TRAINING, DataParameters, Training, TrainingParameters
from flows.weather.settings import WeatherSettings
from flows.weather.truth import wet_day_of
from trainyard import tracking
from trainyard.cache import cached, refreshing, stored_at_once
from trainyard.contract import RunTag
from trainyard.errors import TrainyardError
from trainyard.fitting import Evaluation
from trainyard.locks import lock
from trainyard.problem import Parts, Problem
from trainyard.training import Details, Outcome, Steps
from trainyard.training import log_run as log_to_mlflow
from trainyard.training import train as train_model

LOCK_TIMEOUT_SECONDS = {"wait": 3600.0, "skip": 1.0}
"""By `overlap`, how long a run waits for another of the same place."""
MAX_PARALLEL_PLACES = 4
"""Each place has a thread of its own, and its search one for each core."""


class PlacesFailedError(TrainyardError):
    """The pipeline failed for some places; the message names them."""


@task(name="log-to-mlflow", **cached())
def log_run(
    problem: Problem,
    parts: Parts,
    evaluation: Evaluation,
    refitted: BaseEstimator | None,
    trials: list[tracking.Trial],
    details: Details,
) -> tracking.Registered:
    """Log the training as every other; the model card also says what the live source does to the model's score."""
    if refitted is not None:
        card = f"{details.description}\n\n{describe_sources(parts, evaluation, details.tags)}"
        details = replace(details, description=card)
    return log_to_mlflow.fn(problem, parts, evaluation, refitted, trials, details)


def describe_sources(parts: Parts, evaluation: Evaluation, tags: Mapping[str, str]) -> str:
    """Return what the difference between the archive and the live source does to the model's score, for its model card."""
    place = place_names.place_of(tags)
    if tags["data_source"] != "open-meteo" or place is None:
        return (
            "The model was fitted on recorded observations of a station, and is asked with the forecast API's values."
        )
    settings = WeatherSettings()
    try:
        live_days = sources.fetch_live_days(settings.weather_forecast_url, place, settings.weather_timeout_seconds)
        wet_day_mm = wet_day_of(tags)
        return sources.compare_sources(evaluation.estimator, parts.holdout, live_days, wet_day_mm).describe()
    except TrainyardError as error:
        get_run_logger().warning("The difference between archive and live source was not measured: %s", error)
        return "Live predictions take their features from the forecast API; the difference was not measured."


def describe_training(examples: Examples, training: TrainingParameters) -> Details:
    """Return what is logged of a training besides what the problem tells."""
    origin, days = examples.origin, examples.frame.index
    return Details(
        source=origin.url,
        dataset=origin.source,
        params={
            "place": origin.place.name,
            "latitude": origin.place.latitude,
            "longitude": origin.place.longitude,
            "first_day": f"{days.min():%F}",
            "last_day": f"{days.max():%F}",
            "features": len(examples.frame.columns) - 1,
            "holdout_fraction": training.holdout_fraction,
        },
        tags=promotion.describe_model(examples),
        description=promotion.describe_data(examples),
    )


@flow(name="train", log_prints=True, persist_result=False, timeout_seconds=4 * HOUR)
def train(
    examples: SkipJsonSchema[Examples | None] = None,
    training: Training = TRAINING,
) -> Outcome:
    """Search for the best candidate, fit it, and promote it if it is better than the champion.

    Without `examples`, those of the default place are used. A candidate of the champion's recipe that is not better is
    logged as one run, without a version.

    Raises:
        TrackingUnreachableError: MLflow does not answer.
        DataError: The training set, the holdout or all folds have only wet or only dry days, or too few.
        SearchError: All candidates failed.
    """
    examples = examples or preprocess()
    problem = model.make_problem(
        examples.origin.place, examples.wet_day_mm, training.families, training.folds, training.holdout_fraction
    )
    details = describe_training(examples, training)
    return train_model(problem, examples.frame, details, training.gate, steps=Steps(log=log_run))


@task(name="place", task_run_name="{place}", persist_result=False)
def run_place(
    place: str, overlap: parameters.Overlap, data: DataParameters, training: TrainingParameters, label: str = ""
) -> Outcome | None:
    """Run preprocessing and training for one place, under a lock that keeps other runs of the same place out.

    With a label, the names of the subflow runs are the place and the label.
    """
    name = f"{place} {label}" if label else None
    located = locate(place, data)
    with stored_at_once(), ExitStack() as stack:
        try:
            stack.enter_context(lock(f"weather-{place_names.place_key(located)}", LOCK_TIMEOUT_SECONDS[overlap]))
        except TimeoutError:
            if overlap == "wait":
                raise
            get_run_logger().warning("Skipped %s: another run of it is active.", place)
            return None
        examples = name_run(preprocess, name)(located, data)
        outcome: Outcome = name_run(train, name)(examples, training)
        return outcome


@flow(
    name="weather-pipeline",
    log_prints=True,
    persist_result=False,
    timeout_seconds=8 * HOUR,
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_PARALLEL_PLACES),  # type: ignore[arg-type]
)
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
    # The subflows carry the pipeline's tags; where they are many, one mail of the pipeline lists them all.
    component_tags = {*runtime.flow_run.tags} - ({RunTag.MAIL} if len(names) > 1 else set())
    label = runtime.flow_run.name if len(names) > 1 else ""
    with refreshing(refresh), tags(*component_tags):
        futures = run_place.map(names, *map(unmapped, (overlap, data, training, label)))
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


if __name__ == "__main__":  # on this machine, after eval "$(make -s env)": python -m flows.weather.pipeline
    weather_pipeline()
