"""A served model: loaded from files in a safe format, warmed up, and called once for several requests."""

import time
from typing import Any

import numpy as np

from serving.admission import Caller
from serving.batches import Batches, Predictions, Threads
from serving.compiled import Function, compile_estimator
from serving.errors import UnservableError
from serving.payloads import Reader, Table
from serving.problems import RequestError
from serving.registry import Champion, Version
from serving.schema import Schema

MEMORY_FACTOR, MEMORY_OF_A_MODEL = 1.5, 2**20
"""A loaded model's memory: a multiple of its unpacked file's size, and what any takes."""
# Estimators that are faster than this run on the event loop: handing the rows to a thread would take as long.
QUICK_SECONDS, QUICK_ROWS = 0.001, 32
MAX_BATCH_ROWS = 256
MEASURED_CALLS = 5
COMPARED_ROWS = (1, 2, 7, 64, 500)
"""Sizes of the batches for which a compiled estimator is compared with scikit-learn: BLAS computes each in its own way."""

# Classifiers whose class is the one with the highest probability: `predict_proba` alone gives both.
ARGMAX = frozenset(
    {
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.ensemble._forest.ExtraTreesClassifier",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.naive_bayes.GaussianNB",
        "sklearn.tree._classes.DecisionTreeClassifier",
        "sklearn.calibration.CalibratedClassifierCV",
        "lightgbm.sklearn.LGBMClassifier",
    }
)


class Estimator:
    """A fitted scikit-learn estimator, called in the way that is fastest for it."""

    def __init__(self, fitted: Any, schema: Schema) -> None:
        self._fitted, self._schema = fitted, schema
        classes = getattr(fitted, "classes_", None)
        if isinstance(classes, list):
            raise UnservableError("it predicts several targets at once")
        self.classes: list[Any] | None = classes.tolist() if classes is not None else None
        self.has_probabilities = self.classes is not None and hasattr(fitted, "predict_proba")
        last = fitted[-1] if hasattr(fitted, "steps") else fitted
        self._argmax = f"{type(last).__module__}.{type(last).__qualname__}" in ARGMAX
        self._dtype = schema.matrix
        """The type of the matrix that holds the rows; None where the estimator gets a data frame."""
        self._compiled: Function | None = None
        self.seconds = 1.0
        """How long one row takes; an estimator that was not warmed up counts as slow."""

    def warm_up(self, example: Table) -> None:
        """Predict once, so that the first caller meets no cold start, and find the fastest way to call the estimator.

        A matrix in place of a data frame saves most of a quick estimator's time; it is used where both give the same.
        """
        expected = self.predict(example)
        if self._schema.matrix is not None:
            self._compile(example)
        elif self._schema.is_numeric and self._in_fitted_order():
            self._dtype = self._matrix_type()
            try:
                same = self.predict(example) == expected
            except Exception:  # noqa: BLE001 - a step that takes frames only fails in any way
                same = False
            if not same:
                self._dtype = None
            self._compile(example)
        one = Table([column[:1] for column in example.columns], 1)
        # The least of some calls: others wait for the processor too.
        self.seconds = min(self._measure(one) for _ in range(MEASURED_CALLS))

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled estimator predicts."""
        return self._compiled is not None

    def _measure(self, table: Table) -> float:
        started = time.perf_counter()
        self.predict(table)
        return time.perf_counter() - started

    def predict(self, table: Table) -> Predictions:
        """Return the predictions of some rows.

        Raises:
            ValueError: The estimator refuses them, or a prediction is not finite. Estimators raise others too.
        """
        rows: Any = table.to_array(self._dtype) if self._dtype else table.to_frame(self._schema)
        if not self.has_probabilities:
            values = _one_target(self._compiled(rows) if self._compiled else self._fitted.predict(rows))
            if self.classes is None and not np.isfinite(values).all():
                raise ValueError("the prediction is not a finite number")
            return Predictions(values.tolist(), None)
        probabilities = self._compiled(rows) if self._compiled else self._fitted.predict_proba(rows)
        if not np.isfinite(probabilities).all():
            raise ValueError("a probability is not a finite number")
        assert self.classes is not None
        if self._argmax:
            predicted = [self.classes[index] for index in probabilities.argmax(axis=1)]
        else:
            predicted = _one_target(self._fitted.predict(rows)).tolist()
        return Predictions(predicted, probabilities.tolist())

    def _compile(self, example: Table) -> None:
        """Replace the estimator by a compiled one where both give the same numbers, bit for bit.

        A missing value would get past the compiled one, so it is not for models with optional columns.
        """
        if self._dtype is None or not all(column.required for column in self._schema.columns):
            return
        if (compiled := compile_estimator(self._fitted)) is None:
            return
        for rows in COMPARED_ROWS:
            table = vary(example, rows, np.random.default_rng(rows))
            dtype, self._dtype = self._dtype, self._schema.matrix
            expected = self.predict(table)
            self._dtype, self._compiled = dtype, compiled
            same = self.predict(table) == expected
            self._compiled = None
            if not same:
                return
        self._compiled, self._fitted = compiled, None  # of the two, one is kept in memory

    def _matrix_type(self) -> str:
        """Return the type of a matrix that holds the columns' numbers as they are."""
        dtype = str(np.result_type(*(column.kind.numpy for column in self._schema.columns)))
        has_missing = not all(column.required for column in self._schema.columns)
        return "float64" if has_missing and dtype != "float32" else dtype

    def _in_fitted_order(self) -> bool:
        fitted = getattr(self._fitted, "feature_names_in_", None)
        return fitted is None or tuple(fitted) == self._schema.names


