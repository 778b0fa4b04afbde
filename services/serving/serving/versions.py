"""Versions that requests name by number: loaded on demand, and the most recently used ones kept."""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from serving.errors import NoRoomError, RegistryError, UnknownVersionError, UnservableError
from serving.loading import Loader
from serving.memory import give_back
from serving.model import Model
from serving.problems import RequestError
from serving.registry import Champion, Registry
from serving.settings import Settings

MAX_AGE_SECONDS = 300.0
"""A version is fetched again after that: a registered model that was deleted and created again restarts at 1."""
MAX_FAILURES, FAILURE_SECONDS = 1000, 30.0
"""How many refused versions are remembered, and for how long they are not fetched again."""

Key = tuple[str, int]


class Versions:
    """Loads one version at a time, in a thread; requests for one that is being loaded share the result."""

    def __init__(self, settings: Settings, loader: Loader) -> None:
        self._settings, self._loader = settings, loader
        self._thread = ThreadPoolExecutor(1, "load-version")
        self._loaded: OrderedDict[Key, tuple[float, Model]] = OrderedDict()
        self._failed: OrderedDict[Key, tuple[float, RequestError]] = OrderedDict()
        self._loading: dict[Key, asyncio.Task[Model]] = {}
        loader.drop_spare = self._loaded.clear  # champions come first

    def stop(self) -> None:
        """Load no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def is_loaded(self, name: str, version: int) -> bool:
        """Return whether a version is in memory."""
        return (name, version) in self._loaded

    async def model(self, name: str, version: int) -> Model:
        """Return a version of a registered model.

        Raises:
            RequestError: There is no such version, or it cannot be fetched or served.
        """
        key, now = (name, version), time.monotonic()
        if (loaded := self._loaded.get(key)) and now - loaded[0] < MAX_AGE_SECONDS:
            with suppress(KeyError):  # dropped meanwhile for a champion
                self._loaded.move_to_end(key)
            return loaded[1]
        if (failed := self._failed.get(key)) and now - failed[0] < FAILURE_SECONDS:
            raise failed[1]
        if key not in self._loading:
            if len(self._loading) >= self._settings.serving_max_queue:
                raise RequestError("overloaded", "Other versions are being loaded. Try again later.")
            self._loading[key] = task = asyncio.create_task(self._load(key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its callers may have gone
        return await asyncio.shield(self._loading[key])

    async def _load(self, key: Key) -> Model:
        self._loaded.pop(key, None)
        while len(self._loaded) >= self._settings.serving_max_versions:  # before, so that both need not fit in memory
            self._loaded.popitem(last=False)
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._thread, self._fetch, *key)
        except RequestError as error:
            self._failed[key] = time.monotonic(), error
            while len(self._failed) > MAX_FAILURES:
                self._failed.popitem(last=False)
            raise
        finally:
            del self._loading[key]
        self._loaded[key] = time.monotonic(), model
        return model

    def _reserve(self, size: int) -> None:
        """Drop the other versions where one does not fit beside them; champions are not dropped for it."""
        try:
            self._loader.reserve(size)
        except NoRoomError:
            self._loaded.clear()
            give_back()
            self._loader.reserve(size)

    def _fetch(self, name: str, version: int) -> Model:
        settings = self._settings
        try:
            with Registry.of(settings) as registry:
                return self._loader.load(registry, Champion(name, 0, version), self._reserve)
        except UnknownVersionError as error:
            raise RequestError("unknown-version", f"{name} has no version {version}.") from error
        except RegistryError as error:
            raise RequestError("version-down", f"{name} version {version} cannot be fetched: {error}") from error
        except NoRoomError as error:
            raise RequestError("overloaded", f"{name} version {version} has no room in memory: {error}.") from error
        except UnservableError as error:
            raise RequestError("unservable", f"{name} version {version} cannot be served: {error}.") from error
        except Exception as error:  # an estimator may fail in any way
            message = f"{name} version {version} cannot be served: {type(error).__name__}: {error}"
            raise RequestError("unservable", message) from error
