"""Serving in overload: an open loop sends requests at ten times the sustainable rate.

Requests arrive at random moments (a Poisson process), whatever became of those before, over connections that are open. Two
latencies are measured: from the moment that a request was due to that at which the generator had read the answer, and, since
the generator takes a core of its own for that and lags, from its write to the moment at which the kernel had the answer
(SO_TIMESTAMPNS). The sustainable rate is the highest of a geometric series at which no more than one request in a
thousand is refused and all are answered in time. `unloaded` is a twentieth of it.
The first second of an overload is counted apart: until a queue is full, the service takes it for a burst.

    python -m bench.overload
"""

import json
import multiprocessing
import random
import re
import select
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.report import save
from bench.serving import KEY, percentile, register
from infra.testing.servers import mlflow_server, serving_server
from infra.testing.waiting import wait_until

SO_TIMESTAMPNS = 35
"""Of Linux; Python has no name for it."""
MAX_CONNECTIONS, MAX_ANSWER_SECONDS = 1000, 5.0
STEP_SECONDS, UNLOADED_SECONDS, OVERLOAD_SECONDS, ONSET_SECONDS = 3.0, 15.0, 20.0, 1.0
SAMPLE_SECONDS = 0.5
GREETING = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
FACTOR, STEP, FIRST_RATE, MAX_STEPS = 10, 1.2, 100.0, 30
MAX_REFUSED, MAX_SUSTAINABLE_P99 = 0.001, 50.0
"""Shares of requests, and milliseconds."""

MODELS: dict[str, BaseEstimator] = {
    "logistic-regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "random-forest": RandomForestClassifier(100, min_samples_leaf=5, random_state=0),
    # This one is not compiled, so that it predicts batches in a thread.
    "imputed-forest": make_pipeline(SimpleImputer(), RandomForestClassifier(100, min_samples_leaf=5, random_state=0)),
}


@dataclass
class Connection:
    """A connection of the generator."""

    socket: socket.socket
    due: float = 0.0
    sent: float = 0.0
    """Seconds since 1970, as the kernel's timestamps."""
    arrived: float = 0.0
    received: bytes = b""


@dataclass
class Offer:
    """What became of the requests of an open loop."""

    rate: float
    seconds: float
    statuses: dict[int, int] = field(default_factory=dict)
    accepted: list[float] = field(default_factory=list)
    """Latencies of the answers with predictions, in milliseconds, as the caller sees them."""
    served: list[float] = field(default_factory=list)
    """The same without the generator's lags."""
    sustained: list[float] = field(default_factory=list)
    """Those of requests that were due after the onset."""
    unsent: int = 0
    """Requests for which no connection was free."""
    lags: list[float] = field(default_factory=list)
    """How late the generator sent, in milliseconds."""

    def as_json(self) -> dict[str, Any]:
        """Return its statistics."""
        answered = sum(self.statuses.values())
        return {
            "offered_per_second": round((answered + self.unsent) / self.seconds, 1),
            "accepted_per_second": round(len(self.accepted) / self.seconds, 1),
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
            "unsent": self.unsent,
            "accepted_milliseconds": percentiles(self.accepted),
            "served_milliseconds": percentiles(self.served),
            "sustained_milliseconds": percentiles(self.sustained),
            "generator_lag_milliseconds_p99": percentile(self.lags, 0.99),
        }


def percentiles(latencies: list[float]) -> dict[str, float | None]:
    """Return median, 99th percentile and maximum."""
    return {
        name: percentile(latencies, share) if latencies else None
        for name, share in {"p50": 0.5, "p99": 0.99, "max": 1.0}.items()
    }


class Pool:
    """The generator's connections; the server may close idle ones."""

    def __init__(self, port: int, connections: int) -> None:
        self._port, self._poll = port, select.epoll()
        self._open: dict[int, Connection] = {}
        self._idle = deque[Connection]()
        self.busy: set[int] = set()
        for _ in range(connections):
            self._connect()

    def _connect(self) -> None:
        connection = Connection(socket.create_connection(("127.0.0.1", self._port), timeout=5))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._poll.register(connection.socket, select.EPOLLIN)
        self._open[connection.socket.fileno()] = connection
        self._idle.append(connection)

    def send(self, message: bytes, due: float) -> bool:
        """Send a request over a free connection; return whether there was one."""
        if not self._idle:
            if len(self._open) >= MAX_CONNECTIONS:
                return False
            self._connect()
        connection = self._idle.popleft()  # all in turn: the server closes one that is idle for long, perhaps just now
        connection.due, connection.received = due, b""
        self.busy.add(connection.socket.fileno())
        connection.sent = time.time()
        with suppress(OSError):  # the server has closed it: `receive` notices
            connection.socket.sendall(message)
        return True

    def receive(self, wait: float) -> Iterator[tuple[Connection, int]]:
        """Yield each connection that has a response, and its status; 0 where it was closed before."""
        for number, _ in self._poll.poll(wait):
            connection, part = self._open[number], b""
            with suppress(OSError):
                part, ancillary, *_ = connection.socket.recvmsg(65536, 64)
                if ancillary:
                    seconds, nanoseconds = struct.unpack("qq", ancillary[0][2][:16])
                    connection.arrived = seconds + nanoseconds / 1e9
            connection.received += part
            status = status_of(connection.received) if part else 0
            if status is None:
                continue
            if number in self.busy:
                self.busy.remove(number)
                yield connection, status
                if part:
                    self._idle.append(connection)
            if not part:
                self._poll.unregister(number)
                del self._open[number]
                self._idle = deque(idle for idle in self._idle if idle is not connection)
                connection.socket.close()

    def greet(self) -> None:
        """Have the service answer over each connection: only then has it accepted all of them."""
        for _ in range(len(self._idle)):
            self.send(GREETING, due=0.0)
        deadline = time.perf_counter() + MAX_ANSWER_SECONDS
        while self.busy:
            assert time.perf_counter() < deadline, "the service does not accept the connections"
            deque(self.receive(0.05), maxlen=0)

    def close(self) -> None:
        """Close all."""
        for connection in self._open.values():
            connection.socket.close()


