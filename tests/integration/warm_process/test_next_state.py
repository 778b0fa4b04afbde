"""Which state a run gets that has no process any more."""

from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
    Suspended,
)
from warm_process.ledger import Claim
from warm_process.settle import EndedRun, next_state, owns

from trainyard.contract import State as StateName

CLAIM = uuid4()


def flow_run(state: State, deployment: UUID | None = CLAIM) -> FlowRun:
    return FlowRun(flow_id=uuid4(), deployment_id=deployment, state=state)


def ended(max_reruns: int = 0, **how: bool) -> EndedRun:
    return EndedRun(Claim(uuid4(), CLAIM, "worker", 1, max_reruns), "it ended", **how)


@pytest.mark.parametrize(
    "state", [Completed(), Failed(), Cancelled(), Scheduled(), AwaitingRetry(), Suspended(), Crashed(message="why")]
)
@pytest.mark.parametrize("is_unstarted", [True, False])
def test_a_state_that_needs_no_process_stays(state: State, is_unstarted: bool) -> None:
    assert next_state(flow_run(state), [], ended(is_unstarted=is_unstarted)) is None


@pytest.mark.parametrize(
    ("state", "how", "name"),
    [
        (Running(), ended(), "Crashed"),
        (Pending(), ended(), "Crashed"),
        (Paused(), ended(), "Crashed"),
        (Running(), ended(2), StateName.AWAITING_RERUN),
        (Crashed(message="why"), ended(2), StateName.AWAITING_RERUN),
        (Pending(), ended(is_unstarted=True), "Scheduled"),
        (Running(), ended(2, is_given_back=True), "Scheduled"),
        (Crashed(message="why"), ended(2, is_given_back=True), "Scheduled"),
        (Running(), ended(0, is_given_back=True), "Crashed"),
        (Running(), ended(2, may_rerun=False), "Crashed"),
        (Cancelling(), ended(), "Cancelled"),
        (Cancelling(), ended(2), "Cancelled"),
        (Cancelling(), ended(2, is_given_back=True), "Cancelled"),
        (Cancelling(), ended(is_unstarted=True), "Cancelled"),
        (Running(), ended(2, is_cancelled=True), "Cancelled"),
        (Crashed(message="why"), ended(2, is_cancelled=True), "Cancelled"),
    ],
)
def test_the_next_state(state: State, how: EndedRun, name: str) -> None:
    found = next_state(flow_run(state), [state], how)

    assert found is not None
    assert found.name == name


def test_reruns_are_counted_and_the_reason_stays() -> None:
    rerun: State = Scheduled(name=StateName.AWAITING_RERUN)
    second = next_state(flow_run(Crashed(message="It fell over.")), [rerun, Crashed()], ended(2))
    last = next_state(flow_run(Running()), [rerun, Running(), rerun, Running()], ended(2))

    assert second is not None
    assert second.message == "It fell over. It is run again (2 of 2)."
    assert last is not None
    assert last.message == "The flow run crashed: it ended."


def test_a_run_without_a_deployment_cannot_be_run_again() -> None:
    found = next_state(flow_run(Running(), deployment=None), [], ended(2))

    assert found is not None
    assert found.is_crashed()


@pytest.mark.parametrize(
    ("history", "is_own"),
    [
        ([Pending(id=CLAIM)], True),
        ([Pending(), Cancelled(), Scheduled(), Pending(id=CLAIM), Pending(name="Submitting"), Running()], True),
        ([Pending(id=CLAIM), Crashed(), Scheduled(), Pending(), Running()], False),
        ([Scheduled()], False),
        ([], False),
    ],
)
def test_the_newest_claim_owns_a_run(history: list[State], is_own: bool) -> None:
    assert owns(history, Claim(uuid4(), CLAIM, "worker")) == is_own
