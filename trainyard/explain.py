"""What a model's inputs contribute to it, and the model card that its version shows in MLflow."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from sklearn.inspection import permutation_importance

from trainyard.contract import ImportanceColumn
from trainyard.fitting import Evaluation
from trainyard.metrics import scores_table
from trainyard.problem import Parts, Problem
from trainyard.scoring import predict

MAX_ROWS, REPEATS, SEED = 1000, 5, 0
MAX_SHOWN = 20
"""Features in the figure and on the card."""
MAX_CATEGORIES = 5
MAX_CARD_LENGTH = 4500
"""MLflow keeps 5000 characters of a description, some of which say which estimator the metrics are of."""


def measure_importance(problem: Problem, parts: Parts, evaluation: Evaluation) -> pd.DataFrame:
    """Return the permutation importance of each feature, the largest first (`contract.Artifact.IMPORTANCE`).

    It is the rise of the metric on the holdout when the feature's values are shuffled among at most `MAX_ROWS` of its rows.
    Breiman, Random Forests, Machine Learning 45, 2001.
    """
    rows = parts.holdout
    if len(rows) > MAX_ROWS:
        rows = rows.sample(MAX_ROWS, random_state=SEED)
    features = problem.select_features(rows)

    def negative_loss(estimator: object, shuffled: pd.DataFrame, observed: pd.Series) -> float:
        return -problem.loss.mean(observed, predict(estimator, shuffled, parts.classes))

    found = permutation_importance(
        evaluation.estimator,
        features,
        rows[problem.target],
        scoring=negative_loss,
        n_repeats=REPEATS,
        random_state=SEED,
    )
    table = pd.DataFrame(
        {
            ImportanceColumn.FEATURE: features.columns.astype(str),
            ImportanceColumn.MEAN: found.importances_mean,
            ImportanceColumn.STANDARD_DEVIATION: found.importances_std,
        }
    )
    return table.sort_values(ImportanceColumn.MEAN, ascending=False, ignore_index=True)


def draw_importance(importance: pd.DataFrame, metric: str) -> Figure:
    """Return a plot of the most important features, with the standard deviation over the repetitions."""
    shown = importance.head(MAX_SHOWN)[::-1]
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(shown)), layout="tight")
    axes = figure.subplots()
    means, spreads = shown[ImportanceColumn.MEAN], shown[ImportanceColumn.STANDARD_DEVIATION]
    axes.barh(shown[ImportanceColumn.FEATURE], means, xerr=spreads)
    axes.set(title="Permutation importance on the holdout", xlabel=f"Rise of {metric} when the feature is shuffled")
    return figure


def write_card(
    problem: Problem, parts: Parts, evaluation: Evaluation, importance: pd.DataFrame, source: str, remarks: str
) -> str:
    """Return the model card of a version as Markdown, cut to the length that MLflow keeps.

    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.

    Args:
        problem: The problem.
        parts: The data.
        evaluation: The best candidate's evaluation on the holdout.
        importance: As `measure_importance` returns it.
        source: Where the data comes from.
        remarks: What else people should know: Markdown.
    """
    sections = {
        "": describe_question(problem),
        "Data": _describe_data(problem, parts, source),
        "Evaluation": f"On the holdout, by {problem.loss.name} (lower is better):\n\n"
        + scores_table(evaluation.metrics, evaluation.owners),
        "What it depends on": _describe_importance(importance, problem.loss.name),
        "Limits": _describe_limits(problem, parts),
        "Remarks": remarks,
    }
    card = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)
    return card if len(card) <= MAX_CARD_LENGTH else f"{card[:MAX_CARD_LENGTH]} ..."


def describe_question(problem: Problem) -> str:
    """Return what the model predicts, as a sentence."""
    if problem.question:
        return problem.question
    return f"Predicts {'the class' if problem.is_classification else 'the value'} of `{problem.target}`."


def _describe_data(problem: Problem, parts: Parts, source: str) -> str:
    features, times = problem.select_features(parts.all_rows), problem.split.times(parts.all_rows)
    period = f", from {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}" if times is not None else ""
    classes = f" Classes: {', '.join(map(str, parts.classes[:MAX_SHOWN]))}." if parts.classes is not None else ""
    return (
        f"{len(parts.all_rows)} rows{f' from {source}' if source else ''}{period}, of which {len(parts.holdout)} are held out "
        f"by `{problem.split}`.{classes} {features.shape[1]} features: {_shorten(features.columns.astype(str))}."
    )


def _describe_importance(importance: pd.DataFrame, metric: str) -> str:
    rows = [f"| {name} | {mean:.4g} |" for name, mean, _ in importance.head(MAX_SHOWN // 2).itertuples(index=False)]
    return "\n".join([f"| feature | rise of {metric} when it is shuffled |", "|---|---|", *rows])


def _describe_limits(problem: Problem, parts: Parts) -> str:
    """Return which values of the features the model has seen, beyond which its predictions are extrapolations."""
    features = problem.select_features(parts.all_rows)
    seen = [f"`{name}`: {_describe_values(features[name])}" for name in features.columns[:MAX_SHOWN]]
    others = (
        f" Of {features.shape[1] - MAX_SHOWN} more see the training sample." if len(seen) < features.shape[1] else ""
    )
    return (
        "The model has seen these values; beyond them its predictions are extrapolations. "
        + "; ".join(seen)
        + f".{others}"
    )


def _describe_values(column: pd.Series) -> str:
    known, missing = column.dropna(), float(column.isna().mean())
    if is_bool_dtype(known) or not is_numeric_dtype(known):
        values = _shorten(known.value_counts().index.astype(str), MAX_CATEGORIES)
    else:
        values = f"{known.min():.4g} to {known.max():.4g}" if len(known) else "none"
    return f"{values}, {missing:.0%} missing" if missing else values


def _shorten(names: pd.Index, most: int = MAX_SHOWN) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
