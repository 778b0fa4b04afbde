"""What does not respond or dies in the background is replaced, and never takes the worker with it."""

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
from warm_process.background import BackgroundTasks

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, alive, gone, read_note, worker


def test_a_warm_process_that_does_not_respond_is_replaced(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    with worker(orchestrator, pool, tmp_path, WARM_PROCESS_START_TIMEOUT="3") as found:
        stuck = found.warm_pid
        os.kill(stuck, signal.SIGSTOP)
        run = orchestrator.trigger(orchestrator.deploy(pool, "describe"), path=str(note))
        orchestrator.expect(run, "Completed", seconds=60)
        wait_until(lambda: found.warm_pid != stuck, 20, "a new warm process")

        assert not read_note(note)["is_fork"]
        assert not alive(stuck)
        orchestrator.expect(orchestrator.trigger(orchestrator.deploy(pool, "trivial")), "Completed")


def test_hooks_that_take_too_long_are_killed(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    hook = tmp_path / "hook.json"
    with worker(orchestrator, pool, tmp_path, WARM_PROCESS_HOOKS_TIMEOUT="2") as found:
        deployment = orchestrator.deploy(pool, "with_slow_hook")
        run = orchestrator.trigger(deployment, {"env": {"HOOK_FILE": str(hook)}})
        orchestrator.expect(run, "Crashed")
        pid = read_note(hook)["pid"]

        gone(pid)
        found.wait_for_text("exceed 2 s and were killed")


def test_a_background_task_that_fails_is_logged_and_restarted(caplog: pytest.LogCaptureFixture) -> None:
    attempts = 0

    async def fail_once() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("deliberate")
        await asyncio.sleep(60)

    async def fail() -> None:
        raise KeyError("also deliberate")

    async def run() -> None:
        tasks = BackgroundTasks(logging.getLogger("tasks"))
        tasks.keep_running(fail_once)
        tasks.spawn(fail())
        while attempts < 2:
            await asyncio.sleep(0.05)
        await tasks.cancel_all()

    asyncio.run(asyncio.wait_for(run(), 10))

    assert "deliberate" in caplog.text
    assert "also deliberate" in caplog.text
