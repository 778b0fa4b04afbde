"""What a training leaves of its data, for those who look at it later: the holdout's forecasts, and a sample.

Both are frames whose rows are told by `time`, the moment that a row is about (ISO 8601), or nothing where
rows have none. They lie beside the run's plots, as `evaluation/holdout.json` and
`evaluation/training_sample.json`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

HOLDOUT, SAMPLE = "evaluation/holdout.json", "evaluation/training_sample.json"
TIME, OBSERVED, PREDICTION = "time", "observed", "prediction"
SAMPLE_ROWS = 2000
SEED = 0


def holdout_table(
    observed: pd.Series, forecasts: Mapping[str, Any], time: pd.DatetimeIndex | None = None
) -> pd.DataFrame:
    """Return what was forecast for each holdout row beside what was observed.

    Args:
        observed: The target.
        forecasts: By name, `model` and the baselines: a probability a row.
        time: What each row is about.
    """
    return pd.DataFrame({TIME: _iso(time, len(observed)), OBSERVED: np.asarray(observed), **forecasts})


def training_sample(inputs: pd.DataFrame, prediction: Any, time: pd.DatetimeIndex | None = None) -> pd.DataFrame:
    """Return at most SAMPLE_ROWS rows of what a model was fitted on, in order, and what it says to them.

    The same rows for the same data.

    Args:
        inputs: The features.
        prediction: The model's answer, one a row: a probability or a class.
        time: What each row is about.
    """
    whole = inputs.reset_index(drop=True)
    whole[TIME], whole[PREDICTION] = _iso(time, len(inputs)), np.asarray(prediction)
    return whole if len(whole) <= SAMPLE_ROWS else whole.sample(SAMPLE_ROWS, random_state=SEED).sort_index()


def as_table(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a frame as MLflow keeps tables: names of columns, and rows of plain values."""
    plain = frame.astype(object).where(frame.notna(), None)
    return {"columns": [str(name) for name in plain.columns], "data": plain.to_numpy().tolist()}


def from_table(table: Mapping[str, Any]) -> pd.DataFrame:
    """Return the frame of `as_table`.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(table, Mapping) or not {"columns", "data"} <= table.keys():
        raise ValueError("This is no table: it needs `columns` and `data`.")
    return pd.DataFrame(table["data"], columns=table["columns"])


def _iso(time: pd.DatetimeIndex | None, rows: int) -> list[str]:
    if time is None:
        return [""] * rows
    return [moment.date().isoformat() if moment == moment.normalize() else moment.isoformat() for moment in time]
