"""Measure artifacts through MLflow's server against the straight way to the object store: large files and many small ones.

Both ways start in the worker's container and use MLflow's client; the straight one has the key of the results' bucket, which no
client of MLflow has otherwise. They take turns.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from bench.report import save
from bench.stack import plain_stack
from infra.testing.stack import Stack

PROGRAM = """
import json, os, random, shutil, sys, tempfile, time
from pathlib import Path
import mlflow
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from prefect_aws import S3Bucket
number, size, rounds = map(int, sys.argv[1:])
block = S3Bucket.load("results")
os.environ |= {
    "AWS_ACCESS_KEY_ID": block.credentials.minio_root_user,
    "AWS_SECRET_ACCESS_KEY": block.credentials.minio_root_password.get_secret_value(),
    "MLFLOW_S3_ENDPOINT_URL": "http://minio:9000",
}
folder, back = (Path(tempfile.mkdtemp(dir="/var/lib/warm-process")) for _ in range(2))
part = random.randbytes(min(size, 1 << 20))
for each in range(number):
    with (folder / f"{each}.bin").open("wb") as file:
        for _ in range(size // len(part)):
            file.write(part)
seconds = {"upload": {"server": [], "straight": []}, "download": {"server": [], "straight": []}}
mlflow.set_experiment("artifacts")
for turn in range(rounds):
    with mlflow.start_run() as run:
        straight = S3ArtifactRepository(f"s3://{block.bucket_name}/bench/{turn}")
        ways = {"server": mlflow.artifacts, "straight": straight}
        for way in sorted(ways, reverse=turn % 2):
            start = time.monotonic()
            mlflow.log_artifacts(str(folder)) if way == "server" else straight.log_artifacts(str(folder))
            seconds["upload"][way].append(time.monotonic() - start)
            start = time.monotonic()
            if way == "server":
                mlflow.artifacts.download_artifacts(artifact_uri=run.info.artifact_uri, dst_path=str(back))
            else:
                straight.download_artifacts("", str(back))
            seconds["download"][way].append(time.monotonic() - start)
            shutil.rmtree(back)
            back.mkdir()
    straight.delete_artifacts("")
shutil.rmtree(folder)
shutil.rmtree(back)
print(json.dumps(seconds))
"""
MEMORY = "cat /sys/fs/cgroup/memory.stat 2>/dev/null || cat /sys/fs/cgroup/memory/memory.stat"  # cgroup 2, or 1
KINDS = {"200 MiB": (1, 200 << 20, 5), "1,000 files of 4 KiB": (1000, 4 << 10, 3), "5 GiB": (1, 5 << 30, 1)}


@contextmanager
def most_memory(stack: Stack, service: str, found: dict[str, float]) -> Iterator[None]:
    """Sample a service's own memory, without cached files, and give the most of it in MiB as `found["mib"]`."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            text = stack.exec(service, "bash", "-c", MEMORY, check=False).stdout
            values = dict(line.split() for line in text.splitlines())
            used = int(values.get("anon") or values.get("total_rss") or 0)
            found["mib"] = max(found.get("mib", 0), used / 2**20)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()


def measure(stack: Stack, number: int, size: int, rounds: int) -> dict[str, object]:
    """Return rates, their ratios and the server's memory for some files of one size."""
    memory: dict[str, float] = {}
    with most_memory(stack, "mlflow", memory):
        output = stack.exec("worker", "python", "-c", PROGRAM, str(number), str(size), str(rounds)).stdout
    found: dict[str, object] = {"mlflow_mib": round(memory["mib"])}
    for direction, ways in json.loads(output.splitlines()[-1]).items():
        seconds = {way: median(times) for way, times in ways.items()}
        found[direction] = {
            "server_seconds": [round(each, 2) for each in ways["server"]],
            "straight_seconds": [round(each, 2) for each in ways["straight"]],
            "ratio": round(seconds["straight"] / seconds["server"], 2),
        }
    return found


def main() -> None:
    """Measure all kinds, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    kinds = parser.parse_args().kinds
    with plain_stack() as stack:
        stack.environment |= {"FIRST_RUN": "", "SCHEDULES_ACTIVE": "false"}
        stack.up("worker")
        results = {}
        for kind in kinds:
            results[kind] = measure(stack, *KINDS[kind])
            print(kind, json.dumps(results[kind]), flush=True)
    if kinds == list(KINDS):
        save("artifacts", results)


if __name__ == "__main__":
    main()
