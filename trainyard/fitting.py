"""Fit and evaluate the candidates of a problem, as functions that need no server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor

from trainyard.candidates import Candidate, Score
from trainyard.contract import Artifact, Column
from trainyard.errors import DataError
from trainyard.evaluation import holdout_table, training_sample
from trainyard.metrics import flatten_scores
from trainyard.problem import Parts, Problem, as_predictions
from trainyard.scoring import Losses, Predictions, positive_probability, predict, score, true_class_probability
from trainyard.splits import Mask

DEFAULT_BASELINE = "baseline"


@dataclass(frozen=True)
class Evaluation:
    """A candidate fitted on the training set and evaluated on the holdout, beside the baselines."""

    candidate: Candidate
    estimator: BaseEstimator
    metrics: Mapping[str, float]
    """Of the model and each baseline, such as `model_log_loss` and `baseline_log_loss`."""
    predictions: Mapping[str, Predictions]
    """For the holdout, of the model (`Column.MODEL`) and each baseline."""

    @property
    def owners(self) -> list[str]:
        """The model and the baselines."""
        return list(self.predictions)

    @property
    def positive_probabilities(self) -> dict[str, NDArray[np.float64]]:
        """The predictions of a binary classification as the probability of the positive class."""
        frames: Mapping[str, Any] = self.predictions
        return {name: positive_probability(each) for name, each in frames.items()}


def cross_validate(problem: Problem, train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Return a candidate's mean scores over the folds.

    Folds in which the rows to fit on have fewer than two classes are skipped.

    Raises:
        DataError: There are too few rows or groups for the folds, or all folds are skipped.
    """
    fold_scores = [score_fold(problem, train, candidate, folds, number) for number in range(folds)]
    return mean_score(candidate, [each for each in fold_scores if each is not None])


def score_fold(
    problem: Problem, train: pd.DataFrame, candidate: Candidate, folds: int, number: int
) -> dict[str, float] | None:
    """Return a candidate's scores on one fold; None if the rows to fit on have fewer than two classes."""
    try:
        before, after = list(problem.split.folds(train, problem.labels_of(train), folds))[number]
    except ValueError as error:  # scikit-learn's, where rows or groups are too few
        raise DataError(f"The training set cannot be divided into {folds} folds: {error}") from error
    fitted_on, scored = train.iloc[before], train.iloc[after]
    if problem.is_classification and fitted_on[problem.target].nunique() < 2:
        return None
    classes = problem.classes_of(train)
    estimator = _fit(problem, candidate, fitted_on)
    return _score(problem, scored[problem.target], predict(estimator, problem.select_features(scored), classes))


def mean_score(candidate: Candidate, fold_scores: Sequence[Mapping[str, float]]) -> Score:
    """Return the mean of the scores of some folds.

    Raises:
        DataError: There are none.
    """
    if not fold_scores:
        raise DataError("No fold has rows of two classes to fit on: take more data or fewer folds.")
    # A fold with rows of one class has no area under a curve, which is no reason to have none at all.
    means = pd.DataFrame(fold_scores).mean().dropna()
    return Score(candidate, {f"cv_{name}": float(value) for name, value in means.items()})


def choose_best(problem: Problem, scores: Sequence[Score]) -> Candidate:
    """Return the candidate with the lowest mean loss; on a tie, the first."""
    return min(scores, key=lambda each: each.metrics[f"cv_{problem.search_loss.name}"]).candidate


def fit(problem: Problem, parts: Parts, candidate: Candidate) -> Evaluation:
    """Fit a candidate on the training set, and evaluate it and the baselines on the holdout."""
    estimator = _fit(problem, candidate, parts.train)
    features = problem.select_features(parts.holdout)
    predictions = {Column.MODEL: predict(estimator, features, parts.classes), **_predict_baselines(problem, parts)}
    scores = {name: _score(problem, parts.holdout[problem.target], each) for name, each in predictions.items()}
    return Evaluation(candidate, estimator, flatten_scores(scores), predictions)


def refit(problem: Problem, parts: Parts, candidate: Candidate) -> BaseEstimator:
    """Return a candidate fitted on all rows, as it is served."""
    return _fit(problem, candidate, parts.all_rows)


def losses_of(problem: Problem, parts: Parts, predicted: Predictions, rows: Mask | None = None) -> Losses:
    """Return the losses of predictions for the holdout, or for some of its rows, as the gate compares them."""
    holdout = parts.holdout
    if rows is not None:
        holdout, predicted = holdout[rows], predicted[rows]
    return problem.split.cluster(holdout, problem.loss.of_rows(holdout[problem.target], predicted))


def evaluation_tables(problem: Problem, parts: Parts, evaluation: Evaluation, refitted: Any) -> dict[str, pd.DataFrame]:
    """Return the holdout's predictions for the dashboard, and a sample of the training data for the monitor.

    Of a binary classification they have the probability of the positive class, of more classes that of the true class and,
    in the sample, the predicted class; of a regression the predicted value.
    """
    data, observed = parts.all_rows, parts.holdout[problem.target]
    features = problem.select_features(data)
    shown: dict[str, Any] = dict(evaluation.predictions)
    sampled: Any = predict(refitted, features, parts.classes)
    if parts.classes is not None and len(parts.classes) == 2:
        observed = (observed == parts.classes[1]).astype(int)
        shown = dict(evaluation.positive_probabilities)
        sampled = positive_probability(sampled)
    elif parts.classes is not None:
        shown = {name: true_class_probability(observed, each) for name, each in shown.items()}
        sampled = refitted.predict(features)
    times = problem.times or problem.split.times
    return {
        Artifact.HOLDOUT: holdout_table(observed, {k: np.asarray(v) for k, v in shown.items()}, times(parts.holdout)),
        Artifact.TRAINING_SAMPLE: training_sample(features, np.asarray(sampled), times(data)),
    }


def _fit(problem: Problem, candidate: Candidate, rows: pd.DataFrame) -> BaseEstimator:
    estimator = problem.make_estimator(candidate)
    fitted: BaseEstimator = estimator.fit(problem.select_features(rows), rows[problem.target])
    return fitted


def _score(problem: Problem, observed: pd.Series, predicted: Predictions) -> dict[str, float]:
    """Return the usual scores, the metrics and the problem's own scores."""
    losses = {metric.name: metric.mean(observed, predicted) for metric in (problem.search_loss, problem.loss)}
    own = {name: float(function(observed, predicted)) for name, function in problem.scores.items()}
    return {**score(observed, predicted), **losses, **own}


def _predict_baselines(problem: Problem, parts: Parts) -> dict[str, Predictions]:
    if problem.baselines:
        train, holdout, classes = parts.train, parts.holdout, parts.classes
        return {
            name: as_predictions(baseline(train, holdout), holdout, classes)
            for name, baseline in problem.baselines.items()
        }
    middle = "median" if problem.loss.name == "mae" else "mean"
    dummy = DummyClassifier(strategy="prior") if problem.is_classification else DummyRegressor(strategy=middle)
    dummy.fit(problem.select_features(parts.train), parts.train[problem.target])
    return {DEFAULT_BASELINE: predict(dummy, problem.select_features(parts.holdout), parts.classes)}
