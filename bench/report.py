"""Statistics, a description of the machine, and JSON results for all benchmarks."""

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("prefect", "mlflow-skinny", "scikit-learn", "pandas")


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, 95th percentile (nearest rank), minimum, maximum and number of measurements."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 3),
        "min": round(ordered[0], 3),
        "max": round(ordered[-1], 3),
        "n": len(ordered),
    }


def describe_machine() -> dict[str, Any]:
    """Return the machine's properties and the package versions that a result depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def save(name: str, results: dict[str, Any]) -> None:
    """Write a benchmark's results to results/NAME.json and print them."""
    RESULTS.mkdir(exist_ok=True)
    document = {
        "benchmark": name,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": describe_machine(),
        "results": results,
    }
    text = json.dumps(document, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
