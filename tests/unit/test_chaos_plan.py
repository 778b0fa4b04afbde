"""The plan of faults: repeatable, and complete before anything comes twice."""

from bench.chaos.plan import MOMENTS, pairs, plan


def test_a_round_of_a_seed_is_always_the_same() -> None:
    assert plan(7, 42) == plan(7, 42)
    assert plan(7, 42) != plan(8, 42)


def test_every_fault_meets_every_target_at_every_moment_once() -> None:
    complete = len(pairs()) * len(MOMENTS)
    seen = {(each.fault, each.target, each.moment) for each in (plan(1, number) for number in range(complete))}

    assert len(seen) == complete
