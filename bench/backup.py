"""Measure backups and a restore: their rates, and what a backup that is going on costs the start of a run.

Random bytes are the worst case: nothing of them deduplicates or compresses.
"""

import shutil
import subprocess
import time

from bench.report import save, summary
from bench.stack import plain_stack, run_once, wait_until_idle
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack

MEGABYTES_OF_LARGE, SMALL_OBJECTS, SMALL_BYTES = 300, 3000, 20_000
ROUNDS = 3
RUNS_ALONE = 8
FILL = f"""
import io, random
from concurrent.futures import ThreadPoolExecutor
from minio import Minio
from infra.provision.settings import Settings
settings = Settings()
store = Minio(endpoint="minio:9000", access_key=settings.minio_root_user,
              secret_key=settings.minio_root_password.get_secret_value(), secure=False)
rng = random.Random({{seed}})
def put(item):
    size, number = item
    data = rng.randbytes(size)
    store.put_object(bucket_name="mlflow", object_name=f"bench/{{seed}}/{{{{size}}}}/{{{{number}}}}", data=io.BytesIO(data), length=size,
                     part_size=8 << 20)
items = [({SMALL_BYTES}, each) for each in range({SMALL_OBJECTS})]
items += [(10_000_000, each) for each in range({MEGABYTES_OF_LARGE} // 10)]
list(ThreadPoolExecutor(4).map(put, items))
"""


def timed(stack: Stack, command: str) -> float:
    """Run a command; return the duration in seconds."""
    start = time.monotonic()
    stack.shell(command, timeout=1800)
    return time.monotonic() - start


def main() -> None:
    """Measure and save."""
    volume = MEGABYTES_OF_LARGE + SMALL_OBJECTS * SMALL_BYTES / 1e6
    alone: list[float] = []
    beside: list[float] = []
    backups: list[float] = []
    with plain_stack() as stack:
        shutil.copy(stack.home / "bench/flows/bench_trivial.py", stack.home / "flows")
        with (stack.home / "prefect.yaml").open("a") as project:
            project.write(
                "\n  - name: trivial\n    entrypoint: flows/bench_trivial.py:trivial\n    work_pool: *training\n"
            )
        stack.up()
        stack.wait_for_first_run()
        with stack.prefect() as api:
            deployment = find_deployment(api, "trivial")["id"]
            run_once(api, deployment)
            for seed in range(ROUNDS):
                stack.provisioner(FILL.format(seed=seed))
                wait_until_idle(api)
                alone += [run_once(api, deployment)[0] for _ in range(RUNS_ALONE)]
                start = time.monotonic()
                with subprocess.Popen(["make", "backup"], cwd=stack.home, env=stack.environment) as backup:
                    while backup.poll() is None:
                        beside.append(run_once(api, deployment)[0])
                backups.append(time.monotonic() - start)
        unchanged = timed(stack, "make backup")
        check = timed(stack, "docker compose run --rm --no-deps -T restore check")
        restores = [timed(stack, "make restore")]
        stack.provisioner("""
from minio import Minio
from minio.deleteobjects import DeleteObject
from infra.provision.settings import Settings
settings = Settings()
store = Minio(endpoint="minio:9000", access_key=settings.minio_root_user,
              secret_key=settings.minio_root_password.get_secret_value(), secure=False)
names = [DeleteObject(each.object_name) for each in store.list_objects(bucket_name="mlflow", recursive=True)]
assert not list(store.remove_objects(bucket_name="mlflow", delete_object_list=names))
""")
        restores.append(timed(stack, "make restore"))
    save(
        "backup",
        {
            "megabytes_of_each_round": volume,
            "backup_seconds": summary(backups),
            "unchanged_backup_seconds": round(unchanged, 1),
            "check_seconds": round(check, 1),
            "restore_of_present_objects_seconds": round(restores[0], 1),
            "restore_of_missing_objects_seconds": round(restores[1], 1),
            "run_to_running_seconds": {"alone": summary(alone), "beside_a_backup": summary(beside)},
        },
    )


if __name__ == "__main__":
    main()
