"""What a code object refers to: the global names that it loads and the modules that it imports."""

import dis
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
DYNAMIC = {"eval", "exec", "globals", "locals", "vars"}
"""Built-in functions that look names up at run time: with them, all globals of the module count."""
HAS_DOCSTRING = 0x4000000
"""A flag of code objects from Python 3.14 on; before, the first constant of each `def` is its docstring or None."""


@dataclass(frozen=True)
class References:
    """What a code object and those within it refer to."""

    names: frozenset[tuple[str, ...]]
    """Global names, each with the attributes that follow: `model.FOLDS` is ("model", "FOLDS")."""
    imports: frozenset[tuple[int, str, str]]
    """Imports within functions: the level of a relative one, the module, and the imported name or ""."""

    @property
    def is_dynamic(self) -> bool:
        """Whether the code looks names up at run time."""
        return any(name[0] in DYNAMIC for name in self.names)


@lru_cache(maxsize=8192)
def references(code: CodeType) -> References:
    """Return what a code object refers to."""
    names: set[tuple[str, ...]] = set()
    imports: set[tuple[int, str, str]] = set()
    for each in _with_nested(code):
        instructions = list(dis.get_instructions(each))
        for at, instruction in enumerate(instructions):
            if instruction.opname in LOADS:
                names.add((str(instruction.argval), *_attributes(instructions[at + 1 :])))
            elif instruction.opname == "IMPORT_NAME":
                # The two constants that were loaded before it: the level, and the names of `from ... import`.
                level, found = instructions[at - 2].argval, instructions[at - 1].argval
                imports |= {(level, str(instruction.argval), name) for name in found or ("",)}
    return References(frozenset(names), frozenset(imports))


@lru_cache(maxsize=8192)
def code_digest(code: CodeType) -> str:
    """Return a digest of what a code object does: comments, docstrings, file and line numbers do not count."""
    parts = (
        code.co_code,
        code.co_exceptiontable,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~HAS_DOCSTRING),
        [_constant(each) for each in _constants(code)],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _attributes(instructions: list[dis.Instruction]) -> Iterator[str]:
    for instruction in instructions:
        if instruction.opname not in ATTRIBUTES:
            return
        yield str(instruction.argval)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _with_nested(each)


def _constants(code: CodeType) -> tuple[Any, ...]:
    """Return the constants without the docstring."""
    if not code.co_consts or not isinstance(code.co_consts[0], str):
        return code.co_consts
    if hasattr(inspect, "CO_HAS_DOCSTRING"):
        has_docstring = bool(code.co_flags & HAS_DOCSTRING)
    else:
        has_docstring = bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")
    return code.co_consts[1:] if has_docstring else code.co_consts


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return code_digest(value)
    if isinstance(value, frozenset):  # its order differs between processes
        return "frozenset", sorted(repr(_constant(each)) for each in value)
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    return type(value).__name__, repr(value)
