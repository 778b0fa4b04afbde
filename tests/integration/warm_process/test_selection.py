"""Which of the scheduled runs start, and in which order."""

from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.states import Scheduled
from warm_process.selection import in_turn, superseded, without_blocked

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, worker
from trainyard.contract import State

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "ENQUEUE"}}
ids = count()


def flow_run(deployment: UUID, minutes: float = -1, name: str = "Scheduled", schedule: UUID | None = None) -> FlowRun:
    """Return a run that is due `minutes` from now."""
    return FlowRun(
        name=str(next(ids)),
        flow_id=uuid4(),
        deployment_id=deployment,
        state=Scheduled(name=name),
        expected_start_time=NOW + timedelta(minutes=minutes),
        created_by={"id": schedule, "type": "SCHEDULE"} if schedule else None,
    )


def in_queue(queue: UUID, *runs: FlowRun) -> list[WorkerFlowRunResponse]:
    return [WorkerFlowRunResponse(work_pool_id=uuid4(), work_queue_id=queue, flow_run=run) for run in runs]


def test_the_deployments_of_a_queue_take_turns_and_queues_keep_their_order() -> None:
    urgent, other, one, two = (uuid4() for _ in range(4))
    first, second, third, fourth = flow_run(one), flow_run(one), flow_run(two), flow_run(one)
    found = [*in_queue(urgent, first, second, third), *in_queue(other, fourth)]

    queues = [urgent, other]

    assert [each.flow_run for each in in_turn(found, {}, queues=queues)] == [first, third, second, fourth]
    assert [each.flow_run for each in in_turn(found, {one: 1}, queues=queues)] == [third, first, second, fourth]


def test_only_as_many_waiting_runs_are_submitted_as_there_are_slots() -> None:
    full, half = uuid4(), uuid4()
    waiting = [flow_run(each, name=State.AWAITING_SLOT) for each in (full, half, half)]
    new = flow_run(full)

    kept = without_blocked(in_queue(uuid4(), *waiting, new), {full: 0, half: 1})

    assert [each.flow_run for each in kept] == [waiting[1], new]


def test_a_missed_run_is_superseded_by_the_newest_of_its_schedule() -> None:
    deployment, schedule = uuid4(), uuid4()
    older, late, newest, future = (flow_run(deployment, at, schedule=schedule) for at in (-30, -20, -10, 0.1))
    late.state = Scheduled(name="Late")
    of_another_schedule = flow_run(deployment, -40, schedule=uuid4())
    by_hand, retried = flow_run(deployment, -50), flow_run(deployment, -60, "AwaitingRetry", schedule)
    rerun = flow_run(deployment, -70, schedule=schedule)
    rerun.run_count = 1
    runs = [future, newest, older, late, of_another_schedule, by_hand, retried, rerun]

    assert superseded(runs, NOW) == [(older, newest), (late, newest)]


@pytest.mark.slow
def test_runs_that_wait_for_a_slot_and_missed_runs(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    limited = orchestrator.deploy(pool, "wait_for_file", **ONE_AT_A_TIME)
    # The scheduler, which looks every 5 s, makes no runs for the past.
    begin = (datetime.now(UTC) + timedelta(seconds=9)).replace(microsecond=0)
    rule = f"DTSTART:{begin:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;COUNT=3"
    schedules = [{"active": True, "schedule": {"rrule": rule}}]
    newest = orchestrator.deploy(pool, "trivial", schedules=schedules)
    every = orchestrator.deploy(pool, "trivial", schedules=schedules, job_variables={"late_runs": "all"})
    release = tmp_path / "release"
    waiting = [
        orchestrator.trigger(limited, path=str(tmp_path / f"{number}.json"), release=str(release))
        for number in range(6)
    ]
    by_hand = orchestrator.trigger(newest)

    def scheduled(deployment: str) -> list[dict[str, Any]]:
        query = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = orchestrator.call("POST", "/flow_runs/filter", json=query)
        return [run for run in found if run["auto_scheduled"]]

    wait_until(lambda: datetime.now(UTC) > begin + timedelta(seconds=3), 20, "the runs to be due")
    with worker(orchestrator, pool, tmp_path, limit=2):
        orchestrator.expect(by_hand, "Completed")
        for found in (*scheduled(every), scheduled(newest)[-1]):
            orchestrator.expect(found["id"], "Completed")
        states = [orchestrator.state(run) for run in waiting]
        release.touch()
        for run in waiting[:3]:
            orchestrator.expect(run, "Completed")
    missed = scheduled(newest)[:-1]

    assert states[0] == "Running"
    assert not set(states[1:]) - {State.AWAITING_SLOT, "Scheduled", "Late"}
    assert missed
    assert {run["state_name"] for run in missed} == {State.SKIPPED}
    assert "was due again" in missed[0]["state"]["message"]


def test_the_workers_of_two_queues_leave_each_others_runs_alone(
    orchestrator: Server, pool: str, tmp_path: Path
) -> None:
    first = orchestrator.deploy(pool, "trivial")
    second = orchestrator.deploy(pool, "trivial", work_queue_name="second")
    with worker(orchestrator, pool, tmp_path / "first", queue="default"):
        of_second, of_first = orchestrator.trigger(second), orchestrator.trigger(first)
        orchestrator.expect(of_first, "Completed")  # it was triggered later, by an event like the other
        assert orchestrator.state(of_second) in ("Scheduled", "Late")
    with worker(orchestrator, pool, tmp_path / "second", queue="second"):
        orchestrator.expect(of_second, "Completed")
