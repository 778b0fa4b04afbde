"""Champions of the model registry, by aliases: `champion`, the one before it (`previous`) and `challenger`.

An alias stands on one version at most, so a model never has two champions. Every change is made under a lock, one for
each model, so that a candidate is compared with the champion that it would replace. `make promote` and `make rollback`
run this module.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from trainyard.contract import NO_CHAMPION, Alias, GateDecision, Tag
from trainyard.errors import RegistryError
from trainyard.gate import Decision, Reuse, Thresholds
from trainyard.locks import lock

CURRENT_CHAMPION = Decision(promote=True, reason="It is the champion.")


def champion(model: str) -> ModelVersion | None:
    """Return the current champion, or None."""
    return _version_by_alias(model, Alias.CHAMPION)


@dataclass(frozen=True)
class Champion:
    """The champion that a candidate is compared with."""

    model: str
    version: int
    tags: Mapping[str, str]
    reuse: Reuse
    """How often it has been compared, this comparison included."""

    def load_estimator(self) -> Any:
        """Return the estimator that its metrics are of: fitted without its holdout, so that both can be compared on one."""
        return mlflow.sklearn.load_model(self.tags.get(Tag.EVALUATED_MODEL) or f"models:/{self.model}/{self.version}")


Compare = Callable[[Champion | None], Decision]
"""Decides about a candidate; called with the champion, which no other run can replace meanwhile."""


@dataclass(frozen=True)
class Proposal:
    """The gate's decision about a candidate that need not have a version yet."""

    decision: Decision
    compared_with: int | None
    """The champion's version."""
    version: int | None
    """The version that this candidate has already."""
    is_new: bool
    """Whether it is worth a version: it is to be promoted, or neither champion nor challenger has its recipe."""


def propose(model: str, candidate: str, recipe: str, compare: Compare, thresholds: Thresholds) -> Proposal:
    """Decide whether a candidate is to become the champion, and whether it is worth a version.

    The champion is tagged with the comparison and, for people, with the reason. The decision about an unchanged candidate
    is taken from these tags and does not count as another comparison.

    Args:
        model: The registered model.
        candidate: A digest of the candidate's evaluation.
        recipe: A digest of the code and the parameters that made it.
        compare: Decides.
        thresholds: The thresholds that `compare` applies.
    """
    with _model_lock(model):
        current, challenger = champion(model), _version_by_alias(model, Alias.CHALLENGER)
        known = [each for each in (current, challenger) if each is not None]
        same = (int(each.version) for each in known if each.tags.get(Tag.CANDIDATE_DIGEST) == candidate)
        version = None if thresholds.force else next(same, None)
        if version is not None and _is(current, version):
            return Proposal(CURRENT_CHAMPION, version, version, is_new=False)
        decision = _recall(current or challenger, candidate, thresholds)
        if decision is None:
            decision = compare(_count_comparison(current, recipe))
            if known and not decision.promote:
                _note_refusal(known[0], candidate, thresholds, decision.reason)
        is_new = decision.promote or recipe not in [each.tags.get(Tag.RECIPE) for each in known]
        return Proposal(decision, _version_of(current), version, is_new)


def apply_gate(
    model: str,
    version: int,
    compare: Compare,
    thresholds: Thresholds | None = None,
    proposal: Proposal | None = None,
) -> Decision:
    """Promote a version to champion, or make it the challenger; tag it with the decision and the reason.

    Args:
        model: The registered model.
        version: The candidate.
        compare: Decides.
        thresholds: The thresholds that `compare` applies.
        proposal: The decision about the candidate, which holds unless the champion has changed since.
    """
    with _model_lock(model):
        while True:
            current = champion(model)
            if _is(current, version):
                return CURRENT_CHAMPION
            if proposal is not None and proposal.compared_with == _version_of(current):
                decision = proposal.decision
            else:
                recipe = MlflowClient().get_model_version(model, str(version)).tags.get(Tag.RECIPE, "")
                decision = compare(_count_comparison(current, recipe))
            # A run that was cut off from the server for longer than its lease holds the lock no more.
            if _version_of(champion(model)) == _version_of(current):
                break
        if decision.promote:
            _set_champion(model, version, current, decision.reason)
        else:
            MlflowClient().set_registered_model_alias(model, Alias.CHALLENGER, str(version))
            context = _decision_context(current, thresholds)
            _record_decision(model, version, GateDecision.CHALLENGER, decision.reason, context)
        return decision


def _count_comparison(current: ModelVersion | None, recipe: str) -> Champion | None:
    """Count a comparison with a recipe in the champion's tags."""
    if current is None:
        return None
    counts: dict[str, int] = json.loads(current.tags.get(Tag.GATE_COMPARISONS, "{}"))
    counts[recipe] = counts.get(recipe, 0) + 1
    MlflowClient().set_model_version_tag(current.name, current.version, Tag.GATE_COMPARISONS, json.dumps(counts))
    own = current.tags.get(Tag.RECIPE, "")
    others = [each for each in counts if each != own]  # in the order of their first comparison
    reuse = Reuse(counts[recipe], 1 if recipe == own else others.index(recipe) + 1, recipe == own)
    return Champion(current.name, int(current.version), current.tags, reuse)


