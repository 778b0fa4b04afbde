"""Compare served predictions with offline ones, bit for bit: estimators by column types by formats of bodies.

Estimators are fitted on generated frames, saved as `trainyard.tracking` logs them, loaded as serving loads them, and asked
for other generated frames as bodies of each format. A body is answered with the offline prediction, or refused where the
format cannot hold a value; no answer may differ in a bit.
"""

import io
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving.batches import Predictions
from serving.decoding import DecodingProcess
from serving.limits import Limits
from serving.loading import open_model
from serving.model import Model
from serving.registry import Champion, Version
from serving.settings import Settings
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from bench.bodies import CSV, FILE, JSON, PARQUET, STREAM, as_arrow, as_parquet
from bench.report import save
from trainyard.tracking import describe_model

ROWS, FRAMES = 60, 100
LIMITS = Limits(10_000)

# By name: how hypothesis makes a value, and pandas' type. A name that ends in `?` has missing values.
FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32) | st.sampled_from([0.0, -0.0, 1e-40, 3e38, 0.1])
TYPES: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "double": (st.floats(-1e9, 1e9, allow_nan=False) | st.sampled_from([0.1, -0.0, 5e-324, 1 / 3]), "float64"),
    "float": (FLOATS, "float32"),
    "long": (st.integers(-(2**40), 2**40), "int64"),
    "integer": (st.integers(-(2**31), 2**31 - 1), "int32"),
    "boolean": (st.booleans(), "bool"),
    "string": (st.sampled_from(["a", "b", "ü x", 'say "c"', "1,5", "NA"]), "str"),
    "datetime": (st.datetimes(pd.Timestamp("1900-01-01"), pd.Timestamp("2100-01-01")), "datetime64[us]"),
    "double?": (st.floats(-1e9, 1e9, allow_nan=False) | st.none(), "float64"),
    "float?": (FLOATS | st.none(), "float32"),
    "long?": (st.integers(-(2**40), 2**40) | st.none(), "Int64"),
    "integer?": (st.integers(-(2**31), 2**31 - 1) | st.none(), "Int32"),
    "boolean?": (st.booleans() | st.none(), "boolean"),
    "string?": (st.sampled_from(["a", "b", None]), "str"),
    "category": (st.sampled_from(["a", "b"]), "category"),
    "category?": (st.sampled_from(["a", "b", None]), "category"),
    "category of numbers?": (st.sampled_from([1, 2, None]), "category"),
    "text with None": (st.sampled_from(["a", "b", None]), "object"),
    "text with NaN": (st.sampled_from(["a", "b", float("nan")]), "object"),
}


@dataclass(frozen=True)
class Case:
    """An estimator and the types of its columns."""

    name: str
    columns: dict[str, str]
    """Names of `TYPES` by column."""
    make: Callable[[], BaseEstimator]
    classifies: bool = False
    classes: int = 3


def _numbers(*types: str) -> dict[str, str]:
    return {f"x{number} {kind}": kind for number, kind in enumerate(types)}


REQUIRED = _numbers("double", "float", "long", "integer", "boolean")
MISSING = _numbers("double?", "float?", "long?", "integer?", "boolean?")
PLAIN = {
    "logistic regression": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), True),
    "linear regression": (lambda: make_pipeline(StandardScaler(), LinearRegression()), False),
    "ridge": (lambda: make_pipeline(StandardScaler(), Ridge()), False),
    "naive Bayes": (lambda: make_pipeline(StandardScaler(), GaussianNB()), True),
    "calibrated": (lambda: make_pipeline(StandardScaler(), CalibratedClassifierCV(GaussianNB(), cv=2)), True),
    "forest": (lambda: RandomForestClassifier(5, random_state=0), True),
    "extra trees": (lambda: ExtraTreesRegressor(5, random_state=0), False),
    "tree": (lambda: DecisionTreeRegressor(random_state=0), False),
    "boosting": (lambda: HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=2), False),
    "neighbours": (lambda: KNeighborsRegressor(), False),
    "neighbours by class": (lambda: KNeighborsClassifier(algorithm="ball_tree"), True),
}
IMPUTED = {
    "imputed regression": (lambda: make_pipeline(SimpleImputer(), StandardScaler(), LinearRegression()), False),
    "boosting": (lambda: HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2), True),
    "forest": (lambda: RandomForestClassifier(5, random_state=0), True),
}
SINGLE = ("double", "float", "long", "integer")
TEXTS = ("string", "string?", "text with None", "text with NaN", "boolean", "boolean?", "datetime")