def offer(port: int, message: bytes, rate: float, seconds: float) -> Offer:
    """Send requests at random moments at a mean rate; runs in a process of its own."""
    connections = int(min(MAX_CONNECTIONS, rate))
    result, pool, chance = Offer(rate, seconds), Pool(port, connections), random.Random(0)
    pool.greet()
    start = time.perf_counter()
    due, end = start, start + seconds
    while due < end or (pool.busy and time.perf_counter() < end + MAX_ANSWER_SECONDS):
        while due < end and due <= time.perf_counter():
            if pool.send(message, due):
                result.lags.append((time.perf_counter() - due) * 1000)
            else:
                result.unsent += 1
            due += chance.expovariate(rate)
        pause = max(0.0, min(due - time.perf_counter(), 0.05))
        for connection, status in pool.receive(pause):
            result.statuses[status] = result.statuses.get(status, 0) + 1
            if status == 200:
                result.accepted.append((time.perf_counter() - connection.due) * 1000)
                result.served.append((connection.arrived - connection.sent) * 1000)
                if connection.due - start >= ONSET_SECONDS:
                    result.sustained.append(result.served[-1])
    if pool.busy:  # never answered
        result.statuses[0] = result.statuses.get(0, 0) + len(pool.busy)
    pool.close()
    return result


def status_of(received: bytes) -> int | None:
    """Return a response's status once all of it is there."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return None
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    assert length, head
    return int(head[9:12]) if len(body) >= int(length[1]) else None


def offer_and_watch(
    process: psutil.Process, executor: Executor, port: int, message: bytes, rate: float
) -> tuple[Offer, list[float]]:
    """Offer requests; return what became of them and the server's memory in MiB, each half second."""
    future, samples = executor.submit(offer, port, message, rate, OVERLOAD_SECONDS), list[float]()
    while not wait([future], SAMPLE_SECONDS).done:
        samples.append(process.memory_info().rss / 2**20)
    return future.result(), samples


def find_sustainable(executor: Executor, port: int, message: bytes) -> tuple[float, list[dict[str, Any]]]:
    """Return the highest rate of the series that is sustained, and what was tried."""
    sustained, tried, rate = FIRST_RATE, [], FIRST_RATE
    for _ in range(MAX_STEPS):
        result = executor.submit(offer, port, message, rate, STEP_SECONDS).result()
        answered = sum(result.statuses.values()) + result.unsent
        tried.append({"rate": round(rate, 1)} | result.as_json())
        is_late = not result.accepted or percentile(result.accepted, 0.99) > MAX_SUSTAINABLE_P99
        if len(result.accepted) < (1 - MAX_REFUSED) * answered or is_late:
            break
        sustained, rate = rate, rate * STEP
    return sustained, tried


def measure(address: str, model: str, row: pd.DataFrame) -> dict[str, Any]:
    """Measure one model unloaded and in overload."""
    port = httpx.URL(address).port
    assert port
    body = json.dumps(row.to_dict("records")[0]).encode()
    head = f"POST /models/{model}/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    message = f"{head}Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    (process,) = {
        psutil.Process(found.pid)
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid
    }
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        executor.submit(offer, port, message, FIRST_RATE, 2.0).result()
        sustainable, tried = find_sustainable(executor, port, message)
        unloaded = executor.submit(offer, port, message, sustainable / 20, UNLOADED_SECONDS).result()
        overload, memory = offer_and_watch(process, executor, port, message, FACTOR * sustainable)
    return {
        "sustainable_per_second": round(sustainable, 1),
        "steps": tried,
        "unloaded": unloaded.as_json(),
        "overload": overload.as_json(),
        "p99_ratio": round(percentile(overload.sustained, 0.99) / percentile(unloaded.served, 0.99), 2),
        "p99_ratio_with_onset": round(percentile(overload.served, 0.99) / percentile(unloaded.served, 0.99), 2),
        "memory_mib": {"first": round(memory[0], 1), "last": round(memory[-1], 1), "max": round(max(memory), 1)},
    }


def main() -> None:
    """Measure and save."""
    generator = np.random.default_rng(0)
    days = pd.DataFrame(generator.normal(size=(1500, 15)), columns=[f"feature_{n}" for n in range(15)])
    wet = days["feature_0"] + generator.normal(size=len(days)) > 0
    with tempfile.TemporaryDirectory() as home, mlflow_server(Path(home) / "mlflow") as registry:
        for name, estimator in MODELS.items():
            register(registry, name, estimator.fit(days, wet), days)
        results = {}
        with serving_server(Path(home) / "serving", registry, SERVING_API_KEY=KEY, SERVING_POLL_SECONDS="2") as address:
            versions = f"{address}/health/ready"
            wait_until(lambda: MODELS.keys() <= httpx.get(versions).json().get("versions", {}).keys(), 120, "models")
            for name in MODELS:
                results[name] = measure(address, name, days.head(1))
    save("overload", {"factor": FACTOR, "models": results})


if __name__ == "__main__":
    main()
