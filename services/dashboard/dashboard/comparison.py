"""Two versions of a model side by side: decisions, parameters, metrics, and shadow predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.metrics import describe_metric, run_metrics, scores_by_metric, sort_metrics
from dashboard.selection import Selection
from trainyard.contract import Alias, Column


def select_versions(
    selection: Selection, versions: Sequence[Mapping[str, Any]], aliases: Mapping[str, int]
) -> tuple[int, int] | None:
    """Return which version is compared with which: by default the challenger, else the newest, with the champion.

    Args:
        selection: What the reader has selected; versions that do not exist count as not selected.
        versions: As `MLflowSource.read_model` returns them.
        aliases: The model's versions by alias.
    """
    numbers = sorted((int(version["version"]) for version in versions), reverse=True)

    def choose(text: str, preferred: int | None, excluded: int | None) -> int | None:
        selected = int(text) if text.isdecimal() else None
        if selected in numbers:
            return selected
        if preferred in numbers and preferred != excluded:
            return preferred
        return next((number for number in numbers if number != excluded), None)

    against = choose(selection.against, aliases.get(Alias.CHAMPION), None)
    compared = choose(selection.compare, aliases.get(Alias.CHALLENGER), against)
    return None if against is None or compared is None else (compared, against)


def compare_runs(runs: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the parameters and the model's scores of two versions' runs, those that differ first.

    Args:
        runs: The runs that logged the versions, the compared one first; None where one is not known.
    """
    parameters = [{each["key"]: each["value"] for each in run["data"].get("params", [])} if run else {} for run in runs]
    scores = [scores_by_metric(run_metrics(run)) if run else {} for run in runs]
    rows = [
        {"name": name, "values": values, "differs": values[0] != values[1]}
        for name in sorted(parameters[0].keys() | parameters[1].keys())
        for values in [[of_run.get(name) for of_run in parameters]]
    ]
    return {
        "parameters": sorted(rows, key=lambda row: not row["differs"]),
        "metrics": [
            metric_row(metric, [of_run.get(metric, {}).get(Column.MODEL) for of_run in scores])
            for metric in sort_metrics(name for of_run in scores for name in of_run)
        ],
    }


def metric_row(metric: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Return a metric of two versions, their difference, and which is better where the metric's direction is known."""
    compared, against = values
    label, _, better = describe_metric(metric)
    difference = None if compared is None or against is None else compared - against
    verdict = ""
    if difference and better:
        verdict = "better" if (difference < 0) == (better == "lower") else "worse"
    return {"label": label, "values": list(values), "difference": difference, "verdict": verdict}
