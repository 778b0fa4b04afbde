"""What recorded predictions say of a model: have its inputs drifted, and was it right?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from trainyard import drift
from trainyard.evaluation import OBSERVED, PREDICTION, TIME

AT, VERSION, PLACE, DAY = "at", "version", "place", "day"
FORECASTS = (PLACE, DAY, "issued_at", VERSION, "probability", OBSERVED)


class AlertThresholds(BaseModel):
    """When a monitor raises an alert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_predictions: Annotated[int, Field(ge=10)] = 30
    """Fewer recent rows are not compared with the training data."""
    max_drifted_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Largest share of the inputs that may have drifted."""
    min_scored: Annotated[int, Field(ge=5)] = 20
    """Fewer forecasts whose truth is known are not judged."""
    max_brier_rise: Annotated[float, Field(ge=0, le=1)] = 0.03
    """By how much the Brier score may be worse than on the holdout; chance may add two standard errors to it."""


@dataclass(frozen=True)
class Verdict:
    """What a check of one model came to: `ok`, `alert`, or `too-few` rows to say."""

    word: str
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    shifts: Sequence[drift.Shift]
    forecasts: pd.DataFrame

    @property
    def text(self) -> str:
        """The reasons as one line."""
        return " ".join(self.reasons)


def rows_of(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return recorded predictions, one row a predicted row, oldest first.

    Columns: the inputs, `prediction` (the probability of the second of two classes; of more, or none, the
    class), and `at`, `version`, `place` and `day`, of which the last two are empty where nobody said what a
    row is about. A place's day counts once, with its newest forecast.
    """
    frames = []
    for record in records:
        inputs, outputs, about = record["inputs"], record["outputs"], record.get("about") or {}
        frame = pd.DataFrame(inputs["data"], columns=inputs["columns"])
        frame[PREDICTION] = _prediction(pd.DataFrame(outputs["data"], columns=outputs["columns"])).to_numpy()
        frame[AT], frame[VERSION] = pd.Timestamp(record["at"]), int(record["version"])
        frame[PLACE], frame[DAY] = about.get("place", ""), about.get("days") or [""] * len(frame)
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=[PREDICTION, AT, VERSION, PLACE, DAY])
    rows = pd.concat(frames, ignore_index=True).sort_values(AT, kind="stable")
    repeated = rows.duplicated([PLACE, DAY], keep="last") & (rows[DAY] != "")
    return rows[~repeated].reset_index(drop=True)


def assess(
    rows: pd.DataFrame,
    sample: pd.DataFrame,
    holdout: pd.DataFrame,
    truth: Mapping[tuple[str, str], bool],
    limits: AlertThresholds,
) -> Verdict:
    """Return what recent predictions say of a model.

    Args:
        rows: As `rows_of` returns them.
        sample: The training's `training_sample`.
        holdout: The training's `holdout_table`.
        truth: By place and day (ISO 8601), whether what was forecast came about; unknown ones are missing.
        limits: When to raise an alert.
    """
    forecasts = forecasts_of(rows, truth)
    shifts, metrics = find_drift(rows, sample, limits), {"predictions": float(len(rows))}
    reasons, said = [], bool(shifts)
    if shifts:
        inputs = [shift for shift in shifts if shift.column != PREDICTION]
        drifted = [shift.column for shift in inputs if shift.drifted]
        metrics["drifted_share"] = len(drifted) / max(1, len(inputs))
        metrics["psi_max"] = max((shift.psi for shift in inputs), default=0.0)
        metrics["prediction_psi"] = next((shift.psi for shift in shifts if shift.column == PREDICTION), 0.0)
        if metrics["drifted_share"] > limits.max_drifted_share:
            reasons.append(_drifted(shifts, limits))
    scores, reason = score_live(forecasts, holdout, limits)
    metrics |= scores
    if reason:
        reasons.append(reason)
    said = said or scores.get("scored", 0.0) >= limits.min_scored
    if reasons:
        return Verdict("alert", tuple(reasons), metrics, shifts, forecasts)
    if said:
        kept = [_drifted(shifts, limits)] if shifts else []
        if scores.get("scored", 0.0) >= limits.min_scored:
            kept.append("Forecasts are not worse than on the holdout beyond chance.")
        return Verdict("ok", tuple(kept), metrics, shifts, forecasts)
    few = f"{len(rows)} predictions are too few to compare with the training data; {limits.min_predictions} are needed."
    return Verdict("too-few", (few,), metrics, shifts, forecasts)


