"""The wine model: data, candidates, training and evaluation, as functions that need no server.

The data set has 178 wines of three cultivars from one region in Italy, with 13 chemical measurements each (Forina et
al., PARVUS, 1988; UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/109/wine).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.base import BaseEstimator
from sklearn.datasets import load_wine
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.model_selection import StratifiedKFold, cross_validate, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainyard.candidates import Candidate, Score
from trainyard.contract import Artifact
from trainyard.data import validate_frame
from trainyard.evaluation import holdout_table, training_sample
from trainyard.fingerprint import fingerprint
from trainyard.frames import Frame
from trainyard.metrics import flatten_scores

SOURCE = "sklearn.datasets.load_wine"
TARGET = "cultivar"
CULTIVARS = ("class_0", "class_1", "class_2")
HOLDOUT_FRACTION = 0.25
SEED = 0
# The types in a random forest's file that skops does not trust by default. Reviewed: trees of plain arrays, and dtypes.
TRUSTED_TYPES = ("numpy.dtype", "sklearn.tree._tree.Tree")

# Bounds beyond any real wine: alcohol in % by volume; proline, the largest of the others, reaches 1700 mg/l.
WINES = pa.DataFrameSchema(
    {
        "alcohol": pa.Column(float, pa.Check.in_range(5, 25)),
        "^(?!alcohol$|cultivar$).*": pa.Column(float, pa.Check.in_range(0, 5000), regex=True),
        TARGET: pa.Column(str, pa.Check.isin(CULTIVARS)),
    },
    checks=[
        pa.Check(lambda wines: wines.shape[1] == 14, error="not 13 measurements of each wine"),
        pa.Check(lambda wines: wines[TARGET].value_counts().min() >= 20, error="fewer than 20 wines of a cultivar"),
    ],
)


class Split(BaseModel):
    """The training set and the holdout: 13 columns of float64, and the target `cultivar` (str)."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    train: Frame
    holdout: Frame

    @property
    def train_rows(self) -> str:
        """A digest of the training set; two models with the same digest have the same holdout."""
        return fingerprint(self.train)[:16]


@dataclass(frozen=True)
class FittedModel:
    """A fitted estimator, and its evaluation on the holdout."""

    candidate: Candidate
    estimator: BaseEstimator
    metrics: dict[str, float]
    """Of the model and the baseline, such as `model_log_loss` and `baseline_log_loss`."""
    holdout_probabilities: dict[str, NDArray[np.float64]]
    """Of the model and the baseline: the probability of each holdout wine's true cultivar."""


CANDIDATES = (
    *(Candidate("logistic-regression", (("C", c),)) for c in (0.01, 0.1, 1.0)),
    *(Candidate("naive-bayes", (("var_smoothing", smoothing),)) for smoothing in (1e-9, 0.1)),
    *(Candidate("random-forest", (("min_samples_leaf", leaf),)) for leaf in (1, 5)),
)


def read_wines() -> pd.DataFrame:
    """Return the wines: 13 measurements and the cultivar's name.

    Raises:
        DataError: The data does not fit the schema `WINES`.
    """
    bunch = load_wine(as_frame=True)
    wines = bunch.frame.drop(columns="target").astype(float)
    return validate_frame(wines.assign(**{TARGET: np.take(CULTIVARS, bunch.frame["target"])}), WINES)


def split(wines: pd.DataFrame) -> Split:
    """Split the wines into training set and holdout, stratified by cultivar; deterministic."""
    train, holdout = train_test_split(wines, test_size=HOLDOUT_FRACTION, stratify=wines[TARGET], random_state=SEED)
    return Split(train=train.reset_index(drop=True), holdout=holdout.reset_index(drop=True))


def make_estimator(candidate: Candidate) -> BaseEstimator:
    """Return the candidate's estimator, not fitted; fitting it is deterministic."""
    params: dict[str, Any] = dict(candidate.params)
    if candidate.family == "logistic-regression":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **params))
    if candidate.family == "naive-bayes":
        return make_pipeline(StandardScaler(), GaussianNB(**params))
    return RandomForestClassifier(n_estimators=100, random_state=SEED, **params)


def cross_validate_candidate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Return a candidate's mean scores over stratified folds."""
    results = cross_validate(
        make_estimator(candidate),
        train.drop(columns=TARGET),
        train[TARGET],
        cv=StratifiedKFold(folds, shuffle=True, random_state=SEED),
        scoring=["neg_log_loss", "accuracy"],
        error_score="raise",
    )
    means = {"cv_log_loss": -np.mean(results["test_neg_log_loss"]), "cv_accuracy": np.mean(results["test_accuracy"])}
    return Score(candidate, {name: float(mean) for name, mean in means.items()})


def choose_best(scores: Sequence[Score]) -> Candidate:
    """Return the candidate with the lowest log loss; on a tie, the first."""
    return min(scores, key=lambda score: score.metrics["cv_log_loss"]).candidate


def score(estimator: Any, wines: pd.DataFrame) -> dict[str, float]:
    """Return a fitted estimator's log loss, accuracy and macro-averaged F1 score."""
    features, cultivar = wines.drop(columns=TARGET), wines[TARGET]
    predicted = estimator.predict(features)
    return {
        "log_loss": float(log_loss(cultivar, estimator.predict_proba(features), labels=list(CULTIVARS))),
        "accuracy": float(accuracy_score(cultivar, predicted)),
        "macro_f1": float(f1_score(cultivar, predicted, average="macro", zero_division=0)),
    }


def fit(data: Split, candidate: Candidate) -> FittedModel:
    """Fit a candidate, and evaluate it on the holdout beside a baseline that predicts the cultivars' frequencies."""
    features, cultivar = data.train.drop(columns=TARGET), data.train[TARGET]
    estimator = make_estimator(candidate).fit(features, cultivar)
    baseline = DummyClassifier(strategy="prior").fit(features, cultivar)
    estimators = {"model": estimator, "baseline": baseline}
    scores = {name: score(each, data.holdout) for name, each in estimators.items()}
    probabilities = {name: true_class_probability(each, data.holdout) for name, each in estimators.items()}
    return FittedModel(candidate, estimator, flatten_scores(scores), probabilities)


def refit(data: Split, candidate: Candidate) -> BaseEstimator:
    """Return the candidate's estimator fitted on all wines, as it is served."""
    wines = pd.concat([data.train, data.holdout])
    return make_estimator(candidate).fit(wines.drop(columns=TARGET), wines[TARGET])


def true_class_probability(estimator: Any, wines: pd.DataFrame) -> NDArray[np.float64]:
    """Return the probability that a fitted estimator gives each wine's true cultivar."""
    probabilities = estimator.predict_proba(wines.drop(columns=TARGET))
    true_classes = pd.Index(estimator.classes_).get_indexer(pd.Index(wines[TARGET]))
    probability: NDArray[np.float64] = probabilities[np.arange(len(wines)), true_classes]
    return probability


def evaluation_tables(data: Split, fitted: FittedModel, refitted: Any) -> dict[str, pd.DataFrame]:
    """Return the holdout's predictions for the dashboard, and a sample of the training data for the monitor.

    Args:
        data: The wines.
        fitted: What the holdout was evaluated with.
        refitted: What is served, fitted on all wines.
    """
    features = pd.concat([data.train, data.holdout]).drop(columns=TARGET)
    return {
        Artifact.HOLDOUT: holdout_table(data.holdout[TARGET], fitted.holdout_probabilities),
        Artifact.TRAINING_SAMPLE: training_sample(features, refitted.predict(features)),
    }
