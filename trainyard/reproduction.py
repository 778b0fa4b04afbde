"""Reproduce a version: train it again from what `trainyard.provenance` kept of it, and compare the metrics.

`make reproduce` runs this module.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isnan

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect import flow

from trainyard import registry, tracking
from trainyard.cache import refreshing
from trainyard.contract import Tag
from trainyard.errors import RegistryError, ReproductionError
from trainyard.problem import Parts
from trainyard.provenance import describe_code, recall_data, recall_problem
from trainyard.training import STEPS, digest_code, search_and_fit

HOUR = 3600.0


@dataclass(frozen=True)
class Reproduction:
    """The comparison of a version with the same training, run again."""

    model: str
    version: int
    differing: Mapping[str, tuple[float, float]]
    """By metric, the value of the version and that of the new training, where they differ."""
    metrics: int
    """The number of metrics that were compared."""
    changes: Sequence[str]
    """What was not the same as when the version was trained: its code, its packages."""

    @property
    def is_equal(self) -> bool:
        """Whether all metrics are equal."""
        return not self.differing

    def describe(self) -> str:
        """Return a message for people."""
        changes = "".join(f"\n- {change}" for change in self.changes) or "\n- nothing: code and packages are the same"
        if self.is_equal:
            return f"{self.model} version {self.version} is reproduced: all {self.metrics} metrics are equal.\nChanged since:{changes}"
        rows = "".join(f"\n- {name}: {then:.6g} then, {now:.6g} now" for name, (then, now) in self.differing.items())
        count = f"{len(self.differing)} of {self.metrics} metrics differ"
        return f"{self.model} version {self.version} is not reproduced: {count}.{rows}\nChanged since:{changes}"


@flow(name="reproduce", log_prints=True, persist_result=False, timeout_seconds=4 * HOUR)
def reproduce(model: str, version: int) -> Reproduction:
    """Train a version again from what is kept of it, and compare the metrics. Nothing is registered.

    Args:
        model: The registered model.
        version: Its version.

    Raises:
        RegistryError: There is no such version.
        ReproductionError: Its data or its problem is not kept.
    """
    run_id, tags = _find_run(model, version)
    train, holdout = recall_data(tags.get(Tag.DATA_DIGEST, ""))
    problem = recall_problem(tags.get(Tag.PROBLEM_DIGEST, ""))
    parts = Parts(train, holdout, problem.classes_of(pd.concat([train, holdout])))
    with refreshing(refresh=True):
        evaluation, _ = search_and_fit(problem, parts, STEPS)
    logged = MlflowClient().get_run(run_id).data.metrics
    found = Reproduction(
        model,
        version,
        {name: (value, evaluation.metrics.get(name, float("nan"))) for name, value in logged.items()
         if not _is_equal(value, evaluation.metrics.get(name))},
        len(logged),
        list(_find_changes(tags, {Tag.CODE: digest_code(problem, STEPS), **describe_code()})),
    )  # fmt: skip
    print(found.describe())
    return found


def _find_run(model: str, version: int) -> tuple[str, Mapping[str, str]]:
    try:
        registered = MlflowClient().get_model_version(model, str(version))
        return str(registered.run_id), MlflowClient().get_run(str(registered.run_id)).data.tags
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED"):
            raise RegistryError(f"There is no {model} version {version} with a run.") from error
        raise


def _is_equal(then: float, now: float | None) -> bool:
    """Return whether two values are equal up to the last bits, which the order of a sum may change."""
    return now is not None and ((isnan(then) and isnan(now)) or isclose(then, now, rel_tol=1e-12, abs_tol=1e-15))


def _find_changes(then: Mapping[str, str], now: Mapping[str, str]) -> Sequence[str]:
    names = {
        Tag.CODE: "the code that makes the model",
        Tag.CODE_LOCK: "the installed packages",
        Tag.CODE_COMMIT: "the commit",
    }
    changes = [
        f"{name}: {then.get(tag, 'not known')} then, {now.get(tag, 'not known')} now"
        for tag, name in names.items()
        if then.get(tag) != now.get(tag)
    ]
    if then.get(Tag.CODE_DIRTY) == "true":
        changes.append("it was trained from files that differed from the commit")
    return changes


def main() -> None:
    """Reproduce a version from the command line; the exit status is 1 if its metrics differ."""
    parser = argparse.ArgumentParser(prog="reproduce", description="Train a version again and compare the metrics.")
    parser.add_argument("model")
    parser.add_argument("version", type=int)
    arguments = parser.parse_args()
    try:
        tracking.require_server()
        found = reproduce(arguments.model or registry.only_model(), arguments.version)
    except (RegistryError, ReproductionError) as error:
        sys.exit(f"{error}")
    sys.exit(0 if found.is_equal else 1)


if __name__ == "__main__":
    main()
