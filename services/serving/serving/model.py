"""A version that answers: loaded from its files in a safe format, warmed, and asked in batches."""

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

from serving.problems import RequestError
from serving.registry import Champion, Registry, Version
from serving.schema import Schema, UnservableError, parse_signature
from serving.settings import Settings
from serving.tables import Reader, Table, join

# Faster than this, an estimator is asked in the event loop itself: handing it to a thread would cost as much.
QUICK_SECONDS, QUICK_ROWS = 0.001, 32
MOST_JOINED = 256

# Classifiers whose class is the one with the highest probability: asked once, they have said both.
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
class Answer:
    """Predictions of some rows: a class or value each and, of a classifier, its probabilities in the classes' order."""

    said: Sequence[Any]
    probabilities: Sequence[Sequence[float]] | None

    def part(self, start: int, stop: int) -> "Answer":
        """Return the answer to some of the rows."""
        probabilities = self.probabilities[start:stop] if self.probabilities is not None else None
        return Answer(self.said[start:stop], probabilities)


class Estimator:
    """A fitted scikit-learn estimator, asked in the way that is quickest for it."""

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
        """How long one row takes; an estimator that was not warmed is taken for slow."""

    def warm(self, example: Table) -> None:
        """Ask once, so that the first caller waits for nothing, and find the quickest way to ask.

        A matrix in place of a data frame saves most of a quick estimator's time; it is used where it gives the same.
        """
        framed = self.ask(example)
        if self._schema.numeric and self._in_fitted_order():
            dtype = str(np.result_type(*(column.kind.numpy for column in self._schema.columns)))
            self._dtype = "float64" if dtype != "float32" else dtype
            try:
                same = _same(framed, self.ask(example))
            except (ValueError, TypeError, KeyError, IndexError):
                same = False
            if not same:
                self._dtype = None
        one = Table([column[:1] for column in example.columns], 1)
        started = time.perf_counter()
        for _ in range(3):
            self.ask(one)
        self.seconds = (time.perf_counter() - started) / 3

    def ask(self, table: Table) -> Answer:
        """Return the predictions for some rows.

        Raises:
            ValueError: The estimator refuses them, or its answer is not finite.
        """
        rows = table.to_array(self._dtype) if self._dtype else table.to_frame(self._schema)
        if not self._has_probabilities:
            values = np.asarray(self._fitted.predict(rows))
            if self.classes is None and not np.isfinite(values).all():
                raise ValueError("the prediction is not a finite number")
            return Answer(values.tolist(), None)
        probabilities = self._fitted.predict_proba(rows)
        if not np.isfinite(probabilities).all():
            raise ValueError("a probability is not a finite number")
        assert self.classes is not None
        if self._argmax:
            said = [self.classes[index] for index in probabilities.argmax(axis=1)]
        else:
            said = np.asarray(self._fitted.predict(rows)).tolist()
        return Answer(said, probabilities.tolist())

    def _in_fitted_order(self) -> bool:
        fitted = getattr(self._fitted, "feature_names_in_", None)
        return fitted is None or tuple(fitted) == self._schema.names


def _same(one: Answer, other: Answer) -> bool:
    if one.probabilities is None or other.probabilities is None:
        return list(one.said) == list(other.said)
    return list(one.said) == list(other.said) and np.allclose(one.probabilities, other.probabilities)


