"""Some rounds of `make chaos` on the stack that tests share, always the same."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from bench.chaos.plan import MOMENTS, Round, pairs, plan
from bench.chaos.player import Chaos
from infra.testing.stack import Stack

SEED = 1
SETTLE_SECONDS = 300  # other tests share the machine
FAULTS = [
    ("kill", "prefect", "task"),
    ("cut", "postgres", "alias"),
    ("power", "all", "upload"),
]
SLOW = {"power"}
EVERY_ROUND = [plan(SEED, number) for number in range(len(pairs()) * len(MOMENTS))]
ROUNDS = [next(each for each in EVERY_ROUND if (each.fault, each.target, each.moment) == fault) for fault in FAULTS]


@pytest.fixture(scope="module")
def chaos(stack: Stack) -> Iterator[Chaos]:
    """The stack with the agent that carries out faults."""
    stack.wait_for_first_run()
    compose_files = stack.environment["COMPOSE_FILE"]
    stack.environment["COMPOSE_FILE"] += ":bench/chaos/compose.yml"
    try:
        stack.shell("docker compose up -d --build agent")
        with closing(Chaos(stack, SEED, SETTLE_SECONDS)) as chaos:
            yield chaos
    finally:
        stack.shell("docker compose rm --stop --force agent")
        stack.environment["COMPOSE_FILE"] = compose_files


@pytest.mark.parametrize(
    "planned",
    [pytest.param(each, marks=[pytest.mark.slow] if each.fault in SLOW else []) for each in ROUNDS],
    ids=[f"{each.fault}-{each.target}-{each.moment}" for each in ROUNDS],
)
def test_every_promise_holds_after_a_fault(chaos: Chaos, planned: Round) -> None:
    played = chaos.play(planned)

    assert not played["violations"], "\n".join(played["timeline"])
    assert played["moment"] == planned.moment
