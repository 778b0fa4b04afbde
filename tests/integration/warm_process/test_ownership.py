"""A worker touches only the runs that it has claimed, whatever it hears of others."""

from pathlib import Path

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, alive, gone, proxy, read_note, worker


def start(server: Server, deployment: str, note: Path, **parameters: str) -> tuple[str, int]:
    """Trigger a run and wait until it runs; return it and its pid."""
    run = server.trigger(deployment, path=str(note), **parameters)
    pid = read_note(note)["pid"]
    server.wait_for(run, "Running")
    return run, pid


def cancel_one_more(server: Server, pool: str, note: Path) -> None:
    """Cancel a run, to see that the worker has handled every earlier event."""
    run, _ = start(server, server.deploy(pool, "wait"), note)
    server.cancel(run)
    server.expect(run, "Cancelled", seconds=30)


@pytest.mark.parametrize("what", ["stream", "worker"])
def test_a_cancel_that_is_announced_again_leaves_a_retry_alone(
    recording_orchestrator: Server, tmp_path: Path, what: str
) -> None:
    server, note, release = recording_orchestrator, tmp_path / "note", tmp_path / "release"
    pool = server.create_pool()
    with proxy(server) as relay:
        first = worker(server, pool, tmp_path / "first", api=relay.address)
        second = worker(server, pool, tmp_path / "second")
        with first as found:
            deployment = server.deploy(pool, "wait_for_file")
            run, pid = start(server, deployment, note, release=str(release))
            server.cancel(run)
            server.expect(run, "Cancelled")
            gone(pid)
            note.unlink()
            if what == "stream":
                server.retry(run)
                read_note(note)
                relay.cut_events()
                found.wait_for_text("The event stream was cut")
                relay.restore()
                cancel_one_more(server, pool, tmp_path / "other")
                release.touch()
                server.expect(run, "Completed")
        if what == "worker":
            with second:
                cancel_one_more(server, pool, tmp_path / "other")
                server.retry(run)
                read_note(note)
                release.touch()
                server.expect(run, "Completed")

    assert server.names(run).count("Cancelled") == 1


def test_a_cancel_before_an_attempt_does_not_stick(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    (tmp_path / "slow_preload.py").write_text("import time\ntime.sleep(4)\n")
    slow = {"PYTHONPATH": str(tmp_path), "WARM_PROCESS_PRELOAD": "slow_preload", "ready": "started!"}
    with worker(orchestrator, pool, tmp_path / "home", **slow):
        run = orchestrator.trigger(orchestrator.deploy(pool, "trivial"))
        orchestrator.wait_for(run, "Submitting")
        orchestrator.cancel(run)

        orchestrator.expect(run, "Cancelled")
        orchestrator.retry(run)
        orchestrator.expect(run, "Completed")


@pytest.mark.parametrize("state", ["CRASHED", "CANCELLED", "FAILED"])
def test_a_run_that_the_server_has_ended_is_stopped(
    orchestrator: Server, shared_pool: str, note: Path, state: str
) -> None:
    run, pid = start(orchestrator, orchestrator.deploy(shared_pool, "wait"), note)
    orchestrator.set_state(run, state, message="by somebody")

    gone(pid, read_note(note)["grandchild"])
    assert orchestrator.names(run)[-1].upper() == state
    assert orchestrator.message(run) == "by somebody"


def test_a_run_that_the_server_has_ended_while_it_was_away_is_stopped(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    with proxy(orchestrator) as relay, worker(orchestrator, pool, tmp_path, api=relay.address):
        run, pid = start(orchestrator, orchestrator.deploy(pool, "wait"), note)
        relay.cut_everything()
        orchestrator.set_state(run, "CRASHED", message="no heartbeat")
        was_alive = alive(pid)
        relay.restore()

        gone(pid, seconds=15)
        assert was_alive
        assert orchestrator.names(run)[-1] == "Crashed"


@pytest.mark.slow
def test_a_run_that_was_taken_over_while_its_server_was_away_is_stopped_and_left_alone(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    release = tmp_path / "release"
    with proxy(orchestrator) as relay, worker(orchestrator, pool, tmp_path / "first", api=relay.address):
        run, pid = start(orchestrator, orchestrator.deploy(pool, "wait_for_file"), note, release=str(release))
        relay.cut_everything()
        note.unlink()
        orchestrator.set_state(run, "CRASHED", message="no heartbeat")
        with worker(orchestrator, pool, tmp_path / "second"):
            orchestrator.retry(run)
            taken_over_by = read_note(note)["pid"]
            relay.restore()
            gone(pid, seconds=15)
            was_left_alone = alive(taken_over_by)
            release.touch()

            orchestrator.expect(run, "Completed")
            assert was_left_alone
            assert orchestrator.names(run).count("Crashed") == 1


def test_a_worker_that_stops_leaves_the_claims_of_another(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    (tmp_path / "slow_preload.py").write_text("import time\ntime.sleep(8)\n")
    slow: dict[str, str] = {"PYTHONPATH": str(tmp_path), "WARM_PROCESS_PRELOAD": "slow_preload", "ready": "started!"}
    twin = {**slow, "WORKER_NAME": "twin"}  # Prefect takes workers of one name for one worker
    first, second = (worker(orchestrator, pool, tmp_path / home, **twin) for home in ("first", "second"))
    with first as one, second as other:
        deployment = orchestrator.deploy(pool, "trivial")

        def contend() -> tuple[str, Worker] | None:
            """Trigger runs until both workers have tried to claim one; return it with the one that was refused."""
            run = orchestrator.trigger(deployment)
            orchestrator.wait_for(run, "Submitting", "Completed")
            texts = {each: " ".join(each.text().split()) for each in (one, other)}
            have_tried = all(f"submitting flow run '{run}'" in text for text in texts.values())
            # A worker that has a run already and finds it once more is refused, too.
            refused = [each for each, text in texts.items() if f"Aborted submission of flow run '{run}'" in text]
            return (run, refused[0]) if have_tried and len(refused) == 1 else None

        run, loser = wait_until(contend, 60, "both workers to try the same run")
        loser.stop()

        orchestrator.expect(run, "Completed")
        assert not [state for state in orchestrator.states(run) if "worker was stopped" in (state["message"] or "")]
