"""Tables that runs logged with `mlflow.log_table`: columns and rows of values."""

import math
from collections.abc import Mapping
from typing import Any


def rows_of(table: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a table's rows as dicts; none for a table that is missing or not as documented."""
    if not table:
        return []
    columns = [str(column) for column in table.get("columns", [])]
    return [
        dict(zip(columns, row, strict=True))
        for row in table.get("data", [])
        if isinstance(row, list) and len(row) == len(columns)
    ]


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or value is None:
        return float(value) if isinstance(value, bool) else None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
