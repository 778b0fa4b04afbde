"""Live features: the rows that a project's hooks (`trainyard.hooks`) make for a model, cached for some minutes.

Hooks are a project's code, which may be slow or broken: they run in threads of their own and within a deadline, and
whatever they raise fails the request for the forecast only.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson

from serving.model import Model
from serving.payloads import Table
from serving.problems import Problem, RequestError
from trainyard.contract import Record
from trainyard.errors import (
    HookError,
    QueryError,
    TrainyardError,
    UnknownSubjectError,
    WaitTooLongError,
)
from trainyard.hooks import Hooks, LiveRows, ModelInfo, Query, hooks_of, read_hooks

T = TypeVar("T")

CACHE_SECONDS, CACHE_FAILURE_SECONDS = 300.0, 10.0
"""How long an answer of a hook is reused, and a failure that may be over soon."""
MAX_CACHED = 256
MAX_ATTEMPTS, FIRST_BACKOFF_SECONDS = 3, 0.3
MAX_HOOK_SECONDS = 60.0


@dataclass(frozen=True)
class Rows:
    """Rows that fit a model's signature, and what they are about."""

    table: Table
    subject: str
    times: Sequence[str]
    details: Mapping[str, Any]

    def about(self) -> dict[str, Any]:
        """Return what is recorded with the predictions."""
        return {**self.details, Record.SUBJECT: self.subject, Record.TIMES: list(self.times)}


class LiveFeatures:
    """Calls the hooks of projects; concurrent and repeated requests for the same rows share one call."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="hook")
        self._cache: dict[Any, tuple[float, asyncio.Task[Any]]] = {}
        self._hooks: list[Hooks] | None = None
        self._stop = threading.Event()

    def stop(self) -> None:
        """Start no more calls, and wait for none."""
        self._stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def choose_model(self, query: Query) -> str:
        """Return the name of the registered model that a project chooses for a query.

        Raises:
            RequestError: No project chooses one, or a hook fails.
        """
        return await self._run(("", query), lambda: self._choose_model(query))

    async def rows(self, model: Model, query: Query) -> Rows:
        """Return the rows that a model is to predict now.

        Raises:
            RequestError: The model has no hook, or the hook fails, or its rows do not fit the model.
        """
        return await self._run((model.champion, query), lambda: self._make_rows(model, query))

    async def _run(self, key: tuple[Any, Query], call: Callable[[], T]) -> T:
        now, cache_key = time.monotonic(), (key[0], tuple(sorted(key[1].items())))
        self._cache = {k: kept for k, kept in self._cache.items() if kept[0] > now or not kept[1].done()}
        cached = self._cache.get(cache_key)
        if cached is None:
            task = asyncio.create_task(self._call(cache_key, call))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its callers may have gone
            while len(self._cache) >= MAX_CACHED:
                self._cache.pop(next(iter(self._cache)))
            cached = self._cache[cache_key] = (now + CACHE_SECONDS, task)
        result: T = await asyncio.shield(cached[1])
        return result

    async def _call(self, cache_key: Any, call: Callable[[], T]) -> T:
        try:
            loop = asyncio.get_running_loop()
            return await asyncio.wait_for(
                loop.run_in_executor(self._threads, partial(self._translate_errors, call)), MAX_HOOK_SECONDS
            )
        except TimeoutError as error:
            self._forget_soon(cache_key)
            message = f"The project's hook has not returned within {MAX_HOOK_SECONDS:.0f} s."
            raise RequestError("source-down", message) from error
        except RequestError as error:
            if error.status >= 500:
                self._forget_soon(cache_key)
            raise

    def _forget_soon(self, cache_key: Any) -> None:
        if cached := self._cache.get(cache_key):
            self._cache[cache_key] = (time.monotonic() + CACHE_FAILURE_SECONDS, cached[1])

    def _translate_errors(self, call: Callable[[], T]) -> T:
        """Return the result of a call with its errors as `serving.problems`; retry those that are transient."""
        attempt = 1
        while True:
            try:
                return call()
            except RequestError:
                raise
            except UnknownSubjectError as error:
                raise RequestError("unknown-subject", str(error)) from error
            except QueryError as error:
                raise invalid_query(error) from error
            except HookError as error:
                raise RequestError("features-unfit", f"{error} Correct it and restart serving.") from error
            except TrainyardError as error:
                if error.transient and attempt < MAX_ATTEMPTS and not self._stop.is_set():
                    spread = random.uniform(0.7, 1.3)  # noqa: S311 - callers should not come back all at once
                    self._stop.wait(FIRST_BACKOFF_SECONDS * 3 ** (attempt - 1) * spread)
                    attempt += 1
                    continue
                is_down = error.transient or isinstance(error, WaitTooLongError)
                raise RequestError("source-down" if is_down else "source-data", str(error)) from error
            except Exception as error:
                message = f"The project's hook fails ({type(error).__name__}: {error}). Correct it and restart serving."
                raise RequestError("features-unfit", message) from error

    def _declared(self) -> list[Hooks]:
        if self._hooks is None:
            self._hooks = read_hooks()
        return self._hooks

    def _choose_model(self, query: Query) -> str:
        refusal: TrainyardError | None = None
        for hooks in self._declared():
            if not hooks.choose_model:
                continue
            try:
                if name := hooks.load("choose_model")(query):
                    return str(name)
            except (QueryError, UnknownSubjectError) as error:  # another project may have a model for the query
                refusal = refusal or error
        raise refusal or RequestError("no-forecast", "No project chooses a model for this query.")

    def _make_rows(self, model: Model, query: Query) -> Rows:
        name, version = model.champion.model, model.champion.version
        hooks = hooks_of(name, self._declared())
        if hooks is None or not hooks.live_features:
            raise RequestError("no-forecast", f"No project declares live features for {name}.")
        made = hooks.load("live_features")(ModelInfo(name, version, model.tags), query)
        if not isinstance(made, LiveRows):
            raise TypeError(f"live_features returned {type(made).__name__}, not LiveRows")
        try:
            table = model.reader.read_frame(made.features)
        except RequestError as error:
            message = f"{name} version {version} was fitted on other features than {hooks.live_features} makes. "
            raise RequestError("features-unfit", f"{message}{error.message}", error.problems) from error
        times = [str(moment) for moment in made.times]
        if len(times) != table.rows:
            raise ValueError(f"{table.rows} rows have {len(times)} times")
        orjson.dumps(details := dict(made.details))  # a TypeError here belongs to the hook
        return Rows(table, str(made.subject), times, details)


def invalid_query(error: QueryError) -> RequestError:
    """Return the refusal of a query whose parameter is missing or wrong."""
    return RequestError("invalid-query", str(error), [Problem(error.rule, error.parameter)])