def _encoded(encoder: Callable[[], Any]) -> Callable[[], BaseEstimator]:
    return lambda: make_pipeline(
        make_column_transformer((encoder(), ["text"]), ("passthrough", ["x"])), LinearRegression()
    )


CASES = [
    *(Case(f"{name}, all numbers", REQUIRED, make, kind) for name, (make, kind) in PLAIN.items()),
    *(Case(f"{name}, missing numbers", MISSING, make, kind) for name, (make, kind) in IMPUTED.items()),
    *(
        Case(f"{name}, {dtype}", _numbers(dtype, dtype), *PLAIN[name])
        for name in ("logistic regression", "tree", "neighbours")
        for dtype in SINGLE
    ),
    *(
        Case(
            f"one-hot, {kind}", {"text": kind, "x": "double"}, _encoded(lambda: OneHotEncoder(handle_unknown="ignore"))
        )
        for kind in TEXTS
    ),
    *(
        Case(
            f"ordinal, {kind}",
            {"text": kind, "x": "double"},
            _encoded(
                lambda: OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
            ),
        )
        for kind in TEXTS
    ),
]


@st.composite
def frames(draw: Any, columns: dict[str, str], rows: int | None = None) -> pd.DataFrame:
    """Draw a frame of the columns' types."""
    size = rows or draw(st.sampled_from([1, 2, 3, 17]))
    seed = draw(st.integers(0, 2**32 - 1)) if rows is None else 0
    made: dict[str, pd.Series] = {}
    for name, kind in columns.items():
        strategy, dtype = TYPES[kind]
        # A few drawn values, repeated: hypothesis would spend its time on long lists.
        few = draw(st.lists(strategy, min_size=4, max_size=4)) if rows is None else _sample(kind, rows)
        chosen = np.random.default_rng([seed, len(made)]).integers(0, len(few), size)
        made[name] = pd.Series([few[at] for at in chosen] if rows is None else few, dtype=dtype)
    return pd.DataFrame(made)


def _sample(kind: str, rows: int) -> list[Any]:
    """Return values to fit on."""
    random, dtype = np.random.default_rng(7), TYPES[kind][1]
    values: list[Any]
    if kind == "category of numbers?":
        values = random.choice([1, 2, 30], rows).tolist()
    elif kind.startswith(("string", "text", "category")):
        values = random.choice(["a", "b", "ü x"], rows).tolist()
    elif kind.startswith("boolean"):
        values = (random.random(rows) < 0.5).tolist()
    elif kind == "datetime":
        days = random.integers(0, 3, rows)
        values = [
            pd.Timestamp("2026-01-01").to_pydatetime() + pd.Timedelta(days=int(day)).to_pytimedelta() for day in days
        ]
    elif "int" in dtype.lower():
        values = random.integers(-1000, 1000, rows).tolist()
    else:
        values = random.normal(0, 100, rows).tolist()
    missing = float("nan") if kind == "text with NaN" else None
    return [
        missing if ("?" in kind and at % 7 == 0) or (kind.startswith("text") and at % 5 == 0) else v
        for at, v in enumerate(values)
    ]


@dataclass
class Served:
    """An estimator, and the model that serving made of it."""

    case: Case
    estimator: BaseEstimator
    model: Model
    answers: Counter[str] = field(default_factory=Counter)
    """By format, the bodies that were answered; and those that were refused."""


