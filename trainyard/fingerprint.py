"""Digests of values and of code: equal where nothing has changed, in whatever process they are made."""

import ast
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import date, timedelta
from enum import Enum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import joblib
import numpy as np
import pandas as pd
from pydantic import BaseModel
from sklearn.base import BaseEstimator

PROJECT = Path(__file__).resolve().parents[2]
_NUMERIC_LIBRARIES = ("numpy", "pandas", "scikit-learn")


def fingerprint(value: Any) -> str:
    """Return a digest (64 hexadecimal digits) of a value's content.

    Known are plain values, collections of them, frames, arrays, estimators, dataclasses and pydantic
    models. Raises TypeError for anything else: of an unknown thing nobody can say whether it changed.
    """
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return nested tuples of strings and numbers, the same for the same content."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes() | np.generic():
            return kind, repr(value)
        case date() | timedelta() | UUID() | Enum() | Path():
            return kind, str(value)
        case pd.DataFrame():
            return kind, _plain(list(value.columns)), _plain(value.index), [_plain(value[name]) for name in value]
        case pd.Series():
            return kind, str(value.dtype), _digest(pd.util.hash_pandas_object(value).to_numpy())
        case pd.Index():
            return kind, value.name, str(value.dtype), _digest(pd.util.hash_pandas_object(value).to_numpy())
        case np.ndarray() if value.dtype != object:
            return kind, str(value.dtype), value.shape, _digest(value)
        case BaseEstimator():
            # Through pickle first: one that comes from the cache shares other objects than one just fitted.
            return kind, joblib.hash(pickle.loads(pickle.dumps(value)))  # noqa: S301 - pickled on this line
        case BaseModel():
            return kind, [(name, _plain(getattr(value, name))) for name in type(value).model_fields]
        case Mapping():
            return kind, sorted((repr(_plain(key)), _plain(item)) for key, item in value.items())
        case Set():
            return kind, sorted(repr(_plain(item)) for item in value)
        case Sequence():
            return kind, [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return kind, [(field.name, _plain(getattr(value, field.name))) for field in fields(value)]
    raise TypeError(f"Nobody can say whether a {kind} has changed: give plain values, frames or models.")


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def code_fingerprint(function: Callable[..., Any] | None, modules: Iterable[ModuleType] = ()) -> str:
    """Return a digest of code and all that it imports of its own project, and of the numeric libraries' versions.

    That code is the function's source and the modules; without modules, the whole module of the function.
    """
    digest = hashlib.sha256()
    files = [Path(inspect.getfile(module)).resolve() for module in modules]
    if function is not None:
        files = files or [Path(inspect.getfile(function)).resolve()]
        digest.update(inspect.getsource(function).encode())
    for file in sorted(_with_imports(files)):
        digest.update(file.read_bytes())
    digest.update(" ".join(f"{name}={version(name)}" for name in _NUMERIC_LIBRARIES).encode())
    return digest.hexdigest()


def _with_imports(files: Iterable[Path]) -> set[Path]:
    """Return the files and those of the project that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
    return found


@cache  # a run has one copy of the code, and is over before the next is read
def _imports(file: Path) -> tuple[Path, ...]:
    names = set()
    package = file.parent.relative_to(PROJECT).parts if file.is_relative_to(PROJECT) else ()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return tuple(path for name in names if name for path in _files_of(name))


def _files_of(name: str) -> list[Path]:
    path = PROJECT.joinpath(*name.split("."))
    return [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
