"""Aliases of registered models: `champion` reigns, `previous` reigned before it, `challenger` did not win.

An alias stands on one version or on none, so there are never two champions. Every change is made under
a lock of Prefect's, one for each model, so that a run compares with the champion it will replace. People
use `make promote` and `make rollback`, which run this module.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from threading import Event
from time import monotonic

import httpx
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from trainyard.gate import Decision, Thresholds

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
LOCK_SECONDS, POLL_SECONDS = 600, 0.3


class RegistryError(Exception):
    """The registry cannot do what was asked; the message says why and what can be done."""


@contextmanager
def lock(name: str, timeout_seconds: float | None = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock that is one for the whole installation; a holder that dies loses it within a minute.

    Raises TimeoutError if another holds it for longer than `timeout_seconds`.
    """
    deadline = None if timeout_seconds is None else monotonic() + timeout_seconds
    with ExitStack() as held:
        # Asked for once at a time: left to wait by itself, Prefect looks again only after as much as half a minute.
        while not _take(name, held):
            if deadline is not None and monotonic() > deadline:
                raise TimeoutError(f"{name} is locked by another run.")
            Event().wait(POLL_SECONDS)
        yield


def _take(name: str, held: ExitStack) -> bool:
    """Take the lock if it is free; one that nobody has ever taken is made for the next try."""
    try:
        held.enter_context(
            concurrency(name, max_retries=0, strict=True, lease_duration=60, raise_on_lease_renewal_failure=False)
        )
    except ConcurrencySlotAcquisitionError as error:
        response = getattr(error.__cause__, "response", None)
        if response is None and "must be created" in str(error):
            with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):  # another was first
                client.upsert_global_concurrency_limit_by_name(name, limit=1)
        elif response is None or response.status_code != httpx.codes.LOCKED:
            raise
        return False
    return True


def champion(model: str) -> ModelVersion | None:
    """Return the reigning version, or None."""
    return _with_alias(model, CHAMPION)


def judge(
    model: str,
    version: int,
    decide: Callable[[ModelVersion | None], Decision],
    terms: Thresholds | None = None,
) -> Decision:
    """Let a candidate take the champion's place, or register it as challenger with the reason why not.

    `decide` is called with the reigning version while no other run can change it. With its `terms`, the
    decision can be found again by `judged`.
    """
    with lock(f"registry-{model}"):
        reigning = champion(model)
        if reigning and int(reigning.version) == version:
            return Decision(promote=True, reason="It is the champion.")
        decision = decide(reigning)
        if decision.promote:
            _promote(model, version, decision.reason)
        else:
            client = MlflowClient()
            client.set_registered_model_alias(model, CHALLENGER, str(version))
            _note(model, version, "challenger", decision.reason)
            _note_key(model, version, "gate.judged_against", str(reigning.version if reigning else "none"))
            _note_key(model, version, "gate.terms", terms.model_dump_json() if terms else "")
        return decision


def judged(model: str, version: int, terms: Thresholds) -> Decision | None:
    """Return what was decided about a version, if on the same terms and against the champion that still reigns."""
    reigning = champion(model)
    if reigning and int(reigning.version) == version:
        return Decision(promote=True, reason="It is the champion.")
    tags = MlflowClient().get_model_version(model, str(version)).tags
    lost = {
        "gate.decision": "challenger",
        "gate.judged_against": str(reigning.version if reigning else "none"),
        "gate.terms": terms.model_dump_json(),
    }
    return Decision(promote=False, reason=tags["gate.reason"]) if lost.items() <= tags.items() else None


def promote(model: str, version: int) -> str:
    """Make a version the champion because a person says so; return what was done."""
    with lock(f"registry-{model}"):
        _require(model, version)
        reigning = champion(model)
        if reigning and int(reigning.version) == version:
            return f"{model} version {version} is the champion already."
        _promote(model, version, "Promoted by hand.")
        was = f"; version {reigning.version} is its predecessor" if reigning else ""
        return f"{model} version {version} is the champion{was}."


def rollback(model: str) -> str:
    """Let the champion and its predecessor change places; return what was done."""
    with lock(f"registry-{model}"):
        reigning, before = champion(model), _with_alias(model, PREVIOUS)
        if before is None or reigning is None:
            raise RegistryError(f"{model} has no version to go back to: no alias {PREVIOUS!r} in the registry.")
        _promote(model, int(before.version), f"Rolled back from version {reigning.version}.")
        return f"{model} version {before.version} is the champion again; version {reigning.version} is not."


def _promote(model: str, version: int, reason: str) -> None:
    """Move the aliases; whatever interrupts this, one champion reigns."""
    client, reigning = MlflowClient(), champion(model)
    if reigning:
        client.set_registered_model_alias(model, PREVIOUS, str(reigning.version))
    client.set_registered_model_alias(model, CHAMPION, str(version))
    challenger = _with_alias(model, CHALLENGER)
    if challenger and int(challenger.version) == version:
        client.delete_registered_model_alias(model, CHALLENGER)
    _note(model, version, "promoted", reason)


def _note(model: str, version: int, decision: str, reason: str) -> None:
    _note_key(model, version, "gate.decision", decision)
    _note_key(model, version, "gate.reason", reason)
    _note_key(model, version, "gate.decided_at", datetime.now(UTC).isoformat(timespec="seconds"))


def _note_key(model: str, version: int, key: str, value: str) -> None:
    MlflowClient().set_model_version_tag(model, str(version), key, value)


def _with_alias(model: str, alias: str) -> ModelVersion | None:
    try:
        return MlflowClient().get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _require(model: str, version: int) -> None:
    try:
        MlflowClient().get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        there = sorted(int(found.version) for found in MlflowClient().search_model_versions(f"name = '{model}'"))
        known = f"versions {there[0]} to {there[-1]} are registered" if there else "no such model is registered"
        raise RegistryError(f"There is no {model} version {version}: {known}.") from error


def only_model() -> str:
    """Return the name of the registered model where there is exactly one.

    Raises:
        RegistryError: There is none, or there are several, which the message lists.
    """
    names: list[str] = sorted(model.name for model in MlflowClient().search_registered_models())
    if len(names) != 1:
        known = f"several models are registered: {', '.join(names)}. Name one" if names else "no model is registered yet"
        raise RegistryError(f"MODEL is not set, and {known}{': MODEL=' + names[0] if names else ''}.")
    return names[0]


def main() -> None:
    """Promote or roll back from the command line."""
    parser = argparse.ArgumentParser(prog="registry", description="Change a registered model's champion.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("promote", "rollback"):
        command = commands.add_parser(name)
        command.add_argument("model")
        if name == "promote":
            command.add_argument("version", type=int)
    arguments = parser.parse_args()
    try:
        arguments.model = arguments.model or only_model()
        if arguments.command == "promote":
            print(promote(arguments.model, arguments.version))
        else:
            print(rollback(arguments.model))
    except (RegistryError, TimeoutError, MlflowException) as error:
        if getattr(error, "error_code", None) == "PERMISSION_DENIED":  # also MLflow's word for what is not there
            sys.exit(f"There is no registered model {arguments.model}, or this account may not change it.")
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
