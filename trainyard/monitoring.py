"""Assess a model from its recorded predictions: drift of the inputs, and scores against the ground truth.

A forecast is a prediction about a subject and a time, for which a project's hook knows the ground truth; that of any other
prediction is posted as a label to serving.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from trainyard import control, drift
from trainyard.contract import (
    DRIFT_COLUMNS,
    FORECAST_COLUMNS,
    OUTCOME_COLUMNS,
    Column,
    Record,
    ScoreName,
    Table,
    Verdict,
    record_about,
)
from trainyard.live_scores import CLASSES, OUTPUT, PROBABILITIES, Scorer, as_binary, make_scorer
from trainyard.skill import BASELINE_LOSS, DAY, MODEL_LOSS, daily_excess, measure_skill, parse_days

AT = "at"
LABEL, SAMPLED = "trainyard.label", "trainyard.sampled"
"""Columns that no feature has: the posted ground truth, and whether the record is one of an even sample of all."""
MAX_LEAD_TIME = pd.Timedelta(days=2)
"""Forecasts further ahead than this do not count for drift. The subject's next day begins up to two days after a moment
in UTC."""
RECENT_DAYS = 7
ALERT_PAUSE = pd.Timedelta(days=7)
"""Time after which an alert about the same is a new one."""
MAX_ALERTS, MAX_ALERT_LENGTH = 100, 60
"""So that a tag in MLflow holds them."""
FURTHER_CONFIDENCE = 0.999
"""Of the interval that must lie below zero skill for an alert on a lead time without a holdout of its own."""
MAX_OUTCOMES = 5000
"""Of the table that a check logs."""
FORECAST_KEYS = [Column.VERSION, Column.SUBJECT, Column.TIME, Column.LEAD_DAYS]


class AlertThresholds(BaseModel):
    """When the monitor raises an alert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_predictions: Annotated[int, Field(ge=10)] = 30
    """Fewer recent rows are not compared with the training data, unless they are about days."""
    max_drifted_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest share of the inputs that may have drifted."""
    min_scored: Annotated[int, Field(ge=5)] = 10
    """Fewer predictions with a known outcome cannot raise an alert."""
    min_loss_rise: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The smallest rise of the loss over that on the holdout that is looked for: in nats of the log loss, in the share of
    errors, or in the squared error of the seasonal mean; the loss of all skill is looked for where that is more."""


class Reference:
    """What a model version is compared with: its training sample and its holdout.

    Args:
        sample: Its `training_sample`.
        holdout: Its `holdout_table`.
    """

    def __init__(self, sample: pd.DataFrame, holdout: pd.DataFrame) -> None:
        self.sample = sample
        self.days = parse_days(sample[Column.TIME])
        self.is_timed = len(self.days) > 0 and not self.days.hasnans
        self._holdout = holdout
        self.input_charts = lru_cache(4)(self._input_charts)
        self._find_scorer = lru_cache(4)(self._make_scorer)

    def scorer(self, rows: pd.DataFrame) -> Scorer | None:
        """Return what scores the version's predictions; None where its holdout has nothing to compare them with.

        Args:
            rows: Its predictions, from `rows_from_records`.
        """
        known = rows[CLASSES].dropna()
        classes = tuple(known.iloc[-1]) if len(known) else None
        return self._find_scorer(classes, bool(rows[PROBABILITIES].notna().any()))

    def _make_scorer(self, classes: tuple[Any, ...] | None, has_probabilities: bool) -> Scorer | None:
        return make_scorer(self._holdout, classes, has_probabilities)

    def _input_charts(self, columns: tuple[str, ...], rows_a_day: int) -> control.InputCharts:
        """Return the control charts of some columns for days with so many rows."""
        return control.InputCharts(self.sample[list(columns)], self.days, rows_a_day)


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
    outcomes: pd.DataFrame
    """`OUTCOME_COLUMNS`."""
    problem: str
    """A value of `contract.Problem`; empty where nothing can be scored."""
    alerts: tuple[str, ...] = ()
    """What an alert is about: scores that are worse, and what has drifted."""

    @property
    def summary(self) -> str:
        """The reasons as one line."""
        return " ".join(self.reasons)


