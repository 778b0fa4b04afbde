"""Back-pressure of serving: limiters, queues with deadlines, and refusals before a request is parsed."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from serving.admission import OVERLOAD_SECONDS, BodyBudget, Caller, Limiter, Limiters
from serving.batches import Batches, Predictions
from serving.payloads import Table
from serving.problems import RequestError
from serving.protocol import protocol_with
from serving.service import HAS_LEFT
from serving.traffic import BUCKETS_PER_DOUBLING, Traffic
from starlette.requests import ClientDisconnect

from infra.testing.servers import free_port
from infra.testing.waiting import wait_until


def limiter(max_queue: int = 10, max_wait_seconds: float = 10.0) -> Limiter:
    return Limiter("m", max_queue, max_wait_seconds)


def test_a_burst_is_admitted_until_the_queue_is_full() -> None:
    found = limiter(10)
    admitted = 0
    while found.admits(0.0):
        found.in_flight += 1
        admitted += 1

    assert admitted == 10
    assert found.refused == 1


def test_in_overload_only_requests_that_are_computed_next_are_admitted() -> None:
    found = limiter(10)
    found.in_flight = 10
    assert not found.admits(0.0)

    verdicts = []
    for in_flight in (9, 2, 1, 0):
        found.in_flight = in_flight
        verdicts.append(found.admits(0.1))

    assert verdicts == [False, False, False, True]


def test_overload_ends_when_no_request_had_to_be_refused_for_a_while() -> None:
    found = limiter(10)
    found.in_flight = 10
    found.admits(0.0)
    found.in_flight = 5

    assert not found.admits(OVERLOAD_SECONDS * 0.9)
    assert not found.admits(OVERLOAD_SECONDS * 1.8)
    assert found.admits(OVERLOAD_SECONDS * 2.9)


def test_in_overload_a_request_waits_only_for_a_call_that_is_about_to_end() -> None:
    found = limiter(10)
    found.start_call(1, 0.0)
    found.end_call(8.0)
    found.in_flight = 10
    assert not found.admits(10.0)

    found.in_flight = 3
    found.start_call(3, 10.0)

    assert not found.admits(10.5)
    assert found.admits(17.0)


def table(value: float) -> Table:
    return Table([[value]], 1)


class Estimator:
    """Records what it predicts, and holds its first call until it is released."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.started, self.released = threading.Event(), threading.Event()

    def predict(self, rows: Table) -> Predictions:
        self.calls.append(list(rows.columns[0]))
        self.started.set()
        assert self.released.wait(20)
        return Predictions(list(rows.columns[0]), None)


async def run_queue(
    found: Limiter, callers: list[Callable[[], bool]], before_release: Callable[[], Awaitable[None]]
) -> tuple[Estimator, list[Any]]:
    """Predict 0, and while that runs, 1, 2 and so on for some callers."""
    estimator = Estimator()
    batches = Batches(estimator.predict, 100)
    with ThreadPoolExecutor(1) as threads:
        first = asyncio.create_task(batches.predict(table(0), threads, Caller(found, lambda: False)))
        await asyncio.to_thread(estimator.started.wait, 20)
        others = [
            asyncio.create_task(batches.predict(table(n), threads, Caller(found, left)))
            for n, left in enumerate(callers, 1)
        ]
        try:
            await before_release()
        finally:
            estimator.released.set()
        return estimator, await asyncio.gather(first, *others, return_exceptions=True)


async def soon() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_requests_that_wait_are_predicted_together_and_those_of_callers_who_left_are_not() -> None:
    found = limiter()

    estimator, results = asyncio.run(run_queue(found, [lambda: False, lambda: True, lambda: False], soon))

    assert estimator.calls == [[0], [1, 3]]
    assert [results[n].values for n in (0, 1, 3)] == [[0], [1], [3]]
    assert isinstance(results[2], ClientDisconnect)
    assert (found.abandoned, found.waits) == (1, 3)


def test_a_request_that_finds_the_queue_full_is_refused() -> None:
    found = limiter(max_queue=2)

    estimator, results = asyncio.run(run_queue(found, [lambda: False] * 3, soon))

    assert estimator.calls == [[0], [1, 2]]
    assert isinstance(results[3], RequestError)
    assert (results[3].status, results[3].code, found.refused) == (503, "overloaded", 1)


def test_a_request_is_refused_at_its_deadline_and_not_computed() -> None:
    found = limiter(max_wait_seconds=0.05)

    async def expired() -> None:
        while not found.expired:
            await asyncio.sleep(0.01)

    estimator, results = asyncio.run(run_queue(found, [lambda: False], expired))

    assert estimator.calls == [[0]]
    assert results[0].values == [0]
    assert (results[1].status, results[1].code) == (503, "overloaded")


