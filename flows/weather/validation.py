"""What a source sent, checked and made whole, or refused with a list of all that is wrong.

The rules, for days in any order with the columns of `Observations`:

- A row sent twice is dropped and counted; two different rows of one day are refused.
- The newest days are dropped until one is complete, because archives lag; so are the oldest, which
  have no neighbour to be filled from.
- Days that were not asked for are refused, and so is data that begins or ends more than
  `max_age_days` inside the period asked for.
- Impossible values are refused. The bounds lie just outside what was ever measured on Earth (WMO World
  Weather and Climate Extremes Archive, https://wmo.asu.edu): 1825 mm of rain in 24 hours, -89.2 and
  56.7 °C, a gust of 113.2 m/s. A day's maximum is not below its minimum.
- Temperatures in kelvin or °F under the name of °C are refused: a mean above that of the warmest
  places of the latitude. Other units that values alone cannot give away (inches, km/h) are recognized
  by the unit that the source declares, where it declares one.
- Up to `max_gap_days` days in a row that are missing or blank, and up to `max_filled_share` of all days,
  are filled by linear interpolation in time between their neighbours, and listed. Only blank values are
  filled, except that both extremes of temperature are where one is blank, so that their order holds.
  Longer or more gaps are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from flows.weather.observations import Problem
from trainyard.errors import DataError

DAY = pd.Timedelta(days=1)
ALL_COLUMNS = "all"

WRONG_UNITS = "wrong units: on average too warm for °C at this latitude, perhaps °F or kelvin"
AGAIN = "Run again later, or choose fewer years or another place."
UNITS = "Check the address of the source: it must answer in mm, °C and m/s."


@dataclass(frozen=True)
class GapLimits:
    """How much may be missing: days in a row, share of all days, days at either end of the period."""

    max_gap_days: int = 3
    max_filled_share: float = 0.02
    max_age_days: int = 10


@dataclass(frozen=True)
class Checked:
    """Days without gaps and blanks, oldest first, and what it took to get there."""

    frame: pd.DataFrame
    filled: tuple[date, ...]
    dropped_duplicates: int


def check_days(
    days: pd.DataFrame,
    latitude: float,
    limits: GapLimits | None = None,
    asked: tuple[date, date] | None = None,
) -> Checked:
    """Return the days in the form of `Observations`, by the rules above.

    `days` has an index of dates in any order and WEATHER_COLUMNS in float64; `latitude` is in degrees;
    `asked` are the first and the last day asked for, where the source is to be held to them.

    Raises DataError with all problems if a rule is broken.
    """
    limits = limits or GapLimits()
    once = days.reset_index().drop_duplicates().set_index(days.index.name or "index").sort_index()
    repeated = once.index.duplicated()
    problems = list(_conflicts(once))
    unique = once[~repeated]
    if asked:
        inside = (unique.index >= pd.Timestamp(asked[0])) & (unique.index <= pd.Timestamp(asked[1]))
        problems += _rows(ALL_COLUMNS, "day not asked for", unique[~inside], f"asked from {asked[0]} to {asked[1]}")
        unique = unique[inside]
    complete = unique.index[unique.notna().all(axis="columns")]
    if complete.empty and not problems:
        problems = [make_problem(ALL_COLUMNS, "no complete day")]
        raise DataError("The source sent no complete day. Ask for another place or more years.", problems)
    if complete.empty:
        raise refusal(problems, AGAIN)
    period = unique.loc[complete.min() : complete.max()]
    wrong_values = list(impossible(period, latitude))
    whole = period.reindex(pd.date_range(complete.min(), complete.max(), name="date"))
    problems = wrong_values + problems + list(_ends(whole, limits, asked)) + list(_gaps(whole, limits))
    if problems:
        raise refusal(problems, UNITS if problems[0]["check"] == WRONG_UNITS else AGAIN)
    frame, filled = fill(whole)
    return Checked(frame, tuple(day.date() for day in filled), len(days) - len(once))


def fill(whole: pd.DataFrame) -> tuple[pd.DataFrame, pd.DatetimeIndex]:
    """Return the days with blanks interpolated linearly in time, and which days had any.

    `whole` has a row for every day, blank where the day was missing; its first and last are complete.
    """
    blank = whole.isna()
    extremes = ["temp_max_c", "temp_min_c"]
    frame = whole.copy()
    # Interpolated together they keep their order: each lies between neighbours for which it holds.
    frame.loc[blank[extremes].any(axis="columns"), extremes] = np.nan
    return frame.interpolate(method="time"), pd.DatetimeIndex(whole.index[blank.any(axis="columns")])


def warmest_mean(latitude: float) -> float:
    """Return a mean temperature in °C, some degrees above that of the warmest places of the latitude.

    Set by hand around the warmest stations: 34.6 °C at Dallol (14° N), 25 in Death Valley (36°), 16 in
    Genoa (44°), 8 in Bergen (60°), 0 on Bear Island (74°).
    """
    return float(np.interp(abs(latitude), [0, 30, 35, 45, 60, 75, 90], [38, 36, 30, 20, 14, 6, 0]))


def impossible(period: pd.DataFrame, latitude: float) -> Iterator[Problem]:
    """Yield what cannot be in the values of these days, wrong units first: they explain the others."""
    try:
        _schema(latitude).validate(period, lazy=True)
    except SchemaErrors as errors:
        found = list(problems_of(errors))
        for problem in found:
            if problem["check"] == WRONG_UNITS:
                yield problem | {"example": f"mean {_mean_temperature(period):.1f}"}
        yield from (problem for problem in found if problem["check"] != WRONG_UNITS)


def problems_of(errors: SchemaErrors) -> Iterator[Problem]:
    """Yield one problem for each column and check that failed, in the order of the schema."""
    cases = errors.failure_cases
    # A check of whole rows reports each of their columns: they are one problem.
    whole_rows = cases["schema_context"] == "DataFrameSchema"
    cases = cases.assign(subject=cases["column"].where(~whole_rows, ALL_COLUMNS))
    for (column, check), found in cases.groupby(["subject", "check"], sort=False, dropna=False):
        days = pd.DatetimeIndex(pd.to_datetime(found["index"].dropna().unique())).sort_values()
        first = found[found["index"] == days[0]] if len(days) else found
        values = [f"{row.failure_case:g}" if _is_number(row.failure_case) else "" for row in first.itertuples()]
        if column == ALL_COLUMNS and len(days):
            values = [f"{name} {value}" for name, value in zip(first["column"], values, strict=True)]
        yield make_problem(str(column), str(check), days, ", ".join(values))


def refusal(problems: list[Problem], advice: str) -> DataError:
    """Return the error that names the first problem, counts the others and carries all."""
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


def _schema(latitude: float) -> pa.DataFrameSchema:
    def is_celsius(days: pd.DataFrame) -> bool:
        # Part of a year may be warmer than the year: then only a mean hotter than any month on Earth tells.
        return _mean_temperature(days) <= (warmest_mean(latitude) if len(days) >= 330 else 45.0)

    def number(low: float, high: float, unit: str) -> pa.Column:
        bounds = pa.Check.in_range(low, high, error=f"outside {low:g} to {high:g} {unit}")
        return pa.Column(float, bounds, nullable=True)

    return pa.DataFrameSchema(
        {
            "precipitation_mm": number(0, 1900, "mm"),
            "temp_max_c": number(-95, 60, "°C"),
            "temp_min_c": number(-95, 60, "°C"),
            "wind_ms": number(0, 120, "m/s"),
        },
        checks=[
            pa.Check(is_celsius, error=WRONG_UNITS),
            pa.Check(lambda days: ~(days["temp_max_c"] < days["temp_min_c"]), error="temp_max_c below temp_min_c"),
        ],
        index=pa.Index(unique=True),
        strict=True,
    )


def _mean_temperature(days: pd.DataFrame) -> float:
    return float(days[["temp_max_c", "temp_min_c"]].mean(axis="columns").mean())


def _conflicts(once: pd.DataFrame) -> Iterator[Problem]:
    again = once[once.index.duplicated(keep=False)]
    if not again.empty:
        first = again.loc[[again.index[0]]]
        differ = [column for column in again if first[column].nunique(dropna=False) > 1]
        example = "; ".join(f"{column} {' or '.join(f'{v:g}' for v in first[column])}" for column in differ)
        yield make_problem(ALL_COLUMNS, "one day sent with different values", _days(again).unique(), example)


def _ends(whole: pd.DataFrame, limits: GapLimits, asked: tuple[date, date] | None) -> Iterator[Problem]:
    if asked is None:
        return
    first, last = pd.Timestamp(asked[0]), pd.Timestamp(asked[1])
    begins, ends = whole.index[0], whole.index[-1]
    bound = f"more than {limits.max_age_days} days"
    if (last - ends).days > limits.max_age_days:
        late = pd.date_range(ends + DAY, last)
        yield make_problem(ALL_COLUMNS, f"ends too early, {bound} before {asked[1]}", late, f"newest day {ends:%F}")
    if (begins - first).days > limits.max_age_days:
        early = pd.date_range(first, begins - DAY)
        yield make_problem(ALL_COLUMNS, f"begins too late, {bound} after {asked[0]}", early, f"oldest day {begins:%F}")


def _gaps(whole: pd.DataFrame, limits: GapLimits) -> Iterator[Problem]:
    blank = whole.isna()
    incomplete = blank.any(axis="columns")
    stretch = (incomplete != incomplete.shift()).cumsum()[incomplete]
    for _, gap in stretch.groupby(stretch):
        if len(gap) > limits.max_gap_days:
            absent = blank.loc[gap.index]
            names = ", ".join(absent.columns[absent.any()])
            days = _days(gap)
            if absent.all(axis=None):
                names = ALL_COLUMNS
            check = f"not consecutive, more than {limits.max_gap_days} days in a row missing or blank"
            example = f"{days[0] - DAY:%F} is followed by {days[-1] + DAY:%F}"
            yield make_problem(names, check, days, example)
    share = float(incomplete.mean())
    if share > limits.max_filled_share:
        check = f"more than {limits.max_filled_share:.3g} of all days missing or blank"
        yield make_problem(ALL_COLUMNS, check, _days(whole[incomplete]), f"{share:.3g}")


def _rows(column: str, check: str, rows: pd.DataFrame, example: str) -> list[Problem]:
    return [] if rows.empty else [make_problem(column, check, _days(rows), example)]


def make_problem(column: str, check: str, days: pd.DatetimeIndex | None = None, example: str = "") -> Problem:
    """Return a row of the table of problems; without days it is about all of the data."""
    days = pd.DatetimeIndex([]) if days is None else days
    return {
        "column": column,
        "check": check,
        "first_day": f"{days.min():%F}" if len(days) else "",
        "last_day": f"{days.max():%F}" if len(days) else "",
        "count": len(days),
        "example": example,
    }


def _days(rows: pd.DataFrame | pd.Series) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(rows.index)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
