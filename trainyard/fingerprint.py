"""Digests of values and of code: equal for equal content, in every process."""

import ast
import hashlib
import inspect
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import date, timedelta
from enum import Enum
from functools import lru_cache
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

NUMERIC_LIBRARIES = ("numpy", "pandas", "scikit-learn")
STANDARD_LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def fingerprint(value: Any) -> str:
    """Return a digest (64 hexadecimal digits) of a value's content.

    Args:
        value: A plain value, frame, array, estimator, dataclass or pydantic model, or a collection of them.

    Raises:
        TypeError: The value, or one within it, is of another type, for which equality is not defined here.
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
            # Pickled first: an estimator from the cache shares other objects than one that was just fitted.
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
    raise TypeError(f"A {kind} has no fingerprint: pass plain values, frames, estimators, dataclasses or models.")


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def code_fingerprint(function: Callable[..., Any] | None, modules: Iterable[ModuleType] = ()) -> str:
    """Return a digest of code with all that it imports of the project and the library.

    The versions of the numeric libraries count too.

    Args:
        function: Its source counts; without `modules`, the whole module that defines it does.
        modules: The modules that count.
    """
    digest = hashlib.sha256()
    if function is not None:
        digest.update(inspect.getsource(function).encode())
    for file in sorted(code_files(list(modules) or [function])):
        digest.update(file.read_bytes())
    digest.update(" ".join(f"{name}={version(name)}" for name in NUMERIC_LIBRARIES).encode())
    return digest.hexdigest()


def code_files(origins: Iterable[Any]) -> set[Path]:
    """Return the files of modules or functions, and of what they import, directly or not.

    Own code only: what lies in a folder of `sys.path` that holds neither the standard library nor installed packages.
    """
    roots = _code_roots()
    found: set[Path] = set()
    remaining = [Path(inspect.getfile(origin)).resolve() for origin in origins]
    while remaining:
        file = remaining.pop()
        if file not in found:
            found.add(file)
            remaining += _imported_files(file, roots)
    return found


def _code_roots() -> dict[Path, set[str]]:
    """Return the folders of `sys.path` that hold own code, in order, each with the names of its top-level modules."""
    folders = dict.fromkeys(Path(entry).resolve() for entry in sys.path)
    return {folder: _module_names(folder) for folder in folders if not _holds_installed_code(folder)}


def _module_names(folder: Path) -> set[str]:
    try:
        return {entry.name.removesuffix(".py") for entry in folder.iterdir()}
    except OSError:  # not a folder, or not readable: Python's import skips it too
        return set()


def _holds_installed_code(folder: Path) -> bool:
    is_standard = any(folder.is_relative_to(library) for library in STANDARD_LIBRARY)
    return is_standard or not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)


def _imported_files(file: Path, roots: Mapping[Path, Set[str]]) -> Iterator[Path]:
    for level, name in _imported_names(file.read_bytes()):
        if level:  # resolved by folder: Prefect loads the file of an entrypoint under another name
            package = file.parents[level - 1]
            yield from filter(Path.is_file, [package / "__init__.py"])
            yield from _files_of(package, name)
        else:
            found = (list(_files_of(root, name)) for root, names in roots.items() if name.partition(".")[0] in names)
            yield from next(filter(None, found), [])


@lru_cache(maxsize=1024)
def _imported_names(source: bytes) -> frozenset[tuple[int, str]]:
    """Return what a file imports: the level of a relative import, or 0, and the dotted name."""
    names: set[tuple[int, str]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of it.
            names |= {(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names}
    return frozenset(names)


def _files_of(root: Path, name: str) -> Iterator[Path]:
    """Yield the files that an import of `name` runs: those of the module and of the packages that it lies in."""
    path = root
    for part in name.split("."):
        path = path / part
        yield from filter(Path.is_file, (path / "__init__.py", path.with_suffix(".py")))
