"""Limits of a run: memory, threads and wall time; who is ended, and what is said about it."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from warm_process import threads
from warm_process.background import BackgroundTasks
from warm_process.cgroup import CgroupMemory, read_core_quota
from warm_process.endings import RunEndings
from warm_process.job import WarmProcessJobConfiguration
from warm_process.ledger import Claim, Ledger
from warm_process.limits import Limits, choose_largest, default_memory, is_exhausted
from warm_process.live_runs import ForkContext, LiveRun, LiveRuns
from warm_process.memory import estimate_memory, find_members, measure_memory
from warm_process.settings import WarmProcessSettings
from warm_process.watch import LimitWatch

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, gone, read_note

GIB, MIB = 1 << 30, 1 << 20
COLD = {"env": {"PYTHONHASHSEED": "7"}}
REPEATED = {"job_variables": {"reruns_after_crash": 2}}


def expect_reason(server: Server, run: str, pattern: str) -> None:
    """Expect that a run has crashed once, for this reason, and was not run again."""
    server.expect(run, "Crashed")
    message = server.message(run)
    assert re.fullmatch(f"The flow run crashed: {pattern}.", message), message
    assert server.names(run).count("Crashed") == 1
    assert "AwaitingRerun" not in server.names(run)
    wait_until(lambda: any(re.search(pattern, line) for line in server.logs(run)), 10, "the reason in the log")


@pytest.mark.parametrize(
    ("where", "mib", "limit", "more"),
    [("process", 300, 150, {}), ("child", 300, 150, {}), ("session", 300, 150, {}), ("process", 900, 600, COLD)],
    ids=["process", "child", "session", "cold"],
)
def test_a_run_over_its_memory_is_ended_alone(
    orchestrator: Server, shared_pool: str, tmp_path: Path, where: str, mib: int, limit: int, more: dict[str, Any]
) -> None:
    release, neighbours_note, note = tmp_path / "release", tmp_path / "neighbour.json", tmp_path / "note.json"
    neighbour = orchestrator.trigger(
        orchestrator.deploy(shared_pool, "wait_for_file"), path=str(neighbours_note), release=str(release)
    )
    deployment = orchestrator.deploy(shared_pool, "hoard", **REPEATED)
    run = orchestrator.trigger(deployment, {"memory_mib": limit, **more}, path=str(note), mib=mib, where=where)
    seen = read_note(note)

    expect_reason(
        orchestrator,
        run,
        rf"it used [\d.]+ MiB of memory, more than its limit of {limit} MiB \(job variable memory_mib\)",
    )
    gone(seen["pid"], *seen["children"])
    release.touch()
    orchestrator.expect(neighbour, "Completed")
    assert seen["is_fork"] == (not more)


def test_what_a_run_shares_with_the_warm_process_does_not_count(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, tmp_path: Path, note: Path
) -> None:
    limit, release = 64, tmp_path / "release"
    deployment = orchestrator.deploy(shared_pool, "wait_for_file")
    variables = {"memory_mib": limit, "wall_time_seconds": None}
    run = orchestrator.trigger(deployment, variables, path=str(note), release=str(release))
    pid = read_note(note)["pid"]
    members = find_members([pid])[pid]
    own, with_share = measure_memory(members, shared_worker.warm_pid), measure_memory(members, None)
    all_of_it = estimate_memory(members)
    release.touch()

    orchestrator.expect(run, "Completed")
    assert members == [pid]
    assert own < limit * MIB < with_share < all_of_it, "the limit has to be between these for the test to mean anything"


def test_a_run_over_its_wall_time_is_ended(orchestrator: Server, shared_pool: str, note: Path) -> None:
    deployment = orchestrator.deploy(shared_pool, "wait", **REPEATED)
    run = orchestrator.trigger(deployment, {"wall_time_seconds": 2}, path=str(note), new_session=True)
    seen = read_note(note)

    expect_reason(orchestrator, run, r"it ran for longer than its limit of 2 s \(job variable wall_time_seconds\)")
    gone(seen["pid"], seen["grandchild"])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: nothing to limit")
@pytest.mark.parametrize("more", [{}, COLD], ids=["fork", "cold"])
def test_libraries_use_the_threads_that_a_run_has(
    orchestrator: Server, shared_pool: str, note: Path, more: dict[str, Any]
) -> None:
    deployment = orchestrator.deploy(shared_pool, "counts_threads")
    run = orchestrator.trigger(deployment, {"threads": 1, **more}, path=str(note))

    orchestrator.expect(run, "Completed")
    seen = read_note(note)
    assert seen["is_fork"] == (not more)
    assert set(seen["blas"]) == {1}
    assert {seen[name] for name in ("openmp", "openmp_in_thread", "cores")} == {1}
    assert seen["child"] == "1"


def test_the_work_pool_offers_the_limits(orchestrator: Server, shared_pool: str) -> None:
    template = orchestrator.call("GET", f"/work_pools/{shared_pool}")["base_job_template"]
    offered = template["variables"]["properties"]

    for name, default in {"memory_mib": None, "threads": None, "wall_time_seconds": 86400}.items():
        assert offered[name]["default"] == default
        assert offered[name]["description"]
        assert template["job_configuration"][name] == f"{{{{ {name} }}}}"


@pytest.mark.parametrize(
    ("worker_memory", "memory"),
    [
        (None, None),
        (8 * GIB, 8 * GIB - int(1.2 * GIB)),
        (2 * GIB, 2 * GIB - 512 * MIB),
        (1 * GIB, 512 * MIB),
        (600 * MIB, 300 * MIB),
    ],
)
def test_the_default_leaves_memory_to_the_worker(worker_memory: int | None, memory: int | None) -> None:
    found = default_memory(worker_memory)

    assert found == memory if memory is None else found == pytest.approx(memory, abs=MIB)


def test_the_reason_names_the_limit_and_where_it_comes_from() -> None:
    by_default = Limits.of(WarmProcessJobConfiguration(), 4 * GIB)
    own = Limits.of(WarmProcessJobConfiguration(memory_mib=1024, wall_time_seconds=3600), 4 * GIB)
    reasons = [
        excess.reason if excess else None
        for excess in (
            by_default.check_memory(by_default.memory or 0),
            by_default.check_memory(int(3.5 * GIB)),
            own.check_memory(int(1.3 * GIB)),
            own.check_wall_time(3600),
            own.check_wall_time(3600.1),
        )
    ]

    assert reasons == [
        None,
        "it used 3.5 GiB of memory, more than its limit of 3.4 GiB"
        " (the default where the worker has 4 GiB; job variable memory_mib)",
        "it used 1.3 GiB of memory, more than its limit of 1 GiB (job variable memory_mib)",
        None,
        "it ran for longer than its limit of 3,600 s (job variable wall_time_seconds)",
    ]


def test_the_largest_run_ends_where_the_worker_is_out_of_memory() -> None:
    pid, excess = choose_largest({7: 1 * GIB, 8: int(2.1 * GIB)}, 4 * GIB)
    _, alone = choose_largest({7: 1 * GIB}, 4 * GIB)

    assert (pid, excess.may_rerun, alone.may_rerun) == (8, True, False)
    assert excess.reason == "the worker's memory of 4 GiB was exhausted, and this run used most of it, 2.1 GiB"
    assert is_exhausted(int(3.9 * GIB), 4 * GIB)
    assert not is_exhausted(int(3.7 * GIB), 4 * GIB)
    assert not is_exhausted(None, None)


@pytest.fixture
def own_group(tmp_path: Path) -> Path:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/docker/abc\n0::/\n")
    return own


def test_usage_is_what_is_not_file_cache(tmp_path: Path, own_group: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "memory.max").write_text(f"{GIB}\n")
    (root / "memory.current").write_text(f"{900 * MIB}\n")
    (root / "memory.stat").write_text(f"anon 1\ninactive_file {200 * MIB}\nactive_file {100 * MIB}\n")

    assert CgroupMemory.read(own_group, root).read_usage() == 600 * MIB


def test_usage_in_the_older_control_group(tmp_path: Path, own_group: Path) -> None:
    group = tmp_path / "root/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{900 * MIB}\n")
    (group / "memory.stat").write_text(
        f"inactive_file 1\ntotal_inactive_file {200 * MIB}\ntotal_active_file {100 * MIB}\n"
    )

    assert CgroupMemory.read(own_group, tmp_path / "root").read_usage() == 600 * MIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "100000000 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "200000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: no quota makes them fewer")
def test_the_quota_of_cores_is_rounded_up(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")

    assert read_core_quota(tmp_path) == cores


def test_what_a_run_sets_itself_goes_before_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "8")  # the worker's
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")
    env: dict[str, str | None] = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "4"}
    threads.set_for_cold_start(env, 2)

    assert {name: env[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "4",
    }
    assert env["MKL_NUM_THREADS"] == env["NUMEXPR_NUM_THREADS"] == env[threads.CORES] == "2"


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that hold 20, 80 and 40 MiB, as forks of the warm process that lead groups of their own."""
    program = "import sys; kept = b'x' * (int(sys.argv[1]) << 20); print(len(kept), flush=True); sys.stdin.read()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for mib in (20, 80, 40)
    ]
    for process in started:
        assert process.stdout
        process.stdout.readline()
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_neighbours_survive_where_the_worker_is_out_of_memory(
    tmp_path: Path, holders: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "memory.current").write_text(f"{990 * MIB}\n")
    worker = CgroupMemory(1000 * MIB, group=tmp_path)
    logger = logging.getLogger(__name__)

    def live_run(process: subprocess.Popen[bytes]) -> LiveRun:
        claim = Claim(uuid4(), uuid4(), "worker", process.pid, 2)
        return LiveRun(
            flow_run=FlowRun(id=claim.flow_run_id, flow_id=uuid4()),
            claim=claim,
            pid=process.pid,
            send_signal=process.send_signal,
            memory_before=worker,
            job_env={},
            limits=Limits(),
            fork=ForkContext({}, str(tmp_path)),
        )

    async def watch() -> list[LiveRun]:
        live = LiveRuns(WarmProcessSettings(), Ledger(tmp_path / "ledger", "pool", "api", "worker"))
        background = BackgroundTasks(logger)
        watch = LimitWatch(live, cast(RunEndings, None), background, logger, warm_pid=lambda: None)
        background.keep_running(watch.watch)
        runs = [live_run(process) for process in holders]
        async with live.track(runs[0], 0), live.track(runs[1], 0), live.track(runs[2], 0):
            await asyncio.to_thread(holders[1].wait, 10)
            (tmp_path / "memory.current").write_text(f"{800 * MIB}\n")
            runs[1].ended.set()
            await asyncio.sleep(0.5)  # in which the next would be ended
            await background.cancel_all()
        return runs

    runs = asyncio.run(watch())

    assert [run.excess is not None for run in runs] == [False, True, False]
    assert [process.poll() for process in holders] == [None, -9, None]
