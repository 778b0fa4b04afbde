"""The served champions, refreshed by a polling thread and kept within a limit of memory."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from serving.errors import NoRoomError, RegistryError, UnservableError
from serving.loading import Loader
from serving.memory import give_back
from serving.model import Model
from serving.problems import RequestError
from serving.registry import Champion, Registry
from serving.settings import Settings
from trainyard.contract import Alias

log = logging.getLogger("serving")

FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 2.0, 300.0
"""How long a champion that could not be loaded waits to be tried again; the time doubles with each failure."""
MAX_LOAD_WAIT_SECONDS = 10.0
"""How long a request waits for its model to be loaded before it is told to come back."""


@dataclass(frozen=True)
class State:
    """The registry as of the last poll, and the models that are loaded. Never changed, only replaced."""

    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    """The loaded model of each registered name."""
    registered: frozenset[str] = frozenset()
    """The names of all registered models, with or without a champion."""
    unloaded: frozenset[str] = frozenset()
    """The names of models whose champion is loaded at the next request, or soon."""
    unservable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By name, why the champion could not be loaded; the previous champion stays in `models`."""
    refreshed_at: float | None = None
    """When MLflow last listed the champions, in seconds since the epoch; None before the first time."""
    is_settled: bool = False
    """Whether each champion of the first list has been loaded, refused, or left for lack of memory."""
    error: str | None = None
    """Why the last poll failed, or None if it succeeded."""


@dataclass
class Failure:
    """A champion that could not be loaded."""

    champion: Champion
    tries: int = 0
    retry_at: float = float("inf")
    """A monotonic time; infinite where loading it again would fail in the same way."""