class Model:
    """A version that answers requests. Each keeps its own to the end of those it began."""

    def __init__(
        self, champion: Champion, version: Version, estimator: Estimator, reader: Reader, schema: Schema
    ) -> None:
        self.champion, self.schema, self.reader = champion, schema, reader
        self.created, self.tags = version.created, version.tags
        self.example: dict[str, Any] | None = None
        self._estimator = estimator
        self.classes = estimator.classes
        self.labels = [label(value) for value in estimator.classes] if estimator.classes is not None else None
        self._waiting: list[tuple[Table, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def predict(self, table: Table, threads: Executor) -> Answer:
        """Return the predictions for some rows.

        Rows that arrive while the estimator is at work wait and are then asked together: a forest takes as long for
        eight rows as for one.

        Raises:
            RequestError: The estimator refuses them.
        """
        try:
            if self._estimator.seconds < QUICK_SECONDS and table.rows <= QUICK_ROWS:
                return self._estimator.ask(table)
            if table.rows > MOST_JOINED:
                return await asyncio.get_running_loop().run_in_executor(threads, self._estimator.ask, table)
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting.append((table, future))
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._work(threads))
            return await future
        except (ValueError, TypeError, KeyError, OverflowError, ArithmeticError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RequestError("refused-by-model", f"The model refuses the rows: {text}") from error

    async def _work(self, threads: Executor) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken, rows = [self._waiting.pop(0)], 0
            rows = taken[0][0].rows
            while self._waiting and rows + self._waiting[0][0].rows <= MOST_JOINED:
                taken.append(self._waiting.pop(0))
                rows += taken[-1][0].rows
            answers = await loop.run_in_executor(threads, ask_together, self._estimator.ask, [t for t, _ in taken])
            for (_, future), answer in zip(taken, answers, strict=True):
                if future.done():  # its caller went away
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def ask_together(ask: Callable[[Table], Answer], tables: Sequence[Table]) -> list[Answer | Exception]:
    """Return an answer for each table, asked at once; where that fails, each by itself, so that one spoils no other."""
    try:
        whole, parts, start = ask(join(tables)), [], 0
        for table in tables:
            parts.append(whole.part(start, start + table.rows))
            start += table.rows
        return list(parts)
    except Exception as error:  # noqa: BLE001 - handed to the request that it is about
        return [error] if len(tables) == 1 else [ask_together(ask, [table])[0] for table in tables]


def label(value: Any) -> str:
    """Return a class as the name that stands in answers and metrics."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(registry: Registry, champion: Champion, settings: Settings) -> Model:
    """Fetch, load and warm a version.

    Raises:
        UnservableError: It cannot be served: its format, a type in its file, its signature, or its estimator.
        RegistryError: MLflow did not answer.
    """
    version = registry.version(champion)
    document = yaml.safe_load(registry.file(version, "MLmodel"))
    schema = parse_signature(document)
    flavor = document.get("flavors", {}).get("sklearn")
    if not flavor:
        raise UnservableError("it is no scikit-learn model")
    content = registry.file(version, str(flavor["pickled_model"]))
    estimator = Estimator(open_file(content, str(flavor.get("serialization_format")), settings), schema)
    reader = Reader(schema, settings.serving_max_rows)
    model = Model(champion, version, estimator, reader, schema)
    if document.get("saved_input_example_info"):
        name = str(document["saved_input_example_info"]["artifact_path"])
        example = read_example(json.loads(registry.file(version, name)), schema)
        if example is not None:
            estimator.warm(example)
            model.example = {name: column[0] for name, column in zip(schema.names, example.columns, strict=True)}
    return model


def open_file(content: bytes, form: str, settings: Settings) -> Any:
    """Return the estimator in a file.

    Raises:
        UnservableError: The file holds types beyond those that are trusted here, or is a pickle and none is allowed.
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


def read_example(document: Any, schema: Schema) -> Table | None:
    """Return the rows of an input example as MLflow saves a data frame's, or None if they are something else."""
    if not isinstance(document, Mapping) or not {"columns", "data"} <= document.keys():
        return None
    with suppress(ValueError, TypeError):
        at = [document["columns"].index(name) for name in schema.names]
        rows = schema.adapter("rows", strict=False).validate_python(
            [
                {schema.names[i]: row[at[i]] for i in range(len(at)) if row[at[i]] is not None}
                for row in document["data"]
            ]
        )
        return Table([[row.get(name) for row in rows] for name in schema.names], len(rows))
    return None
