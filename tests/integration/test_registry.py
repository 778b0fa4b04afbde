"""Champions, predecessors and challengers in a real registry, under a real lock."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from threading import Barrier

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from prefect.client.orchestration import SyncPrefectClient

from trainyard import registry
from trainyard.errors import RegistryError
from trainyard.gate import Decision, Thresholds

MODEL = "test-registry"

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture
def versions(tracking: MlflowClient) -> Iterator[MlflowClient]:
    """A registered model of four versions without aliases."""
    tracking.create_registered_model(MODEL)
    run = tracking.create_run(tracking.create_experiment(MODEL + str(id(tracking))))
    for _ in range(4):
        tracking.create_model_version(MODEL, source=str(run.info.artifact_uri), run_id=run.info.run_id)
    yield tracking
    tracking.delete_registered_model(MODEL)


def aliases(tracking: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in tracking.get_registered_model(MODEL).aliases.items()}


def always(_: ModelVersion | None) -> Decision:
    return Decision(promote=True, reason="It is better.")


def never(_: ModelVersion | None) -> Decision:
    return Decision(promote=False, reason="It is worse.")


def test_the_better_reigns_and_the_old_one_is_kept(versions: MlflowClient) -> None:
    registry.apply_gate(MODEL, 1, always)
    assert aliases(versions) == {"champion": 1}
    registry.apply_gate(MODEL, 2, always)
    assert aliases(versions) == {"champion": 2, "previous": 1}
    assert versions.get_model_version(MODEL, "2").tags["gate.reason"] == "It is better."


def test_the_worse_is_challenger_and_says_why(versions: MlflowClient) -> None:
    registry.apply_gate(MODEL, 1, always)
    registry.apply_gate(MODEL, 2, never)
    assert aliases(versions) == {"champion": 1, "challenger": 2}
    tags = versions.get_model_version(MODEL, "2").tags
    assert (tags["gate.decision"], tags["gate.reason"]) == ("challenger", "It is worse.")
    assert tags["gate.judged_against"] == "1"
    assert registry.apply_gate(MODEL, 1, never).promote, "the champion is not judged against itself"


def test_a_decision_is_found_again_on_the_same_terms_and_against_the_same_champion(versions: MlflowClient) -> None:
    terms, others = Thresholds(), Thresholds(min_improvement=0.1)
    registry.apply_gate(MODEL, 1, always, terms)
    assert registry.recall_decision(MODEL, 2, terms) is None
    decision = registry.apply_gate(MODEL, 2, never, terms)
    assert registry.recall_decision(MODEL, 2, terms) == decision
    assert registry.recall_decision(MODEL, 2, others) is None
    registry.promote(MODEL, 3)
    assert registry.recall_decision(MODEL, 2, terms) is None, "it lost against another champion"
    registry.promote(MODEL, 2)
    assert registry.recall_decision(MODEL, 2, others) == Decision(promote=True, reason="It is the champion.")
    registry.promote(MODEL, 3)
    assert registry.recall_decision(MODEL, 2, terms) is None, "it was promoted since, and is to be judged again"


def test_people_promote_and_roll_back(versions: MlflowClient) -> None:
    registry.apply_gate(MODEL, 1, always)
    registry.apply_gate(MODEL, 2, never)
    assert registry.promote(MODEL, 2) == f"{MODEL} version 2 is the champion; version 1 is its predecessor."
    assert aliases(versions) == {"champion": 2, "previous": 1}, "the challenger has won"
    assert "already" in registry.promote(MODEL, 2)
    assert "version 1 is the champion again" in registry.rollback(MODEL)
    assert aliases(versions) == {"champion": 1, "previous": 2}
    registry.rollback(MODEL)
    assert aliases(versions) == {"champion": 2, "previous": 1}


def test_what_cannot_be_done_is_said(versions: MlflowClient) -> None:
    with pytest.raises(RegistryError, match="no version to go back to"):
        registry.rollback(MODEL)
    with pytest.raises(RegistryError, match=r"no test-registry version 9: versions 1 to 4 are registered"):
        registry.promote(MODEL, 9)
    with pytest.raises(RegistryError, match="no such model is registered"):
        registry.promote("nothing", 1)
    assert aliases(versions) == {}


def test_the_command_line(versions: MlflowClient, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(prefect.api_url))
    command = [sys.executable, "-m", "trainyard.registry"]
    done = subprocess.run([*command, "promote", MODEL, "3"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{MODEL} version 3 is the champion.\n"
    refused = subprocess.run([*command, "promote", MODEL, "7"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"There is no {MODEL} version 7: versions 1 to 4 are registered." in refused.stderr.splitlines()
    assert "Traceback" not in refused.stderr
    assert aliases(versions) == {"champion": 3}


def test_candidates_at_once_are_judged_one_after_the_other(versions: MlflowClient) -> None:
    """Each decides against the champion that it then replaces, and no alias is lost."""
    barrier, seen = Barrier(4), []

    def candidate(version: int) -> None:
        def decide(reigning: ModelVersion | None) -> Decision:
            seen.append((int(reigning.version) if reigning else None, version))
            return Decision(promote=True, reason="It is better.")

        barrier.wait()
        registry.apply_gate(MODEL, version, decide)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(copy_context().run, candidate, version) for version in range(1, 5)]:
            future.result()
    order = [version for _, version in seen]
    assert [reigning for reigning, _ in seen] == [None, *order[:-1]]
    assert aliases(versions) == {"champion": order[-1], "previous": order[-2]}


def test_a_lock_is_waited_for_no_longer_than_asked() -> None:
    with ExitStack() as stack:
        stack.enter_context(registry.lock("a-test"))
        with pytest.raises(TimeoutError), registry.lock("a-test", timeout_seconds=0.5):
            pytest.fail("two hold it")
    with registry.lock("a-test", timeout_seconds=5):
        pass