def rows_from_records(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return recorded requests as one row for each prediction, oldest first.

    Of several forecasts of a version about the same subject and time with the same lead time, the newest is kept.

    Args:
        records: As serving lists them (`contract.Record`).

    Returns:
        The inputs; `prediction`: the probability of the second class of a binary classifier, else the predicted
        value or class; `at`: when the request was answered; `version`; `subject` and `time`, empty if the record is
        about nothing; `lead_days`; `OUTPUT`, `CLASSES` and `PROBABILITIES`; `LABEL` and `SAMPLED`.
    """
    frames = []
    for record in records:
        subject, times = record_about(dict(record))
        frame = _frame(record["inputs"])
        frame = frame.assign(**_outputs(record))
        frame[AT], frame[Column.VERSION] = pd.Timestamp(record["at"]), int(record["version"])
        frame[Column.SUBJECT], frame[Column.TIME] = subject, times or [""] * len(frame)
        frames.append(frame)
    if not frames:
        names = [Column.PREDICTION, AT, Column.VERSION, Column.SUBJECT, Column.TIME, Column.LEAD_DAYS]
        return pd.DataFrame(columns=[*names, OUTPUT, CLASSES, PROBABILITIES, LABEL, SAMPLED])
    rows = pd.concat(frames, ignore_index=True).sort_values(AT, kind="stable")
    due, made = (pd.to_datetime(rows[name], errors="coerce", format="ISO8601", utc=True) for name in (Column.TIME, AT))
    rows[Column.LEAD_DAYS] = np.ceil((due - made) / pd.Timedelta(days=1))
    is_superseded = rows.duplicated(FORECAST_KEYS, keep="last") & (rows[Column.TIME] != "")
    return rows[~is_superseded].reset_index(drop=True)


def assess(
    rows: pd.DataFrame,
    reference: Reference,
    observed: Mapping[tuple[str, str], Any],
    thresholds: AlertThresholds,
    version: int,
) -> Assessment:
    """Assess a model version from its own recent predictions.

    Args:
        rows: The predictions of all versions, from `rows_from_records`.
        reference: What the version is compared with.
        observed: The known ground truth by subject and time.
        thresholds: When to raise an alert.
        version: The version that is assessed; predictions of others are only listed.
    """
    rows = rows.assign(**{Column.OBSERVED: pd.Series(find_truths(rows, observed), index=rows.index, dtype=object)})
    own = rows[rows[Column.VERSION] == version]
    shifts = measure_drift(own[own[SAMPLED].astype(bool)], reference, thresholds)
    drift_metrics, drifted = score_drift(shifts, thresholds)
    scorer = reference.scorer(own)
    known = select_known(own, scorer)
    live_metrics, worse = score_live(known, scorer, thresholds)
    metrics = {"predictions": float(len(own)), **drift_metrics, **live_metrics}
    is_scored = live_metrics.get("scored_nearest", 0) >= thresholds.min_scored
    if drifted or worse:
        verdict = Verdict.ALERT
        reasons = [describe_drift(shifts, thresholds)] if drifted else []
        reasons += worse.values()
    elif shifts or is_scored:
        verdict = Verdict.OK
        reasons = [describe_drift(shifts, thresholds)] if shifts else []
        reasons += [f"{name_predictions(known)} are not worse than on the holdout beyond chance."] if is_scored else []
    else:
        verdict = Verdict.TOO_FEW
        reasons = [
            f"{len(own)} predictions are too few to compare with the training data; "
            f"{thresholds.min_predictions} are needed."
        ]
    if known.empty and (truths := int(own[Column.OBSERVED].notna().sum())):
        reasons = [*reasons, f"None of {truths} observed values can be scored: they do not fit the holdout's."]
    forecasts, outcomes = list_forecasts(rows), list_outcomes(known, scorer)
    problem = scorer.problem if scorer else ""
    alerts = tuple(dict.fromkeys(alert[:MAX_ALERT_LENGTH] for alert in (*worse, *drifted)))[:MAX_ALERTS]
    return Assessment(verdict, tuple(reasons), metrics, shifts, forecasts, outcomes, problem, alerts)


def new_alerts(alerts: Sequence[str], former: Iterable[Sequence[str]]) -> list[str]:
    """Return what an alert is about that no check of the last `ALERT_PAUSE` raised one about.

    Args:
        alerts: `Assessment.alerts` of a check.
        former: Those of the checks of the last `ALERT_PAUSE` before it.
    """
    known = {alert for each in former for alert in each}
    return [alert for alert in alerts if alert not in known]


def measure_drift(rows: pd.DataFrame, reference: Reference, thresholds: AlertThresholds) -> list[drift.Shift]:
    """Return the shift of each input and of the prediction; empty if there are too few rows.

    Where training rows are about days, recent rows are compared by their days: those of forecasts, or the days of the
    requests where there are no forecasts.
    """
    sample = reference.sample
    columns = [name for name in sample.columns if name != Column.TIME and name in rows.columns]
    is_forecast = rows[Column.TIME] != ""
    forecasts, others = nearest_forecasts(rows[is_forecast]), rows[~is_forecast]
    if reference.is_timed and is_forecast.any():
        others = others.head(0)  # they may be about any season
    rows = pd.concat([others, forecasts]).sort_values(AT, kind="stable") if len(others) else forecasts
    days = parse_days(rows[Column.TIME].where(rows[Column.TIME] != "", rows[AT].astype(str)))
    if reference.is_timed and control.can_chart(reference.days, days):
        charts = reference.input_charts(tuple(columns), int(np.ceil(days.value_counts().median())))
        deviations = charts.deviations(rows[columns], days)
        is_recent = days > days.max() - pd.Timedelta(days=RECENT_DAYS)
        recent, season = rows.loc[is_recent, columns], drift.same_season(sample, Column.TIME, days[is_recent])
        return drift.compare(season[columns], recent, sample=sample[columns], deviations=deviations)
    if len(rows) < thresholds.min_predictions:
        return []
    newest = int((rows[AT] > rows[AT].max() - pd.Timedelta(days=RECENT_DAYS)).sum())
    count = max(newest, thresholds.min_predictions)
    training = drift.same_season(sample, Column.TIME, days[-count:]) if reference.is_timed else sample
    return drift.compare(training[columns], rows[columns].tail(count), sample=sample[columns])


def nearest_forecasts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the forecast with the shortest lead time about each subject and time, unless it is too far ahead.

    The inputs of forecasts further ahead are forecasts themselves.
    """
    nearest = rows.sort_values(Column.LEAD_DAYS, kind="stable").drop_duplicates([Column.SUBJECT, Column.TIME])
    return nearest[nearest[Column.LEAD_DAYS] <= MAX_LEAD_TIME / pd.Timedelta(days=1)].sort_index()


def score_drift(shifts: Sequence[drift.Shift], thresholds: AlertThresholds) -> tuple[dict[str, float], list[str]]:
    """Return the metrics of drift, and what an alert is about; nothing if there is none.

    The prediction alerts by itself: it depends on all inputs.
    """
    if not shifts:
        return {}, []
    inputs = [shift for shift in shifts if shift.column != Column.PREDICTION]
    prediction = next((shift for shift in shifts if shift.column == Column.PREDICTION), None)
    share = sum(shift.drifted for shift in inputs) / max(1, len(inputs))
    metrics = {
        "drifted_share": share,
        "psi_max": max((shift.psi for shift in inputs), default=0.0),
        "null_share_max": max((shift.recent_nulls for shift in inputs), default=0.0),
        "outside_max": max((shift.outside for shift in inputs), default=0.0),
        "prediction_psi": prediction.psi if prediction else 0.0,
    }
    is_alert = share > thresholds.max_drifted_share or (prediction is not None and prediction.drifted)
    return metrics, [about for shift in shifts for about in name_drift(shift)] if is_alert else []


def name_drift(shift: drift.Shift) -> list[str]:
    """Return what an alert for a shift is about.

    The distributions of the inputs are one: what moves some of them, such as a wet month, moves others on the next day.
    """
    owner = "prediction" if shift.column == Column.PREDICTION else "inputs"
    return [
        f"{kind} of the {owner}" if kind == drift.DISTRIBUTION else f"{kind} of {shift.column}" for kind in shift.kinds
    ]


def describe_drift(shifts: Sequence[drift.Shift], thresholds: AlertThresholds) -> str:
    """Return a sentence that names what has drifted and why."""
    inputs = [shift for shift in shifts if shift.column != Column.PREDICTION]
    drifted = [shift for shift in inputs if shift.drifted]
    sentences = []
    if drifted:
        named = ", ".join(f"{shift.column}: {shift.reason}" for shift in drifted[:5])
        sentences.append(
            f"{len(drifted) / len(inputs):.0%} of the inputs have drifted ({named}); "
            f"{thresholds.max_drifted_share:.0%} are allowed."
        )
    sentences += [
        f"The prediction has drifted ({shift.reason})."
        for shift in shifts
        if shift.column == Column.PREDICTION and shift.drifted
    ]
    return " ".join(sentences) or "No input has drifted."


def find_truths(rows: pd.DataFrame, observed: Mapping[tuple[str, str], Any]) -> list[Any]:
    """Return each row's ground truth, None where it is not known: its label, or what the project's hook observed.

    Someone who posts a label for a forecast corrects the hook.
    """
    keys = zip(rows[Column.SUBJECT], rows[Column.TIME], rows[LABEL], strict=True)
    return [observed.get((subject, time)) if _is_missing(label) else label for subject, time, label in keys]


def list_forecasts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the forecasts among the predictions with their observed values (`FORECAST_COLUMNS`)."""
    forecasts = rows[rows[Column.TIME] != ""].sort_values([Column.SUBJECT, Column.TIME], kind="stable")
    truths = [as_binary(*each) for each in zip(forecasts[Column.OBSERVED], forecasts[CLASSES], strict=True)]
    return pd.DataFrame(
        {
            Column.SUBJECT: forecasts[Column.SUBJECT],
            Column.TIME: forecasts[Column.TIME],
            Column.ISSUED_AT: [moment.isoformat() for moment in forecasts[AT]],
            Column.VERSION: forecasts[Column.VERSION],
            Column.PROBABILITY: forecasts[Column.PREDICTION],
            Column.OBSERVED: pd.Series(truths, index=forecasts.index, dtype=object),
            Column.LEAD_DAYS: forecasts[Column.LEAD_DAYS],
        },
        columns=list(FORECAST_COLUMNS),
    ).reset_index(drop=True)


def select_known(rows: pd.DataFrame, scorer: Scorer | None) -> pd.DataFrame:
    """Return the rows that can be scored, in the form of the holdout.

    A row that is about no time is scored as one about the moment of its request, without a lead time.
    """
    is_about = rows[Column.TIME] != ""
    moments = pd.Series([moment.isoformat() for moment in rows[AT]], index=rows.index, dtype=object)
    rows = rows.assign(
        **{
            Column.ISSUED_AT: moments,
            Column.TIME: rows[Column.TIME].where(is_about, moments),
            Column.LEAD_DAYS: rows[Column.LEAD_DAYS].astype(float).where(is_about, 0.0),
        }
    )
    known = scorer.select(rows) if scorer else rows.head(0)
    return known.sort_values(Column.TIME, kind="stable").reset_index(drop=True)


def list_outcomes(known: pd.DataFrame, scorer: Scorer | None) -> pd.DataFrame:
    """Return the predictions that can be scored with their losses (`OUTCOME_COLUMNS`), the newest `MAX_OUTCOMES`."""
    if scorer is None or known.empty:
        return pd.DataFrame(columns=list(OUTCOME_COLUMNS))
    losses = scorer.losses(known)
    added = {
        Column.TRUE_PROBABILITY: scorer.true_probability(known),
        Column.LOSS: losses[MODEL_LOSS].to_numpy(),
        Column.BASELINE_LOSS: losses[BASELINE_LOSS].to_numpy(),
    }
    return known.assign(**added)[list(OUTCOME_COLUMNS)].tail(MAX_OUTCOMES).reset_index(drop=True)


def name_predictions(known: pd.DataFrame) -> str:
    """Return what a sentence calls rows: forecasts if all of them are about a subject."""
    return "Forecasts" if (known[Column.SUBJECT] != "").all() else "Predictions"


def score_live(
    known: pd.DataFrame, scorer: Scorer | None, thresholds: AlertThresholds
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the live and the holdout scores, and what alerts are about with their reasons.

    Each lead time is scored by itself. The nearest lead time with enough rows is that of the holdout's rows: its skill is
    compared with the holdout's. Forecasts further ahead have less skill by nature: they raise an alert where they are worse
    than the baseline.
    """
    if known.empty or scorer is None:
        return {"scored": float(len(known))}, {}
    leads = known[Column.LEAD_DAYS].value_counts().sort_index()
    enough = leads[leads >= thresholds.min_scored].index
    nearest = enough[0] if len(enough) else leads.index[0]
    metrics: dict[str, float] = {}
    worse: dict[str, str] = {}
    for lead in enough[1:]:
        skill = measure_skill(scorer.losses(known[known[Column.LEAD_DAYS] == lead]), FURTHER_CONFIDENCE)
        metrics[f"skill_{lead:.0f}_days_ahead"] = skill.value
        if skill.high < 0:
            worse[f"skill {lead:.0f} days ahead"] = (
                f"Forecasts {lead:.0f} days ahead are worse than {scorer.baseline} (skill {skill.value:.2f})."
            )
    own, reason = _score_nearest(known[known[Column.LEAD_DAYS] == nearest], scorer, thresholds)
    return {"scored": float(len(known))} | own | metrics, ({"skill": reason} if reason else {}) | worse


def _score_nearest(judged: pd.DataFrame, scorer: Scorer, thresholds: AlertThresholds) -> tuple[dict[str, float], str]:
    """Return the scores of the nearest lead time and of the holdout, and the reason for an alert or an empty string."""
    live, expected = scorer.score(judged), scorer.holdout_scores
    table = scorer.losses(judged)
    skill = measure_skill(table)
    live["skill"] = skill.value
    metrics = {"scored_nearest": float(len(judged)), "skill_low": skill.low, "skill_high": skill.high}
    metrics |= {f"{ScoreName.LIVE_PREFIX}{name}": value for name, value in live.items()}
    metrics |= {f"{ScoreName.HOLDOUT_PREFIX}{name}": value for name, value in expected.items()}
    if len(judged) < thresholds.min_scored:
        return metrics, ""
    rows_a_day = int(np.ceil(table.groupby(DAY).size().median()))
    chart = scorer.loss_chart(rows_a_day, thresholds.min_loss_rise)
    total = chart.sum(daily_excess(scorer.charted_losses(judged)))
    metrics |= {"loss_sum": total, "loss_sum_limit": chart.limit}
    if total <= chart.limit:
        return metrics, ""
    return metrics, (
        f"The skill of {len(judged)} {name_predictions(judged).lower()} against {scorer.baseline} is {skill.value:.2f} "
        f"({skill.low:.2f} to {skill.high:.2f}), on the holdout it was {expected['skill']:.2f}: the loss has risen "
        "beyond chance."
    )


def drift_table(shifts: Sequence[drift.Shift]) -> pd.DataFrame:
    """Return the shifts as a table, one row for each (`DRIFT_COLUMNS`)."""
    return pd.DataFrame([asdict(shift) for shift in shifts], columns=list(DRIFT_COLUMNS))


def _frame(table: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(table[Table.DATA], columns=table[Table.COLUMNS])


def _outputs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a record that its inputs do not have."""
    outputs = _frame(record["outputs"])
    names = [name for name in outputs.columns if str(name).startswith(Record.PROBABILITY_PREFIX)]
    classes, labels, rows = record.get(Record.CLASSES), record.get(Record.LABELS), len(outputs)
    return {
        Column.PREDICTION: outputs[names[1] if len(names) == 2 else Column.PREDICTION].to_numpy(),
        OUTPUT: outputs[Column.PREDICTION].to_numpy(),
        CLASSES: _objects([tuple(classes)] * rows if classes is not None else [None] * rows),
        PROBABILITIES: _objects(outputs[names].to_numpy().tolist() if names else [None] * rows),
        LABEL: _objects(labels or [None] * rows),
        SAMPLED: record.get(SAMPLED, True),
    }


def _objects(values: Sequence[Any]) -> pd.Series:
    """Return a column of Python objects, which may be sequences themselves."""
    return pd.Series(values, dtype=object)


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and np.isnan(label))