@contextmanager
def serving(case: Case, decoding: DecodingProcess) -> Iterator[Served]:
    """Fit the estimator of a case, save it as a training logs it, and load it as the service does."""
    columns = {name: pd.Series(_sample(kind, ROWS), dtype=TYPES[kind][1]) for name, kind in case.columns.items()}
    inputs = pd.DataFrame(columns)
    target = np.arange(ROWS) % case.classes if case.classifies else 1.1 + np.sin(np.arange(ROWS))
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name) / "model"
        estimator = case.make().fit(inputs, target)
        mlflow.sklearn.save_model(estimator, folder, **describe_model(estimator, inputs, inputs))
        yield Served(case, estimator, open_folder(folder, decoding))


def open_folder(folder: Path, decoding: DecodingProcess) -> Model:
    """Load a saved model as the service does."""
    config = Settings(mlflow_tracking_uri="http://mlflow.test", serving_require_key=False)
    return open_model(folder, Champion("parity", 0, 1), Version(0, "", {}), config, decoding)


def bodies(frame: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """Yield a frame in each format, as pandas and pyarrow write it."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    yield STREAM, as_arrow(table, STREAM)
    yield FILE, as_arrow(table, FILE, "zstd")
    yield PARQUET, as_parquet(table)
    rows = [{k: _json_cell(v) for k, v in row.items()} for row in table.to_pylist()]
    yield JSON, json.dumps(rows).encode()
    text = io.StringIO()
    frame.to_csv(text, index=False, date_format="%Y-%m-%dT%H:%M:%S.%f")
    yield CSV, text.getvalue().encode()


def _json_cell(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def check(served: Served, frame: pd.DataFrame) -> None:
    """Compare the answers to a frame in each format with the estimator's own.

    Raises:
        AssertionError: A bit differs, or only one of the two refuses the rows.
    """
    expected = _offline(served.estimator, frame)
    for media, body in bodies(frame):
        table = served.model.reader.read(body, media)
        try:
            answer = served.model._estimator.predict(table)
        except ValueError:
            assert expected is None, f"{served.case.name}: {media} is refused"
            served.answers["refused"] += 1
            continue
        assert expected is not None, f"{served.case.name}: {media} is answered, and the estimator refuses it"
        assert _bits(answer) == _bits(expected), f"{served.case.name}: {media} differs for\n{frame}"
        served.answers[media] += 1


def _offline(estimator: BaseEstimator, frame: pd.DataFrame) -> Predictions | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = estimator.predict(frame)
            probabilities = estimator.predict_proba(frame).tolist() if hasattr(estimator, "predict_proba") else None
        except ValueError:
            return None
    return Predictions(np.asarray(values).tolist(), probabilities)


def _bits(predictions: Predictions) -> tuple[bytes, bytes]:
    return np.array(predictions.values).tobytes(), np.array(predictions.probabilities or 0.0).tobytes()


def compare(case: Case, decoding: DecodingProcess, number: int) -> Counter[str]:
    """Compare a number of generated frames; return how many bodies of each format were the same."""
    with serving(case, decoding) as served:

        @settings(
            max_examples=number, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(frame=frames(case.columns))
        def run(frame: pd.DataFrame) -> None:
            check(served, frame)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
        return served.answers


def main() -> None:
    """Compare and save."""
    decoding = DecodingProcess(LIMITS)
    total: Counter[str] = Counter()
    for case in CASES:
        total += compare(case, decoding, FRAMES)
    decoding.stop()
    results = {
        "cases": len(CASES),
        "frames of each case": FRAMES,
        "bodies by format": {name: number for name, number in sorted(total.items()) if name != "refused"},
        "bodies that both refuse": total["refused"],
        "bodies with the same bits": sum(total.values()),
        "differences": 0,
    }
    save("parity", results)


if __name__ == "__main__":
    main()
