"""The aliases of a model in a real registry, under a real lock."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from infra.testing.waiting import wait_until
from trainyard import registry
from trainyard.contract import NO_CHAMPION, Alias, GateDecision, State, Tag
from trainyard.errors import LockTimeoutError, RegistryError
from trainyard.gate import Decision, Reuse, Thresholds
from trainyard.locks import lock
from trainyard.registry import Champion

MODEL = "test-registry"
GATE = Thresholds()

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture
def versions(tracking: MlflowClient) -> Iterator[MlflowClient]:
    """A registered model with four versions and no aliases."""
    tracking.create_registered_model(MODEL)
    run = tracking.create_run(tracking.create_experiment(f"{MODEL}-{uuid4()}"))
    for _ in range(4):
        tracking.create_model_version(MODEL, source=str(run.info.artifact_uri), run_id=run.info.run_id)
    yield tracking
    tracking.delete_registered_model(MODEL)


@pytest.fixture
def rejected(versions: MlflowClient) -> Decision:
    """The decision about version 2, which the gate has compared with the champion, version 1."""
    registry.apply_gate(MODEL, 1, accept, GATE)
    return registry.apply_gate(MODEL, 2, reject, GATE)


def aliases(tracking: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in tracking.get_registered_model(MODEL).aliases.items()}


def accept(_: Champion | None) -> Decision:
    return Decision(promote=True, reason="It is better.")


def reject(_: Champion | None) -> Decision:
    return Decision(promote=False, reason="It is worse.")


def test_a_better_candidate_becomes_champion_and_the_old_one_stays_its_predecessor(versions: MlflowClient) -> None:
    registry.apply_gate(MODEL, 1, accept)
    registry.apply_gate(MODEL, 2, accept)
    tags = versions.get_model_version(MODEL, "2").tags

    assert aliases(versions) == {Alias.CHAMPION: 2, Alias.PREVIOUS: 1}
    assert (tags[Tag.GATE_DECISION], tags[Tag.GATE_REASON]) == (GateDecision.PROMOTED, "It is better.")


@pytest.mark.usefixtures("rejected")
def test_a_worse_candidate_becomes_challenger_with_the_reason(versions: MlflowClient) -> None:
    tags = versions.get_model_version(MODEL, "2").tags

    assert aliases(versions) == {Alias.CHAMPION: 1, Alias.CHALLENGER: 2}
    assert (tags[Tag.GATE_DECISION], tags[Tag.GATE_REASON]) == (GateDecision.CHALLENGER, "It is worse.")
    assert tags[Tag.GATE_COMPARED_WITH] == "1"
    assert Thresholds.model_validate_json(tags[Tag.GATE_THRESHOLDS]) == GATE


def test_a_challenger_without_a_champion_was_compared_with_none(versions: MlflowClient) -> None:
    registry.apply_gate(MODEL, 1, reject, GATE)

    assert aliases(versions) == {Alias.CHALLENGER: 1}
    assert versions.get_model_version(MODEL, "1").tags[Tag.GATE_COMPARED_WITH] == NO_CHAMPION


@pytest.mark.usefixtures("rejected")
def test_the_champion_is_not_compared_with_itself() -> None:
    assert registry.apply_gate(MODEL, 1, reject).promote


class TestPropose:
    @pytest.fixture(autouse=True)
    def _champion(self, versions: MlflowClient) -> None:
        """Version 1, of the recipe `old`, with the evaluation `one`."""
        for tag, value in {Tag.RECIPE: "old", Tag.CANDIDATE_DIGEST: "one"}.items():
            versions.set_model_version_tag(MODEL, "1", tag, value)
        registry.apply_gate(MODEL, 1, accept)

    @staticmethod
    def propose(
        candidate: str, recipe: str, compare: registry.Compare = reject, gate: Thresholds = GATE
    ) -> registry.Proposal:
        return registry.propose(MODEL, candidate, recipe, compare, gate)

    def test_the_champion_itself_is_no_candidate(self) -> None:
        proposal = self.propose("one", "new")

        assert proposal.decision == registry.CURRENT_CHAMPION
        assert (proposal.version, proposal.is_new) == (1, False)

    @pytest.mark.parametrize(
        ("recipe", "compare", "is_new"),
        [("old", reject, False), ("old", accept, True), ("new", reject, True)],
    )
    def test_a_version_is_worth_it_for_a_promotion_or_a_new_recipe(
        self, recipe: str, compare: registry.Compare, is_new: bool
    ) -> None:
        proposal = self.propose("two", recipe, compare)

        assert (proposal.compared_with, proposal.version, proposal.is_new) == (1, None, is_new)

    def test_a_second_candidate_of_the_challengers_recipe_is_not_worth_a_version(self, versions: MlflowClient) -> None:
        versions.set_model_version_tag(MODEL, "2", Tag.RECIPE, "new")
        registry.apply_gate(MODEL, 2, reject)

        assert not self.propose("three", "new").is_new

    def test_each_comparison_is_counted_by_recipe(self, versions: MlflowClient) -> None:
        uses: list[Reuse] = []

        def note(champion: Champion | None) -> Decision:
            assert champion is not None
            uses.append(champion.reuse)
            return reject(champion)

        for candidate, recipe in (("a", "old"), ("b", "new"), ("c", "newer"), ("d", "new"), ("e", "old")):
            self.propose(candidate, recipe, note)

        assert uses == [Reuse(1, 1, True), Reuse(1, 1), Reuse(1, 2), Reuse(2, 1), Reuse(2, 1, True)]
        counted = versions.get_model_version(MODEL, "1").tags[Tag.GATE_COMPARISONS]
        assert json.loads(counted) == {"old": 2, "new": 2, "newer": 1}

    def test_an_unchanged_candidate_is_refused_again_without_another_comparison(self, versions: MlflowClient) -> None:
        first = self.propose("two", "old")
        again = self.propose("two", "old", accept)
        tags = versions.get_model_version(MODEL, "1").tags

        assert again == first
        assert tags[Tag.GATE_LAST_REASON] == "It is worse."
        assert json.loads(tags[Tag.GATE_COMPARISONS]) == {"old": 1}

    def test_other_thresholds_are_applied_to_an_unchanged_candidate(self) -> None:
        self.propose("two", "old")

        assert self.propose("two", "old", accept, Thresholds(min_improvement=0)).decision.promote

    def test_a_promotion_begins_a_new_count(self, versions: MlflowClient) -> None:
        self.propose("two", "new")
        registry.promote(MODEL, 2)
        self.propose("three", "new")

        assert json.loads(versions.get_model_version(MODEL, "2").tags[Tag.GATE_COMPARISONS]) == {"new": 1}

    def test_the_decision_holds_while_the_champion_does(self) -> None:
        proposal = self.propose("two", "new", accept)

        assert registry.apply_gate(MODEL, 2, reject, GATE, proposal).promote

    def test_a_candidate_is_compared_again_if_the_champion_changed_since(self) -> None:
        proposal = self.propose("two", "new", accept)
        registry.promote(MODEL, 3)

        assert not registry.apply_gate(MODEL, 2, reject, GATE, proposal).promote


@pytest.mark.usefixtures("rejected")
def test_people_promote_a_challenger(versions: MlflowClient) -> None:
    promoted, repeated = registry.promote(MODEL, 2), registry.promote(MODEL, 2)

    assert promoted == f"{MODEL} version 2 is the champion; version 1 is its predecessor."
    assert repeated == f"{MODEL} version 2 is the champion already."
    assert aliases(versions) == {Alias.CHAMPION: 2, Alias.PREVIOUS: 1}


@pytest.mark.usefixtures("rejected")
def test_a_rollback_swaps_the_champion_and_its_predecessor(versions: MlflowClient) -> None:
    registry.promote(MODEL, 2)
    message, once = registry.rollback(MODEL), aliases(versions)
    registry.rollback(MODEL)

    assert message == f"{MODEL} version 1 is the champion again; version 2 is not."
    assert once == {Alias.CHAMPION: 1, Alias.PREVIOUS: 2}
    assert aliases(versions) == {Alias.CHAMPION: 2, Alias.PREVIOUS: 1}


def test_an_impossible_change_is_refused_with_its_reason(versions: MlflowClient) -> None:
    with pytest.raises(RegistryError, match="no version to go back to"):
        registry.rollback(MODEL)
    with pytest.raises(RegistryError, match=r"no test-registry version 9: versions 1 to 4 are registered"):
        registry.promote(MODEL, 9)
    with pytest.raises(RegistryError, match="no such model is registered"):
        registry.promote("nothing", 1)

    assert aliases(versions) == {}


def test_a_model_that_mlflow_denies_because_it_does_not_exist_has_no_champion(
    versions: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: Any) -> Any:
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", deny)

    assert registry.champion("nothing") is None
    with pytest.raises(MlflowException, match="Permission denied"):
        registry.champion(MODEL)
    with pytest.raises(RegistryError, match="There is no registered model nothing"):
        registry.rollback("nothing")


def test_the_command_line(versions: MlflowClient, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(prefect.api_url))
    command = [sys.executable, "-m", "trainyard.registry"]
    done = subprocess.run([*command, "promote", MODEL, "3"], capture_output=True, text=True, check=True)
    refused = subprocess.run([*command, "promote", MODEL, "7"], capture_output=True, text=True, check=False)

    assert done.stdout == f"{MODEL} version 3 is the champion.\n"
    assert refused.returncode == 1
    assert f"There is no {MODEL} version 7: versions 1 to 4 are registered." in refused.stderr.splitlines()
    assert "Traceback" not in refused.stderr
    assert aliases(versions) == {Alias.CHAMPION: 3}


def test_concurrent_candidates_are_compared_one_after_the_other(versions: MlflowClient) -> None:
    """Each is compared with the champion that it then replaces, and no alias is lost."""
    barrier, comparisons = Barrier(4), []

    def candidate(version: int) -> None:
        def decide(champion: Champion | None) -> Decision:
            comparisons.append((champion.version if champion else None, version))
            return Decision(promote=True, reason="It is better.")

        barrier.wait()
        registry.apply_gate(MODEL, version, decide)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(copy_context().run, candidate, version) for version in range(1, 5)]:
            future.result()
    order = [version for _, version in comparisons]

    assert [champion for champion, _ in comparisons] == [None, *order[:-1]]
    assert aliases(versions) == {Alias.CHAMPION: order[-1], Alias.PREVIOUS: order[-2]}


def test_a_candidate_is_compared_again_if_the_champion_changed_without_the_lock(versions: MlflowClient) -> None:
    comparisons = []

    def decide(champion: Champion | None) -> Decision:
        comparisons.append(champion.version if champion else None)
        if champion is None:
            versions.set_registered_model_alias(MODEL, Alias.CHAMPION, "2")
        return Decision(promote=champion is None, reason="The champion is as good.")

    decision = registry.apply_gate(MODEL, 1, decide)

    assert comparisons == [None, 2]
    assert not decision.promote
    assert aliases(versions) == {Alias.CHAMPION: 2, Alias.CHALLENGER: 1}


def test_a_lock_is_held_by_one_and_waited_for_until_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    with (
        lock("a-test"),
        pytest.raises(LockTimeoutError, match="a-test is locked by another run"),
        lock("a-test", timeout_seconds=0.5),
    ):
        pytest.fail("two hold it")

    assert not [record.message for record in caplog.records if record.name == "prefect._internal.concurrency"]
    with lock("a-test", timeout_seconds=5):
        pass


def waiting_run(prefect: SyncPrefectClient, lock_name: str) -> FlowRun | None:
    """Return the run that waits for a lock."""
    wanted = {"state": {"name": {"any_": [State.WAITING]}}, "tags": {"is_null_": True}}
    runs = prefect.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))
    return next((run for run in runs if run.state and lock_name in (run.state.message or "")), None)


def test_a_run_that_waited_keeps_its_retries(prefect: SyncPrefectClient) -> None:
    name = f"lock-{uuid4().hex[:8]}"
    attempts = iter(["first"])

    @flow(name=name, retries=1)
    def fails_once() -> None:
        with lock(name):
            if next(attempts, None):
                raise ConnectionError

    with ThreadPoolExecutor(1) as pool:
        with lock(name):
            ended = pool.submit(copy_context().run, lambda: fails_once(return_state=True))
            run = wait_until(lambda: waiting_run(prefect, name), 20, "the waiting run")
        state = ended.result()

    assert state.is_completed()
    assert prefect.read_flow_run(run.id).run_count == 2


def test_a_run_that_ended_while_it_waited_does_not_become_running_again(prefect: SyncPrefectClient) -> None:
    name = f"lock-{uuid4().hex[:8]}"

    @flow(name=name)
    def waits() -> None:
        with lock(name):
            pass

    with ThreadPoolExecutor(1) as pool:
        with lock(name):
            ended = pool.submit(copy_context().run, lambda: waits(return_state=True))
            run = wait_until(lambda: waiting_run(prefect, name), 20, "the waiting run")
            prefect.set_flow_run_state(run.id, Crashed(), force=True)
        ended.result()
    states = [state.name for state in prefect.read_flow_run_states(run.id)]

    assert "Running" not in states[states.index("Crashed") :]
