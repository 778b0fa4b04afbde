"""A served model: loaded from files in a safe format, warmed up, and called once for several requests."""

import asyncio
import json
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import skops.io
import yaml
from skops.io.exceptions import UntrustedTypesFoundException

from serving.errors import UnservableError
from serving.payloads import Reader, Table, join
from serving.problems import RequestError
from serving.registry import Champion, Registry, Version
from serving.schema import Schema, parse_signature
from serving.settings import Settings

# Estimators that are faster than this run on the event loop: handing the rows to a thread would take as long.
QUICK_SECONDS, QUICK_ROWS = 0.001, 32
MAX_BATCH_ROWS = 256

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
    }
)


@dataclass(frozen=True)
class Predictions:
    """The predictions of some rows."""

    values: Sequence[Any]
    """A class or a number for each row."""
    probabilities: Sequence[Sequence[float]] | None
    """For each row those of a classifier, in the order of its classes."""

    def slice(self, start: int, stop: int) -> "Predictions":
        """Return the predictions of some of the rows."""
        probabilities = self.probabilities[start:stop] if self.probabilities is not None else None
        return Predictions(self.values[start:stop], probabilities)


class Estimator:
    """A fitted scikit-learn estimator, called in the way that is fastest for it."""

    def __init__(self, fitted: Any, schema: Schema) -> None:
        self._fitted, self._schema = fitted, schema
        classes = getattr(fitted, "classes_", None)
        if isinstance(classes, list):
            raise UnservableError("it predicts several targets at once")
        self.classes: list[Any] | None = classes.tolist() if classes is not None else None
        self._has_probabilities = self.classes is not None and hasattr(fitted, "predict_proba")
        last = fitted[-1] if hasattr(fitted, "steps") else fitted
        self._argmax = f"{type(last).__module__}.{type(last).__qualname__}" in ARGMAX
        self._dtype: str | None = None
        self.seconds = 1.0
        """How long one row takes; an estimator that was not warmed up counts as slow."""

    def warm_up(self, example: Table) -> None:
        """Predict once, so that the first caller meets no cold start, and find the fastest way to call the estimator.

        A matrix in place of a data frame saves most of a quick estimator's time; it is used where both give the same.
        """
        expected = self.predict(example)
        if self._schema.is_numeric and self._in_fitted_order():
            dtype = str(np.result_type(*(column.kind.numpy for column in self._schema.columns)))
            self._dtype = "float64" if dtype != "float32" else dtype
            try:
                same = _are_equal(expected, self.predict(example))
            except (ValueError, TypeError, KeyError, IndexError):
                same = False
            if not same:
                self._dtype = None
        one = Table([column[:1] for column in example.columns], 1)
        started = time.perf_counter()
        for _ in range(3):
            self.predict(one)
        self.seconds = (time.perf_counter() - started) / 3

    def predict(self, table: Table) -> Predictions:
        """Return the predictions of some rows.

        Raises:
            ValueError: The estimator refuses them, or a prediction is not finite. Estimators raise others too.
        """
        rows = table.to_array(self._dtype) if self._dtype else table.to_frame(self._schema)
        if not self._has_probabilities:
            values = np.asarray(self._fitted.predict(rows))
            if self.classes is None and not np.isfinite(values).all():
                raise ValueError("the prediction is not a finite number")
            return Predictions(values.tolist(), None)
        probabilities = self._fitted.predict_proba(rows)
        if not np.isfinite(probabilities).all():
            raise ValueError("a probability is not a finite number")
        assert self.classes is not None
        if self._argmax:
            predicted = [self.classes[index] for index in probabilities.argmax(axis=1)]
        else:
            predicted = np.asarray(self._fitted.predict(rows)).tolist()
        return Predictions(predicted, probabilities.tolist())

    def _in_fitted_order(self) -> bool:
        fitted = getattr(self._fitted, "feature_names_in_", None)
        return fitted is None or tuple(fitted) == self._schema.names


def _are_equal(one: Predictions, other: Predictions) -> bool:
    if list(one.values) != list(other.values):
        return False
    if one.probabilities is None or other.probabilities is None:
        return True
    return np.allclose(one.probabilities, other.probabilities)


