"""Metrics for Prometheus."""

import time
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from serving.catalog import Catalog
from serving.model import Model, Predictions, label
from serving.problems import RequestError
from serving.recorder import Recorder

UNKNOWN = "(unknown)"
"""The label of requests for names that are not registered: unknown model names create no time series."""


class CatalogCollector(Collector):
    """Versions and ages of the served models, and whether the registry answers, read at each scrape."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the metrics are known only at a scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        state, now = self._catalog.state, time.time()
        version = GaugeMetricFamily("serving_model_version", "The served version.", labels=["model"])
        age = GaugeMetricFamily("serving_model_age_seconds", "Time since it was registered.", labels=["model"])
        for name, model in state.models.items():
            version.add_metric([name], model.champion.version)
            age.add_metric([name], now - model.created)
        unservable = GaugeMetricFamily("serving_unservable", "Champions that could not be loaded.", labels=["model"])
        for name in state.unservable:
            unservable.add_metric([name], 1)
        up = GaugeMetricFamily("serving_registry_up", "Whether the last poll of MLflow succeeded.")
        up.add_metric([], float(state.refreshed_at is not None and state.error is None))
        yield from (version, age, unservable, up)


class RecorderCollector(Collector):
    """Written, dropped and queued records, read at each scrape."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the metrics are known only at a scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield counters and gauges, or nothing where recording is off."""
        recorder = self._recorder
        if not recorder.enabled:
            return
        ends = CounterMetricFamily("serving_records", "Records by their end: written or dropped.", labels=["end"])
        ends.add_metric(["written"], recorder.written)
        ends.add_metric(["dropped"], recorder.dropped)
        waiting = GaugeMetricFamily("serving_records_waiting", "Records in the queue for the database.")
        waiting.add_metric([], recorder.queued)
        up = GaugeMetricFamily("serving_records_up", "Whether the last statement in the database succeeded.")
        up.add_metric([], float(recorder.error is None))
        yield from (ends, waiting, up)


@dataclass
class Measurement:
    """A request in progress."""

    model: str = UNKNOWN


class Metrics:
    """Counts of requests, rows and predictions."""

    def __init__(self, catalog: Catalog, recorder: Recorder) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(CatalogCollector(catalog))
        self.registry.register(RecorderCollector(recorder))
        self.requests = Counter(
            "serving_requests", "Requests for predictions.", ["model", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "serving_request_seconds",
            "Time to answer a request.",
            ["model"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.predictions = Counter(
            "serving_predictions", "Rows by their predicted class.", ["model", "class"], registry=self.registry
        )

    @contextmanager
    def measure(self) -> Iterator[Measurement]:
        """Count the block as a request and time it; the block sets the model once it is known."""
        measurement, status, started = Measurement(), 500, time.perf_counter()
        try:
            yield measurement
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = 499
            raise
        finally:
            self.requests.labels(measurement.model, str(status)).inc()
            self.seconds.labels(measurement.model).observe(time.perf_counter() - started)

    def count_predictions(self, model: Model, predictions: Predictions) -> None:
        """Count predictions by class, and all numbers that a regressor predicts as `value`."""
        name = model.champion.model
        if model.classes is None:
            self.predictions.labels(name, "value").inc(len(predictions.values))
            return
        for value, number in Counts(predictions.values).items():
            self.predictions.labels(name, label(value)).inc(number)
