"""Serving without servers: settings, signatures, and estimators asked for several callers at once."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from serving.model import Answer, Estimator, ask_together
from serving.problems import RequestError
from serving.schema import UnservableError, parse_signature
from serving.settings import REVIEWED_TYPES, Settings
from serving.tables import Reader, Table, join
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flows.weather.model import TRUSTED_TYPES

random = np.random.default_rng(0)
FRAME = pd.DataFrame(random.normal(size=(50, 2)), columns=["a", "b"])
TARGET = FRAME["a"] > 0


def signature(*columns: dict[str, Any]) -> dict[str, Any]:
    return {"signature": {"inputs": json.dumps(columns)}}


SCHEMA = parse_signature(signature({"name": "a", "type": "double"}, {"name": "b", "type": "double"}))


def test_the_flows_models_can_be_served() -> None:
    assert set(TRUSTED_TYPES) <= REVIEWED_TYPES


def test_it_does_not_start_open_by_an_oversight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.test")
    with pytest.raises(ValidationError, match="SERVING_API_KEY is empty"):
        Settings()  # type: ignore[call-arg]
    monkeypatch.setenv("SERVING_REQUIRE_KEY", "false")
    monkeypatch.setenv("SERVING_TRUSTED_TYPES", "a.B, c.D")
    assert Settings().trusted_types == REVIEWED_TYPES | {"a.B", "c.D"}  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "no signature"),
        (signature({"type": "tensor", "tensor-spec": {}}), "no names"),
        (signature({"type": "double"}), "no names"),
        (signature({"name": "a", "type": "binary"}), "'a' has the type binary"),
        (signature({"name": "a", "type": "double"}, {"name": "a", "type": "double"}), "two of one name"),
        (signature(), "no columns"),
    ],
)
def test_a_signature_that_no_row_could_fit_is_told(document: dict[str, Any], says: str) -> None:
    with pytest.raises(UnservableError, match=says):
        parse_signature(document)


def test_one_caller_spoils_no_other() -> None:
    def ask(table: Table) -> Answer:
        if "bad" in table.columns[0]:
            raise ValueError("bad")
        return Answer(list(table.columns[0]), [[float(value)] for value in table.columns[0]])

    tables = [Table([[1, 2]], 2), Table([["bad"]], 1), Table([[3]], 1)]
    first, second, third = ask_together(ask, tables)
    assert first == Answer([1, 2], [[1.0], [2.0]])
    assert isinstance(second, ValueError)
    assert third == Answer([3], [[3.0]])
    assert ask_together(ask, [tables[0], tables[2]]) == [first, third]
    assert join([tables[0], tables[2]]) == Table([[1, 2, 3]], 3)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("by_name", [False, True])
def test_an_estimator_is_asked_with_a_matrix_only_where_that_gives_the_same(by_name: bool) -> None:
    scale = make_column_transformer((StandardScaler(), ["a"])) if by_name else StandardScaler()
    fitted = make_pipeline(scale, LogisticRegression()).fit(FRAME, TARGET)
    estimator = Estimator(fitted, SCHEMA)
    table = Table([FRAME["a"].tolist(), FRAME["b"].tolist()], len(FRAME))
    cold = estimator.ask(table)
    estimator.warm(table)
    assert (estimator._dtype is None) == by_name
    warm = estimator.ask(table)
    assert warm.said == cold.said == fitted.predict(FRAME).tolist()
    assert warm.probabilities is not None
    assert np.allclose(warm.probabilities, fitted.predict_proba(FRAME))


def test_a_batch_may_be_as_large_as_the_setting_says() -> None:
    reader = Reader(SCHEMA, 2)
    row = b'{"a": 1, "b": 2}'
    assert reader.read(b"[%s, %s]" % (row, row), "application/json").rows == 2
    with pytest.raises(RequestError) as refused:
        reader.read(b"[%s, %s, %s]" % (row, row, row), "application/json")
    assert refused.value.code == "too-many-rows"
