"""Send a real serving process bodies that are small and unpack to much, and mutated ones, and watch its memory.

Each body of `bench.bodies` is sent at the largest size that the service accepts, one at a time and by eight callers,
and whole bodies of each format with random edits, from a fixed seed. After them the service answers a row as before.
"""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from bench.bodies import CSV, FILE, JSON, PARQUET, STREAM, as_arrow, as_parquet, bombs
from bench.report import save
from infra.testing.servers import mlflow_server, serving_server
from infra.testing.waiting import wait_until
from trainyard.contract import Alias

KEY = "a-key-of-the-benchmark"
HEADERS = {"Authorization": f"Bearer {KEY}"}
MODEL, CALLERS, MUTATIONS = "bombed", 8, 4_000
MAX_BYTES = 8 * 2**20
FRAME = pd.DataFrame({"a": [0.5, 1.5, 2.5], "s": ["x", None, "y"]})
Body = tuple[str, str, bytes]


def register_model(name: str = MODEL, unused_bytes: int = 0) -> None:
    """Register a regressor with a required number `a` and an optional text `s`, and so many bytes that nothing needs."""
    estimator = make_pipeline(make_column_transformer(("passthrough", ["a"])), LinearRegression())
    estimator.fit(FRAME, [1.0, 2.0, 3.0])
    estimator.unused_ = np.zeros(unused_bytes, np.uint8)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            estimator,
            name="model",
            signature=infer_signature(FRAME, estimator.predict(FRAME)),
            input_example=FRAME,
            serialization_format="skops",
            skops_trusted_types=["numpy.dtype"],
            pip_requirements=["scikit-learn"],
        )
    mlflow.register_model(logged.model_uri, name)
    MlflowClient().set_registered_model_alias(name, Alias.CHAMPION, "1")


def mutated(number: int, seed: int) -> Iterator[Body]:
    """Yield whole bodies of each format with one to eight bytes changed, inserted, doubled or cut off."""
    table = pa.Table.from_pandas(FRAME.assign(s=FRAME["s"].astype("category")))
    whole = {
        STREAM: as_arrow(table, STREAM, "zstd"),
        FILE: as_arrow(table, FILE, "lz4"),
        PARQUET: as_parquet(table),
        CSV: FRAME.to_csv(index=False).encode(),
        JSON: FRAME.to_json(orient="records").encode(),
    }
    chance = random.Random(seed)
    for at in range(number):
        media = chance.choice(list(whole))
        body = bytearray(whole[media])
        for _ in range(chance.randint(1, 8)):
            edit(body, chance)
        yield f"mutation-{at}", media, bytes(body)


def edit(body: bytearray, chance: random.Random) -> None:
    """Change a body in one place."""
    at, kind = chance.randrange(len(body) + 1), chance.randrange(5)
    if kind == 0 and at < len(body):
        body[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    elif kind == 1:
        body[at:at] = chance.randbytes(chance.randint(1, 8))
    elif kind == 2 and at + 4 <= len(body):
        body[at : at + 4] = chance.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
    elif kind == 3:
        body[at:at] = body[chance.randrange(at + 1) : at][:64]
    else:
        del body[at : at + chance.randint(1, 16)]


class Watch:
    """The peak memory of a serving process and of the processes that it started."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.idle = self._sum("VmRSS")
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins here
        self.peak = self.decoder_peak = 0

    def look(self) -> None:
        """Take the peaks so far; a process that ended in between is missed, and its memory limit holds anyway."""
        children = sum(
            self._read(child, "VmHWM") for child in self._process.children() if self._is_other_program(child)
        )
        self.decoder_peak = max(self.decoder_peak, children)
        self.peak = max(self.peak, self._read(self._process, "VmHWM"))

    def _is_other_program(self, child: psutil.Process) -> bool:
        """Return whether a child has begun to execute its program: before that it has its parent's memory."""
        try:
            return bool(child.cmdline() != self._process.cmdline())
        except psutil.Error:
            return False

    def _sum(self, field: str) -> int:
        return sum(self._read(each, field) for each in (self._process, *self._process.children()))

    @staticmethod
    def _read(process: psutil.Process, field: str) -> int:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def flood(address: str, bodies: Iterable[Body], watch: Watch, callers: int = 1) -> Counter[int]:
    """Send bodies to the model; return how many were answered with each status.

    Raises:
        AssertionError: An answer is not one of a working service.
    """
    with httpx.Client(base_url=address, headers=HEADERS, timeout=120) as client, ThreadPoolExecutor(callers) as pool:

        def send(body: Body) -> int:
            name, media, content = body
            answer = client.post(f"/models/{MODEL}/predict", content=content, headers={"Content-Type": media})
            watch.look()
            assert answer.status_code in (200, 400, 413, 415, 422, 503), (
                f"{name}: {answer.status_code} {answer.text[:300]}"
            )
            return answer.status_code

        return Counter(pool.map(send, bodies))


@contextmanager
def bombed_service(folder: Path, registry: str, **settings: str) -> Iterator[tuple[str, Watch]]:
    """Run a service with the model; yield its address and a watch of its memory."""
    with serving_server(folder, registry, SERVING_API_KEY=KEY, **settings) as address:
        with httpx.Client(base_url=address, headers=HEADERS, timeout=60) as client:
            row = {"a": 1, "s": "x"}
            wait_until(lambda: client.post(f"/models/{MODEL}/predict", json=row).is_success, 60, "the model")
        yield address, Watch(find_service(address))


def find_service(address: str) -> psutil.Process:
    """Return the process that this one started to serve at an address."""
    port = address.rpartition(":")[2]
    living = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    found = [each for each in living if each.cmdline()[1:] == ["-m", "serving"]]
    return next(process for process in found if process.environ().get("SERVING_PORT") == port)


def main() -> None:
    """Measure and save."""
    mebibytes = 2**20
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name) / "mlflow") as registry:
        os.environ["MLFLOW_TRACKING_URI"] = registry
        mlflow.set_experiment("bombs")
        register_model()
        results: dict[str, object] = {}
        with bombed_service(Path(name) / "serving", registry) as (address, watch):
            prepared = list(bombs(MAX_BYTES))
            for label, bodies, callers in (
                ("bombs", prepared, 1),
                ("bombs by 8 callers", prepared, CALLERS),
                ("mutations by 8 callers", mutated(MUTATIONS, seed=0), CALLERS),
            ):
                statuses = flood(address, bodies, watch, callers)
                results[label] = {
                    "bodies": sum(statuses.values()),
                    "by status": {str(status): number for status, number in sorted(statuses.items())},
                    "peak of the service, MiB": watch.peak // mebibytes,
                    "peak of the decoding process, MiB": watch.decoder_peak // mebibytes,
                }
            results["idle, MiB"] = watch.idle // mebibytes
            with httpx.Client(base_url=address, headers=HEADERS) as client:
                client.post(f"/models/{MODEL}/predict", json={"a": 1}).raise_for_status()
    results["largest body, MiB"] = MAX_BYTES // mebibytes
    results["bodies"] = sum(each["bodies"] for each in results.values() if isinstance(each, dict))
    save("bombs", results)


if __name__ == "__main__":
    main()
