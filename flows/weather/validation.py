"""Validation of daily observations: data that breaks a rule is refused with a table of all problems.

The rules, for days in any order with the columns of `Observations`:

- Identical rows of one day are dropped and counted; different rows of one day are refused.
- The newest days are dropped until one is complete, because archives lag. So are the oldest, which have no earlier
  day to be filled from.
- Days outside the requested period are refused, and so is data that begins or ends more than `max_age_days` inside it.
- Impossible values are refused. The bounds lie just outside the records measured on Earth (WMO World Weather and
  Climate Extremes Archive, https://wmo.asu.edu): 1825 mm of rain in 24 hours, -89.2 and 56.7 °C, a gust of 113.2 m/s.
  A day's maximum temperature is not below its minimum.
- Up to `max_gap_days` consecutive days that are missing or blank, and up to `max_filled_share` of all days, are filled
  with the newest earlier values, and listed. Later values never fill a day: they would tell a model what it is to
  predict. Only blank values are filled, except that both extremes of temperature are filled where one is blank, so that
  their order holds. Longer or more gaps are refused.

Units are the source's to declare: `flows.weather.open_meteo` refuses an answer in other ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from flows.weather.observations import DAY, NO_COMPLETE_DAY, RUN_AGAIN, Observations, Origin, Problem
from trainyard.errors import DataError

ALL_COLUMNS = "all"
TEMPERATURES = ["temp_max_c", "temp_min_c"]


@dataclass(frozen=True)
class GapLimits:
    """How much may be missing, and is then filled or left out."""

    max_gap_days: int = 3
    """Consecutive days."""
    max_filled_share: float = 0.02
    """Share of all days."""
    max_age_days: int = 10
    """Days at either end of the requested period."""


def validate_days(
    days: pd.DataFrame,
    origin: Origin,
    limits: GapLimits | None = None,
    requested: tuple[date, date] | None = None,
) -> Observations:
    """Validate the days of a source by the rules above, and fill small gaps.

    Args:
        days: An index of dates in any order, and WEATHER_COLUMNS in float64.
        origin: The source of the days.
        limits: How much may be missing.
        requested: The first and the last day requested; without them the period is not checked.

    Raises:
        DataError: A rule is broken; the error lists all problems.
    """
    limits = limits or GapLimits()
    distinct = days.reset_index().drop_duplicates().set_index(days.index.name or "index").sort_index()
    problems = list(_find_conflicts(distinct))
    unique = distinct[~distinct.index.duplicated()]
    if requested:
        is_inside = (unique.index >= pd.Timestamp(requested[0])) & (unique.index <= pd.Timestamp(requested[1]))
        if not is_inside.all():
            example = f"requested from {requested[0]} to {requested[1]}"
            problems.append(make_problem(ALL_COLUMNS, "day not requested", _days(unique[~is_inside]), example))
        unique = unique[is_inside]
    complete = unique.index[unique.notna().all(axis="columns")]
    if complete.empty and not problems:
        raise DataError(NO_COMPLETE_DAY, [make_problem(ALL_COLUMNS, "no complete day")])
    if complete.empty:
        raise refused_data_error(problems, RUN_AGAIN)
    period = unique.loc[complete.min() : complete.max()]
    whole = period.reindex(pd.date_range(complete.min(), complete.max(), name="date"))
    problems = [
        *_find_impossible_values(period),
        *problems,
        *(_find_missing_ends(whole, limits, requested) if requested else ()),
        *_find_gaps(whole, limits),
    ]
    if problems:
        raise refused_data_error(problems, RUN_AGAIN)
    frame, filled = _fill_gaps(whole)
    return Observations(
        origin=origin,
        frame=frame,
        filled=tuple(day.date() for day in filled),
        dropped_duplicates=len(days) - len(distinct),
    )


def list_problems(errors: SchemaErrors) -> Iterator[Problem]:
    """Yield a problem for each failed column and check of a schema, in the schema's order."""
    cases = errors.failure_cases
    # A check of whole rows reports each of their columns; together they are one problem.
    whole_rows = cases["schema_context"] == "DataFrameSchema"
    cases = cases.assign(subject=cases["column"].where(~whole_rows, ALL_COLUMNS))
    for (column, check), found in cases.groupby(["subject", "check"], sort=False, dropna=False):
        days = pd.DatetimeIndex(pd.to_datetime(found["index"].dropna().unique())).sort_values()
        first = found[found["index"] == days[0]] if len(days) else found
        values = [f"{row.failure_case:g}" if _is_number(row.failure_case) else "" for row in first.itertuples()]
        if column == ALL_COLUMNS and len(days):
            values = [f"{name} {value}" for name, value in zip(first["column"], values, strict=True)]
        yield make_problem(str(column), str(check), days, ", ".join(values))


def refused_data_error(problems: list[Problem], advice: str) -> DataError:
    """Return an error that names the first problem, counts the others and carries all."""
    first = problems[0]
    column = f"{first['column']}: " if first["column"] != ALL_COLUMNS else ""
    where = f"{first['first_day']} to {first['last_day']}, {first['count']} days"
    if first["count"] == 1:
        where = str(first["first_day"])
    details = "; ".join(str(part) for part in (where if first["count"] else "", first["example"]) if part)
    others = len(problems) - 1
    more = f" And {others} more problem{'s' if others > 1 else ''}." if others else ""
    return DataError(
        f"The data is refused: {column}{first['check']} ({details}).{more} {advice}".replace(" ()", ""), problems
    )


