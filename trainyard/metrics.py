"""Metrics of a model beside those of its baselines, under one name each."""

from collections.abc import Mapping, Sequence


def flatten_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of all as one set of metrics: `log_loss` of `model` becomes `model_log_loss`."""
    return {f"{who}_{name}": value for who, of_one in scores.items() for name, value in of_one.items()}


def scores_table(metrics: Mapping[str, float], who: Sequence[str]) -> str:
    """Return such metrics as a Markdown table, with a column for each of `who`; all have what the first has."""
    names = [name.removeprefix(f"{who[0]}_") for name in metrics if name.startswith(f"{who[0]}_")]
    rows = [" | ".join([name, *(f"{metrics[f'{each}_{name}']:.4f}" for each in who)]) for name in names]
    heads = " | ".join(["metric", *who])
    return "\n".join([f"| {heads} |", "|---" * (len(who) + 1) + "|", *(f"| {row} |" for row in rows)])