def _note_refusal(version: ModelVersion, candidate: str, thresholds: Thresholds, reason: str) -> None:
    tags = {
        Tag.GATE_LAST_REASON: reason,
        Tag.GATE_LAST_AT: datetime.now(UTC).isoformat(timespec="seconds"),
        Tag.GATE_LAST_CANDIDATE: _candidate_and_thresholds(candidate, thresholds),
    }
    for tag, value in tags.items():
        MlflowClient().set_model_version_tag(version.name, version.version, tag, value)


def _recall(version: ModelVersion | None, candidate: str, thresholds: Thresholds) -> Decision | None:
    """Return the refusal of an unchanged candidate by unchanged thresholds, or None."""
    if version is None or version.tags.get(Tag.GATE_LAST_CANDIDATE) != _candidate_and_thresholds(candidate, thresholds):
        return None
    return Decision(promote=False, reason=version.tags[Tag.GATE_LAST_REASON])


def _candidate_and_thresholds(candidate: str, thresholds: Thresholds) -> str:
    return json.dumps({"candidate": candidate, "thresholds": thresholds.model_dump()})


def promote(model: str, version: int) -> str:
    """Make a version the champion by hand; return a message for people.

    Raises:
        RegistryError: There is no such version.
    """
    with _model_lock(model):
        _require_version(model, version)
        current = champion(model)
        if _is(current, version):
            return f"{model} version {version} is the champion already."
        _set_champion(model, version, current, "Promoted by hand.")
        previous = f"; version {current.version} is its predecessor" if current else ""
        return f"{model} version {version} is the champion{previous}."


def rollback(model: str) -> str:
    """Swap the champion and its predecessor; return a message for people.

    Raises:
        RegistryError: The model has no predecessor.
    """
    with _model_lock(model):
        current, previous = champion(model), _version_by_alias(model, Alias.PREVIOUS)
        if not _is_registered(model):
            raise RegistryError(f"There is no registered model {model}.")
        if previous is None or current is None:
            raise RegistryError(f"{model} has no version to go back to: no alias {Alias.PREVIOUS!r} in the registry.")
        _set_champion(model, int(previous.version), current, f"Rolled back from version {current.version}.")
        return f"{model} version {previous.version} is the champion again; version {current.version} is not."


def _model_lock(model: str) -> AbstractContextManager[None]:
    return lock(f"registry-{model}")


def _is(current: ModelVersion | None, version: int) -> bool:
    return _version_of(current) == version


def _version_of(current: ModelVersion | None) -> int | None:
    return None if current is None else int(current.version)


def _set_champion(model: str, version: int, current: ModelVersion | None, reason: str) -> None:
    """Move the aliases, in an order that leaves a champion wherever this is interrupted."""
    client = MlflowClient()
    if current:
        client.set_registered_model_alias(model, Alias.PREVIOUS, str(current.version))
    client.set_registered_model_alias(model, Alias.CHAMPION, str(version))
    if _is(_version_by_alias(model, Alias.CHALLENGER), version):
        client.delete_registered_model_alias(model, Alias.CHALLENGER)
    _record_decision(model, version, GateDecision.PROMOTED, reason, {})


def _decision_context(current: ModelVersion | None, thresholds: Thresholds | None) -> dict[str, str]:
    """Return tags with what a decision depends on besides the candidate."""
    return {
        Tag.GATE_COMPARED_WITH: str(current.version) if current else NO_CHAMPION,
        Tag.GATE_THRESHOLDS: thresholds.model_dump_json() if thresholds else "",
    }


def _record_decision(model: str, version: int, decision: str, reason: str, context: dict[str, str]) -> None:
    client, now = MlflowClient(), datetime.now(UTC).isoformat(timespec="seconds")
    tags = {Tag.GATE_DECISION: decision, Tag.GATE_REASON: reason, Tag.GATE_DECIDED_AT: now, **context}
    for tag, value in tags.items():
        client.set_model_version_tag(model, str(version), tag, value)


def _version_by_alias(model: str, alias: str) -> ModelVersion | None:
    try:
        return MlflowClient().get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        # To an account that may not do everything, MLflow denies what does not exist.
        if error.error_code == "PERMISSION_DENIED" and not _is_registered(model):
            return None
        raise


def _is_registered(model: str) -> bool:
    return bool(MlflowClient().search_registered_models(f"name = '{model}'"))


def _require_version(model: str, version: int) -> None:
    try:
        MlflowClient().get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        versions = sorted(int(found.version) for found in MlflowClient().search_model_versions(f"name = '{model}'"))
        known = (
            f"versions {versions[0]} to {versions[-1]} are registered" if versions else "no such model is registered"
        )
        raise RegistryError(f"There is no {model} version {version}: {known}.") from error


def only_model() -> str:
    """Return the name of the registered model where there is exactly one.

    Raises:
        RegistryError: There is none, or there are several, which the message lists.
    """
    names: list[str] = sorted(model.name for model in MlflowClient().search_registered_models())
    if len(names) != 1:
        known = (
            f"several models are registered: {', '.join(names)}. Name one" if names else "no model is registered yet"
        )
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