class Model:
    """A version of a registered model that is served; a request keeps it to its end, whatever the alias does."""

    def __init__(
        self, champion: Champion, version: Version, estimator: Estimator, reader: Reader, schema: Schema
    ) -> None:
        self.champion, self.schema, self.reader = champion, schema, reader
        self.created, self.tags = version.created, version.tags
        self.example: dict[str, Any] | None = None
        self._estimator = estimator
        self.classes = estimator.classes
        self.labels = [label(value) for value in estimator.classes] if estimator.classes is not None else None
        self._queue: list[tuple[Table, asyncio.Future[Predictions]]] = []
        self._task: asyncio.Task[None] | None = None

    async def predict(self, table: Table, threads: Executor) -> Predictions:
        """Return the predictions of some rows.

        Rows that arrive while the estimator is busy are queued and then predicted in one batch: a forest takes as long
        for eight rows as for one.

        Raises:
            RequestError: The estimator refuses them.
        """
        try:
            if self._estimator.seconds < QUICK_SECONDS and table.rows <= QUICK_ROWS:
                return self._estimator.predict(table)
            if table.rows > MAX_BATCH_ROWS:
                return await asyncio.get_running_loop().run_in_executor(threads, self._estimator.predict, table)
            future: asyncio.Future[Predictions] = asyncio.get_running_loop().create_future()
            self._queue.append((table, future))
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._predict_queued(threads))
            return await future
        except (ValueError, TypeError, KeyError, OverflowError, ArithmeticError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RequestError("refused-by-model", f"The model refuses the rows: {text}") from error

    async def _predict_queued(self, threads: Executor) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch = [self._queue.pop(0)]
            rows = batch[0][0].rows
            while self._queue and rows + self._queue[0][0].rows <= MAX_BATCH_ROWS:
                batch.append(self._queue.pop(0))
                rows += batch[-1][0].rows
            results = await loop.run_in_executor(
                threads, predict_batch, self._estimator.predict, [table for table, _ in batch]
            )
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # its caller disconnected
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)


def predict_batch(predict: Callable[[Table], Predictions], tables: Sequence[Table]) -> list[Predictions | Exception]:
    """Return the predictions of each table from one call; if that fails, from a call each, so that one fails alone."""
    try:
        whole, parts, start = predict(join(tables)), [], 0
        for table in tables:
            parts.append(whole.slice(start, start + table.rows))
            start += table.rows
        return list(parts)
    except Exception as error:  # noqa: BLE001 - handed to the request that it is about
        return [error] if len(tables) == 1 else [predict_batch(predict, [table])[0] for table in tables]


def label(value: Any) -> str:
    """Return a class's name in responses and metrics."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(registry: Registry, champion: Champion, settings: Settings) -> Model:
    """Fetch, load and warm up a version.

    Raises:
        UnservableError: It cannot be served: its format, a type in its file, its signature, or its estimator.
        RegistryError: MLflow did not answer.
    """
    version = registry.version(champion)
    document = yaml.safe_load(registry.file(version, "MLmodel"))
    schema = parse_signature(document)
    flavor = document.get("flavors", {}).get("sklearn")
    if not flavor:
        raise UnservableError("it is not a scikit-learn model")
    content = registry.file(version, str(flavor["pickled_model"]))
    estimator = Estimator(load_estimator(content, str(flavor.get("serialization_format")), settings), schema)
    reader = Reader(schema, settings.serving_max_rows)
    model = Model(champion, version, estimator, reader, schema)
    if document.get("saved_input_example_info"):
        name = str(document["saved_input_example_info"]["artifact_path"])
        example = parse_example(json.loads(registry.file(version, name)), schema)
        if example is not None:
            estimator.warm_up(example)
            model.example = {name: column[0] for name, column in zip(schema.names, example.columns, strict=True)}
    return model


def load_estimator(content: bytes, form: str, settings: Settings) -> Any:
    """Return the estimator in a file.

    Raises:
        UnservableError: The file holds types that are not trusted, or is a pickle and pickles are not allowed.
    """
    if form == "skops":
        try:
            return skops.io.loads(content, trusted=sorted(settings.trusted_types))
        except UntrustedTypesFoundException as error:
            raise UnservableError(f"{error} Review them, and set SERVING_TRUSTED_TYPES") from error
        except Exception as error:
            raise UnservableError(f"its file cannot be read ({type(error).__name__}: {error})") from error
    if not settings.serving_allow_pickle:
        raise UnservableError(
            f"it was saved by {form}, which can run any code when it is loaded: "
            'log it with serialization_format="skops", or set SERVING_ALLOW_PICKLE=true'
        )
    try:
        return pickle.loads(content)  # noqa: S301 - the setting says so
    except Exception as error:
        raise UnservableError(f"its file cannot be read ({type(error).__name__}: {error})") from error


def parse_example(document: Any, schema: Schema) -> Table | None:
    """Return the rows of an input example that MLflow saved of a data frame, or None if it is of something else."""
    if not isinstance(document, Mapping) or not {"columns", "data"} <= document.keys():
        return None
    with suppress(ValueError, TypeError):
        positions = [document["columns"].index(name) for name in schema.names]
        rows = schema.adapter("rows", strict=False).validate_python(
            [
                {name: row[at] for name, at in zip(schema.names, positions, strict=True) if row[at] is not None}
                for row in document["data"]
            ]
        )
        return Table([[row.get(name) for row in rows] for name in schema.names], len(rows))
    return None
