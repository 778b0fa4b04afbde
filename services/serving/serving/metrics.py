"""Metrics for Prometheus."""

import time
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from serving.admission import Limiters
from serving.batches import Predictions
from serving.catalog import Catalog
from serving.label_store import LabelStore
from serving.model import Model, label
from serving.problems import RequestError
from serving.recorder import Recorder
from serving.shadow import Shadow
from serving.traffic import Traffic

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
    """Written, dropped and queued records, and stored labels, read at each scrape."""

    def __init__(self, recorder: Recorder, labels: LabelStore) -> None:
        self._recorder, self._labels = recorder, labels

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the metrics are known only at a scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield counters and gauges, or nothing where recording is off."""
        recorder = self._recorder
        if not recorder.enabled:
            return
        ends = CounterMetricFamily(
            "serving_records", "Records by their end: written, dropped or skipped.", labels=["end"]
        )
        ends.add_metric(["written"], recorder.written)
        ends.add_metric(["dropped"], recorder.dropped)
        ends.add_metric(["skipped"], recorder.skipped)
        waiting = GaugeMetricFamily("serving_records_waiting", "Records in the queue for the database.")
        waiting.add_metric([], recorder.queued)
        up = GaugeMetricFamily("serving_records_up", "Whether the last statement in the database succeeded.")
        up.add_metric([], float(recorder.error is None))
        labels = CounterMetricFamily("serving_labels", "Stored labels: new ones, and corrections of earlier ones.")
        labels.add_metric([], self._labels.stored)
        yield from (ends, waiting, up, labels)


class LimiterCollector(Collector):
    """Requests in flight, queued, refused and dropped, read at each scrape."""

    def __init__(self, limiters: Limiters) -> None:
        self._limiters = limiters

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the metrics are known only at a scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield counters, gauges and a summary."""
        in_flight = GaugeMetricFamily("serving_in_flight", "Requests that are not answered yet.", labels=["model"])
        shed = CounterMetricFamily(
            "serving_shed",
            "Requests that were not computed: refused as the queue was full, expired in it, or abandoned by the caller.",
            labels=["model", "reason"],
        )
        queued = SummaryMetricFamily("serving_queue_seconds", "Time that requests wait for a model.", labels=["model"])
        for name, limiter in list(self._limiters.of_models.items()):
            in_flight.add_metric([name], limiter.in_flight)
            for reason in ("refused", "expired", "abandoned"):
                shed.add_metric([name, reason], getattr(limiter, reason))
            queued.add_metric([name], limiter.waits, limiter.waited_seconds)
        yield from (in_flight, shed, queued)


class ShadowCollector(Collector):
    """Requests that were copied to challengers, read at each scrape."""

    def __init__(self, shadow: Shadow) -> None:
        self._shadow = shadow

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the metrics are known only at a scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield a counter, or nothing where there is no shadow traffic."""
        if not self._shadow.enabled:
            return
        ends = CounterMetricFamily("serving_shadow", "Requests copied to challengers by their end.", labels=["end"])
        for end in ("predicted", "dropped", "failed"):
            ends.add_metric([end], getattr(self._shadow, end))
        yield ends


@dataclass(slots=True)
class Measurement:
    """A request in progress."""

    model: str = UNKNOWN
    version: int | None = None


class Metrics:
    """Counts of requests, rows and predictions."""

    def __init__(
        self, catalog: Catalog, recorder: Recorder, labels: LabelStore, limiters: Limiters, shadow: Shadow
    ) -> None:
        self.traffic = Traffic()
        self._children: dict[tuple[str, int | None, int], tuple[Counter, Histogram]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(LimiterCollector(limiters))
        self.registry.register(ShadowCollector(shadow))
        self.registry.register(CatalogCollector(catalog))
        self.registry.register(RecorderCollector(recorder, labels))
        self.requests = Counter(
            "serving_requests", "Requests for predictions.", ["model", "version", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "serving_request_seconds",
            "Time to answer a request.",
            ["model", "version"],
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
            self._count(measurement, status, time.perf_counter() - started)

    def _count(self, measurement: Measurement, status: int, seconds: float) -> None:
        model, version = measurement.model, measurement.version
        children = self._children.get((model, version, status))
        if children is None:
            number = str(version or "")
            children = self.requests.labels(model, number, str(status)), self.seconds.labels(model, number)
            self._children[model, version, status] = children
        children[0].inc()
        children[1].observe(seconds)
        if model != UNKNOWN:
            self.traffic.add(model, version, status, seconds)

    def count_predictions(self, model: Model, predictions: Predictions) -> None:
        """Count predictions by class, and all numbers that a regressor predicts as `value`."""
        name = model.champion.model
        if model.classes is None:
            self.predictions.labels(name, "value").inc(len(predictions.values))
            return
        for value, number in Counts(predictions.values).items():
            self.predictions.labels(name, label(value)).inc(number)
