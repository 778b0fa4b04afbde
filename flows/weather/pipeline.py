"""Will it rain tomorrow? The tasks and flows, in the order in which they run."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
import pandas as pd
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.utilities.urls import url_for
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.settings import Settings
from flows.weather import features, model, open_meteo, places, recorded, tracking
from flows.weather.features import Examples
from flows.weather.observations import Observations, Origin, Place, RateLimitedError, SourceUnreachableError

PlaceName = Annotated[str, Field(min_length=2, max_length=100)]
Years = Annotated[int, Field(ge=1, le=50)]
Millimetres = Annotated[float, Field(gt=0, le=100)]
Days = Annotated[int, Field(ge=60)]
HoldoutFraction = Annotated[float, Field(ge=0.05, le=0.5)]


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    version: int
    is_champion: bool
    metrics: dict[str, float]
    data_source: str
    mlflow_run_url: str


def may_pass(_task: Any, _task_run: TaskRun, state: State) -> bool:
    """Say whether the failure may be gone on the next try; a refusal or bad data will not be."""
    return isinstance(state.data, SourceUnreachableError | RateLimitedError)


@task(name="find-place", retries=4, retry_delay_seconds=0.3, retry_condition_fn=may_pass, persist_result=False)
def find_place(name: str) -> Place:
    """Return the place that Open-Meteo's geocoding finds for a name."""
    settings = Settings()
    query = places.geocoding_query(name)
    answer = open_meteo.get_json(settings.weather_geocoding_url, query, settings.weather_timeout_seconds)
    return places.parse_geocoding(answer, name)


@task(
    name="fetch-archive",
    retries=4,
    retry_delay_seconds=0.3,
    retry_condition_fn=may_pass,
    persist_result=False,
)
def fetch_archive(place: Place, years: int) -> Observations:
    """Return the daily observations of the last years from Open-Meteo's archive."""
    settings = Settings()
    # Two days back: yesterday is not over yet everywhere on Earth.
    last = datetime.now(UTC).date() - timedelta(days=2)
    first = (pd.Timestamp(last) - pd.DateOffset(years=years)).date()
    query = open_meteo.archive_query(place, first, last)
    answer = open_meteo.get_json(settings.weather_archive_url, query, settings.weather_timeout_seconds)
    url = str(httpx.URL(settings.weather_archive_url, params=query))
    origin = Origin(place=place, source="open-meteo", url=url)
    return Observations(origin=origin, frame=open_meteo.parse_archive(answer))


@flow(name="fetch-weather", log_prints=True, persist_result=False)
def fetch_weather(place: PlaceName = "Seattle", years: Years = 5, allow_recorded: bool = False) -> Observations:
    """Fetch daily observations of a place.

    Args:
        place: A name ("Seattle", "Springfield, Illinois") or "latitude,longitude".
        years: How many years back from now.
        allow_recorded: Where Open-Meteo cannot be reached, take recorded observations (Seattle only).
    """
    try:
        observations = fetch_archive(places.parse_coordinates(place) or find_place(place), years)
    except SourceUnreachableError as error:
        if not (allow_recorded and recorded.covers(place)):
            raise SourceUnreachableError(
                f"{error} Check the network and WEATHER_ARCHIVE_URL and WEATHER_GEOCODING_URL, or run with "
                "place=Seattle and allow_recorded=true to train on recorded observations (2012 to 2015)."
            ) from error
        get_run_logger().warning("%s USING RECORDED OBSERVATIONS of Seattle, 2012 to 2015.", error)
        observations = recorded.read_recorded(years)
    days, origin = observations.frame.index, observations.origin
    print(f"{origin.place.name}: {len(days)} days from {days.min():%F} to {days.max():%F} ({origin.source})")
    return observations


@flow(name="preprocess", log_prints=True, persist_result=False)
def preprocess(
    place: PlaceName = "Seattle",
    years: Years = 5,
    wet_day_mm: Millimetres = 1.0,
    min_observations: Days = 365,
    allow_recorded: bool = False,
) -> Examples:
    """Fetch observations and turn them into examples: a day's features, and whether the next was wet.

    Args:
        place: A name ("Seattle", "Springfield, Illinois") or "latitude,longitude".
        years: How many years back from now.
        wet_day_mm: Precipitation from which a day counts as wet, in mm.
        min_observations: Fewest days to learn from; with fewer the run fails.
        allow_recorded: Where Open-Meteo cannot be reached, take recorded observations (Seattle only).
    """
    observations = fetch_weather(place, years, allow_recorded)
    examples = features.build_examples(observations, wet_day_mm, min_observations)
    share = examples.frame[features.TARGET].mean()
    print(f"{len(examples.frame)} examples with {examples.frame.shape[1] - 1} features; {share:.0%} of days wet")
    return examples


