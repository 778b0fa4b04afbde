"""Assess a model from its recorded predictions: drift of the inputs, and scores against the ground truth.

A forecast is a prediction about a subject and a time; only forecasts can be scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from trainyard import drift
from trainyard.contract import (
    DRIFT_COLUMNS,
    FORECAST_COLUMNS,
    Column,
    Record,
    ScoreName,
    Table,
    Verdict,
    record_about,
)

AT = "at"
MAX_LEAD_TIME = pd.Timedelta(days=2)
"""Forecasts further ahead than this do not count for drift: their inputs are forecasts themselves. The subject's next
day begins up to two days after a moment in UTC."""


class AlertThresholds(BaseModel):
    """When the monitor raises an alert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_predictions: Annotated[int, Field(ge=10)] = 30
    """Fewer recent rows are not compared with the training data."""
    max_drifted_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Largest share of the inputs that may have drifted."""
    min_scored: Annotated[int, Field(ge=5)] = 20
    """Fewer forecasts with a known outcome cannot raise an alert."""
    max_brier_rise: Annotated[float, Field(ge=0, le=1)] = 0.03
    """How much worse than on the holdout the Brier score may be, in addition to two standard errors."""


@dataclass(frozen=True)
class Assessment:
    """The result of a check of one model."""

    verdict: str
    """A value of `contract.Verdict`."""
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    shifts: Sequence[drift.Shift]
    forecasts: pd.DataFrame
    """`FORECAST_COLUMNS`."""

    @property
    def summary(self) -> str:
        """The reasons as one line."""
        return " ".join(self.reasons)


def rows_from_records(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return recorded requests as one row for each prediction, oldest first.

    Of several forecasts about the same subject and time, the newest is kept.

    Args:
        records: As serving lists them (`contract.Record`).

    Returns:
        The inputs; `prediction`: the probability of the second class of a binary classifier, else the predicted
        value or class; `at`: when the request was answered; `version`; `subject` and `time`, empty if the record is
        about nothing.
    """
    frames = []
    for record in records:
        subject, times = record_about(dict(record))
        frame = _frame(record["inputs"])
        frame[Column.PREDICTION] = _prediction(_frame(record["outputs"])).to_numpy()
        frame[AT], frame[Column.VERSION] = pd.Timestamp(record["at"]), int(record["version"])
        frame[Column.SUBJECT], frame[Column.TIME] = subject, times or [""] * len(frame)
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=[Column.PREDICTION, AT, Column.VERSION, Column.SUBJECT, Column.TIME])
    rows = pd.concat(frames, ignore_index=True).sort_values(AT, kind="stable")
    is_superseded = rows.duplicated([Column.SUBJECT, Column.TIME], keep="last") & (rows[Column.TIME] != "")
    return rows[~is_superseded].reset_index(drop=True)


def assess(
    rows: pd.DataFrame,
    sample: pd.DataFrame,
    holdout: pd.DataFrame,
    observed: Mapping[tuple[str, str], float],
    thresholds: AlertThresholds,
) -> Assessment:
    """Assess a model from its recent predictions.

    Args:
        rows: The predictions, from `rows_from_records`.
        sample: The model's `training_sample`.
        holdout: The model's `holdout_table`.
        observed: The known ground truth by subject and time.
        thresholds: When to raise an alert.
    """
    forecasts = join_ground_truth(rows, observed)
    shifts = measure_drift(rows, sample, thresholds)
    drift_metrics, drift_alert = score_drift(shifts, thresholds)
    live_metrics, live_alert = score_live(forecasts, holdout, thresholds)
    metrics = {"predictions": float(len(rows)), **drift_metrics, **live_metrics}
    is_scored = live_metrics["scored"] >= thresholds.min_scored
    if alerts := [alert for alert in (drift_alert, live_alert) if alert]:
        verdict, reasons = Verdict.ALERT, alerts
    elif shifts or is_scored:
        verdict = Verdict.OK
        reasons = [describe_drift(shifts, thresholds)] if shifts else []
        reasons += ["Forecasts are not worse than on the holdout beyond chance."] if is_scored else []
    else:
        verdict = Verdict.TOO_FEW
        reasons = [
            f"{len(rows)} predictions are too few to compare with the training data; "
            f"{thresholds.min_predictions} are needed."
        ]
    return Assessment(verdict, tuple(reasons), metrics, shifts, forecasts)


def measure_drift(rows: pd.DataFrame, sample: pd.DataFrame, thresholds: AlertThresholds) -> list[drift.Shift]:
    """Return the shift of each input and of the prediction; empty if there are too few rows."""
    columns = [name for name in sample.columns if name != Column.TIME and name in rows.columns]
    recent = rows.loc[~_is_long_range(rows), columns].dropna()
    if len(recent) < thresholds.min_predictions:
        return []
    times = rows.loc[recent.index, Column.TIME]
    # A row without a time may be about any season.
    is_timed = (times != "").all()
    training = drift.same_season(sample, Column.TIME, pd.DatetimeIndex(times)) if is_timed else sample
    return drift.compare(training[columns], recent)


