"""Digests of values and of code: equal for equal content, in every process.

Code counts as it is loaded, not as it lies on disk: a function by its bytecode, its defaults and closure, and by what its
global names stand for. Own functions, classes and values are followed further; of an installed package the version counts.
What is looked up by a text that is made at run time (`getattr(module, name)`) is found only where the whole module counts.
Names that a module lists in `__state__` hold what the process is doing at the moment, and do not count.
"""

import contextvars
import copyreg
import functools
import hashlib
import importlib
import importlib.util
import logging
import sys
import threading
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
from pydantic import BaseModel

from trainyard.code_names import code_digest, references
from trainyard.distributions import is_own_file, versions

ATOMS = (type(None), bool, int, float, complex, str, bytes)
# They have no content: a lock or a logger is the same whatever happened to it.
HANDLES = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.local,
    contextvars.ContextVar,
    logging.Logger,
    MemberDescriptorType,
    GetSetDescriptorType,
    WrapperDescriptorType,
)
NOT_OF_A_CLASS = {
    "__abstractmethods__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__class_vars__",
    "__dataclass_fields__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__private_attributes__",
    "__signature__",
    "__slotnames__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}
"""Attributes that say where a class comes from, or that are made of others."""
# By class, attributes that an installed package fills on demand: pandera's registry of its checks' implementations. Which
# check it is, with its bounds, stands in the check itself.
FILLED_ON_DEMAND = {"pandera.api.function_dispatch.Dispatcher": {"_function_registry"}}
STATE = "__state__"
# What decides whether and when code runs, and not what it computes: it counts by its names.
NEUTRAL = {
    f"trainyard.{name}"
    for name in (
        "cache",
        "cache_storage",
        "code_names",
        "distributions",
        "fingerprint",
        "locks",
        "rate_limits",
        "signing",
    )
}
NOT_OF_A_MODULE = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__path__",
    "__spec__",
}
FIELD_PARTS = (
    "annotation",
    "default",
    "default_factory",
    "alias",
    "validation_alias",
    "discriminator",
    "metadata",
    "exclude",
)


def fingerprint(value: Any) -> str:
    """Return a digest (64 hexadecimal digits) of a value's content, and of the own code in it.

    The order of a mapping counts, that of a set does not. A path counts by its name and by the content of the file or
    folder; of a folder that code refers to, such as the checkout, only the name counts.

    Args:
        value: A plain value, frame, array, estimator, path, function, dataclass or pydantic model, a collection of them,
            or another object that can be pickled.

    Raises:
        TypeError: The value, or one within it, has no content to compare, such as an open file.
    """
    return _Walk().digest(value)


def code_fingerprint(*origins: Any) -> str:
    """Return a digest of code: of own functions, classes or whole modules, with all that they refer to.

    The versions of the distributions that they use, and of what those require, count too.

    Raises:
        TypeError: A module-level value that the code refers to has no content to compare.
    """
    return key_fingerprint(origins, None)