def _one_target(predicted: Any) -> Any:
    """Return predictions as an array of a class or a number for each row.

    Raises:
        ValueError: There are several for each row.
    """
    values = np.asarray(predicted)
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise ValueError("it predicts several targets at once")
    return values


def vary(example: Table, rows: int, random: np.random.Generator) -> Table:
    """Return rows of numbers around those of an example."""
    columns = []
    for column in example.columns:
        values = np.resize(np.array(column), rows)
        if values.dtype.kind == "b":
            columns.append((random.random(rows) < 0.5).tolist())
        elif values.dtype.kind == "i":
            columns.append((values + random.integers(-3, 4, rows) * (values // 4 + 1)).tolist())
        else:
            columns.append((values * random.normal(1, 1, rows) + random.normal(0, 1, rows)).tolist())
    return Table(columns, rows)


class Model:
    """A version of a registered model that is served; a request keeps it to its end, whatever the alias does."""

    def __init__(
        self, champion: Champion, version: Version, estimator: Estimator, reader: Reader, schema: Schema
    ) -> None:
        self.champion, self.schema, self.reader = champion, schema, reader
        self.created, self.tags = version.created, version.tags
        self.example: dict[str, Any] | None = None
        self.size = 0
        """The bytes that its unpacked file takes."""
        self.warning: str | None = None
        """Why its predictions may not be the ones of its training."""
        self._estimator = estimator
        self.classes = estimator.classes
        self.has_probabilities = estimator.has_probabilities
        self.labels = [label(value) for value in estimator.classes] if estimator.classes is not None else None
        self._queue = Batches(estimator.predict, MAX_BATCH_ROWS)
        self._large = Batches(estimator.predict, 0)

    @property
    def memory(self) -> int:
        """The bytes of memory that it takes, as far as its file tells."""
        return int(MEMORY_FACTOR * self.size) + MEMORY_OF_A_MODEL

    def predict_now(self, table: Table) -> Predictions:
        """Return the predictions of some rows; the estimator's own errors are raised."""
        return self._estimator.predict(table)

    async def predict(self, table: Table, threads: Threads, caller: Caller) -> Predictions:
        """Return the predictions of some rows.

        Rows that arrive while the estimator is busy are queued and then predicted in one batch: a forest takes as long
        for eight rows as for one. Batches of many rows have a queue and threads of their own.

        Raises:
            RequestError: The estimator refuses them, or they would wait for too long.
        """
        try:
            if self._estimator.seconds < QUICK_SECONDS and table.rows <= QUICK_ROWS:
                return self._estimator.predict(table)
            if table.rows > MAX_BATCH_ROWS:
                return await self._large.predict(table, threads.large, caller)
            return await self._queue.predict(table, threads.small, caller)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RequestError("refused-by-model", f"The model refuses the rows: {text}") from error


def label(value: Any) -> str:
    """Return a class's name in responses and metrics."""
    return str(value).lower() if isinstance(value, bool) else str(value)
