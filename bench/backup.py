"""Measure backups and restores: their rates, and what a backup that is going on costs the start of a run.

Random bytes are the worst case: nothing of them deduplicates or compresses. The databases have the history of `bench.history`.
"""

import argparse
import shutil
import subprocess
import time
from pathlib import Path
from threading import Event

from bench.history import Databases, fill_both
from bench.report import save, summary
from bench.stack import plain_stack, run_once, wait_until_idle
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack

SMALL_BYTES, LARGE_BYTES = 20_000, 10_000_000
RUNS_ALONE = 15
PAUSE_SECONDS = 5
"""Between two runs beside a backup, which gives way to runs."""
CONNECT = """
from minio import Minio
from infra.provision.settings import Settings
settings = Settings()
store = Minio(endpoint="minio:9000", access_key=settings.minio_root_user,
              secret_key=settings.minio_root_password.get_secret_value(), secure=False)
"""
FILL = (
    CONNECT
    + """
import io, random
from concurrent.futures import ThreadPoolExecutor
rng = random.Random({seed})
def put(item):
    size, number = item
    store.put_object(bucket_name="mlflow", object_name=f"bench/{seed}/{{size}}/{{number}}", data=io.BytesIO(rng.randbytes(size)),
                     length=size, part_size=16 << 20)
items = [({small_bytes}, each) for each in range({small})] + [({large_bytes}, each) for each in range({large})]
list(ThreadPoolExecutor(4).map(put, items))
"""
)
EMPTY = (
    CONNECT
    + """
from minio.deleteobjects import DeleteObject
names = [DeleteObject(each.object_name) for each in store.list_objects(bucket_name="mlflow", recursive=True)]
assert not list(store.remove_objects(bucket_name="mlflow", delete_object_list=names))
"""
)


def fill(stack: Stack, seed: int, gigabytes: float) -> None:
    """Put random objects into the store: 5 % of their bytes in small ones."""
    small, large = (int(gigabytes * 1e9 * share / size) for share, size in ((0.05, SMALL_BYTES), (0.95, LARGE_BYTES)))
    stack.provisioner(
        FILL.format(seed=seed, small_bytes=SMALL_BYTES, large_bytes=LARGE_BYTES, small=small, large=large)
    )


def timed(stack: Stack, command: str) -> float:
    """Run a command; return the duration in seconds."""
    start = time.monotonic()
    print(stack.shell(command, timeout=3600).stdout, flush=True)
    return round(time.monotonic() - start, 1)


def add_trivial_flow(stack: Stack) -> None:
    """Add a flow that does nothing to the project."""
    shutil.copy(stack.home / "bench/flows/bench_trivial.py", stack.home / "flows")
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write("\n  - name: trivial\n    entrypoint: flows/bench_trivial.py:trivial\n    work_pool: *training\n")


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--runs", type=int, default=100_000)
    arguments = parser.parse_args()
    results: dict[str, object] = {"gigabytes": arguments.gigabytes}
    beside: list[float] = []
    pause = Event()
    with plain_stack() as stack:
        add_trivial_flow(stack)
        stack.up()
        stack.wait_for_first_run()
        with stack.prefect() as api:
            deployment = find_deployment(api, "trivial")["id"]
            run_once(api, deployment)
            results |= fill_both(Databases(Path(stack.home), stack.environment), arguments.runs, arguments.runs // 10)
            fill(stack, 0, arguments.gigabytes)
            wait_until_idle(api)
            alone = [run_once(api, deployment)[0] for _ in range(RUNS_ALONE)]
            start = time.monotonic()
            with subprocess.Popen(["make", "backup"], cwd=stack.home, env=stack.environment) as backup:
                while backup.poll() is None:
                    beside.append(run_once(api, deployment)[0])
                    pause.wait(PAUSE_SECONDS)
            results["backup_seconds"] = round(time.monotonic() - start, 1)
            results["run_to_running_seconds"] = {"alone": summary(alone), "beside_a_backup": summary(beside)}
        results["unchanged_backup_seconds"] = timed(stack, "make backup")
        results["check_seconds"] = timed(stack, "docker compose run --rm --no-deps -T restore check")
        results["restore_of_present_objects_seconds"] = timed(stack, "make restore")
        stack.provisioner(EMPTY)
        results["restore_of_missing_objects_seconds"] = timed(stack, "make restore")
    save("backup", results)


if __name__ == "__main__":
    main()
