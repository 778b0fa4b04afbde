"""The weather pipeline: its tasks and flows, in the order in which they run."""

from contextlib import ExitStack
from typing import Any

import pandas as pd
from prefect import flow, get_run_logger, runtime, tags, task, unmapped
from prefect.artifacts import create_link_artifact
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic.json_schema import SkipJsonSchema
from sklearn.pipeline import Pipeline

from flows.weather import model, parameters, plots, promotion, sources
from flows.weather import places as place_names
from flows.weather.features import TARGET, Examples
from flows.weather.ingest import HOUR, locate, name_run, preprocess
from flows.weather.model import Family, FittedModel
from flows.weather.parameters import DATA, TRAINING, DataParameters, Training, TrainingParameters
from flows.weather.settings import WeatherSettings
from trainyard import registry, search, tracking
from trainyard.cache import cached, refreshing, stored_at_once
from trainyard.candidates import Candidate, Score
from trainyard.contract import RunTag, Tag
from trainyard.errors import TrainyardError
from trainyard.fingerprint import code_fingerprint, fingerprint
from trainyard.gate import Decision, Thresholds
from trainyard.locks import lock
from trainyard.outcome import Outcome, log_proposal, report
from trainyard.registry import Champion, Proposal

EXPERIMENT = "weather"
LOCK_TIMEOUT_SECONDS = {"wait": 3600.0, "skip": 1.0}
"""By `overlap`, how long a run waits for another of the same place."""
MAX_PARALLEL_PLACES = 4
"""Each place has a thread of its own, and its search one for each core."""


class PlacesFailedError(TrainyardError):
    """The pipeline failed for some places; the message names them."""