def make_problem(column: str, check: str, days: pd.DatetimeIndex | None = None, example: str = "") -> Problem:
    """Return a row of the table of problems; without `days` it is about the data as a whole."""
    days = pd.DatetimeIndex([]) if days is None else days
    return {
        "column": column,
        "check": check,
        "first_day": f"{days.min():%F}" if len(days) else "",
        "last_day": f"{days.max():%F}" if len(days) else "",
        "count": len(days),
        "example": example,
    }


def fill_forward(days: pd.DataFrame) -> pd.DataFrame:
    """Return every day from the first complete one to the last, gaps of any length filled from earlier days.

    Raises:
        DataError: There is no complete day.
    """
    complete = days.index[days.notna().all(axis="columns")]
    if complete.empty:
        raise DataError(NO_COMPLETE_DAY)
    return _fill_gaps(days.reindex(pd.date_range(complete.min(), complete.max(), name="date")))[0]


def _fill_gaps(whole: pd.DataFrame) -> tuple[pd.DataFrame, pd.DatetimeIndex]:
    """Return the days with blanks filled from earlier days, and the days that had any.

    `whole` has a row for every day, blank where the day was missing; its first and last are complete.
    """
    blank = whole.isna()
    frame = whole.copy()
    # Filled together they keep their order: both are of the same day.
    frame.loc[blank[TEMPERATURES].any(axis="columns"), TEMPERATURES] = np.nan
    return frame.ffill(), pd.DatetimeIndex(whole.index[blank.any(axis="columns")])


def _bounded(low: float, high: float, unit: str) -> pa.Column:
    return pa.Column(float, pa.Check.in_range(low, high, error=f"outside {low:g} to {high:g} {unit}"), nullable=True)


_SCHEMA = pa.DataFrameSchema(
    {
        "precipitation_mm": _bounded(0, 1900, "mm"),
        "temp_max_c": _bounded(-95, 60, "°C"),
        "temp_min_c": _bounded(-95, 60, "°C"),
        "wind_ms": _bounded(0, 120, "m/s"),
    },
    checks=pa.Check(lambda days: ~(days["temp_max_c"] < days["temp_min_c"]), error="temp_max_c below temp_min_c"),
    index=pa.Index(unique=True),
    strict=True,
)


def _find_impossible_values(period: pd.DataFrame) -> Iterator[Problem]:
    try:
        _SCHEMA.validate(period, lazy=True)
    except SchemaErrors as errors:
        yield from list_problems(errors)


def _find_conflicts(distinct: pd.DataFrame) -> Iterator[Problem]:
    """Yield a problem if a day has several rows with different values."""
    rows = distinct[distinct.index.duplicated(keep=False)]
    if not rows.empty:
        first = rows.loc[[rows.index[0]]]
        differing = [column for column in rows if first[column].nunique(dropna=False) > 1]
        example = "; ".join(f"{column} {' or '.join(f'{v:g}' for v in first[column])}" for column in differing)
        yield make_problem(ALL_COLUMNS, "one day sent with different values", _days(rows).unique(), example)


def _find_missing_ends(whole: pd.DataFrame, limits: GapLimits, requested: tuple[date, date]) -> Iterator[Problem]:
    first, last = pd.Timestamp(requested[0]), pd.Timestamp(requested[1])
    begins, ends = whole.index[0], whole.index[-1]
    bound = f"more than {limits.max_age_days} days"
    if (last - ends).days > limits.max_age_days:
        late = pd.date_range(ends + DAY, last)
        check = f"ends too early, {bound} before {requested[1]}"
        yield make_problem(ALL_COLUMNS, check, late, f"newest day {ends:%F}")
    if (begins - first).days > limits.max_age_days:
        early = pd.date_range(first, begins - DAY)
        check = f"begins too late, {bound} after {requested[0]}"
        yield make_problem(ALL_COLUMNS, check, early, f"oldest day {begins:%F}")


def _find_gaps(whole: pd.DataFrame, limits: GapLimits) -> Iterator[Problem]:
    blank = whole.isna()
    incomplete = blank.any(axis="columns")
    gap_number = (incomplete != incomplete.shift()).cumsum()[incomplete]
    for _, gap in gap_number.groupby(gap_number):
        if len(gap) > limits.max_gap_days:
            absent = blank.loc[gap.index]
            columns = ALL_COLUMNS if absent.all(axis=None) else ", ".join(absent.columns[absent.any()])
            days = _days(gap)
            check = f"not consecutive, more than {limits.max_gap_days} days in a row missing or blank"
            example = f"{days[0] - DAY:%F} is followed by {days[-1] + DAY:%F}"
            yield make_problem(columns, check, days, example)
    share = float(incomplete.mean())
    if share > limits.max_filled_share:
        check = f"more than {limits.max_filled_share:.3g} of all days missing or blank"
        yield make_problem(ALL_COLUMNS, check, _days(whole[incomplete]), f"{share:.3g}")


def _days(rows: pd.DataFrame | pd.Series) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(rows.index)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
