"""Shadow traffic: a model's challenger predicts a share of its requests too, and only the records show it.

The caller never waits for it: requests are copied to a bounded queue after they are answered, and dropped where it is
full or the champion is busy.
"""

import logging
import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving.admission import Limiter
from serving.errors import RegistryError
from serving.loading import Loader
from serving.model import Model
from serving.payloads import Table
from serving.prediction_id import seconds_of
from serving.record import Record
from serving.recorder import Recorder
from serving.registry import Champion, Registry
from serving.settings import Settings
from trainyard.contract import Alias

log = logging.getLogger("serving")

MAX_QUEUED = 8
MAX_CHAMPION_IN_FLIGHT = 4
"""With more requests in flight for the champion, none is copied."""


class Shadow:
    """Follows the alias `challenger`, and records what its versions predict."""

    def __init__(self, settings: Settings, loader: Loader, recorder: Recorder) -> None:
        self._settings, self._loader, self._recorder = settings, loader, recorder
        self.models: Mapping[str, Model] = {}
        """The loaded challengers by the names of their registered models."""
        self.predicted = self.dropped = self.failed = 0
        self._refused: set[Champion] = set()
        self._queued = 0
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "shadow")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="poll-challengers", daemon=True)

    @property
    def enabled(self) -> bool:
        """Whether a setting asks for shadow traffic, and its predictions are recorded."""
        return self._settings.serving_shadow_fraction > 0 and self._recorder.enabled

    def start(self) -> None:
        """Start to follow the challengers."""
        if self.enabled:
            self._thread.start()

    def stop(self) -> None:
        """Drop what is queued."""
        self._stop.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def copy(
        self,
        champion: Model,
        table: Table,
        about: Mapping[str, Any] | None,
        limiter: Limiter,
        prediction_id: int | None = None,
    ) -> None:
        """Queue the rows of an answered request for the challenger, or drop them; return at once."""
        challenger = self.models.get(champion.champion.model)
        if challenger is None or challenger.champion == champion.champion:
            return
        if random.random() >= self._settings.serving_shadow_fraction:  # noqa: S311 - a sample
            return
        with self._lock:
            if self._queued >= MAX_QUEUED or limiter.in_flight > MAX_CHAMPION_IN_FLIGHT:
                self.dropped += 1
                return
            self._queued += 1
        try:
            self._worker.submit(self._predict, challenger, champion, table, about, prediction_id)
        except RuntimeError:  # the service stops
            self._end()

    def _predict(
        self,
        challenger: Model,
        champion: Model,
        table: Table,
        about: Mapping[str, Any] | None,
        prediction_id: int | None,
    ) -> None:
        try:
            own = select_columns(table, champion.schema.names, challenger.schema.names)
            predictions = challenger.predict_now(own)
            version, names = challenger.champion, challenger.schema.names
            # With the time of the answer, labels of the answer are found in the same partition.
            at = time.time() if prediction_id is None else seconds_of(prediction_id)
            self._recorder.put(
                Record(
                    at,
                    version.model,
                    version.version,
                    names,
                    own.columns,
                    predictions,
                    about,
                    shadow=True,
                    prediction_id=prediction_id,
                    classes=challenger.classes,
                )
            )
            self.predicted += 1
        except Exception as error:  # noqa: BLE001 - an estimator may fail in any way, and no request depends on it
            self.failed += 1
            if self.failed == 1:
                log.warning("A challenger of %s cannot predict: %s", champion.champion.model, error)
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._queued -= 1

    def _poll(self) -> None:
        settings = self._settings
        with Registry.of(settings) as registry:
            while not self._stop.is_set():
                try:
                    self._refresh(registry)
                except RegistryError:  # the catalog's thread logs it
                    pass
                except Exception:  # the thread must survive any bug
                    log.exception("Following the challengers failed")
                self._stop.wait(settings.serving_poll_seconds)

    def _refresh(self, registry: Registry) -> None:
        found = {name: version for name, version in registry.champions(Alias.CHALLENGER).items() if version is not None}
        self._refused &= set(found.values())
        self.models = {name: model for name, model in self.models.items() if found.get(name) == model.champion}
        for name, version in found.items():
            if name in self.models or version in self._refused:
                continue
            try:
                self.models = {**self.models, name: self._loader.load(registry, version)}
                log.info("%s: version %s is its challenger, which predicts in the shadow", name, version.version)
            except RegistryError:
                raise
            except Exception as error:  # noqa: BLE001 - the others go on
                self._refused.add(version)
                log.warning("%s: its challenger, version %s, cannot be served: %s", name, version.version, error)


def select_columns(table: Table, given: tuple[str, ...], wanted: tuple[str, ...]) -> Table:
    """Return the wanted columns of rows.

    Raises:
        ValueError: One of them is not there.
    """
    if given == wanted:
        return table
    return Table([table.columns[given.index(name)] for name in wanted], table.rows)
