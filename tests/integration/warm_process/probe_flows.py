"""Flows that the tests deploy; each shows one property of the process that it runs in."""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from prefect import flow, get_run_logger, pause_flow_run, task
from prefect.flow_runs import suspend_flow_run
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

SEEN = 0  # counts the runs in this process


def exists(fd: str) -> bool:
    return Path(f"/proc/self/fd/{fd}").is_symlink()


def is_fork() -> bool:
    """Tell whether this process is a fork of the warm process."""
    return "warm_process.zygote" in Path("/proc/self/cmdline").read_text()


def note(path: str, **facts: object) -> None:
    Path(path).write_text(json.dumps(facts))


@flow
def trivial():
    return None


@flow
def describe(path: str):
    """Record everything that could leak from one run into the next, then change all of it."""
    global SEEN
    import numpy

    SEEN += 1
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit() and exists(fd)]
    note(
        path,
        pid=os.getpid(),
        parent=os.getppid(),
        seen=SEEN,
        env=dict(os.environ),
        cwd=str(Path.cwd()),
        draws=[random.random(), numpy.random.random()],
        sigint=signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        sigusr1=signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL,
        level=logging.getLogger("prefect").level,
        threads=[thread.name for thread in threading.enumerate()],
        sockets=sum(link.startswith("socket:") for link in links),
        marked="leaked_module" in sys.modules or hasattr(json, "leaked"),
        is_fork=is_fork(),
        argv=sys.argv[1:],
        gc_enabled=__import__("gc").isenabled(),
        sys_path=sys.path,
    )
    os.environ["LEAKED"] = "yes"
    os.chdir("/")
    json.leaked = True
    sys.modules["leaked_module"] = json
    random.seed(1)
    numpy.random.seed(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    logging.getLogger("prefect").setLevel(logging.CRITICAL)
    sys.path.append("/leaked")


@flow
def wait(path: str | None = None, seconds: float = 120.0, new_session: bool = False):
    """Run until stopped, with a child process that would outlive it."""
    child = subprocess.Popen(["sleep", "300"], start_new_session=new_session)
    if path:
        note(path, pid=os.getpid(), grandchild=child.pid, is_fork=is_fork(), env=dict(os.environ))
    time.sleep(seconds)
    child.kill()


@flow
def leaves_a_file(path: str):
    """Leave a temporary file, and be killed."""
    file = tempfile.mkstemp()[1]
    note(path, file=file, exists=Path(file).exists())
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def wait_for_file(path: str, release: str):
    """Run until a file appears."""
    note(path, pid=os.getpid())
    while not Path(release).exists():
        time.sleep(0.05)


def on_cancel(_flow, _flow_run, state):
    Path(os.environ["HOOK_FILE"]).write_text(f"cancelled {state.name}")


def on_crash(_flow, _flow_run, state):
    Path(os.environ["HOOK_FILE"]).write_text(f"crashed {state.name}")


@flow(on_cancellation=[on_cancel], on_crashed=[on_crash])
def with_hooks(path: str):
    note(path, pid=os.getpid())
    time.sleep(120)


@flow
def end(how: str):
    """End the process in a way that Prefect's engine does not notice."""
    if how == "exit 9":
        os._exit(9)
    if how == "exit 0":
        os._exit(0)
    if how == "sys.exit 5":
        sys.exit(5)
    if how == "raise":
        raise ValueError("deliberate")
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


@flow
def child_flow(path: str):
    note(path, pid=os.getpid())
    time.sleep(120)


@flow
def parent_flow(path: str):
    child_flow(path)


@flow
def quick_child(number: int):
    return number + 1


@flow
def with_subflow():
    assert quick_child(1) == 2


@task
def double(number: int) -> int:
    return 2 * number


@flow(task_runner=ThreadPoolTaskRunner(max_workers=3))
def with_threads():
    assert [future.result() for future in double.map([1, 2, 3])] == [2, 4, 6]


@flow(task_runner=ProcessPoolTaskRunner(max_workers=2))
def with_processes():
    assert [future.result() for future in double.map([1, 2])] == [2, 4]


@flow
async def asynchronous():
    return double(4)


@flow(retries=1, retry_delay_seconds=0)
def fails_once(path: str):
    if not Path(path).exists():
        Path(path).touch()
        raise ValueError("the first attempt")


@flow
def pauses():
    pause_flow_run(timeout=60, poll_interval=1)


@flow
def suspends(path: str):
    with Path(path).open("a") as attempts:
        attempts.write("attempt\n")
    suspend_flow_run(timeout=timedelta(minutes=5).total_seconds())


@flow
def speaks(words: str):
    get_run_logger().info(words)
    get_run_logger().debug("whispered")
    print("printed")


def open_mlflow_run(path: str, address: str, experiment: str) -> None:
    """Open a run in MLflow as flows do, through REST because importing the client takes seconds."""
    import httpx
    from prefect.runtime import flow_run

    from trainyard.contract import Tag

    def create(name: str, **tags: str) -> str:
        start_time = int(time.time() * 1000)
        body = {"experiment_id": experiment, "run_name": name, "start_time": start_time}
        body["tags"] = [{"key": key, "value": value} for key, value in tags.items()]
        answer = httpx.post(f"{address}/api/2.0/mlflow/runs/create", json=body).raise_for_status().json()
        return answer["run"]["info"]["run_id"]

    training = create("training", **{Tag.FLOW_RUN_ID: flow_run.root_flow_run_id, Tag.SUBFLOW_RUN_ID: flow_run.id})
    trial = create("trial", **{Tag.PARENT_RUN_ID: training})
    note(path, pid=os.getpid(), mlflow_run=training, trial=trial)


@flow
def leaves_mlflow_run_open(path: str, address: str, experiment: str):
    open_mlflow_run(path, address, experiment)
    time.sleep(120)


@flow
def opens_mlflow_run_in_subflow(path: str, address: str, experiment: str):
    leaves_mlflow_run_open(path, address, experiment)


@flow
def leaves_mlflow_run_open_and_runs(path: str, address: str, experiment: str, child: str, child_path: str):
    """Leave a run open in MLflow and wait for a run of another deployment that does the same."""
    from prefect.deployments import run_deployment

    open_mlflow_run(path, address, experiment)
    run_deployment(child, parameters={"path": child_path, "address": address, "experiment": experiment})


@flow
def crashes_once(path: str, how: str = "SIGKILL"):
    """End the process at the first attempt."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)


def slow_hook(_flow, _flow_run, _state):
    note(os.environ["HOOK_FILE"], pid=os.getpid())
    time.sleep(300)


@flow(on_crashed=[slow_hook])
def with_slow_hook():
    os._exit(1)


@flow
def searches_its_memory(path: str, first_half: str, second_half: str):
    """Look for a text, given in halves, in everything that this process has in memory."""
    sought, hits = re.compile(first_half.encode() + b"(?=" + second_half.encode() + b")"), 0
    with Path("/proc/self/maps").open() as maps, Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in maps:
            borders, rights = line.split()[:2]
            start, end = (int(border, 16) for border in borders.split("-"))
            if rights.startswith("rw"):
                memory.seek(start)
                with suppress(OSError):
                    hits += len(sought.findall(memory.read(end - start)))
    note(path, hits=hits)


HOARD = "import sys, time; kept = [bytearray(b'x' * (8 << 20)) for _ in range(int(sys.argv[1]) // 8)]; time.sleep(120)"


@flow
def hoard(path: str, mib: int, where: str = "process"):
    """Fill memory step by step, in this process or in one that it starts, and keep it."""
    children = []
    if where != "process":
        command = [sys.executable, "-c", HOARD, str(mib)]
        children.append(subprocess.Popen(command, start_new_session=where == "session").pid)
    note(path, pid=os.getpid(), children=children, is_fork=is_fork())
    kept: list[bytearray] = []
    while where == "process" and 8 * len(kept) < mib:
        kept.append(bytearray(b"x" * (8 << 20)))
        time.sleep(0.01)
    time.sleep(120)


@task
def openmp_threads() -> int:
    from sklearn.utils._openmp_helpers import _openmp_effective_n_threads

    return _openmp_effective_n_threads(only_physical_cores=False)


@flow
def counts_threads(path: str):
    """Record the threads and cores that libraries and a child process see."""
    import joblib
    import numpy  # noqa: F401 - brings OpenBLAS
    from threadpoolctl import threadpool_info

    program = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    note(
        path,
        is_fork=is_fork(),
        blas=[found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"],
        openmp=openmp_threads(),
        openmp_in_thread=openmp_threads.submit().result(),
        cores=joblib.cpu_count(),
        child=child.stdout.strip(),
    )
