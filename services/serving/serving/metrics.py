"""What Prometheus asks for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from serving.catalog import Catalog
from serving.problems import RequestError
from serving.records import Recorder

UNKNOWN = "(unknown)"
"""The model's name in the metrics of requests for what is not registered: callers do not make series."""


class Champions(Collector):
    """The champions' versions and ages, and the registry's state, as they are when asked."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the names are known only by collecting."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        state, now = self._catalog.state, time.time()
        version = GaugeMetricFamily("serving_model_version", "The version that answers.", labels=["model"])
        age = GaugeMetricFamily("serving_model_age_seconds", "Time since it was registered.", labels=["model"])
        for name, model in state.models.items():
            version.add_metric([name], model.champion.version)
            age.add_metric([name], now - model.created)
        unservable = GaugeMetricFamily("serving_unservable", "Champions that cannot be loaded.", labels=["model"])
        for name in state.unservable:
            unservable.add_metric([name], 1)
        up = GaugeMetricFamily("serving_registry_up", "Whether MLflow answered when it was last asked.")
        up.add_metric([], float(state.answered is not None and state.error is None))
        yield from (version, age, unservable, up)


class Records(Collector):
    """What became of the answered requests' records, as it is when asked."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the names are known only by collecting."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield counts and gauges; nothing where nothing is recorded."""
        recorder = self._recorder
        if not recorder.enabled:
            return
        ends = CounterMetricFamily("serving_records", "Answered requests by what became of them.", labels=["end"])
        ends.add_metric(["written"], recorder.written)
        ends.add_metric(["dropped"], recorder.dropped)
        waiting = GaugeMetricFamily("serving_records_waiting", "Records on their way to the database.")
        waiting.add_metric([], recorder.waiting)
        up = GaugeMetricFamily("serving_records_up", "Whether the database answered when it was last asked.")
        up.add_metric([], float(recorder.error is None))
        yield from (ends, waiting, up)


@dataclass
class Watched:
    """A request under way, for as much as is known of it."""

    model: str = UNKNOWN


class Metrics:
    """Counts of requests, rows and predictions."""

    def __init__(self, catalog: Catalog, recorder: Recorder) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Champions(catalog))
        self.registry.register(Records(recorder))
        self.requests = Counter(
            "serving_requests", "Requests for predictions.", ["model", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "serving_request_seconds",
            "Time from a request's first byte here to its answer.",
            ["model"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.predictions = Counter(
            "serving_predictions", "Rows by the class they were said to be.", ["model", "class"], registry=self.registry
        )

    @contextmanager
    def watch(self) -> Iterator[Watched]:
        """Count the block as a request and take its time; say in it which model is asked."""
        watched, status, started = Watched(), 500, time.perf_counter()
        try:
            yield watched
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = 499
            raise
        finally:
            self.requests.labels(watched.model, str(status)).inc()
            self.seconds.labels(watched.model).observe(time.perf_counter() - started)