class Catalog:
    """Loads the champions and swaps them in: `state` is one reference, so a request keeps the model that it took.

    Where not all fit into memory, the least recently used ones are dropped and loaded again at their next request.
    """

    def __init__(self, settings: Settings, loader: Loader) -> None:
        self.state = State()
        self._settings, self._loader = settings, loader
        self._failures: dict[str, Failure] = {}
        self._used: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._without_room: dict[str, Champion] = {}
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="poll-registry", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stop.set()
        self._wake.set()

    def model(self, name: str) -> Model:
        """Return the champion of a registered model.

        Raises:
            RequestError: No champion is served under this name, or not yet.
        """
        state = self.state
        model = state.models.get(name)
        if model is not None:
            self._used[name] = time.monotonic()
            return model
        if name in state.unloaded:
            raise RequestError("loading", f"{name} is being loaded: try again in some seconds.")
        if name in state.registered:
            reason = state.unservable.get(name)
            because = f": {reason}." if reason else f" yet: give a version the alias `{Alias.CHAMPION}`."
            raise RequestError("no-champion", f"{name} has no champion that can be served{because}")
        if state.refreshed_at is None:
            raise RequestError("registry-unknown", "MLflow has not answered yet, so no model is known.")
        raise RequestError("unknown-model", f"No model {name!r} is registered.")

    async def wait_for(self, name: str | None) -> None:
        """Have a model loaded that is not, and wait for it for some seconds."""
        if name not in self.state.unloaded:
            return
        assert name is not None
        deadline = time.monotonic() + MAX_LOAD_WAIT_SECONDS
        while name in self.state.unloaded and time.monotonic() < deadline:
            self._wanted.add(name)
            self._wake.set()
            await asyncio.sleep(0.05)

    def _poll(self) -> None:
        settings = self._settings
        with Registry.of(settings) as registry:
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
                self._wake.wait(settings.serving_poll_seconds)
                self._wake.clear()

    def refresh(self, registry: Registry) -> None:
        """List the champions, load the new ones and those that requests wait for, and swap each in.

        Raises:
            RegistryError: MLflow did not answer.
        """
        listed = registry.champions()
        champions = {name: champion for name, champion in listed.items() if champion is not None}
        self._forget_former(champions)
        self._take_over(champions, frozenset(listed))
        # Those that requests wait for come first.
        for name in sorted(champions, key=lambda name: name not in self._wanted):
            if self._stop.is_set():
                return
            if self._is_due(champions[name]):
                self._load(registry, champions[name])
        if self.state.error is not None:
            log.info("MLflow answers again.")
        self.state = replace(self.state, error=None, is_settled=True)

    def _take_over(self, champions: Mapping[str, Champion], registered: frozenset[str]) -> None:
        """Show what the registry lists. No other reference to the models is kept, so that those dropped are freed."""
        old = self.state
        models = {name: model for name, model in old.models.items() if name in champions}
        unservable = {name: reason for name, reason in old.unservable.items() if name in self._failures}
        self.state = replace(
            old,
            models=MappingProxyType(models),
            registered=registered,
            unloaded=frozenset(champions.keys() - models.keys() - unservable.keys()),
            unservable=MappingProxyType(unservable),
            refreshed_at=time.time(),
        )

    def _forget_former(self, champions: Mapping[str, Champion]) -> None:
        """Forget what is known of champions that are none any more."""
        self._failures = {n: failed for n, failed in self._failures.items() if champions.get(n) == failed.champion}
        self._without_room = {n: champion for n, champion in self._without_room.items() if champions.get(n) == champion}
        self._wanted &= champions.keys()
        self._used = {name: moment for name, moment in self._used.items() if name in champions}

    def _is_due(self, champion: Champion) -> bool:
        name, loaded = champion.model, self.state.models.get(champion.model)
        if loaded is not None and loaded.champion == champion:
            return False
        if (failure := self._failures.get(name)) is not None:
            return time.monotonic() >= failure.retry_at
        return loaded is not None or name in self._wanted or name not in self._without_room

    def _load(self, registry: Registry, champion: Champion) -> None:
        name, started = champion.model, time.perf_counter()
        try:
            model = self._loader.load(registry, champion, partial(self._reserve, name))
        except NoRoomError as error:  # it is loaded when a request asks for it
            log.info("%s: version %s is loaded at its first request: %s", name, champion.version, error)
            self._without_room[name] = champion
        except UnservableError as error:
            self._refuse(champion, f"version {champion.version} cannot be served: {error}", float("inf"))
        except RegistryError as error:
            self._refuse(champion, f"version {champion.version} cannot be fetched: {error}", 0)
        except Exception as error:  # noqa: BLE001 - an estimator may fail in any way; the other models must load
            tries = self._failures[name].tries if name in self._failures else 0
            seconds = min(FIRST_RETRY_SECONDS * 2**tries, MAX_RETRY_SECONDS)
            reason = f"version {champion.version} could not be loaded ({type(error).__name__}: {error})"
            self._refuse(champion, f"{reason}; it is tried again in {seconds:.0f} s", seconds)
            give_back()
        else:
            self._swap_in(model)
            log.info("%s: version %s is served (%.1f s)", name, champion.version, time.perf_counter() - started)
        finally:
            self._wanted.discard(name)

    def _swap_in(self, model: Model) -> None:
        name, state = model.champion.model, self.state
        self._failures.pop(name, None)
        self._without_room.pop(name, None)
        self._used.setdefault(name, time.monotonic())
        unservable = {other: reason for other, reason in state.unservable.items() if other != name}
        self.state = replace(
            state,
            models=MappingProxyType({**state.models, name: model}),
            unloaded=state.unloaded - {name},
            unservable=MappingProxyType(unservable),
        )

    def _refuse(self, champion: Champion, reason: str, retry_seconds: float) -> None:
        name, former = champion.model, self._failures.get(champion.model)
        if former is None:
            log.error("%s: %s", name, reason)
        tries = former.tries + 1 if former else 1
        self._failures[name] = Failure(champion, tries, time.monotonic() + retry_seconds)
        unservable = MappingProxyType({**self.state.unservable, name: reason})
        self.state = replace(self.state, unservable=unservable, unloaded=self.state.unloaded - {name})

    def _reserve(self, name: str, size: int) -> None:
        """Make room for a champion that is being loaded.

        For one that requests wait for, and for a new champion of a served model, versions that are no champions are
        dropped, then the least recently used champions, and a model's own former champion last.

        Raises:
            UnservableError: It would not fit even alone.
            NoRoomError: It fits, but only in place of others, and nobody waits for it.
        """
        while True:
            try:
                return self._loader.reserve(size)
            except NoRoomError:
                if name not in self._wanted and name not in self.state.models:
                    raise
                if not self._drop_one(name):
                    raise

    def _drop_one(self, name: str) -> bool:
        """Drop what is needed least for a model to be loaded; return whether there was anything."""
        before = self._loader.taken()
        self._loader.drop_spare()
        if self._loader.taken() < before:
            return True
        models = dict(self.state.models)
        if not models:
            return False
        other = min(models, key=lambda other: (other == name, self._used.get(other, 0.0)))
        self._without_room[other] = models.pop(other).champion
        self.state = replace(self.state, models=MappingProxyType(models), unloaded=self.state.unloaded | {other})
        give_back()
        log.info("%s is dropped from memory for %s", other, name)
        return True