def key_fingerprint(origins: Iterable[Any], inputs: Any) -> str:
    """Return a digest of code and of the inputs that it is called with.

    Args:
        origins: As of `code_fingerprint`.
        inputs: As of `fingerprint`.

    Raises:
        TypeError: An input, or a module-level value that the code refers to, has no content to compare.
    """
    walk = _Walk()
    parts = walk.digest([list(origins), inputs]), versions(walk.packages)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Walk:
    """A walk over a value and all own code that it reaches."""

    def __init__(self) -> None:
        self.packages: set[str] = set()
        """Top-level modules of the installed packages that were met."""
        self._labels: dict[
            int, tuple[Any, tuple[str, ...]]
        ] = {}  # of own code, by identity; kept alive with the object
        self._remaining: list[Any] = []
        self._path: list[int] = []  # of the objects that hold the present one
        self._is_in_code = False
        self._objects: dict[int, tuple[Any, str]] = {}

    def digest(self, value: Any) -> str:
        try:
            plain, code = self.plain(value), []
            self._is_in_code = True
            while self._remaining:
                code.append(repr(self._expand(self._remaining.pop())))
        except RecursionError as error:
            raise TypeError(f"A {type(value).__qualname__} has no fingerprint: it is nested too deeply.") from error
        return hashlib.sha256((repr(plain) + "".join(sorted(set(code)))).encode()).hexdigest()

    def plain(self, value: Any) -> Any:
        """Return nested tuples of texts and numbers, the same for the same content."""
        kind = self._kind(type(value))
        if type(value) in ATOMS or isinstance(value, np.generic):
            return kind, repr(value)
        if id(value) in self._path:
            return "within itself", len(self._path) - self._path.index(id(value))
        self._path.append(id(value))
        try:
            return self._compound(value, kind)
        finally:
            self._path.pop()

    def _compound(self, value: Any, kind: str) -> Any:
        if type(value) in (list, tuple):
            return kind, [self.plain(item) for item in value]
        if type(value) in (dict, MappingProxyType):
            return kind, [(self.plain(key), self.plain(item)) for key, item in value.items()]
        if type(value) in (set, frozenset):
            return kind, sorted(repr(self.plain(item)) for item in value)
        match value:
            case Enum():
                return kind, value.name, self.plain(value.value)
            case date() | time() | timedelta() | tzinfo() | UUID() | Decimal() | Fraction():
                return kind, repr(value)
            case Path():
                return kind, str(value), None if self._is_in_code and value.is_dir() else _content(value)
            case pd.DataFrame() | pd.Series() | pd.Index():
                return self._table(value, kind)
            case np.ndarray():
                return self._array(value, kind)
            case _ if isinstance(value, HANDLES):
                return kind, getattr(value, "name", "")
        return self._code(value, kind)

    # Own and installed code

    def _code(self, value: Any, kind: str) -> Any:
        match value:
            case FunctionType():
                return self._function(value)
            case type():
                return self._class(value)
            case ModuleType():
                return self._module(value)
            case MethodType():
                return kind, self.plain(value.__self__), self.plain(value.__func__)
            case BuiltinFunctionType():
                owner = value.__self__ if not isinstance(value.__self__, ModuleType) else None
                return kind, value.__module__, value.__qualname__, self.plain(owner)
            case staticmethod() | classmethod():
                return kind, self.plain(value.__func__)
            case property():
                return kind, self.plain([value.fget, value.fset, value.fdel])
            case functools.cached_property():
                return kind, self.plain(value.func)
            case BaseModel():
                more = [value.__pydantic_extra__, value.__pydantic_private__]
                names = type(value).model_fields
                return kind, [(name, self.plain(getattr(value, name))) for name in names], self.plain(more)
        if type(value).__module__.partition(".")[0] == "prefect" and isinstance(
            getattr(value, "fn", None), FunctionType
        ):
            return kind, self.plain(value.fn)  # a task or flow: its options change no result
        if typing.get_origin(value) is not None:
            return kind, self.plain(typing.get_origin(value)), [self.plain(each) for each in typing.get_args(value)]
        if isinstance(value, typing.TypeVar):
            return kind, value.__name__
        if callable(value) and callable(wrapped := getattr(value, "__wrapped__", None)):  # as of functools.lru_cache
            return kind, self.plain(wrapped)
        return kind, self._object(value, kind)

    def _function(self, function: FunctionType) -> Any:
        if self._is_own(function.__globals__.get("__file__"), function.__globals__.get("__name__", "")):
            return self._refer(function, function.__qualname__, code_digest(function.__code__))
        module = str(function.__globals__.get("__name__"))  # a decorator may have copied another `__module__`
        self._note(module)
        # An installed decorator holds an own function in `__wrapped__`, and a generic function in `registry`.
        held = [
            (name, self.plain(vars(function)[name])) for name in ("__wrapped__", "registry") if name in vars(function)
        ]
        return "function", module, function.__code__.co_qualname, held

    def _class(self, cls: type) -> Any:
        if self._is_own_class(cls):
            return self._refer(cls, cls.__qualname__)
        self._note(cls.__module__)
        return "class", cls.__module__, cls.__qualname__

    def _module(self, module: ModuleType) -> Any:
        if self._is_own_module(module):
            # By its file: Prefect loads the file of an entrypoint under a name of its own.
            return self._refer(module, Path(getattr(module, "__file__", None) or module.__name__).stem)
        self._note(module.__name__)
        return "module", module.__name__

    def _refer(self, code: Any, *label: str) -> tuple[str, ...]:
        """Return a label of own code, and expand it later: functions may refer to each other in a circle."""
        if id(code) not in self._labels:
            self._labels[id(code)] = code, ("own", type(code).__name__, *label)
            if (code.__name__ if isinstance(code, ModuleType) else code.__module__) not in NEUTRAL:
                self._remaining.append(code)
        return self._labels[id(code)][1]

    def _expand(self, code: Any) -> Any:
        self._path = []
        label = self._labels[id(code)][1]
        if isinstance(code, FunctionType):
            return label, list(self._parts_of_function(code))
        if isinstance(code, type):
            return label, list(self._parts_of_class(code))
        names = sorted(vars(code).keys() - NOT_OF_A_MODULE - {*vars(code).get(STATE, ())})
        return label, [(name, self._value_of_name(name, vars(code)[name], code.__name__)) for name in names]

    def _parts_of_function(self, function: FunctionType) -> Iterator[Any]:
        yield self.plain(function.__defaults__), self.plain(function.__kwdefaults__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with_value = _cell_content(cell)
            yield "closure", name, [self._value_of_name(name, each, function.__qualname__) for each in with_value]
        yield [
            (name, self._value_of_name(name, item, function.__qualname__))
            for name, item in sorted(vars(function).items())
            if name != "__signature__"  # made of the function when somebody asks for it
        ]
        found, names = references(function.__code__), function.__globals__
        if found.is_dynamic:
            module = sys.modules.get(function.__module__)
            yield "module", self.plain(module) if module is not None else None
        for path in sorted(found.names):
            if path[0] in names and path[0] not in names.get(STATE, ()):
                yield path, self._follow(names[path[0]], path[1:], ".".join(path))
        for level, module_name, name in sorted(found.imports):
            yield module_name, name, self._imported(level, module_name, name, names)

    def _follow(self, value: Any, attributes: Iterable[str], name: str) -> Any:
        """Return the plain form of a global name: of a module only the attribute that the code takes from it."""
        for attribute in attributes:
            if not isinstance(value, ModuleType) or not self._is_own_module(value):
                break
            if not hasattr(value, attribute) or attribute in getattr(value, STATE, ()):
                return "missing"
            value = getattr(value, attribute)
        return self._value_of_name(name, value, name)

    def _is_own_module(self, module: ModuleType) -> bool:
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        return self._is_own(file, module.__name__)

    def _value_of_name(self, name: str, value: Any, where: str) -> Any:
        try:
            return self.plain(value)
        except TypeError as error:
            raise TypeError(f"{where} refers to {name}. {error}") from error

    def _imported(self, level: int, module_name: str, name: str, names: dict[str, Any]) -> Any:
        """Return the plain form of what an import within a function gives."""
        full = (
            importlib.util.resolve_name("." * level + module_name, names.get("__package__") or "")
            if level
            else module_name
        )
        module = sys.modules.get(full)
        if module is None:
            top = full.partition(".")[0]
            spec = importlib.util.find_spec(top)
            origin = (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec else None
            if not self._is_own(origin, top):
                self._note(full)
                return "module", full
            module = importlib.import_module(full)
        if not name:
            return self.plain(module)
        if not hasattr(module, name) and self._is_own_module(module):
            return self.plain(importlib.import_module(f"{full}.{name}"))
        return self._follow(module, [name], f"{full}.{name}")

    def _parts_of_class(self, cls: type) -> Iterator[Any]:
        yield [self.plain(base) for base in cls.__bases__], self.plain(type(cls))
        if is_dataclass(cls):
            for field in fields(cls):
                parts = (
                    *(field.default, field.default_factory, field.init),
                    *(field.compare, field.kw_only, dict(field.metadata)),
                )
                yield field.name, [self.plain(part) for part in parts]
        if issubclass(cls, BaseModel):
            for name, each in cls.model_fields.items():
                yield name, [self.plain(getattr(each, part)) for part in FIELD_PARTS]
        for name, item in sorted(vars(cls).items()):
            if name not in NOT_OF_A_CLASS and not name.startswith("__pydantic"):
                yield name, self._value_of_name(name, item, cls.__qualname__)

    def _kind(self, cls: type) -> str:
        """Return a type's name; that of an own one has no module, which may have another name in each process."""
        if self._is_own_class(cls):
            return repr(self._refer(cls, cls.__qualname__))
        self._note(cls.__module__)
        return f"{cls.__module__}.{cls.__qualname__}"

    def _is_own_class(self, cls: type) -> bool:
        module = sys.modules.get(cls.__module__)
        return module is None or self._is_own_module(module)

    @staticmethod
    def _is_own(file: str | None, module: str) -> bool:
        """Return whether a module is own; one without a file was made by a program, unless it is built in."""
        if file is None:
            return module.partition(".")[0] not in sys.stdlib_module_names or module == "__main__"
        return is_own_file(file)

    def _note(self, module: str | None) -> None:
        self.packages.add((module or "").partition(".")[0])

    # Data

    def _table(self, value: Any, kind: str) -> Any:
        if isinstance(value, pd.DataFrame):
            columns = [self._column(value.iloc[:, at]) for at in range(value.shape[1])]
            form = kind, self.plain(list(value.columns)), self.plain(value.index), columns
            more = [list(value.columns.names) if any(value.columns.names) else None, value.attrs or None]
            return form if more == [None, None] else (*form, self.plain(more))
        if isinstance(value, pd.Series):
            return self._column(value), self.plain(value.index), self.plain(value.name), self.plain(value.attrs)
        if isinstance(value, pd.MultiIndex):
            levels = [value.get_level_values(at) for at in range(value.nlevels)]
            return kind, self.plain(list(value.names)), [self.plain(level) for level in levels]
        freq = getattr(value, "freqstr", None)
        return (kind, value.name, *self._cells(value), *([freq] if freq else []))

    def _column(self, series: "pd.Series[Any]") -> Any:
        return (self._kind(type(series)), *self._cells(series))

    def _cells(self, values: Any) -> tuple[Any, ...]:
        """Return dtype and content of a column or an index."""
        dtype = str(values.dtype)
        if isinstance(values.dtype, pd.CategoricalDtype):
            return dtype, self.plain(values.dtype.categories), values.dtype.ordered, _hash_cells(values)
        if values.dtype == object:  # pandas hashes texts of the cells, the same for 1 and "1" or None and NaN
            return dtype, _sha256(repr([self.plain(cell) for cell in values]).encode())
        return dtype, _hash_cells(values)

    def _array(self, value: "np.ndarray[Any, Any]", kind: str) -> Any:
        if isinstance(value, np.ma.MaskedArray):
            return kind, self.plain(value.filled()), self.plain(np.ma.getmaskarray(value))
        if value.dtype.hasobject:
            return kind, str(value.dtype), value.shape, [self.plain(item) for item in value.ravel().tolist()]
        return kind, str(value.dtype), value.shape, _sha256(np.ascontiguousarray(value).tobytes())

    def _object(self, value: Any, kind: str) -> str:
        """Return a digest of what an object is pickled as."""
        if id(value) not in self._objects:
            try:
                reduced = _reduce(value)
            except Exception as error:
                raise TypeError(
                    f"A {type(value).__module__}.{type(value).__qualname__} has no fingerprint ({error}): "
                    "pass plain values, frames, estimators, dataclasses or models."
                ) from error
            content = repr([self.plain(each) for each in reduced])
            self._objects[id(value)] = value, _sha256(f"{kind} {content}".encode())
        return self._objects[id(value)][1]


def _reduce(value: Any) -> list[Any]:
    """Return what an object is pickled as: what makes it, arguments, state and items; what it has only cached is left out."""
    reducer = copyreg.dispatch_table.get(type(value))
    reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    if isinstance(reduced, str):  # the name of a singleton
        return [reduced, getattr(value, "__dict__", None)]
    maker, arguments, state, items, pairs = [*reduced, None, None, None][:5]
    if isinstance(state, dict):
        cached = {name for name in state if isinstance(getattr(type(value), name, None), functools.cached_property)}
        filled = FILLED_ON_DEMAND.get(f"{type(value).__module__}.{type(value).__qualname__}", set())
        state = {name: item for name, item in state.items() if name not in cached | filled}
    return [maker, arguments, state, None if items is None else list(items), None if pairs is None else list(pairs)]


def _hash_cells(values: Any) -> str:
    return _sha256(np.ascontiguousarray(pd.util.hash_pandas_object(values).to_numpy()).tobytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> Any:
    """Return a digest of a file, or of all files in a folder by their names; None where there is nothing."""
    if path.is_dir():
        return [(str(each.relative_to(path)), _content(each)) for each in sorted(path.rglob("*")) if each.is_file()]
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cell_content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # the variable has no value yet
        return []
