"""Wines by their chemistry: the data, the candidates, and how they are judged.

178 wines of one region in Italy, from three cultivars: 13 measurements each (Forina et al., PARVUS, 1988;
UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/109/wine), as scikit-learn ships them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

from trainyard import metrics
from trainyard.candidates import Candidate, Score
from trainyard.data import validate_frame
from trainyard.evaluation import HOLDOUT, SAMPLE, holdout_table, training_sample
from trainyard.fingerprint import fingerprint
from trainyard.frames import Frame

SOURCE = "sklearn.datasets.load_wine"
TARGET = "cultivar"
CULTIVARS = ("class_0", "class_1", "class_2")
HOLDOUT_FRACTION = 0.25
SEED = 0
# What skops asks about in a random forest's file. Reviewed: trees of plain arrays, and numpy's types.
TRUSTED_TYPES = ("numpy.dtype", "sklearn.tree._tree.Tree")

Family = Literal["logistic-regression", "naive-bayes", "random-forest"]

# The bounds lie outside of what is measured in wine: alcohol in % by volume; proline, the largest, reaches 1700 mg/l.
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
    """Wines to fit on and wines to judge on: measurements in float64 and the target `cultivar` (text)."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    train: Frame
    holdout: Frame

    @property
    def train_rows(self) -> str:
        """A digest of what was fitted on: two models of the same have the same holdout."""
        return fingerprint(self.train)[:16]


@dataclass(frozen=True)
class FittedModel:
    """A fitted estimator, with its metrics and the baseline's on the holdout."""

    candidate: Candidate
    estimator: BaseEstimator
    metrics: dict[str, float]
    forecasts: dict[str, NDArray[np.float64]]
    """By name, `model` and `baseline`: the probability that each gave the cultivar that a holdout wine is of."""


CANDIDATES = (
    *(Candidate("logistic-regression", (("C", c),)) for c in (0.01, 0.1, 1.0)),
    *(Candidate("naive-bayes", (("var_smoothing", share),)) for share in (1e-9, 0.1)),
    *(Candidate("random-forest", (("min_samples_leaf", leaf),)) for leaf in (1, 5)),
)


def read_wines() -> pd.DataFrame:
    """Return the wines, checked; the target is text, as the names of cultivars are.

    Raises DataError if they are not what they should be.
    """
    bunch = load_wine(as_frame=True)
    wines = bunch.frame.drop(columns="target").astype(float)
    return validate_frame(wines.assign(**{TARGET: pd.Series(CULTIVARS).loc[bunch.frame["target"]].to_numpy()}), WINES)


def split(wines: pd.DataFrame) -> Split:
    """Return wines to fit on and wines to judge on, each cultivar by its share; the same for the same wines."""
    train, holdout = train_test_split(wines, test_size=HOLDOUT_FRACTION, stratify=wines[TARGET], random_state=SEED)
    return Split(train=train.reset_index(drop=True), holdout=holdout.reset_index(drop=True))


def make_estimator(candidate: Candidate) -> BaseEstimator:
    """Return the estimator, not fitted; the same wines always give the same model."""
    params: dict[str, Any] = dict(candidate.params)
    if candidate.family == "logistic-regression":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **params))
    if candidate.family == "naive-bayes":
        return make_pipeline(StandardScaler(), GaussianNB(**params))
    return RandomForestClassifier(n_estimators=100, random_state=SEED, **params)


def cross_validate_candidate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Return a candidate's mean scores over stratified folds."""
    found = cross_validate(
        make_estimator(candidate),
        train.drop(columns=TARGET),
        train[TARGET],
        cv=StratifiedKFold(folds, shuffle=True, random_state=SEED),
        scoring=["neg_log_loss", "accuracy"],
        error_score="raise",
    )
    means = {"cv_log_loss": -np.mean(found["test_neg_log_loss"]), "cv_accuracy": np.mean(found["test_accuracy"])}
    return Score(candidate, {name: float(mean) for name, mean in means.items()})


def choose(scores: Sequence[Score]) -> Candidate:
    """Return the candidate with the lowest log loss; the first of equals."""
    return min(scores, key=lambda score: score.metrics["cv_log_loss"]).candidate


def score(estimator: Any, wines: pd.DataFrame) -> dict[str, float]:
    """Return a fitted estimator's metrics; lower is better for log_loss, higher for the others."""
    features, cultivar = wines.drop(columns=TARGET), wines[TARGET]
    said = estimator.predict(features)
    return {
        "log_loss": float(log_loss(cultivar, estimator.predict_proba(features), labels=list(CULTIVARS))),
        "accuracy": float(accuracy_score(cultivar, said)),
        "macro_f1": float(f1_score(cultivar, said, average="macro", zero_division=0)),
    }


def fit(data: Split, candidate: Candidate) -> FittedModel:
    """Fit a candidate, and judge it on the holdout beside a baseline that says each cultivar's share."""
    features, cultivar = data.train.drop(columns=TARGET), data.train[TARGET]
    estimator = make_estimator(candidate).fit(features, cultivar)
    baseline = DummyClassifier(strategy="prior").fit(features, cultivar)
    both = {"model": estimator, "baseline": baseline}
    scores = {who: score(one, data.holdout) for who, one in both.items()}
    forecasts = {who: right_probability(one, data.holdout) for who, one in both.items()}
    return FittedModel(candidate, estimator, metrics.flatten_scores(scores), forecasts)


def right_probability(estimator: Any, wines: pd.DataFrame) -> NDArray[np.float64]:
    """Return the probability that a fitted estimator gives each wine's own cultivar."""
    every = pd.DataFrame(estimator.predict_proba(wines.drop(columns=TARGET)), columns=estimator.classes_)
    own = every.columns.get_indexer(pd.Index(wines[TARGET]))
    probability: NDArray[np.float64] = every.to_numpy()[np.arange(len(wines)), own]
    return probability


def tables(data: Split, training: FittedModel) -> dict[str, pd.DataFrame]:
    """Return what was said of the holdout's wines, and a sample of those that were fitted on."""
    inputs = data.train.drop(columns=TARGET)
    return {
        HOLDOUT: holdout_table(data.holdout[TARGET], training.forecasts),
        SAMPLE: training_sample(inputs, training.estimator.predict(inputs)),
    }
