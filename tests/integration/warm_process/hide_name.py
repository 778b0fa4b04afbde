"""Start `prefect` as a version of it that lacks one name: `python hide_name.py NAME ARGUMENTS`.

NAME is one of `prefect_private.NAMES`, or a text of `prefect_private.SOURCES` as `MODULE: TEXT`. Prefect's own modules keep
what they have imported, as they would with a name that was moved.
"""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def hide(name: str, patch: pytest.MonkeyPatch) -> None:
    """Hide a name from those who look for it from now on."""
    path, _, attribute = name.partition(":")
    if attribute.startswith(" "):
        patch.setattr(inspect, "getsource", _without(import_module(path), attribute.removeprefix(" ")))
        return
    module = import_module(path)
    owner, _, member = attribute.rpartition(".")
    whole = getattr(module, owner) if owner else module
    if not owner or owner == "BaseWorker":  # the worker overrides what it uses of that class
        patch.delattr(whole, member)
        return
    rest = {key: getattr(whole, key) for key in dir(whole) if key != member and not key.startswith("__")}
    patch.setattr(module, owner, SimpleNamespace(**rest))


def _without(module: ModuleType, text: str) -> Callable[[Any], str]:
    getsource = inspect.getsource

    def changed(found: Any) -> str:
        return getsource(found).replace(text, "moved") if found is module else getsource(found)

    return changed


if __name__ == "__main__":
    import prefect.workers.process  # noqa: F401 - takes what Prefect itself needs
    from prefect.cli import app

    hide(sys.argv.pop(1), pytest.MonkeyPatch())
    app()
