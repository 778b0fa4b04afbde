"""Requests for one row by eight callers: this repository's serving compared with other servers, on one model each.

`mlflow models serve` and the servers of `bench.model_servers`, which are skipped, with the reason, where they cannot be
installed. All are local processes over one MLflow server on SQLite and serve the same versions: the three families of the weather
pipeline, fitted on synthetic days. They take turns; what is not measured is not running. Ours records what it answers in
a Postgres of the machine, as it does in the stack, and once more does not, which shows what that costs.
"""

import math
import os
import re
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import psutil
from mlflow import MlflowClient
from mlflow.models import infer_signature

from bench.model_servers import SERVERS, InstallationError, installed_version
from bench.report import save, summary
from flows.weather.model import FAMILIES, make_problem
from flows.weather.places import SEATTLE
from infra.testing.postgres import postgres_server
from infra.testing.servers import SCRIPTS, free_port, mlflow_server, server, serving_server
from infra.testing.waiting import wait_until
from trainyard.reviewed_types import REVIEWED_TYPES

CALLERS, WARM_UP_SECONDS, SECONDS, TURNS, SWAPS = 8, 2.0, 8.0, 3, 6
KEY = "a-key-of-the-benchmark"


def register_all(address: str) -> tuple[dict[str, float], pd.DataFrame]:
    """Register two versions of each family, the first its champion; return each one's milliseconds a row, and a row."""
    random = np.random.default_rng(0)
    days = pd.DataFrame(random.normal(size=(1500, 15)), columns=[f"feature_{n}" for n in range(15)])
    wet = days["feature_0"] + random.normal(size=len(days)) > 0
    alone: dict[str, float] = {}
    for family in FAMILIES:
        problem = make_problem(SEATTLE, families=[family])
        estimator = problem.make_estimator(problem.list_candidates()[1]).fit(days, wet)
        register(address, family, estimator, days)
        alone[family] = predict_alone(estimator, days.head(1).to_numpy())
    return alone, days.head(1)


def register(address: str, name: str, estimator: Any, inputs: pd.DataFrame) -> None:
    """Register two versions of a fitted estimator, the first its champion."""
    os.environ["MLFLOW_TRACKING_URI"] = address
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            estimator,
            name="model",
            signature=infer_signature(inputs, estimator.predict(inputs)),
            input_example=inputs.head(3),
            serialization_format="skops",
            skops_trusted_types=sorted(REVIEWED_TYPES),
            pip_requirements=["scikit-learn"],
        )
    for _ in range(2):
        mlflow.register_model(logged.model_uri, name)
    MlflowClient().set_registered_model_alias(name, "champion", "1")


def predict_alone(estimator: Any, row: Any) -> float:
    """Return how many milliseconds the estimator itself takes for a row: no server could be quicker on one core."""
    times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a matrix, which has no names
        for _ in range(300):
            started = time.perf_counter()
            estimator.predict_proba(row)
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


