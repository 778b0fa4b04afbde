"""The first example, against a real Prefect server and a source on loopback."""

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.client.schemas.objects import StateType

from flows.cat_facts import cat_facts
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.waiting import wait_until


def test_prints_reach_the_log_and_a_failing_source_is_retried(
    prefect: SyncPrefectClient, open_meteo: OpenMeteoServer
) -> None:
    open_meteo.fail_first = 2
    state = cat_facts(f"{open_meteo.url}/fact", count=1, return_state=True)
    this_run = LogFilter.model_validate({"flow_run_id": {"any_": [state.state_details.flow_run_id]}})
    printed = "Cat fact 1 of 1: A cat's nose print is as unique as a fingerprint."

    assert state.is_completed()
    assert open_meteo.counts["/fact"] == 3
    wait_until(lambda: printed in [log.message for log in prefect.read_logs(this_run)], 20, "the printed line")


def test_the_server_records_the_subflow_and_its_tasks(prefect: SyncPrefectClient, open_meteo: OpenMeteoServer) -> None:
    state = cat_facts(f"{open_meteo.url}/fact", count=2, return_state=True)
    parent = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [state.state_details.flow_run_id]}})
    (subflow,) = prefect.read_flow_runs(flow_run_filter=parent)
    tasks = wait_until(
        lambda: prefect.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [subflow.id]}})),
        20,
        "task runs",
    )

    assert prefect.read_flow(subflow.flow_id).name == "collect-facts"
    assert {task.name.rsplit("-", 1)[0] for task in tasks} == {"fetch_fact"}
    assert all(task.state_type is StateType.COMPLETED for task in tasks)


@pytest.mark.usefixtures("prefect")
def test_gives_up_after_four_retries(open_meteo: OpenMeteoServer) -> None:
    open_meteo.fail_first = 99
    state = cat_facts(f"{open_meteo.url}/fact", count=1, return_state=True)

    assert state.is_failed()
    assert open_meteo.counts["/fact"] == 5
