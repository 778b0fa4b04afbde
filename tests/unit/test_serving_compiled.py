"""Compiled estimators give the same numbers as scikit-learn, bit for bit."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from serving import model as serving_model
from serving.compiled import compile_estimator, merge_trees
from serving.model import Estimator
from serving.payloads import Table
from serving.schema import Schema, parse_signature
from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from tests.unit.test_serving import signature

random = np.random.default_rng(0)
FRAME = pd.DataFrame(random.normal(size=(300, 4)) * [1, 10, 1e-6, 1e6], columns=list("abcd"))
TWO = (FRAME["a"] + random.normal(size=300) > 0).to_numpy()
THREE = np.digitize(FRAME["a"], [-0.5, 0.5])
NUMBER = FRAME["a"].to_numpy() * 3
TABLE = Table([FRAME[name].tolist() for name in FRAME], len(FRAME))


def schema(required: bool = True) -> Schema:
    return parse_signature(signature(*({"name": n, "type": "double", "required": required} for n in FRAME)))


def name_of(value: Any) -> str:
    return repr(value) if isinstance(value, BaseEstimator) else f"{len(np.unique(value))} values"


CLASSIFIERS = [
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline("passthrough", LogisticRegression()),
    make_pipeline(StandardScaler(with_mean=False), DecisionTreeClassifier()),
    RandomForestClassifier(60, random_state=0),
    RandomForestClassifier(1, random_state=0),
    ExtraTreesClassifier(7, random_state=0),
]
REGRESSORS = [
    RandomForestRegressor(60, random_state=0),
    ExtraTreesRegressor(5, random_state=0),
    DecisionTreeRegressor(),
    LinearRegression(),
    make_pipeline(StandardScaler(), Ridge()),
]


@pytest.mark.parametrize(
    ("estimator", "target"),
    [(each, TWO) for each in CLASSIFIERS]
    + [(each, THREE) for each in CLASSIFIERS[2:]]
    + [(each, NUMBER) for each in REGRESSORS],
    ids=name_of,
)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 257])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_compiled_estimator_gives_the_same_bits(estimator: BaseEstimator, target: Any, rows: int, order: Any) -> None:
    fitted = estimator.fit(FRAME.to_numpy(), target)
    compiled = compile_estimator(fitted)
    given = np.array(FRAME.to_numpy()[:rows], order=order)

    predict = fitted.predict_proba if hasattr(fitted, "predict_proba") else fitted.predict

    assert compiled is not None
    assert compiled(given).tobytes() == np.ascontiguousarray(predict(given)).tobytes()


def test_more_rows_than_fit_in_memory_at_once_are_predicted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = RandomForestClassifier(10, random_state=0).fit(FRAME.to_numpy(), TWO)
    monkeypatch.setattr("serving.compiled.MAX_CHUNK_ROWS", 70)
    compiled = compile_estimator(fitted)

    assert compiled is not None
    assert np.array_equal(compiled(FRAME.to_numpy()), fitted.predict_proba(FRAME.to_numpy()))


def test_one_tree_takes_the_place_of_a_forests_trees() -> None:
    trees = [member.tree_ for member in RandomForestClassifier(13).fit(FRAME.to_numpy(), TWO).estimators_]
    rows = FRAME.to_numpy(dtype="float32")

    merged = merge_trees(trees)

    for number, tree in enumerate(trees):
        assert np.array_equal(merged.predict(np.c_[rows, np.full(300, number, "float32")]), tree.predict(rows))


@pytest.mark.parametrize(
    ("estimator", "target"),
    [
        (make_pipeline(MinMaxScaler(), LogisticRegression()), TWO),
        (HistGradientBoostingClassifier(max_iter=2), TWO),
        (make_pipeline(StandardScaler(), LogisticRegression()), THREE),
        (LinearRegression(), FRAME[["a", "b"]].to_numpy()),
        (RandomForestRegressor(2), FRAME[["a", "b"]].to_numpy()),
    ],
    ids=name_of,
)
def test_other_estimators_are_not_compiled(estimator: BaseEstimator, target: Any) -> None:
    assert compile_estimator(estimator.fit(FRAME.to_numpy(), target)) is None


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("estimator", [CLASSIFIERS[0], CLASSIFIERS[3], REGRESSORS[0], REGRESSORS[4]], ids=str)
def test_a_served_estimator_is_compiled_where_all_numbers_are_the_same(estimator: BaseEstimator) -> None:
    fitted = estimator.fit(FRAME, TWO if hasattr(estimator, "predict_proba") else NUMBER)
    served = Estimator(fitted, schema())
    expected = served.predict(TABLE)

    served.warm_up(TABLE)

    assert served.is_compiled
    assert served.predict(TABLE) == expected


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_scikit_learn_predicts_where_the_compiled_estimator_differs_in_one_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = CLASSIFIERS[3].fit(FRAME, TWO)
    monkeypatch.setattr(
        serving_model, "compile_estimator", lambda given: lambda rows: np.nextafter(given.predict_proba(rows), 2)
    )
    served = Estimator(fitted, schema())

    served.warm_up(TABLE)

    assert not served.is_compiled
    assert served.predict(TABLE).probabilities == fitted.predict_proba(FRAME).tolist()


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_a_model_with_optional_columns_is_not_compiled_because_a_missing_value_would_pass() -> None:
    served = Estimator(CLASSIFIERS[0].fit(FRAME, TWO), schema(required=False))

    served.warm_up(TABLE)

    assert not served.is_compiled
    with pytest.raises(ValueError, match="NaN"):
        served.predict(Table([[None], [1.0], [1.0], [1.0]], 1))
