"""When an alert may retrain a model again."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from trainyard.flows.monitor import RETRAINING_PAUSE, reason_to_wait

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def retraining(type: StateType, age: timedelta = timedelta(hours=1)) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="train-again", state=State(type=type, timestamp=NOW - age))


def test_the_first_alert_retrains() -> None:
    assert reason_to_wait([], NOW) == ""


@pytest.mark.parametrize("type", [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED])
def test_no_other_retraining_starts_while_one_is_under_way(type: StateType) -> None:
    assert reason_to_wait([retraining(type)], NOW) == "its retraining train-again is under way."


@pytest.mark.parametrize("type", [StateType.FAILED, StateType.CRASHED, StateType.CANCELLED])
def test_a_retraining_that_did_not_complete_does_not_block_the_next(type: StateType) -> None:
    assert reason_to_wait([retraining(type)], NOW) == ""


@pytest.mark.parametrize(("age", "waits"), [(timedelta(hours=1), True), (RETRAINING_PAUSE, False)])
def test_a_retraining_that_lost_blocks_the_next_for_a_while(age: timedelta, waits: bool) -> None:
    assert bool(reason_to_wait([retraining(StateType.COMPLETED, age)], NOW)) == waits


def test_a_failure_after_a_completed_retraining_does_not_shorten_the_pause() -> None:
    former = [retraining(StateType.FAILED), retraining(StateType.COMPLETED, timedelta(days=2))]

    assert "completed less than 7 days ago" in reason_to_wait(former, NOW)