def test_bodies_beyond_the_budget_are_refused() -> None:
    budget = BodyBudget(100)
    budget.take(60)

    with pytest.raises(RequestError) as refused:
        budget.take(50)
    budget.give_back(60)
    budget.take(100)

    assert refused.value.code == "overloaded"


@contextmanager
def serve(app: Any, limiters: Limiters, **options: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """Run an application with the service's HTTP protocol; yields its address, and the server."""
    port = free_port()
    config = uvicorn.Config(
        app,
        port=port,
        http=protocol_with(limiters),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 30, "the server")
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(20)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


class App:
    """Answers at once, or at /slow when it is released; then it notes whether the caller has left."""

    def __init__(self) -> None:
        self.requests, self.left = 0, list[bool]()
        self.started, self.released = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        self.requests += 1
        if scope["path"] == "/slow":
            self.started.set()
            await asyncio.to_thread(self.released.wait, 20)
        self.left.append(scope[HAS_LEFT]())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def test_a_request_for_an_overloaded_model_is_refused_before_the_application_and_the_connection_lives() -> None:
    limiters, app = Limiters(1, 10.0), App()
    found = limiters.find("m", b"/models/m/predict")
    with serve(app, limiters) as (address, _), httpx.Client(base_url=address) as client:
        found.in_flight = 1
        refused = client.post("/models/m/predict?x=1", content=b"x" * 100_000)
        other = client.get("/health/live")
        seen = app.requests
        found.in_flight, found._overloaded_until = 0, 0.0
        served = client.post("/models/m/predict", content=b"x" * 100_000)

    assert (refused.status_code, refused.headers["retry-after"], refused.json()["code"]) == (503, "1", "overloaded")
    assert other.status_code == 200
    assert seen == 1
    assert (served.status_code, served.text) == (200, "ok")
    assert (found.refused, found.in_flight) == (1, 0)


def receive_all(connection: socket.socket) -> bytes:
    """Return what arrives until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_refused_caller_that_asks_before_it_sends_its_body_is_answered_at_once() -> None:
    limiters, app = Limiters(1, 10.0), App()
    limiters.find("m", b"/m").in_flight = 1
    with serve(app, limiters) as (address, _), socket.create_connection(("127.0.0.1", port_of(address))) as caller:
        caller.settimeout(20)
        caller.sendall(b"POST /m HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        answer = receive_all(caller)

    assert answer.startswith(b"HTTP/1.1 503 ")


def request_of(body: bytes, head: bytes = b"", path: bytes = b"/m") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (path, head, len(body), body)


class RefusedCaller:
    """A connection to a server whose model is overloaded."""

    def __init__(self, address: str, limiters: Limiters, limiter: Limiter, server: uvicorn.Server) -> None:
        self.address, self.limiters, self.limiter, self.server = address, limiters, limiter, server
        self.socket = socket.create_connection(("127.0.0.1", port_of(address)), timeout=20)

    def ask(self, data: bytes, answers: int = 1) -> list[bytes]:
        """Send data; return the statuses of the next answers."""
        self.socket.sendall(data)
        received = b""
        while received.count(b"HTTP/1.1 ") < answers or not received.endswith((b"}", b"ok")):
            part = self.socket.recv(65536)
            assert part, f"closed after {received!r}"
            received += part
        return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


@contextmanager
def refused_caller(app: App | None = None, **options: Any) -> Iterator[RefusedCaller]:
    """A caller of requests for /m, which are refused."""
    limiters = Limiters(1, 10.0)
    found = limiters.find("m", b"/m")
    found.in_flight = 1
    with serve(app or App(), limiters, **options) as (address, server):
        caller = RefusedCaller(address, limiters, found, server)
        with caller.socket:
            yield caller


def test_requests_with_a_refused_head_are_refused_unparsed_and_answered_once_there_is_room() -> None:
    with refused_caller() as caller:
        first, heads = caller.ask(request_of(b"123")), list(caller.limiters.of_heads)
        caller.limiters.of_paths.clear()  # by which a request that is parsed would be refused
        second = caller.ask(request_of(b"456"))
        caller.limiter.in_flight, caller.limiter._overloaded_until = 0, 0.0
        third = caller.ask(request_of(b"789"))

    assert heads == [request_of(b"123")[:-3]]
    assert (first, second, third) == ([b"503"], [b"503"], [b"200"])
    assert caller.limiter.refused == 2


def test_several_requests_in_one_packet_are_refused_each() -> None:
    with refused_caller() as caller:
        before = caller.ask(request_of(b"123") * 2, 2)
        known = dict(caller.limiters.of_heads)
        caller.ask(request_of(b"123"))
        after = caller.ask(request_of(b"123") * 3, 3)

    assert before == [b"503"] * 2
    assert known == {}
    assert after == [b"503"] * 3
    assert caller.limiter.refused == 6


def test_a_refusal_does_not_overtake_the_answer_before_it() -> None:
    app = App()
    with refused_caller(app) as caller:
        caller.ask(request_of(b"123"))
        caller.socket.sendall(request_of(b"", path=b"/slow"))
        assert app.started.wait(20)
        caller.socket.sendall(request_of(b"123"))
        connections: Any = caller.server.server_state.connections
        wait_until(lambda: any(each.pipeline for each in connections.copy()), 20, "the second one to be read")
        app.released.set()
        statuses = caller.ask(b"", 2)

    assert statuses == [b"200", b"200"]
    assert caller.limiter.refused == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        request_of(b"3\r\n123\r\n0\r\n\r\n").replace(b"Content-Length: 13", b"Transfer-Encoding: chunked"),
        request_of(b"123", b"X-Long: %b\r\n" % (b"x" * 4096)),
        request_of(b"123", path=b"/other"),
    ],
    ids=["chunked", "long", "of no model"],
)
def test_other_heads_are_not_remembered(request_bytes: bytes) -> None:
    with refused_caller() as caller:
        caller.ask(request_bytes)

    assert caller.limiters.of_heads == {}


def test_heads_are_forgotten_before_they_are_too_many() -> None:
    limiters = Limiters(1, 10.0)
    found = limiters.find("m", b"/m")
    for number in range(2 * limiters.MAX_HEADS + 1):
        limiters.remember_head(b"%d" % number, found, 0)

    assert len(limiters.of_heads) == 1


def test_an_idle_connection_is_closed_after_a_refusal_too() -> None:
    with refused_caller(timeout_keep_alive=1) as caller:
        statuses = caller.ask(request_of(b""))
        rest = receive_all(caller.socket)

    assert (statuses, rest) == ([b"503"], b"")


def test_a_request_that_arrives_slowly_after_a_refusal_is_answered() -> None:
    with refused_caller(timeout_keep_alive=1) as caller:
        caller.ask(request_of(b""))
        caller.socket.sendall(request_of(b"123456789", path=b"/other")[:-6])
        later = RefusedCaller(caller.address, caller.limiters, caller.limiter, caller.server)
        with later.socket:
            later.ask(request_of(b""))
            receive_all(later.socket)  # closed as idle, and so would the first one have been
        statuses = caller.ask(b"456789")

    assert statuses == [b"200"]


def test_requests_in_flight_are_counted_until_they_are_answered_or_their_callers_leave() -> None:
    limiters, app = Limiters(10, 10.0), App()
    found = limiters.find("m", b"/slow")
    with serve(app, limiters) as (address, _), ThreadPoolExecutor(1) as callers:
        answer = callers.submit(lambda: httpx.post(f"{address}/slow", timeout=20))
        assert app.started.wait(20)
        in_flight = found.in_flight
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/slow", timeout=0.2)
        wait_until(lambda: found.in_flight == 1, 20, "the end of the caller who left")
        app.released.set()
        status = answer.result().status_code
        wait_until(lambda: len(app.left) == 2, 20, "both requests")

    assert in_flight == 1
    assert status == 200
    assert sorted(app.left) == [False, True]
    assert found.in_flight == 0


def test_the_last_hours_traffic_has_counts_and_quantiles_by_version() -> None:
    traffic = Traffic()
    for _ in range(98):
        traffic.add("m", 1, 200, 0.010)
    traffic.add("m", 1, 422, 0.010)
    traffic.add("m", 1, 503, 1.0)
    traffic.add("m", 2, 200, 500.0)

    first, second = traffic.summary()
    (minute,) = first["minutes"]

    assert (first["model"], first["version"], second["version"]) == ("m", 1, 2)
    assert (minute["requests"], minute["errors"], minute["refusals"]) == (100, 1, 1)
    for name in ("p50", "p95", "p99"):
        assert 0.010 <= minute["seconds"][name] <= 0.010 * 2 ** (1 / BUCKETS_PER_DOUBLING)
    assert first["hour"] == {name: value for name, value in minute.items() if name != "minute"}
