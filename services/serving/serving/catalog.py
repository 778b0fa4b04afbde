"""Who answers: one reference to all champions, which a thread that follows the registry replaces."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from serving.model import Model, load
from serving.problems import RequestError
from serving.registry import Champion, ForeignArtifactsError, Registry, RegistryError
from serving.schema import UnservableError
from serving.settings import Settings

log = logging.getLogger("serving")


@dataclass(frozen=True)
class State:
    """What is served at a moment."""

    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    registered: frozenset[str] = frozenset()
    unservable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Champions that could not be loaded, and why; their predecessors go on."""
    answered: float | None = None
    """When MLflow last said who the champions are, in seconds since the epoch."""
    error: str | None = None
    """Why MLflow's last answer was none."""


class Catalog:
    """The champions. `state` is replaced whole: a request that has taken a model keeps it."""

    def __init__(self, settings: Settings) -> None:
        self.state = State()
        self._settings = settings
        self._refused: dict[str, Champion] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow-registry", daemon=True)

    def start(self) -> None:
        """Begin to follow the registry."""
        self._thread.start()

    def stop(self) -> None:
        """Follow it no longer."""
        self._stop.set()

    def model(self, name: str) -> Model:
        """Return who answers for a registered model.

        Raises:
            RequestError: Nobody, and why.
        """
        state = self.state
        model = state.models.get(name)
        if model is not None:
            return model
        if name in state.registered:
            reason = state.unservable.get(name)
            because = f": {reason}." if reason else " yet: give a version the alias `champion`."
            raise RequestError("no-champion", f"{name} has no champion that can be served{because}")
        if state.answered is None:
            raise RequestError("registry-unknown", "MLflow has not answered yet, so no model is known.")
        raise RequestError("unknown-model", f"No model {name!r} is registered.")

    def _follow(self) -> None:
        settings = self._settings
        user, password = settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value()
        with Registry(settings.mlflow_tracking_uri, (user, password) if user else None) as registry:
            while not self._stop.is_set():
                try:
                    self.refresh(registry)
                except RegistryError as error:
                    if self.state.error is None:
                        log.warning("%s. Going on with what there is.", error)
                    self.state = replace(self.state, error=str(error))
                except Exception:  # the thread must outlive what nobody foresaw
                    log.exception("Following the registry failed")
                    self.state = replace(self.state, error="an error of this service's own; see its log")
                self._stop.wait(settings.serving_poll_seconds)

    def refresh(self, registry: Registry) -> None:
        """Ask who the champions are, load those that are new, and let each take its predecessor's place.

        Raises:
            RegistryError: MLflow did not answer.
        """
        champions = registry.champions()
        kept = {name: model for name, model in self.state.models.items() if champions.get(name) is not None}
        refused = {
            name: why for name, why in self.state.unservable.items() if self._refused.get(name) == champions.get(name)
        }
        self.state = State(
            MappingProxyType(kept), frozenset(champions), MappingProxyType(refused), time.time(), self.state.error
        )
        for name, champion in champions.items():
            if champion is None or champion == self._refused.get(name):
                continue
            if name not in self.state.models or self.state.models[name].champion != champion:
                self._load(registry, champion)
        if self.state.error is not None:
            log.info("MLflow answers again.")
            self.state = replace(self.state, error=None)

    def _load(self, registry: Registry, champion: Champion) -> None:
        name, started, state = champion.model, time.perf_counter(), self.state
        try:
            model = load(registry, champion, self._settings)
        except RegistryError as error:  # files that cannot be had now; they are asked for again
            why = f"version {champion.version} cannot be fetched: {error}"
            log.warning("%s: %s", name, why)
            self.state = replace(state, unservable=MappingProxyType({**state.unservable, name: why}))
            return
        except Exception as error:  # noqa: BLE001 - an estimator may fail in any way; the others go on
            known = isinstance(error, UnservableError | ForeignArtifactsError)
            why = (
                f"version {champion.version} cannot be served: {error if known else f'{type(error).__name__}: {error}'}"
            )
            log.error("%s: %s", name, why)
            self._refused[name] = champion
            self.state = replace(state, unservable=MappingProxyType({**state.unservable, name: why}))
            return
        self._refused.pop(name, None)
        self.state = replace(
            state,
            models=MappingProxyType({**state.models, name: model}),
            unservable=MappingProxyType({other: why for other, why in state.unservable.items() if other != name}),
        )
        log.info("%s: version %s answers (%.1f s)", name, champion.version, time.perf_counter() - started)