@task(name="fit", persist_result=False)
def fit(examples: Examples, holdout_fraction: float, regularization: float) -> model.Training:
    """Fit the estimator on the older days and judge it on the newer ones."""
    return model.fit_and_score(examples.frame, holdout_fraction, regularization)


@task(name="log-to-mlflow", persist_result=False)
def log_run(examples: Examples, training: model.Training, settings: dict[str, float]) -> tracking.Registered:
    """Log and register the model; MLflow's run links to the flow run that somebody started."""
    run_id = runtime.flow_run.root_flow_run_id
    flow_run = {"id": run_id, "url": url_for("flow-run", run_id) or ""}
    return tracking.log_training(examples, training, settings, runtime.flow_run.name, flow_run)


def report(examples: Examples, training: model.Training, logged: tracking.Registered) -> Outcome:
    """Tell the log and the run's page what came out, with links to MLflow."""
    ui, origin = Settings().mlflow_ui_url.rstrip("/"), examples.origin
    run_url = f"{ui}/#/experiments/{logged.experiment_id}/runs/{logged.run_id}"
    version = f"{tracking.MODEL} version {logged.version}"
    rank = "the new champion" if logged.is_champion else "registered; the champion stays"
    table, days = model.compare(training.metrics), examples.frame.index
    create_markdown_artifact(
        f"# [{version}]({ui}/#/models/{tracking.MODEL}/versions/{logged.version}): {rank}\n\n"
        f"Data: {origin.place.name}, {days.min():%F} to {days.max():%F}, from **{origin.source}**\n\n"
        f"{table}\n\nJudged on the newest {len(training.holdout)} days. [MLflow run]({run_url})\n",
        key="training-report",
    )
    print(f"{version} is {rank} (data: {origin.source})\n{table}\n{run_url}")
    return Outcome(logged.version, logged.is_champion, training.metrics, origin.source, run_url)


@flow(name="train", log_prints=True, persist_result=False)
def train(
    examples: SkipJsonSchema[Examples | None] = None,
    holdout_fraction: HoldoutFraction = 0.2,
    regularization: Annotated[float, Field(gt=0)] = 1.0,
) -> Outcome:
    """Fit, judge, log to MLflow and register the model; it becomes champion if it is better.

    Args:
        examples: What `preprocess` returns; without it, those of `preprocess` with its defaults.
        holdout_fraction: Share of the days, the newest, that the model is judged on.
        regularization: Strength of the L2 penalty.
    """
    tracking.require_server()
    if examples is None:
        examples = preprocess()
    training = fit(examples, holdout_fraction, regularization)
    settings = {"holdout_fraction": holdout_fraction, "regularization": regularization}
    logged = log_run(examples, training, settings)
    return report(examples, training, logged)


@flow(name="weather-pipeline", log_prints=True, persist_result=False)
def weather_pipeline(
    place: PlaceName = "Seattle",
    years: Years = 5,
    wet_day_mm: Millimetres = 1.0,
    min_observations: Days = 365,
    holdout_fraction: HoldoutFraction = 0.2,
    allow_recorded: bool = False,
) -> Outcome:
    """Train a model of tomorrow's rain on the weather of the last years.

    Args:
        place: A name ("Seattle", "Springfield, Illinois") or "latitude,longitude".
        years: How many years back from now.
        wet_day_mm: Precipitation from which a day counts as wet, in mm.
        min_observations: Fewest days to learn from; with fewer the run fails.
        holdout_fraction: Share of the days, the newest, that the model is judged on.
        allow_recorded: Where Open-Meteo cannot be reached, take recorded observations (Seattle only).
    """
    examples = preprocess(place, years, wet_day_mm, min_observations, allow_recorded)
    outcome = train(examples, holdout_fraction)
    create_link_artifact(outcome.mlflow_run_url, "MLflow run", key="mlflow-run")
    return outcome
