"""`skops.io` for the platform's own code, imported without all of scikit-learn.

skops lists the names of scikit-learn's estimators on import, and scikit-learn imports each of its modules for that: a third of
what serving's start computes, and 20 MiB. The names depend on scikit-learn's version alone, and `estimators.json` has those of
the locked one; with another version skops looks for itself. `python -m trainyard.skops_io` writes the file anew.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn
import sklearn.utils

NAMES = Path(__file__).with_name("estimators.json")
find_classes: Callable[[], list[tuple[str, type]]] = sklearn.utils.all_estimators


def find_estimators() -> dict[str, Any]:
    """Return scikit-learn's version, and the names of its estimators by module."""
    by_module: dict[str, list[str]] = {}
    for name, estimator in find_classes():
        by_module.setdefault(estimator.__module__, []).append(name)
    return {"version": sklearn.__version__, "estimators": dict(sorted(by_module.items()))}


def known_classes() -> list[tuple[str, type]]:
    """Return stand-ins of scikit-learn's estimators: skops reads nothing of them but name and module."""
    known = json.loads(NAMES.read_text())
    if known["version"] != sklearn.__version__:
        return find_classes()
    return [
        (name, type(name, (), {"__module__": module}))
        for module, names in known["estimators"].items()
        for name in names
    ]


sklearn.utils.all_estimators = known_classes
try:
    from skops.io import dumps, get_untrusted_types, load
    from skops.io.exceptions import UntrustedTypesFoundException
finally:
    sklearn.utils.all_estimators = find_classes

__all__ = ["UntrustedTypesFoundException", "dumps", "get_untrusted_types", "load"]

if __name__ == "__main__":
    NAMES.write_text(json.dumps(find_estimators(), indent=1) + "\n")
