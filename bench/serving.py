"""Requests for one row by eight callers: this repository's serving beside `mlflow models serve`, on one model each.

Both are local processes over one MLflow server on SQLite and serve the same versions: the three families of the weather
pipeline, fitted on synthetic days. They take turns; what is not measured is not running.
"""

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import psutil
from mlflow import MlflowClient
from mlflow.models import infer_signature

from bench.report import save, summary
from flows.weather.model import FAMILIES, TRUSTED_TYPES, make_candidates, make_estimator
from tests.support.servers import SCRIPTS, free_port, mlflow_server, server, serving_server
from tests.support.waiting import wait_until

CALLERS, WARM_UP_SECONDS, SECONDS, TURNS = 8, 2.0, 8.0, 3
KEY = "a-key-of-the-benchmark"


def register_all(address: str) -> tuple[list[str], pd.DataFrame]:
    """Register a champion of each family; return the models' names and a row."""
    os.environ["MLFLOW_TRACKING_URI"] = address
    random = np.random.default_rng(0)
    days = pd.DataFrame(random.normal(size=(1500, 15)), columns=[f"feature_{n}" for n in range(15)])
    wet = days["feature_0"] + random.normal(size=len(days)) > 0
    for family in FAMILIES:
        estimator = make_estimator(make_candidates([family])[1]).fit(days, wet)
        with mlflow.start_run():
            logged = mlflow.sklearn.log_model(
                estimator,
                name="model",
                signature=infer_signature(days, estimator.predict(days)),
                input_example=days.head(3),
                serialization_format="skops",
                skops_trusted_types=list(TRUSTED_TYPES),
                pip_requirements=["scikit-learn"],
            )
        version = mlflow.register_model(logged.model_uri, family).version
        MlflowClient().set_registered_model_alias(family, "champion", version)
    return list(FAMILIES), days.head(1)


@contextmanager
def ours(folder: Path, registry: str, model: str, row: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run our service; yields its process's address and a request."""
    with serving_server(folder, registry, SERVING_API_KEY=KEY) as address:
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
    (listener,) = {
        found.pid
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid
    }
    process = psutil.Process(listener)
    starter = process.parent()
    if starter and "mlflow" in " ".join(starter.cmdline()):  # its command stays, beside its server
        process = starter
    return sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)]) / 2**20


def main() -> None:
    """Measure both, in turns, and save."""
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as home, mlflow_server(Path(home) / "mlflow") as registry:
        models, row = register_all(registry)
        for model in models:
            rates: dict[str, list[float]] = {"trainyard": [], "mlflow models serve": []}
            times: dict[str, list[float]] = {name: [] for name in rates}
            memory: dict[str, float] = {}
            for _ in range(TURNS):
                for name, run in (("trainyard", ours), ("mlflow models serve", theirs)):
                    with run(Path(home) / name.split()[0], registry, model, row) as (url, request):
                        memory.setdefault(name, round(memory_of(url), 1))
                        rate, latencies = measure(url, request)
                        rates[name].append(rate)
                        times[name] += latencies
            results[model] = {
                name: {
                    "requests_per_second": summary(rates[name]),
                    "milliseconds": summary(times[name]),
                    "idle_memory_mib": memory[name],
                }
                for name in rates
            }
    save("serving", {"callers": CALLERS, "seconds": SECONDS, "models": results})


if __name__ == "__main__":
    main()
