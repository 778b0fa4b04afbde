"""What `weather_pipeline` does, as a plain script: the same functions, without Prefect. Prints its seconds as JSON."""

import time

start = time.perf_counter()

import json  # noqa: E402 - the imports are what is measured first
from datetime import UTC, datetime, timedelta  # noqa: E402

import pandas as pd  # noqa: E402

from flows.settings import Settings  # noqa: E402
from flows.weather import features, model, open_meteo, tracking  # noqa: E402
from flows.weather.observations import Observations, Origin, Place  # noqa: E402

imported = time.perf_counter()
settings, seattle = Settings(), Place(name="Seattle", latitude=47.60621, longitude=-122.33207)
last = datetime.now(UTC).date() - timedelta(days=2)
first = (pd.Timestamp(last) - pd.DateOffset(years=5)).date()
query = open_meteo.archive_query(seattle, first, last)
answer = open_meteo.get_json(settings.weather_archive_url, query, settings.weather_timeout_seconds)
origin = Origin(place=seattle, source="open-meteo", url=settings.weather_archive_url)
observations = Observations(origin=origin, frame=open_meteo.parse_archive(answer))
examples = features.build_examples(observations, 1.0, 365)
training = model.fit_and_score(examples.frame, 0.2, 1.0)
fitted = time.perf_counter()
tracking.log_training(examples, training, {"holdout_fraction": 0.2}, "plain", {"id": "none", "url": ""})
end = time.perf_counter()
print(json.dumps({"imports": imported - start, "work": fitted - imported, "mlflow": end - fitted, "all": end - start}))
