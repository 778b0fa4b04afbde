"""The hooks by which a project tells the platform what MLflow does not record of a model; docs/hooks.md is the guide.

A project's folder under flows/ declares them in its `trainyard.toml`, by the names of registered models:

    [[models]]
    name = "demand-*"                                        # * stands for any text
    live_features = "flows.demand.live:live_features"
    ground_truth = "flows.demand.truth:ground_truth"
    choose_model = "flows.demand.live:choose_model"          # optional
    monitor_query = {days = "7"}                              # optional

- `live_features(model, query)` makes the rows that the model predicts now. Serving calls it for `/models/NAME/forecast`
  with the request's query; it may import the packages of serving's image, which has neither Prefect nor MLflow.
- `ground_truth(model, times)` returns what was observed since. The monitor calls it in the worker.
- `choose_model(query)` returns the name of the registered model that answers `/forecast`.
- `monitor_query` is the query with which the monitor requests `/models/NAME/forecast` each day.

A hook raises the errors of `trainyard.errors`; any other is reported as a fault of the project's code. Declarations come
from the project's files only: nothing that is stored with a model is ever imported.
"""

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.contract import HOOKS_FILE
from trainyard.errors import HookError

if TYPE_CHECKING:
    import pandas as pd

KEYS = frozenset({"name", "live_features", "ground_truth", "choose_model", "monitor_query"})


@dataclass(frozen=True)
class ModelInfo:
    """A version of a registered model, as hooks see it."""

    name: str
    version: int
    tags: Mapping[str, str]
    """Of the version in MLflow."""


@dataclass(frozen=True)
class LiveRows:
    """Rows that a model is to predict now."""

    features: "pd.DataFrame"
    """One row for each prediction, with the columns of the model's signature; NaN and None are missing values."""
    subject: str
    """What the rows are about, such as a shop; `ground_truth` uses the same text."""
    times: Sequence[str]
    """The moment that each row's prediction is about, ISO 8601; `ground_truth` uses the same text."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """More for the caller and the record, such as the source of the data; values that JSON can hold."""


Query = Mapping[str, str]
LiveFeatures = Callable[[ModelInfo, Query], LiveRows]
GroundTruth = Callable[[ModelInfo, Sequence[str]], Mapping[tuple[str, str], float | str]]
"""From a model and times (ISO 8601) to the observed number or class by (subject, time); what is not known yet is left out."""
ChooseModel = Callable[[Query], str | None]
"""From a query to the model's name, or None where the query is not about this project's models."""


@dataclass(frozen=True)
class Hooks:
    """The hooks of the models whose names match a pattern; each is a reference `module:attribute`, or empty."""

    file: Path
    name: str
    live_features: str = ""
    ground_truth: str = ""
    choose_model: str = ""
    monitor_query: Mapping[str, str] = field(default_factory=dict, hash=False)

    def load(self, hook: str) -> Callable[..., Any]:
        """Import a hook.

        Args:
            hook: The name of one of the fields that is declared.

        Raises:
            HookError: Its module cannot be imported, or has no such function.
        """
        reference = str(getattr(self, hook))
        module, _, attribute = reference.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except Exception as error:
            raise HookError(
                f"{self.file}: {hook} = {reference!r} cannot be imported ({type(error).__name__}: {error})."
            ) from error
        if not callable(found):
            raise HookError(f"{self.file}: {hook} = {reference!r} is not a function.")
        return found  # type: ignore[no-any-return]


def read_hooks(home: Path | None = None) -> list[Hooks]:
    """Return the declarations of all projects under flows/.

    Args:
        home: The folder that holds flows/; without it TRAINYARD_HOME, else the working directory.

    Raises:
        HookError: A file is not TOML, or a declaration has an unknown key or no name.
    """
    root = home or Path(os.environ.get("TRAINYARD_HOME") or Path.cwd())
    return [hooks for file in sorted((root / "flows").rglob(HOOKS_FILE)) for hooks in _parse(file)]


def hooks_of(model: str, declared: Sequence[Hooks]) -> Hooks | None:
    """Return the first declaration whose pattern matches a registered model's name, or None."""
    return next((hooks for hooks in declared if fnmatchcase(model, hooks.name)), None)


def _parse(file: Path) -> list[Hooks]:
    try:
        document = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HookError(f"{file} cannot be read as TOML: {error}.") from error
    models = document.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise HookError(f"{file}: declare each group of models as [[models]].")
    for model in models:
        if unknown := sorted(model.keys() - KEYS):
            raise HookError(f"{file}: {unknown[0]!r} is unknown; a declaration has {', '.join(sorted(KEYS))}.")
        query = model.get("monitor_query", {})
        if not isinstance(query, dict) or not all(isinstance(value, str) for value in query.values()):
            raise HookError(f'{file}: monitor_query is a table of text, such as {{days = "7"}}.')
        texts = {key: value for key, value in model.items() if key != "monitor_query"}
        if not model.get("name") or not all(isinstance(value, str) for value in texts.values()):
            raise HookError(f"{file}: each declaration needs a name, and all of its values are text.")
        for hook, reference in texts.items():
            if hook != "name" and not all(reference.partition(":")):
                raise HookError(f"{file}: {hook} = {reference!r} is not of the form module:function.")
    return [Hooks(file=file, **model) for model in models]