@task(name="cross-validate", task_run_name="{candidate.name}", **cached())
def cross_validate(train_days: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Evaluate one candidate by cross-validation."""
    return model.cross_validate(train_days, candidate, folds)


@task(name="search", **cached())
def search_candidates(train_days: pd.DataFrame, families: list[Family], folds: int) -> search.SearchResult:
    """Evaluate all candidates in parallel; as one task, an unchanged search costs one cache look-up."""
    return search.search(cross_validate, model.make_candidates(families), train_days=train_days, folds=folds)


@task(name="fit", **cached())
def fit(train_days: pd.DataFrame, holdout: pd.DataFrame, candidate: Candidate) -> FittedModel:
    """Fit the best candidate, and evaluate it and the baselines on the holdout."""
    return model.fit_and_score(train_days, holdout, candidate)


@task(name="refit", **cached())
def refit(fitted: FittedModel) -> Pipeline:
    """Fit the model that is served on all days, those of the holdout included."""
    return model.refit(fitted)


@task(name="compare-sources", persist_result=False)
def describe_sources(examples: Examples, fitted: FittedModel) -> str:
    """Return what the difference between the archive and the live source does to the model's score, for its model card."""
    if examples.origin.source != "open-meteo":
        return (
            "The model was fitted on recorded observations of a station, and is asked with the forecast API's values."
        )
    settings = WeatherSettings()
    url, place = settings.weather_forecast_url, examples.origin.place
    try:
        live_days = sources.fetch_live_days(url, place, settings.weather_timeout_seconds)
        return sources.compare_sources(fitted, live_days, examples.wet_day_mm).describe()
    except TrainyardError as error:
        get_run_logger().warning("The difference between archive and live source was not measured: %s", error)
        return "Live predictions take their features from the forecast API; the difference was not measured."


@task(name="log-to-mlflow", **cached())
def log_run(
    examples: Examples,
    fitted: FittedModel,
    refitted: Pipeline | None,
    trials: list[tracking.Trial],
    settings: dict[str, Any],
    digests: dict[str, str],
    sources_differ: str,
) -> tracking.Registered:
    """Log the training to MLflow; with a model to serve also its candidates, plots and tables, and register it."""
    return tracking.log_training(
        tracking.TrainingRecord(
            experiment=EXPERIMENT,
            model=place_names.model_name(examples.origin.place),
            estimator=fitted.estimator if refitted is None else refitted,
            evaluated=fitted.estimator,
            description=f"{promotion.describe_data(examples)}\n\n{sources_differ}",
            inputs=fitted.holdout.drop(columns=TARGET).head(5),
            dataset=tracking.Dataset(examples.origin.source, examples.origin.url, examples.frame, TARGET),
            params=describe_training(examples, fitted) | settings,
            metrics=fitted.metrics,
            figures={} if refitted is None else plots.draw(fitted),
            tables={} if refitted is None else model.evaluation_tables(fitted, refitted),
            trials=trials,
            tags=promotion.describe_model(examples, fitted) | digests,
        ),
        register=refitted is not None,
    )


def make_comparison(examples: Examples, fitted: FittedModel, gate: Thresholds) -> registry.Compare:
    """Return what compares the model with the champion on days that neither of them was fitted on."""

    def compare(champion: Champion | None) -> Decision:
        tags = promotion.describe_model(examples, fitted)
        if champion is None:
            return promotion.compare_with_champion(tags, fitted, None, None, gate)
        estimator = champion.load_estimator()
        return promotion.compare_with_champion(tags, fitted, champion.tags, estimator, gate, champion.reuse)

    return compare


@task(name="compare", retries=2, retry_delay_seconds=1, persist_result=False)
def propose(examples: Examples, fitted: FittedModel, digests: dict[str, str], gate: Thresholds) -> Proposal:
    """Decide whether the model is to become the champion, and whether it is worth a version."""
    name, compare = place_names.model_name(examples.origin.place), make_comparison(examples, fitted, gate)
    return registry.propose(name, digests[Tag.CANDIDATE_DIGEST], digests[Tag.RECIPE], compare, gate)


@task(name="promote", retries=2, retry_delay_seconds=1, persist_result=False)
def promote(
    examples: Examples, fitted: FittedModel, logged: tracking.Registered, proposal: Proposal, gate: Thresholds
) -> Decision:
    """Make the model's version the champion, or the challenger."""
    if logged.version is None:
        return proposal.decision
    compare = make_comparison(examples, fitted, gate)
    return registry.apply_gate(logged.model, logged.version, compare, gate, proposal)


def make_digests(fitted: FittedModel, examples: Examples, training: TrainingParameters) -> dict[str, str]:
    """Return the tags that tell a new recipe from the champion's own, and a new candidate from an unchanged one."""
    code = code_fingerprint(model.fit_and_score)[:12]
    decided = [examples.wet_day_mm, training.holdout_fraction, sorted(training.families), training.folds]
    return {
        Tag.CODE: code,
        Tag.RECIPE: fingerprint([code, decided])[:12],
        Tag.CANDIDATE_DIGEST: fingerprint([fitted.candidate, fitted.train, fitted.holdout, fitted.predictions])[:16],
    }


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
    """Search for the best candidate, fit it, and promote it if it is better than the champion.

    Without `examples`, those of the default place are used. A candidate of the champion's recipe that is not better is
    logged as one run, without a version.

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
    digests = make_digests(fitted, examples, training)
    proposal = propose(examples, fitted, digests, training.gate)
    refitted = refit(fitted) if proposal.is_new and proposal.version is None else None
    sources_differ = "" if refitted is None else describe_sources(examples, fitted)
    logged, reused = log_proposal(
        place_names.model_name(examples.origin.place),
        proposal,
        log_run,
        *(examples, fitted, refitted, trials, settings, digests, sources_differ),
    )
    decision = promote(examples, fitted, logged, proposal, training.gate)
    outcome = Outcome(logged, decision, fitted.metrics, reused)
    report(outcome, summarize(examples, fitted), model.metrics_table(fitted.metrics))
    return outcome


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
