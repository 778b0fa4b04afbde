"""skops as the platform imports it: it trusts what it would trust, without all of scikit-learn."""

import json
import subprocess
import sys

import pytest
import sklearn

from trainyard import skops_io

TRUSTED = """
import json, sys
from skops.io._trusted_types import SKLEARN_ESTIMATOR_TYPE_NAMES
print(json.dumps([sorted(SKLEARN_ESTIMATOR_TYPE_NAMES), "sklearn.mixture" in sys.modules]))
"""


def trusted(before: str) -> tuple[list[str], bool]:
    """Return what skops trusts in a new interpreter, and whether a module was imported that nothing here uses."""
    output = subprocess.run([sys.executable, "-c", before + TRUSTED], check=True, capture_output=True, text=True).stdout
    names, is_imported = json.loads(output)
    return names, is_imported


def test_the_names_are_those_of_the_locked_scikit_learn() -> None:
    assert json.loads(skops_io.NAMES.read_text()) == skops_io.find_estimators(), "python -m trainyard.skops_io"


def test_skops_trusts_the_same_types_and_scikit_learn_is_not_imported_whole() -> None:
    names, is_imported = trusted("import trainyard.skops_io")
    expected, is_usual = trusted("")

    assert names == expected
    assert len(names) > 150
    assert (is_imported, is_usual) == (False, True)


def test_another_version_s_estimators_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn, "__version__", "0.1")

    assert skops_io.known_classes() == skops_io.find_classes()
