"""Serving without servers: settings, signatures, payloads, and batches of several requests."""

import json
import subprocess
import sys
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from serving.app import create_app
from serving.batches import Predictions, predict_batch
from serving.decoding import DecodingProcess
from serving.errors import UnservableError
from serving.limits import Limits
from serving.model import Estimator
from serving.payloads import Reader, Table, join
from serving.problems import RequestError
from serving.schema import Schema, parse_signature
from serving.settings import Settings
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from infra.testing.servers import CHECKOUT
from trainyard.contract import ServingPath
from trainyard.reviewed_types import REVIEWED_TYPES

random = np.random.default_rng(0)
FRAME = pd.DataFrame(random.normal(size=(50, 2)), columns=["a", "b"])
TARGET = FRAME["a"] > 0


def signature(*columns: dict[str, Any]) -> dict[str, Any]:
    return {"signature": {"inputs": json.dumps(columns)}}


SCHEMA = parse_signature(signature({"name": "a", "type": "double"}, {"name": "b", "type": "double"}))


def reader_of(schema: Schema, max_rows: int) -> Reader:
    limits = Limits(max_rows)
    return Reader(schema, limits, DecodingProcess(limits))


def test_it_refuses_to_start_without_a_key_unless_a_setting_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.test")
    with pytest.raises(ValidationError, match="SERVING_API_KEY is empty"):
        Settings()  # type: ignore[call-arg]
    monkeypatch.setenv("SERVING_REQUIRE_KEY", "false")
    monkeypatch.setenv("SERVING_TRUSTED_TYPES", "a.B, c.D")

    settings = Settings()  # type: ignore[call-arg]

    assert settings.trusted_types == REVIEWED_TYPES.keys() | {"a.B", "c.D"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "no signature"),
        (signature({"name": "a", "type": "binary"}), "'a' has the type binary"),
        (signature({"name": "a", "type": "double"}, {"name": "a", "type": "double"}), "two of one name"),
        (signature(), "no columns"),
    ],
)
def test_a_signature_that_cannot_be_served_is_refused_with_the_reason(document: dict[str, Any], message: str) -> None:
    with pytest.raises(UnservableError, match=message):
        parse_signature(document)


def test_a_request_that_the_estimator_refuses_fails_alone_in_its_batch() -> None:
    def predict(table: Table) -> Predictions:
        if "bad" in table.columns[0]:
            raise ValueError("bad")
        return Predictions(list(table.columns[0]), [[float(value)] for value in table.columns[0]])

    tables = [Table([[1, 2]], 2), Table([["bad"]], 1), Table([[3]], 1)]

    first, second, third = predict_batch(predict, tables)

    assert first == Predictions([1, 2], [[1.0], [2.0]])
    assert isinstance(second, ValueError)
    assert third == Predictions([3], [[3.0]])


def test_a_batch_of_several_requests_is_split_again() -> None:
    tables = [Table([[1, 2]], 2), Table([[3]], 1)]

    parts = predict_batch(lambda table: Predictions(table.columns[0], None), tables)

    assert join(tables) == Table([[1, 2, 3]], 3)
    assert parts == [Predictions([1, 2], None), Predictions([3], None)]


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("by_name", [False, True])
def test_an_estimator_gets_a_matrix_only_where_that_predicts_the_same(by_name: bool) -> None:
    scale = make_column_transformer((StandardScaler(), ["a"])) if by_name else StandardScaler()
    fitted = make_pipeline(scale, LogisticRegression()).fit(FRAME, TARGET)
    estimator = Estimator(fitted, SCHEMA)
    table = Table([FRAME["a"].tolist(), FRAME["b"].tolist()], len(FRAME))
    cold = estimator.predict(table)

    estimator.warm_up(table)
    warm = estimator.predict(table)

    assert (estimator._dtype is None) == by_name
    assert warm.values == cold.values == fitted.predict(FRAME).tolist()
    assert warm.probabilities is not None
    assert np.allclose(warm.probabilities, fitted.predict_proba(FRAME))


def test_a_batch_may_have_as_many_rows_as_the_setting_allows() -> None:
    reader = reader_of(SCHEMA, 2)
    row = b'{"a": 1, "b": 2}'

    accepted = reader.read(b"[%s, %s]" % (row, row), "application/json")
    with pytest.raises(RequestError) as refused:
        reader.read(b"[%s, %s, %s]" % (row, row, row), "application/json")

    assert accepted.rows == 2
    assert refused.value.code == "too-many-rows"


def test_a_data_frame_is_validated_like_the_rows_of_a_request() -> None:
    columns = ({"name": "a", "type": "double"}, {"name": "s", "type": "string", "required": False})
    reader = reader_of(parse_signature(signature(*columns)), 10)
    frame = pd.DataFrame({"s": ["x", None], "a": [1, 2]})

    table = reader.read_frame(frame)
    refusals = {}
    for name, wrong in {
        "missing": frame.assign(a=[1.0, np.nan]),
        "infinite": frame.assign(a=[1.0, np.inf]),
        "unknown": frame.assign(b=1),
        "text": frame.assign(a=["1", "2"]),
        "empty": frame.head(0),
    }.items():
        with pytest.raises(RequestError) as refused:
            reader.read_frame(wrong)
        refusals[name] = (refused.value.code, [(each.row, each.field) for each in refused.value.problems])

    assert table == Table([[1, 2], ["x", None]], 2)
    assert refusals == {
        "missing": ("invalid-rows", [(1, "a")]),
        "infinite": ("not-finite", [(1, "a")]),
        "unknown": ("invalid-rows", [(None, "b")]),
        "text": ("invalid-rows", [(0, "a"), (1, "a")]),
        "empty": ("invalid-rows", []),
    }


def test_the_paths_of_the_contract_are_served() -> None:
    settings = Settings(mlflow_tracking_uri="http://mlflow.test", serving_require_key=False)
    pages = ("predict", "predictions", "forecast", "shadow")

    paths = create_app(settings).openapi()["paths"]

    assert {ServingPath.MODELS, *(unquote(ServingPath.of_model("{name}", page)) for page in pages)} <= paths.keys()


def test_the_service_and_the_examples_hooks_import_neither_prefect_nor_mlflow() -> None:
    program = "import sys; sys.modules.update(prefect=None, mlflow=None); import serving.app, flows.weather.live"

    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