@contextmanager
def ours(
    folder: Path, registry: str, model: str, row: pd.DataFrame, **settings: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run our service; yields its process's address and a request."""
    with serving_server(folder, registry, SERVING_API_KEY=KEY, **settings) as address:
        wait_until(lambda: model in httpx.get(f"{address}/health/ready").json().get("versions", {}), 60, model)
        body = row.to_dict("records")[0]
        yield f"{address}/models/{model}/predict", {"json": body, "headers": {"Authorization": f"Bearer {KEY}"}}


@contextmanager
def theirs(folder: Path, registry: str, model: str, row: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run `mlflow models serve`; yields as `ours`."""
    port = free_port()
    command = [str(SCRIPTS / "mlflow"), "models", "serve", "--model-uri", f"models:/{model}@champion"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--env-manager", "local", "--workers", "1"]
    environment = {"MLFLOW_TRACKING_URI": registry, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    address = f"http://127.0.0.1:{port}"
    with server(command, f"{address}/ping", folder, environment):
        yield f"{address}/invocations", {"json": {"dataframe_split": row.to_dict("split", index=False)}}


def call(url: str, request: dict[str, Any], seconds: float) -> list[float]:
    """Send requests one after the other over one connection; return how long each took, in milliseconds."""
    prepared = httpx.Request("POST", url, **request)
    # By hand: a Python client would take longer for a request than the service.
    head = "".join(f"{name}: {value}\r\n" for name, value in prepared.headers.items())
    message = f"POST {prepared.url.path} HTTP/1.1\r\n{head}\r\n".encode() + prepared.read()
    times = []
    with socket.create_connection((prepared.url.host, prepared.url.port or 80), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            connection.sendall(message)
            answer = receive(connection)
            times.append((time.perf_counter() - started) * 1000)
            assert answer.startswith(b"HTTP/1.1 200"), answer
    return times


def receive(connection: socket.socket) -> bytes:
    """Return one response, whose length is in its header."""
    answer = b""
    while True:
        part = connection.recv(65536)
        assert part, "the server ended the connection"
        answer += part
        head, found, body = answer.partition(b"\r\n\r\n")
        if found:
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            assert length, head
            if len(body) >= int(length[1]):
                return answer


def measure(url: str, request: dict[str, Any]) -> tuple[float, list[float]]:
    """Return requests a second and all latencies, of eight callers, each a thread."""
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(lambda _: call(url, request, WARM_UP_SECONDS), range(CALLERS)))
        parts = list(callers.map(lambda _: call(url, request, SECONDS), range(CALLERS)))
    times = [each for part in parts for each in part]
    return len(times) / SECONDS, times


def memory_of(url: str) -> float:
    """Return the memory, in MiB, of the processes that serve at an address: shared pages by their share."""
    port = httpx.URL(url).port
    listener = min(  # workers may inherit the socket
        found.pid
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid
    )
    process, names = psutil.Process(listener), ("mlflow", "bentoml", "api.py")
    # A command keeps running as the parent of its server.
    while (starter := process.parent()) and any(name in " ".join(starter.cmdline()) for name in names):
        process = starter
    return sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)]) / 2**20


def swap_seconds(folder: Path, registry: str, model: str, row: pd.DataFrame) -> list[float]:
    """Return how long after each change of the alias the other version first answers, by the default settings."""
    times = []
    with ours(folder, registry, model, row, SERVING_POLL_SECONDS="2") as (url, request), httpx.Client() as client:
        for number in range(SWAPS):
            version = 2 - number % 2
            MlflowClient().set_registered_model_alias(model, "champion", str(version))
            started = time.perf_counter()
            while client.post(url, **request).raise_for_status().json()["version"] != version:
                pass  # callers go on meanwhile
            times.append(time.perf_counter() - started)
    MlflowClient().set_registered_model_alias(model, "champion", "1")
    return times


def percentile(values: list[float], share: float) -> float:
    """Return a percentile by the nearest rank."""
    return round(sorted(values)[math.ceil(share * len(values)) - 1], 3)


def compare(home: Path, registry: str, database: str, model: str, row: pd.DataFrame) -> dict[str, Any]:
    """Measure all servers with one model, in turns; return their results by name."""
    recording = partial(ours, SERVING_DATABASE_URL=database)
    servers: dict[str, Any] = {"trainyard": recording, "trainyard, not recording": ours, "mlflow models serve": theirs}
    servers |= {name: run for name, (_, run) in SERVERS.items()}
    skipped: dict[str, str] = {}
    rates: dict[str, list[float]] = {name: [] for name in servers}
    times: dict[str, list[float]] = {name: [] for name in servers}
    memory: dict[str, float] = {}
    for _ in range(TURNS):
        for number, (name, run) in enumerate(servers.items()):
            if name in skipped:
                continue
            try:
                with run(home / str(number), registry, model, row) as (url, request):
                    memory.setdefault(name, round(memory_of(url), 1))
                    rate, latencies = measure(url, request)
            except (InstallationError, RuntimeError, TimeoutError) as error:
                if name not in SERVERS:
                    raise
                skipped[name] = str(error)
                continue
            rates[name].append(rate)
            times[name] += latencies
    return {name: {"skipped": reason} for name, reason in skipped.items()} | {
        name: {
            "requests_per_second": summary(rates[name]),
            "milliseconds": {**summary(times[name]), "p99": percentile(times[name], 0.99)},
            "idle_memory_mib": memory[name],
            **({"version": installed_version(SERVERS[name][0], SERVERS[name][0])} if name in SERVERS else {}),
        }
        for name in servers
        if name not in skipped
    }


def main() -> None:
    """Measure and save."""
    results: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        mlflow_server(Path(home) / "mlflow") as registry,
        postgres_server() as database,
    ):
        alone, row = register_all(registry)
        swaps = {model: summary(swap_seconds(Path(home) / "swaps", registry, model, row)) for model in alone}
        for model, milliseconds in alone.items():
            results[model] = compare(Path(home), registry, database, model, row)
            results[model] |= {"predict_alone_milliseconds": round(milliseconds, 3), "swap_seconds": swaps[model]}
    save("serving", {"callers": CALLERS, "seconds": SECONDS, "models": results})


if __name__ == "__main__":
    main()
