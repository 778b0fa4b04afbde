"""The served champions, refreshed by a polling thread."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from serving.errors import RegistryError, UnservableError
from serving.model import Model, load
from serving.problems import RequestError
from serving.registry import Champion, Registry
from serving.settings import Settings
from trainyard.contract import Alias

log = logging.getLogger("serving")


@dataclass(frozen=True)
class State:
    """The registry as of the last poll, and the models that are loaded. Never changed, only replaced."""

    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    """The served model of each registered name."""
    registered: frozenset[str] = frozenset()
    """The names of all registered models, with or without a champion."""
    unservable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By name, why the champion could not be loaded; the previous champion stays in `models`."""
    refreshed_at: float | None = None
    """When MLflow last listed the champions, in seconds since the epoch; None before the first time."""
    error: str | None = None
    """Why the last poll failed, or None if it succeeded."""


class Catalog:
    """Loads the champions and swaps them in: `state` is one reference, so a request keeps the model that it took."""

    def __init__(self, settings: Settings) -> None:
        self.state = State()
        self._settings = settings
        self._refused: dict[str, Champion] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="poll-registry", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stop.set()

    def model(self, name: str) -> Model:
        """Return the champion of a registered model.

        Raises:
            RequestError: No champion is served under this name.
        """
        state = self.state
        model = state.models.get(name)
        if model is not None:
            return model
        if name in state.registered:
            reason = state.unservable.get(name)
            because = f": {reason}." if reason else f" yet: give a version the alias `{Alias.CHAMPION}`."
            raise RequestError("no-champion", f"{name} has no champion that can be served{because}")
        if state.refreshed_at is None:
            raise RequestError("registry-unknown", "MLflow has not answered yet, so no model is known.")
        raise RequestError("unknown-model", f"No model {name!r} is registered.")

    def _poll(self) -> None:
        settings = self._settings
        user, password = settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value()
        with Registry(settings.mlflow_tracking_uri, (user, password) if user else None) as registry:
            while not self._stop.is_set():
                try:
                    self.refresh(registry)
                except RegistryError as error:
                    if self.state.error is None:
                        log.warning("%s. The loaded models stay in use.", error)
                    self.state = replace(self.state, error=str(error))
                except Exception:  # the thread must survive any bug
                    log.exception("Polling the registry failed")
                    self.state = replace(self.state, error="an internal error; see the service's log")
                self._stop.wait(settings.serving_poll_seconds)

    def refresh(self, registry: Registry) -> None:
        """List the champions, load the new ones and swap each in.

        Raises:
            RegistryError: MLflow did not answer.
        """
        champions = registry.champions()
        kept = {name: model for name, model in self.state.models.items() if champions.get(name) is not None}
        unservable = {
            name: reason
            for name, reason in self.state.unservable.items()
            if self._refused.get(name) == champions.get(name)
        }
        self.state = State(
            MappingProxyType(kept), frozenset(champions), MappingProxyType(unservable), time.time(), self.state.error
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
        name, started = champion.model, time.perf_counter()
        try:
            model = load(registry, champion, self._settings)
        except RegistryError as error:  # the next poll tries again
            reason = f"version {champion.version} cannot be fetched: {error}"
            log.warning("%s: %s", name, reason)
            self._set_unservable(name, reason)
        except Exception as error:  # noqa: BLE001 - an estimator may fail in any way; the other models must load
            known = isinstance(error, UnservableError)
            reason = (
                f"version {champion.version} cannot be served: {error if known else f'{type(error).__name__}: {error}'}"
            )
            log.error("%s: %s", name, reason)
            self._refused[name] = champion
            self._set_unservable(name, reason)
        else:
            self._refused.pop(name, None)
            state = self.state
            unservable = {other: reason for other, reason in state.unservable.items() if other != name}
            models = MappingProxyType({**state.models, name: model})
            self.state = replace(state, models=models, unservable=MappingProxyType(unservable))
            log.info("%s: version %s is served (%.1f s)", name, champion.version, time.perf_counter() - started)

    def _set_unservable(self, name: str, reason: str) -> None:
        unservable = MappingProxyType({**self.state.unservable, name: reason})
        self.state = replace(self.state, unservable=unservable)
