"""Run the steps of `weather_pipeline` as a plain script, without Prefect, and print their seconds as JSON."""

import time

start = time.perf_counter()

import json  # noqa: E402 - the imports are measured too
import os  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from datetime import UTC, datetime, timedelta  # noqa: E402
from functools import partial  # noqa: E402

import pandas as pd  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

from flows.weather import features, open_meteo, plots, promotion  # noqa: E402
from flows.weather.features import TARGET  # noqa: E402
from flows.weather.model import make_problem  # noqa: E402
from flows.weather.observations import Place  # noqa: E402
from flows.weather.settings import WeatherSettings  # noqa: E402
from trainyard import fitting, tracking  # noqa: E402
from trainyard.comparison import make_comparison  # noqa: E402
from trainyard.contract import Alias  # noqa: E402
from trainyard.gate import FIRST_USE, Thresholds  # noqa: E402
from trainyard.problem import divide  # noqa: E402
from trainyard.registry import Champion  # noqa: E402

MODEL = "plain-rain-tomorrow"

imports_end = time.perf_counter()
settings, seattle = WeatherSettings(), Place(name="Seattle", latitude=47.60621, longitude=-122.33207)
last = datetime.now(UTC).date() - timedelta(days=2)
first = (pd.Timestamp(last) - pd.DateOffset(years=5)).date()
observations = open_meteo.observe(settings.weather_archive_url, seattle, first, last, settings.weather_timeout_seconds)
examples = features.build_examples(observations, 1.0, 365)
problem = make_problem(seattle)
parts = divide(problem, examples.frame)
with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    score = partial(fitting.cross_validate, problem, parts.train, folds=problem.folds)
    scores = list(pool.map(score, problem.list_candidates()))
evaluation = fitting.fit(problem, parts, fitting.choose_best(problem, scores))
refitted = fitting.refit(problem, parts, evaluation.candidate)
figures = plots.draw(evaluation, parts)
work_end = time.perf_counter()

tags = problem.split.describe(parts.train) | promotion.describe_model(examples)
trials = [tracking.Trial(score.candidate.name, dict(score.candidate.params), score.metrics) for score in scores]
dataset = tracking.Dataset("open-meteo", observations.origin.url, examples.frame, TARGET)
logged = tracking.log_training(
    tracking.TrainingRecord(
        experiment="plain",
        model=MODEL,
        estimator=refitted,
        evaluated=evaluation.estimator,
        inputs=problem.select_features(parts.holdout).head(5),
        dataset=dataset,
        params={"holdout_fraction": 0.2, "folds": problem.folds},
        metrics=evaluation.metrics,
        figures=figures,
        trials=trials,
        tags=tags,
    )
)
client = MlflowClient()
current = client.get_registered_model(MODEL).aliases.get(Alias.CHAMPION)
version = client.get_model_version(MODEL, current) if current else None
champion = Champion(MODEL, int(version.version), version.tags, FIRST_USE) if version else None
decision = make_comparison(problem, parts, evaluation, tags, Thresholds())(champion)
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