def score_drift(shifts: Sequence[drift.Shift], thresholds: AlertThresholds) -> tuple[dict[str, float], str]:
    """Return the metrics of drift, and the reason for an alert or an empty string."""
    if not shifts:
        return {}, ""
    inputs = [shift for shift in shifts if shift.column != Column.PREDICTION]
    share = sum(shift.drifted for shift in inputs) / max(1, len(inputs))
    metrics = {
        "drifted_share": share,
        "psi_max": max((shift.psi for shift in inputs), default=0.0),
        "prediction_psi": next((shift.psi for shift in shifts if shift.column == Column.PREDICTION), 0.0),
    }
    return metrics, describe_drift(shifts, thresholds) if share > thresholds.max_drifted_share else ""


def describe_drift(shifts: Sequence[drift.Shift], thresholds: AlertThresholds) -> str:
    """Return a sentence that names the drifted inputs."""
    inputs = [shift for shift in shifts if shift.column != Column.PREDICTION]
    drifted = [shift.column for shift in inputs if shift.drifted]
    if not drifted:
        return "No input has drifted."
    return (
        f"{len(drifted) / len(inputs):.0%} of the inputs have drifted ({', '.join(drifted[:5])}); "
        f"{thresholds.max_drifted_share:.0%} are allowed."
    )


def join_ground_truth(rows: pd.DataFrame, observed: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Return the forecasts among the predictions with their observed values (`FORECAST_COLUMNS`)."""
    forecasts = rows[rows[Column.TIME] != ""].sort_values([Column.SUBJECT, Column.TIME], kind="stable")
    keys = zip(forecasts[Column.SUBJECT], forecasts[Column.TIME], strict=True)
    return pd.DataFrame(
        {
            Column.SUBJECT: forecasts[Column.SUBJECT],
            Column.TIME: forecasts[Column.TIME],
            Column.ISSUED_AT: [moment.isoformat() for moment in forecasts[AT]],
            Column.VERSION: forecasts[Column.VERSION],
            Column.PROBABILITY: forecasts[Column.PREDICTION],
            Column.OBSERVED: pd.Series([observed.get(key) for key in keys], index=forecasts.index, dtype=object),
        },
        columns=list(FORECAST_COLUMNS),
    ).reset_index(drop=True)


def score_live(
    forecasts: pd.DataFrame, holdout: pd.DataFrame, thresholds: AlertThresholds
) -> tuple[dict[str, float], str]:
    """Return the live and the holdout scores, and the reason for an alert or an empty string.

    Only predicted probabilities of a target that is 0 or 1 are scored.
    """
    observed, probability = _binary_outcomes(forecasts[Column.OBSERVED], forecasts[Column.PROBABILITY])
    metrics = {"scored": float(len(observed))}
    expected = _binary_outcomes(holdout[Column.OBSERVED], holdout[Column.MODEL])
    if not len(observed) or not len(expected[0]):
        return metrics, ""
    live, reference = _scores(observed, probability), _scores(*expected)
    metrics |= {f"{ScoreName.LIVE_PREFIX}{name}": value for name, value in live.items()}
    metrics |= {f"{ScoreName.HOLDOUT_PREFIX}{name}": value for name, value in reference.items()}
    if len(observed) < thresholds.min_scored:
        return metrics, ""
    standard_error = float(((probability - observed) ** 2).std()) / np.sqrt(len(observed))
    allowed = reference["brier"] + thresholds.max_brier_rise + 2 * standard_error
    if live["brier"] <= allowed:
        return metrics, ""
    return metrics, (
        f"The Brier score of {len(observed)} forecasts is {live['brier']:.3f}, on the holdout it was "
        f"{reference['brier']:.3f}; up to {allowed:.3f} could be chance."
    )


def drift_table(shifts: Sequence[drift.Shift]) -> pd.DataFrame:
    """Return the shifts as a table, one row for each (`DRIFT_COLUMNS`)."""
    return pd.DataFrame([asdict(shift) for shift in shifts], columns=list(DRIFT_COLUMNS))


def _frame(table: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(table[Table.DATA], columns=table[Table.COLUMNS])


def _prediction(outputs: pd.DataFrame) -> pd.Series:
    probabilities = [name for name in outputs.columns if str(name).startswith(Record.PROBABILITY_PREFIX)]
    return outputs[probabilities[1]] if len(probabilities) == 2 else outputs[Column.PREDICTION]


def _is_long_range(rows: pd.DataFrame) -> pd.Series:
    due, made = (pd.to_datetime(rows[name], errors="coerce", format="ISO8601", utc=True) for name in (Column.TIME, AT))
    return due - made > MAX_LEAD_TIME


def _binary_outcomes(observed: pd.Series, probability: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the known outcomes, 0 or 1, and their probabilities; empty if any is something else."""
    known = observed.notna()
    truth, predicted = (pd.to_numeric(values[known], errors="coerce") for values in (observed, probability))
    if not (truth.isin([0, 1]) & predicted.between(0, 1)).all():
        truth, predicted = truth.head(0), predicted.head(0)
    return truth.astype(int), predicted.astype(float)


def _scores(observed: pd.Series, probability: pd.Series) -> dict[str, float]:
    return {
        "brier": float(brier_score_loss(observed, probability, labels=[0, 1])),
        "log_loss": float(log_loss(observed, probability, labels=[0, 1])),
        "accuracy": float(accuracy_score(observed, probability >= 0.5)),
    }
