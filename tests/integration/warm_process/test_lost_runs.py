"""The server itself ends runs of which nothing is heard: their worker or host is gone for good."""

from pathlib import Path

from infra.provision.automations import lost_run_automations
from tests.integration.warm_process.harness import prefect_server


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
