"""The wine problem: its data and its candidates, which need no server.

The data set has 178 wines of three cultivars from one region in Italy, with 13 chemical measurements each (Forina et
al., PARVUS, 1988; UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/109/wine).
"""

import numpy as np
import pandas as pd
import pandera.pandas as pa
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainyard.data import validate_frame
from trainyard.problem import Problem, grid
from trainyard.splits import RandomSplit

SOURCE = "sklearn.datasets.load_wine"
TARGET = "cultivar"
CULTIVARS = ("class_0", "class_1", "class_2")
SEED = 0

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
ESTIMATORS = {
    "logistic-regression": lambda C: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=C)),
    "naive-bayes": lambda var_smoothing: make_pipeline(StandardScaler(), GaussianNB(var_smoothing=var_smoothing)),
    "random-forest": RandomForestClassifier(n_estimators=100, random_state=SEED),
}
CANDIDATES = (
    *grid("logistic-regression", C=[0.01, 0.1, 1.0]),
    *grid("naive-bayes", var_smoothing=[1e-9, 0.1]),
    *grid("random-forest", min_samples_leaf=[1, 5]),
)


def read_wines() -> pd.DataFrame:
    """Return the wines: 13 measurements and the cultivar's name.

    Raises:
        DataError: The data does not fit the schema `WINES`.
    """
    bunch = load_wine(as_frame=True)
    wines = bunch.frame.drop(columns="target").astype(float)
    return validate_frame(wines.assign(**{TARGET: np.take(CULTIVARS, bunch.frame["target"])}), WINES)


def make_problem(folds: int = 5) -> Problem:
    """Return the problem; its baseline predicts the cultivars' frequencies."""
    return Problem(
        model="wine-cultivar",
        target=TARGET,
        estimators=ESTIMATORS,
        candidates=CANDIDATES,
        split=RandomSplit(share=0.25, seed=SEED),
        folds=folds,
        experiment="wine",
        # The types in a random forest's file that skops does not trust by default. Reviewed: trees of plain arrays, dtypes.
        trusted_types=("numpy.dtype", "sklearn.tree._tree.Tree"),
    )
