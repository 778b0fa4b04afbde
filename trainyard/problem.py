"""The description of a problem: what is to be predicted, from which data, by which candidates, and how it is judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator, clone

from trainyard.candidates import Candidate, Space, Value
from trainyard.contract import Column
from trainyard.data import validate_frame
from trainyard.errors import DataError
from trainyard.scoring import Kind, Metric, Predictions, find_metric
from trainyard.splits import RandomSplit, Split

MIN_HOLDOUT_ROWS = 20
"""Fewer rows tell no model from another."""

Factory = Callable[..., BaseEstimator]
Baseline = Callable[[pd.DataFrame, pd.DataFrame], Any]
"""Returns predictions for the second frame from what the first one, the training set, shows: of a binary classification
the probability of the positive class, of more classes a frame with a column for each, of a regression values."""


@dataclass(frozen=True)
class Problem:
    """What a model is to predict, and how it is trained and judged. Every field but the first three has a default."""

    model: str
    """The name of the registered model."""
    target: str
    """The column to predict."""
    estimators: Mapping[str, BaseEstimator | Factory]
    """By family: an unfitted estimator, or a function that returns one for the parameters of a candidate."""
    kind: Kind = "classification"
    candidates: Sequence[Candidate] | Space = ()
    """What the search evaluates: a list made by `grid`, or a `Space`; without any, each family as it is."""
    features: Sequence[str] | None = None
    """The columns that the model takes; without them all but the target and those of the split."""
    schema: pa.DataFrameSchema | None = None
    """What the data is validated against before anything else."""
    split: Split = field(default_factory=RandomSplit)
    folds: int = 5
    """Of the cross-validation."""
    metric: str | Metric = ""
    """By which candidates are chosen and models compared: a name of `trainyard.scoring.METRICS`, or a loss of your own;
    without it log_loss, or mse for a regression."""
    search_metric: str | Metric = ""
    """By which candidates are chosen, where that is another one than `metric`."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    """By name; without any, `baseline` predicts the frequency of each class, or the mean."""
    scores: Mapping[str, Callable[[pd.Series, Any], float]] = field(default_factory=dict)
    """Further scores of the target and its predictions, by name, besides those of `trainyard.scoring.score`."""
    question: str = ""
    """What the model answers, as a sentence for people."""
    data_params: Mapping[str, Value] = field(default_factory=dict)
    """What the data was made with, such as a threshold in the definition of the target: it is logged among the run's
    parameters, and another value is another recipe."""
    experiment: str = ""
    """In MLflow; without it the name of the model."""
    trusted_types: Sequence[str] = ()
    """Types in the estimators' files that skops does not trust by default; list only types that you reviewed."""
    figures: "Callable[[Any, Parts], Mapping[str, Figure]] | None" = None
    """Returns figures by file name, of an `Evaluation` (`trainyard.fitting`) and the data."""
    times: Callable[[pd.DataFrame], pd.DatetimeIndex] | None = None
    """Returns the moment that each row's prediction is about, if that is not the row's own time."""
    why_not_comparable: Callable[[Mapping[str, str], Mapping[str, str]], str | None] | None = None
    """Returns a sentence if a candidate with the first tags cannot be compared with a champion with the second."""

    def __post_init__(self) -> None:
        """Refuse a description that contradicts itself.

        Raises:
            ValueError: A family of a candidate, or a metric, does not exist; or a baseline has the model's column.
        """
        find_metric(self.metric, self.kind)
        find_metric(self.search_metric, self.kind)
        unknown = set(self.families) - self.estimators.keys()
        if unknown or not self.estimators:
            known = ", ".join(self.estimators) or "none"
            raise ValueError(f"No estimator for {', '.join(sorted(unknown)) or self.model}; there are: {known}.")
        if Column.MODEL in self.baselines:
            raise ValueError(f"A baseline cannot be called {Column.MODEL!r}, which names the model's own scores.")

    @property
    def loss(self) -> Metric:
        """The metric."""
        return find_metric(self.metric, self.kind)

    @property
    def search_loss(self) -> Metric:
        """The metric by which candidates are chosen."""
        return find_metric(self.search_metric or self.metric, self.kind)

    @property
    def is_classification(self) -> bool:
        """Whether classes are predicted, and not values."""
        return self.kind == "classification"

    @property
    def families(self) -> list[str]:
        """The families that the search evaluates."""
        if isinstance(self.candidates, Space):
            return list(self.candidates.parameters)
        return list(dict.fromkeys(candidate.family for candidate in self.candidates)) or list(self.estimators)

    def list_candidates(self) -> list[Candidate]:
        """Return what a search without a space evaluates."""
        listed = () if isinstance(self.candidates, Space) else self.candidates
        return list(listed) or [Candidate(family, ()) for family in self.estimators]

    def make_estimator(self, candidate: Candidate) -> BaseEstimator:
        """Return the estimator of a candidate, not fitted."""
        made, params = self.estimators[candidate.family], dict(candidate.params)
        if isinstance(made, BaseEstimator):
            return clone(made).set_params(**params)
        return made(**params)

    def select_features(self, data: pd.DataFrame) -> pd.DataFrame:
        """Return the columns that the model takes."""
        if self.features is not None:
            return data[list(self.features)]
        return data.drop(columns=[self.target, *self.split.columns])

    def leave_out_after(self, day: date, data: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that are not about a later day.

        Raises:
            DataError: The split knows no times, or all rows are later.
        """
        times = self.split.times(data)
        if times is None:
            raise DataError(f"{self.model} has no times that tell what was known as of {day}: split it by time.")
        known = data[np.asarray(times < pd.Timestamp(day, tz=times.tz) + pd.Timedelta(days=1))]
        if known.empty:
            raise DataError(f"All {len(data)} rows are after {day}.")
        return known

    def classes_of(self, data: pd.DataFrame) -> pd.Index | None:
        """Return the classes in order; None for a regression."""
        return pd.Index(data[self.target].unique()).sort_values() if self.is_classification else None

    def labels_of(self, data: pd.DataFrame) -> pd.Series | None:
        """Return the class of each row; None for a regression."""
        return data[self.target] if self.is_classification else None

    def for_fitting(self, *families: str) -> "Problem":
        """Return the part of the description that decides how candidates of some families are fitted and evaluated.

        It is what cached tasks take, so that a result is reused where only another part has changed.
        """
        return replace(
            self,
            estimators={family: self.estimators[family] for family in families},
            model="",
            candidates=(),
            schema=None,
            folds=0,
            question="",
            data_params={},
            experiment="",
            trusted_types=(),
            figures=None,
            times=None,
            why_not_comparable=None,
        )

    def for_training(self) -> "Problem":
        """Return the part of the description that decides how the model is searched, fitted and evaluated."""
        fitted = self.for_fitting(*self.families)
        return replace(fitted, candidates=self.candidates, folds=self.folds)

    def for_logging(self, family: str) -> "Problem":
        """Return the part of the description that decides what is logged of a training of a family."""
        estimators = {family: self.estimators[family]}
        return replace(self, estimators=estimators, candidates=(), schema=None, why_not_comparable=None)


@dataclass(frozen=True)
class Parts:
    """The two parts of a data set, and the classes in both."""

    train: pd.DataFrame
    holdout: pd.DataFrame
    classes: pd.Index | None
    """None for a regression."""

    @property
    def all_rows(self) -> pd.DataFrame:
        """Both parts, the holdout last."""
        return pd.concat([self.train, self.holdout])


def grid(family: str, **values: Sequence[Value]) -> list[Candidate]:
    """Return a candidate for each combination of parameters, such as `grid("forest", min_samples_leaf=[1, 5])`."""
    return [Candidate(family, tuple(zip(values, chosen, strict=True))) for chosen in product(*values.values())]


def divide(problem: Problem, data: pd.DataFrame) -> Parts:
    """Validate a problem's data, and split it into a training set and a holdout.

    Raises:
        DataError: The data does not fit the problem; the message says what is missing.
    """
    checked = data if problem.schema is None else validate_frame(data, problem.schema)
    _require_columns(problem, checked)
    ordered = problem.split.order(checked)
    classes = problem.classes_of(ordered)
    if classes is not None and len(classes) < 2:
        raise DataError(
            f"All {len(data)} rows have the same {problem.target}, {classes[0]}: there is nothing to tell apart."
        )
    try:
        is_holdout = problem.split.choose_holdout(ordered, problem.labels_of(ordered))
    except DataError:
        raise
    except ValueError as error:  # scikit-learn's, where classes or rows are too few
        raise DataError(f"The data cannot be split by {problem.split}: {error}") from error
    parts = Parts(_plain(ordered[~is_holdout]), _plain(ordered[is_holdout]), classes)
    _require_rows(problem, parts)
    return parts


def _plain(part: pd.DataFrame) -> pd.DataFrame:
    """Return a part with the index that tells something: times, or the numbers of its rows."""
    return part if isinstance(part.index, pd.DatetimeIndex) else part.reset_index(drop=True)


def _require_columns(problem: Problem, data: pd.DataFrame) -> None:
    needed = [problem.target, *problem.split.columns, *(problem.features or ())]
    if missing := [name for name in dict.fromkeys(needed) if name not in data]:
        raise DataError(f"The data has no column {', '.join(missing)}; it has {', '.join(map(str, data.columns))}.")
    if data.empty:
        raise DataError("The data has no rows.")
    if blank := int(data[problem.target].isna().sum()):
        raise DataError(f"{blank} of {len(data)} rows have no {problem.target}, the target: leave them out.")
    if not problem.is_classification and not pd.api.types.is_numeric_dtype(data[problem.target]):
        raise DataError(f"{problem.target} is {data[problem.target].dtype} and no number, as a regression needs.")
    if problem.select_features(data).columns.empty:
        raise DataError(f"There is no feature beside {', '.join(dict.fromkeys(needed))}.")


def _require_rows(problem: Problem, parts: Parts) -> None:
    for name, part, least in (
        ("training set", parts.train, problem.folds),
        ("holdout", parts.holdout, MIN_HOLDOUT_ROWS),
    ):
        shown = f"The {name} has {len(part)} of {len(parts.all_rows)} rows"
        if len(part) < least:
            raise DataError(f"{shown}, and {least} are needed: take more data, or another split than {problem.split}.")
        if problem.is_classification and part[problem.target].nunique() < 2:
            only = part[problem.target].iloc[0]
            raise DataError(f"{shown}, all of them with the {problem.target} {only}: take more data, or another split.")


def as_predictions(values: Any, rows: pd.DataFrame, classes: pd.Index | None) -> Predictions:
    """Return what a baseline predicts in the form of `trainyard.scoring`.

    Raises:
        ValueError: The values fit neither the rows nor the classes.
    """
    if classes is None:
        return pd.Series(values, index=rows.index, dtype=float)
    if isinstance(values, pd.DataFrame):
        return values.set_axis(rows.index).reindex(columns=classes, fill_value=0.0)
    if len(classes) != 2:
        raise ValueError(f"A baseline of {len(classes)} classes must return a frame with a column for each.")
    probability = pd.Series(values).to_numpy(dtype=float)
    return pd.DataFrame({classes[0]: 1 - probability, classes[1]: probability}, index=rows.index)
