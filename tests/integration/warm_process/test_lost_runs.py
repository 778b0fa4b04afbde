"""The server itself ends runs of which nothing is heard: their worker or host is gone for good."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.provision.automations import lost_run_automations
from tests.integration.warm_process.harness import prefect_server, worker


def test_lost_runs_get_a_final_state(tmp_path: Path) -> None:
    on = dict.fromkeys(
        ("PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED", "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED"), "true"
    )
    with prefect_server(tmp_path, **on) as server:
        pool = server.create_pool()
        windows = {"heartbeat_window": 10, "start_window": 10, "cancel_window": 10}
        for automation in lost_run_automations(**windows):
            server.call("POST", "/automations/", json=automation)
        deployment = server.deploy(pool, "trivial")  # there is no worker: the test plays one that dies
        runs = {name: server.trigger(deployment) for name in ("running", "claimed", "cancelled", "waiting")}
        for name in ("running", "claimed", "cancelled"):
            server.set_state(runs[name], "PENDING")
        server.set_state(runs["running"], "RUNNING")
        server.cancel(runs["cancelled"])

        server.expect(runs["running"], "Crashed", seconds=90)
        server.expect(runs["claimed"], "Crashed", seconds=90)
        server.expect(runs["cancelled"], "Cancelled", seconds=90)
        assert "no heartbeat for 10 seconds" in server.message(runs["running"])
        assert "did not start it for 10 seconds" in server.message(runs["claimed"])
        assert "no worker ended it within 10 seconds" in server.message(runs["cancelled"])
        assert server.names(runs["waiting"])[-1] in ("Scheduled", "Late")


def test_a_lost_run_is_run_again_once_by_one_of_the_workers_that_are_left(tmp_path: Path) -> None:
    on = dict.fromkeys(
        ("PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED", "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED"), "true"
    )
    with prefect_server(tmp_path, **on) as server, ExitStack() as workers:
        pool = server.create_pool()
        for automation in lost_run_automations(heartbeat_window=10, start_window=10):
            server.call("POST", "/automations/", json=automation)
        for number in range(2):
            workers.enter_context(worker(server, pool, tmp_path / f"host-{number}", WORKER_NAME=f"host-{number}"))

        # The test plays a worker that dies: it claims runs that are not due, which the others leave alone.
        due = {"scheduled_time": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
        scheduled = {"state": {"type": "SCHEDULED", "state_details": due}}
        runs = {}
        for name, reruns in (("running", 2), ("claimed", 2), ("unrepeatable", 0)):
            deployment = server.deploy(pool, "trivial", job_variables={"reruns_after_crash": reruns})
            runs[name] = server.call("POST", f"/deployments/{deployment}/create_flow_run", json=scheduled)["id"]
            server.set_state(runs[name], "PENDING", force=True)
        for name in ("running", "unrepeatable"):
            server.set_state(runs[name], "RUNNING", force=True)

        for name in ("running", "claimed"):
            server.wait_for(runs[name], "Completed", seconds=90)
            assert server.names(runs[name]).count("AwaitingRerun") == 1
            assert server.names(runs[name]).count("Crashed") == 1
            assert server.names(runs[name])[-2:] == ["Running", "Completed"]
        server.expect(runs["unrepeatable"], "Crashed", seconds=90)
        assert "AwaitingRerun" not in server.names(runs["unrepeatable"])


@pytest.mark.slow
def test_a_run_that_was_lost_while_there_was_no_worker_is_run_again_by_the_next(tmp_path: Path) -> None:
    # Without stored events, so that the worker is sent none of those before its start.
    with prefect_server(tmp_path, PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED="true") as server:
        pool = server.create_pool()
        for automation in lost_run_automations(heartbeat_window=10):
            server.call("POST", "/automations/", json=automation)
        run = server.trigger(server.deploy(pool, "trivial", job_variables={"reruns_after_crash": 1}))
        server.set_state(run, "PENDING")
        server.set_state(run, "RUNNING")
        server.expect(run, "Crashed", seconds=90)
        with worker(server, pool, tmp_path / "host"):
            server.wait_for(run, "Completed", seconds=60)
