"""The installed distributions that code depends on, with their versions."""

import re
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

STANDARD_LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}
REQUIREMENT = re.compile(r"^Requires-Dist:\s*([A-Za-z0-9._-]+)(.*)$", re.MULTILINE)
EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)""")
# Extras for people who work on a distribution; "all" repeats the others.
DEVELOPMENT = re.compile(
    r"(all|bench|build|ci|cov|dev|doc|example|install|lint|maint|mypy|ruff|style|test|typ)", re.IGNORECASE
)


@lru_cache(maxsize=4096)
def is_own_file(file: str) -> bool:
    """Return whether a file is the project's or the library's own, neither Python's nor an installed distribution's."""
    path = Path(file).resolve()
    if not INSTALLED.isdisjoint(path.parts):
        return False
    return not any(path.is_relative_to(library) for library in STANDARD_LIBRARY)


def versions(modules: Iterable[str]) -> list[str]:
    """Return "name==version" of the distributions of top-level modules, of all that they require, and of Python.

    An optional requirement counts where it is installed, because a library that finds it may compute with it, except one
    that is for developing, testing or documenting. Modules without a distribution, such as Python's own, are ignored.
    """
    found: set[str] = set()
    remaining = [name for module in modules for name in _providers(module)]
    while remaining:
        name = remaining.pop()
        if name not in found:
            found.add(name)
            remaining += _requirements(name)
    python = f"{sys.implementation.name}=={'.'.join(map(str, sys.version_info[:3]))}"
    return [python, *sorted(_describe(name) for name in found)]


@lru_cache(maxsize=1)
def _installed() -> dict[str, Distribution]:
    """Return the distributions by normalized name; the first one on `sys.path` counts, as for an import."""
    found: dict[str, Distribution] = {}
    for each in distributions():
        found.setdefault(_normalize(_folder_parts(each)[0]), each)
    return found


@lru_cache(maxsize=1)
def _records() -> dict[str, str]:
    return {name: f"\n{each.read_text('RECORD') or ''}" for name, each in _installed().items()}


@lru_cache(maxsize=1024)
def _providers(module: str) -> tuple[str, ...]:
    """Return the distributions whose files include a top-level module."""
    if not module or module in sys.stdlib_module_names:
        return ()
    marks = (f"\n{module}/", f"\n{module}.")
    return tuple(name for name, record in _records().items() if any(mark in record for mark in marks))


@lru_cache(maxsize=1024)
def _requirements(name: str) -> tuple[str, ...]:
    headers = (_installed()[name].read_text("METADATA") or "").partition("\n\n")[0]
    required = {_normalize(found) for found, marker in REQUIREMENT.findall(headers) if not _is_for_development(marker)}
    return tuple(sorted(required & _installed().keys()))


def _is_for_development(marker: str) -> bool:
    extras = EXTRA.findall(marker)
    return bool(extras) and all(DEVELOPMENT.match(extra) for extra in extras)


@lru_cache(maxsize=1024)
def _describe(name: str) -> str:
    """Return a distribution's name and version, and where it came from if that was no index."""
    found = _installed()[name]
    return f"{name}=={_folder_parts(found)[1]}{found.read_text('direct_url.json') or ''}"


def _folder_parts(distribution: Distribution) -> tuple[str, str]:
    """Return name and version from the folder's name: the metadata takes a hundred times as long to parse."""
    folder: Path | None = getattr(distribution, "_path", None)
    if folder is None or folder.suffix != ".dist-info":
        return distribution.name, distribution.version
    name, _, version = folder.stem.partition("-")
    return name, version


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
