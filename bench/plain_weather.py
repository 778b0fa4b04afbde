"""Run the steps of `weather_pipeline` as a plain script, without Prefect, and print their seconds as JSON."""

import time

start = time.perf_counter()

import json  # noqa: E402 - the imports are measured too
import os  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from datetime import UTC, datetime, timedelta  # noqa: E402

import mlflow  # noqa: E402
import pandas as pd  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

from flows.weather import features, model, open_meteo, plots, promotion  # noqa: E402
from flows.weather.features import TARGET  # noqa: E402
from flows.weather.observations import Place  # noqa: E402
from flows.weather.settings import WeatherSettings  # noqa: E402
from trainyard import tracking  # noqa: E402
from trainyard.contract import Alias, Tag  # noqa: E402
from trainyard.gate import Thresholds  # noqa: E402

MODEL = "plain-rain-tomorrow"

imports_end = time.perf_counter()
settings, seattle = WeatherSettings(), Place(name="Seattle", latitude=47.60621, longitude=-122.33207)
last = datetime.now(UTC).date() - timedelta(days=2)
first = (pd.Timestamp(last) - pd.DateOffset(years=5)).date()
observations = open_meteo.observe(settings.weather_archive_url, seattle, first, last, settings.weather_timeout_seconds)
examples = features.build_examples(observations, 1.0, 365)
train, holdout = model.split_by_time(examples.frame, 0.2)
candidates = model.make_candidates()
with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    scores = list(pool.map(lambda candidate: model.cross_validate(train, candidate, 5), candidates))
fitted_model = model.fit_and_score(train, holdout, model.choose_best(scores))
refitted = model.refit(fitted_model)
figures = plots.draw(fitted_model)
work_end = time.perf_counter()

tags = promotion.describe_model(examples, fitted_model)
trials = [tracking.Trial(score.candidate.name, dict(score.candidate.params), score.metrics) for score in scores]
dataset = tracking.Dataset("open-meteo", observations.origin.url, examples.frame, TARGET)
logged = tracking.log_training(
    tracking.TrainingRecord(
        experiment="plain",
        model=MODEL,
        estimator=refitted,
        evaluated=fitted_model.estimator,
        inputs=holdout.drop(columns=TARGET).head(5),
        dataset=dataset,
        params={"holdout_fraction": 0.2, "folds": 5},
        metrics=fitted_model.metrics,
        figures=figures,
        trials=trials,
        tags=tags,
    )
)
client = MlflowClient()
current = client.get_registered_model(MODEL).aliases.get(Alias.CHAMPION)
champion_tags = client.get_model_version(MODEL, current).tags if current else {}
champion = mlflow.sklearn.load_model(champion_tags[Tag.EVALUATED_MODEL]) if current else None
decision = promotion.compare_with_champion(tags, fitted_model, champion_tags or None, champion, Thresholds())
alias = Alias.CHAMPION if decision.promote else Alias.CHALLENGER
client.set_registered_model_alias(MODEL, alias, str(logged.version))
end = time.perf_counter()
print(
    json.dumps(
        {
            "imports": imports_end - start,
            "work": work_end - imports_end,
            "mlflow": end - work_end,
            "all": end - start,
        }
    )
)
