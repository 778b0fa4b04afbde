"""A queue of requests for an estimator that predicts in a thread, several of them in one call."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect

from serving.admission import Caller, Limiter, now, overloaded
from serving.payloads import Table, join


@dataclass(frozen=True)
class Predictions:
    """The predictions of some rows."""

    values: Sequence[Any]
    """A class or a number for each row."""
    probabilities: Sequence[Sequence[float]] | None
    """For each row those of a classifier, in the order of its classes."""

    def slice(self, start: int, stop: int) -> "Predictions":
        """Return the predictions of some of the rows."""
        probabilities = self.probabilities[start:stop] if self.probabilities is not None else None
        return Predictions(self.values[start:stop], probabilities)


@dataclass(eq=False, slots=True)
class Waiting:
    """A request in the queue."""

    table: Table
    caller: Caller
    future: asyncio.Future[Predictions]
    since: float
    deadline: asyncio.TimerHandle

    def take(self) -> bool:
        """Return whether it is still to be computed."""
        self.deadline.cancel()
        if self.future.done():
            return False
        if self.caller.has_left():
            self.caller.limiter.abandoned += 1
            self.future.set_exception(ClientDisconnect())
            return False
        self.caller.limiter.waits += 1
        self.caller.limiter.waited_seconds += now() - self.since
        return True


def expire(future: asyncio.Future[Predictions], limiter: Limiter) -> None:
    """Refuse a request that has waited too long."""
    if not future.done():
        limiter.expired += 1
        future.set_exception(overloaded("The request has waited too long for the model. Try again later."))


@dataclass(frozen=True)
class Threads:
    """The threads that predict."""

    small: Executor
    large: Executor
    """Read, predict and render what is large; few, as each of them may take much memory."""

    @classmethod
    def create(cls) -> "Threads":
        """Return two of each."""
        return cls(ThreadPoolExecutor(2, "predict"), ThreadPoolExecutor(2, "predict-large"))

    def stop(self) -> None:
        """Wait until all are done."""
        self.small.shutdown(wait=True)
        self.large.shutdown(wait=True)


class Batches:
    """Queues requests, and predicts those that wait in one call of at most `max_rows`, or of one request."""

    def __init__(self, predict: Callable[[Table], Predictions], max_rows: int) -> None:
        self._predict, self._max_rows = predict, max_rows
        self._queue: deque[Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    async def predict(self, table: Table, threads: Executor, caller: Caller) -> Predictions:
        """Return the predictions of some rows.

        Raises:
            RequestError: The queue is full, or the rows waited in it for too long.
        """
        limiter = caller.limiter
        if len(self._queue) >= limiter.max_queue:
            limiter.refused += 1
            raise overloaded()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Predictions] = loop.create_future()
        deadline = loop.call_later(limiter.max_wait_seconds, expire, future, limiter)
        self._queue.append(Waiting(table, caller, future, now(), deadline))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._predict_queued(threads))
        return await future

    async def _predict_queued(self, threads: Executor) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take_batch():
            limiter, started = batch[0].caller.limiter, now()
            if self._max_rows:  # requests that are predicted alone say nothing of the others
                limiter.start_call(len(batch), started)
            tables = [waiting.table for waiting in batch]
            results: Sequence[Predictions | Exception]
            try:
                results = await loop.run_in_executor(threads, predict_batch, self._predict, tables)
            except Exception as error:  # noqa: BLE001 - handed to the requests
                results = [error] * len(batch)
            if self._max_rows:
                limiter.end_call(now() - started)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.future.done():  # cancelled
                    continue
                if isinstance(result, Exception):
                    waiting.future.set_exception(result)
                else:
                    waiting.future.set_result(result)

    def _take_batch(self) -> list[Waiting]:
        """Return the oldest requests that fit a batch, without those that expired or whose callers left."""
        batch, rows = list[Waiting](), 0
        while self._queue and (not batch or rows + self._queue[0].table.rows <= self._max_rows):
            waiting = self._queue.popleft()
            if waiting.take():
                batch.append(waiting)
                rows += waiting.table.rows
        return batch


def predict_batch(predict: Callable[[Table], Predictions], tables: Sequence[Table]) -> list[Predictions | Exception]:
    """Return the predictions of each table from one call; if that fails, from a call each, so that one fails alone."""
    try:
        whole, parts, start = predict(join(tables)), [], 0
        for table in tables:
            parts.append(whole.slice(start, start + table.rows))
            start += table.rows
        return list(parts)
    except Exception as error:  # noqa: BLE001 - handed to the request that it is about
        return [error] if len(tables) == 1 else [predict_batch(predict, [table])[0] for table in tables]
