"""Compares the packages that trained a model with those that serve it."""

import re
import sys
from collections.abc import Mapping

from trainyard.reviewed_types import PACKAGES

MODULES = {name: module for module, names in PACKAGES.items() for name in names}
PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([0-9][^\s;#]*)")


def parse_requirements(text: str) -> dict[str, str]:
    """Return the versions that a requirements file pins, by module, of the packages that predictions depend on."""
    pins = (PIN.match(line.strip()) for line in text.splitlines())
    found = {re.sub(r"[-_.]+", "-", pin[1]).lower(): pin[2] for pin in pins if pin}
    return {MODULES[name]: version for name, version in found.items() if name in MODULES}


def compare_versions(trained: Mapping[str, str]) -> str | None:
    """Return a warning where other minor versions trained a model, which may compute otherwise.

    Args:
        trained: Versions by module. A module that the model did not import has no say.
    """
    own = {name: str(sys.modules[name].__version__) for name in trained if name in sys.modules}
    differ = [name for name in own if trained[name].split(".")[:2] != own[name].split(".")[:2]]
    if not differ:
        return None
    then = " and ".join(f"{PACKAGES[name][0]} {trained[name]}" for name in differ)
    now = " and ".join(own[name] for name in differ)
    return f"it was trained with {then}, and serving has {now}: its predictions may differ"