def find_drift(rows: pd.DataFrame, sample: pd.DataFrame, limits: AlertThresholds) -> list[drift.Shift]:
    """Return the shift of each input and of the prediction; none where there are too few rows."""
    columns = [name for name in sample.columns if name != TIME and name in rows.columns]
    recent = rows.loc[_soon(rows), columns].dropna()
    if len(recent) < limits.min_predictions:
        return []
    days = rows.loc[recent.index, DAY]
    # Only where each row is about a day: those that callers send by themselves may be of any.
    training = drift.same_season(sample, TIME, pd.DatetimeIndex(days)) if (days != "").all() else sample
    return drift.compare(training[columns], recent)


def forecasts_of(rows: pd.DataFrame, truth: Mapping[tuple[str, str], bool]) -> pd.DataFrame:
    """Return the forecasts among predictions, with what happened, or nothing while that is not known."""
    about = rows[rows[DAY] != ""].sort_values([PLACE, DAY], kind="stable")
    known = [truth.get((place, day)) for place, day in zip(about[PLACE], about[DAY], strict=True)]
    return pd.DataFrame(
        {
            PLACE: about[PLACE],
            DAY: about[DAY],
            "issued_at": [moment.isoformat() for moment in about[AT]],
            VERSION: about[VERSION],
            "probability": about[PREDICTION],
            OBSERVED: pd.Series([None if was is None else int(was) for was in known], index=about.index, dtype=object),
        },
        columns=list(FORECASTS),
    ).reset_index(drop=True)


def score_live(forecasts: pd.DataFrame, holdout: pd.DataFrame, limits: AlertThresholds) -> tuple[dict[str, float], str]:
    """Return the live scores beside the holdout's, and why they are too bad, or nothing."""
    known = forecasts[forecasts[OBSERVED].notna()]
    metrics = {"scored": float(len(known))}
    if not len(known):
        return metrics, ""
    live = _scores(known[OBSERVED].astype(int), known["probability"].astype(float))
    before = _scores(holdout[OBSERVED].astype(int), holdout["model"].astype(float))
    metrics |= {f"live_{name}": value for name, value in live.items()}
    metrics |= {f"holdout_{name}": value for name, value in before.items()}
    if len(known) < limits.min_scored:
        return metrics, ""
    squares = (known["probability"].astype(float) - known[OBSERVED].astype(int)) ** 2
    allowed = before["brier"] + limits.max_brier_rise + 2 * float(squares.std()) / np.sqrt(len(known))
    if live["brier"] <= allowed:
        return metrics, ""
    return metrics, (
        f"The Brier score of {len(known)} forecasts is {live['brier']:.3f}, on the holdout it was "
        f"{before['brier']:.3f}; up to {allowed:.3f} could be chance."
    )


def drift_table(shifts: Sequence[drift.Shift]) -> pd.DataFrame:
    """Return the shifts as a table, a row each."""
    names = {"statistic": "ks_statistic", "p_value": "ks_p_value"}
    columns = ["column", "psi", "ks_statistic", "ks_p_value", "training_mean", "recent_mean", "drifted"]
    return pd.DataFrame([asdict(shift) for shift in shifts]).rename(columns=names).reindex(columns=columns)


def _drifted(shifts: Sequence[drift.Shift], limits: AlertThresholds) -> str:
    inputs = [shift for shift in shifts if shift.column != PREDICTION]
    drifted = [shift.column for shift in inputs if shift.drifted]
    if not drifted:
        return "No input has drifted."
    share = f"{len(drifted) / len(inputs):.0%} of the inputs have drifted"
    return f"{share} ({', '.join(drifted[:5])}), {limits.max_drifted_share:.0%} may."


def _soon(rows: pd.DataFrame) -> pd.Series:
    """Tell which rows are not forecasts of days beyond tomorrow, whose inputs are forecasts themselves."""
    ahead = pd.to_datetime(rows[DAY].replace("", None), utc=True) - pd.to_datetime(rows[AT], utc=True)
    return ~(ahead > pd.Timedelta(days=2))  # the place's tomorrow begins up to two days after a moment in UTC


def _prediction(outputs: pd.DataFrame) -> pd.Series:
    probabilities = [name for name in outputs.columns if str(name).startswith("probability_")]
    return outputs[probabilities[1]] if len(probabilities) == 2 else outputs["prediction"]


def _scores(observed: pd.Series, probability: pd.Series) -> dict[str, float]:
    return {
        "brier": float(brier_score_loss(observed, probability, labels=[0, 1])),
        "log_loss": float(log_loss(observed, probability, labels=[0, 1])),
        "accuracy": float(accuracy_score(observed, probability >= 0.5)),
    }
