"""Tables that a training logs for later evaluation: predictions for the holdout, and a sample of the training data.

The dashboard reads `Artifact.HOLDOUT` and the monitor reads it and `Artifact.TRAINING_SAMPLE`. Both tables have a
`time` column (ISO 8601, empty where rows have no time).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from trainyard.contract import Column, Table

MAX_SAMPLE_ROWS = 2000
SEED = 0


def holdout_table(
    observed: pd.Series, predictions: Mapping[str, Any], time: pd.DatetimeIndex | None = None
) -> pd.DataFrame:
    """Return the table of `Artifact.HOLDOUT`: a row for each row of the holdout.

    Args:
        observed: The target.
        predictions: By name, `Column.MODEL` and the baselines: one probability for each row.
        time: The moment that each row is about.
    """
    return pd.DataFrame({Column.TIME: _iso(time, len(observed)), Column.OBSERVED: np.asarray(observed), **predictions})


def training_sample(inputs: pd.DataFrame, prediction: Any, time: pd.DatetimeIndex | None = None) -> pd.DataFrame:
    """Return the table of `Artifact.TRAINING_SAMPLE`: at most `MAX_SAMPLE_ROWS` rows, in order.

    The sample is deterministic.

    Args:
        inputs: The features that the model was fitted on.
        prediction: The model's prediction for each row: a probability or a class.
        time: The moment that each row is about.
    """
    table = inputs.reset_index(drop=True)
    table[Column.TIME], table[Column.PREDICTION] = _iso(time, len(inputs)), np.asarray(prediction)
    return table if len(table) <= MAX_SAMPLE_ROWS else table.sample(MAX_SAMPLE_ROWS, random_state=SEED).sort_index()


def as_table(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a frame in the contract's JSON form (`contract.Table`); missing values become null."""
    plain = frame.astype(object).where(frame.notna(), None)
    return {Table.COLUMNS: [str(name) for name in plain.columns], Table.DATA: plain.to_numpy().tolist()}


def from_table(table: Mapping[str, Any]) -> pd.DataFrame:
    """Return the frame of a table that `as_table` made.

    Raises:
        ValueError: `table` has no columns or no data.
    """
    if not isinstance(table, Mapping) or not {Table.COLUMNS, Table.DATA} <= table.keys():
        raise ValueError(f"Not a table: it needs the keys {Table.COLUMNS!r} and {Table.DATA!r}.")
    return pd.DataFrame(table[Table.DATA], columns=table[Table.COLUMNS])


def _iso(time: pd.DatetimeIndex | None, rows: int) -> list[str]:
    if time is None:
        return [""] * rows
    return [moment.date().isoformat() if moment == moment.normalize() else moment.isoformat() for moment in time]
