"""The page's charts, as Vega-Lite specifications made with Altair; static/charts.js gives them the page's colours.

Nothing is told by colour alone: contestants differ in dash and shape as well, outcomes in shape and filling.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import orjson

from dashboard.calibration import Calibration
from dashboard.models import METRICS, label
from dashboard.runs import REST

Rows = Sequence[Mapping[str, Any]]
DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3]]
SHAPES = ["circle", "square", "triangle-up", "diamond"]
OUTCOMES = ["rain", "dry", "not yet known", "still to come"]
HEIGHT = 240


def metric_chart(rows: Rows, metric: str, when: str = "start of the training") -> dict[str, Any]:
    """A metric of model and baselines over the trainings, or of live predictions over the checks."""
    _, _, better = METRICS.get(metric, ("", "no unit", ""))
    name = label(metric)
    who = contestants(row["who"] for row in rows)
    base = alt.Chart(values(rows)).encode(
        x=alt.X(
            "at:T",
            title=f"{when} (your time)",
            axis=alt.Axis(tickCount=4, labelOverlap=True, format="%-d %b, %H:%M"),
        ),
        y=alt.Y("value:Q", title=f"{name} ({better} is better)" if better else name, scale=alt.Scale(zero=False)),
        color=alt.Color("who:N", title=None, scale=alt.Scale(domain=who), legend=alt.Legend(orient="top")),
        strokeDash=alt.StrokeDash("who:N", title=None, scale=alt.Scale(domain=who, range=DASHES[: len(who)])),
        tooltip=[
            alt.Tooltip("who:N", title="of"),
            alt.Tooltip("value:Q", title=name, format=".4f"),
            alt.Tooltip("version:N", title="version"),
            alt.Tooltip("at:T", title=when, format="%Y-%m-%d %H:%M"),
        ],
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        shape=alt.Shape("who:N", title=None, scale=alt.Scale(domain=who, range=SHAPES[: len(who)]))
    )
    return spec(alt.layer(base.mark_line(strokeWidth=2), points))


def calibration_chart(found: Calibration) -> dict[str, Any]:
    """How often it came beside how likely it was said to be; or with several classes, how sure of the right one."""
    return reliability_chart(found.bins) if found.binary else certainty_chart(found.bins)


def reliability_chart(bins: Rows) -> dict[str, Any]:
    """A point for each tenth, on the diagonal where the probabilities are right, with its 95 % interval."""
    diagonal = (
        alt.Chart(values([{"said": 0, "came": 0}, {"said": 1, "came": 1}]))
        .mark_line(strokeDash=[4, 4], style="quiet")
        .encode(x="said:Q", y="came:Q")
    )
    axis = alt.Axis(format=".0%", values=[0, 0.2, 0.4, 0.6, 0.8, 1])
    unit = alt.Scale(domain=[0, 1], nice=False)
    base = alt.Chart(values(bins)).encode(x=alt.X("said:Q", title="probability said", scale=unit, axis=axis))
    intervals = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title="share of rows in which it came", scale=unit, axis=axis), y2="high:Q"
    )
    points = base.mark_point(filled=True, opacity=1, style="mark").encode(
        y=alt.Y("came:Q", scale=unit, axis=axis),
        size=alt.Size("rows:Q", scale=alt.Scale(range=[40, 320]), legend=None),
        tooltip=[
            alt.Tooltip("said:Q", title="said, mean", format=".1%"),
            alt.Tooltip("came:Q", title="came", format=".1%"),
            alt.Tooltip("low:Q", title="95 % interval from", format=".1%"),
            alt.Tooltip("high:Q", title="to", format=".1%"),
            alt.Tooltip("rows:Q", title="holdout rows"),
        ],
    )
    return spec(alt.layer(diagonal, intervals, points))


def certainty_chart(bins: Rows) -> dict[str, Any]:
    """How many holdout rows had their right class given so much probability."""
    rows = [{**row, "middle": (row["from"] + row["to"]) / 2} for row in bins]
    chart = alt.Chart(values(rows)).mark_bar(style="mark").encode(
        x=alt.X("from:Q", title="probability given to the right class", axis=alt.Axis(format=".0%")).bin("binned"),
        x2="to:Q",
        y=alt.Y("rows:Q", title="holdout rows"),
        tooltip=[
            alt.Tooltip("from:Q", title="from", format=".0%"),
            alt.Tooltip("to:Q", title="to", format=".0%"),
            alt.Tooltip("rows:Q", title="holdout rows"),
        ],
    )  # fmt: skip
    return spec(chart)


def forecast_chart(days: Rows) -> dict[str, Any]:
    """The probability of rain said for each day; the shape says what came."""
    colour = alt.Color("outcome:N", title=None, scale=alt.Scale(domain=OUTCOMES), legend=alt.Legend(orient="top"))
    half = alt.Chart(values([{"half": 0.5}])).mark_rule(strokeDash=[4, 4]).encode(y="half:Q")
    base = alt.Chart(values(days)).encode(
        x=alt.X("day:T", timeUnit="utcyearmonthdate", title="day that is forecast",
                axis=alt.Axis(format="%-d %b", tickCount=6, labelOverlap=True)),
        y=alt.Y("probability:Q", title="probability of rain", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%")),
        tooltip=[
            alt.Tooltip("day:N", title="day"),
            alt.Tooltip("probability:Q", title="probability of rain", format=".0%"),
            alt.Tooltip("outcome:N", title="what came"),
            alt.Tooltip("version:N", title="version"),
            alt.Tooltip("issued_at:N", title="said at"),
        ],
    )  # fmt: skip
    stems = base.mark_rule(opacity=0.5).encode(y2=alt.datum(0.5))
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        color=colour,
        shape=alt.Shape("outcome:N", title=None, scale=alt.Scale(domain=OUTCOMES, range=SHAPES)),
    )
    return spec(alt.layer(half, stems, points))


def drift_chart(rows: Rows) -> dict[str, Any]:
    """How far each column's recent values are from those of the training."""
    shown = [{**row, "said": "drifted" if row["drifted"] else "as in training"} for row in rows]
    domain = ["as in training", "drifted"]
    base = alt.Chart(values(shown)).encode(
        x=alt.X("psi:Q", title="PSI (no unit; 0 is no change)"),
        y=alt.Y("column:N", sort=None, title=None),
        color=alt.Color("said:N", title=None, scale=alt.Scale(domain=domain), legend=alt.Legend(orient="top")),
        tooltip=[
            alt.Tooltip("column:N"),
            alt.Tooltip("psi:Q", title="PSI", format=".3f"),
            alt.Tooltip("training_mean:Q", title="mean in training", format=".3~f"),
            alt.Tooltip("recent_mean:Q", title="mean now", format=".3~f"),
            alt.Tooltip("said:N", title="verdict"),
        ],
    )
    stems = base.mark_rule(strokeWidth=2).encode(x2=alt.datum(0))
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        shape=alt.Shape("said:N", title=None, scale=alt.Scale(domain=domain, range=["circle", "diamond"]))
    )
    return spec(alt.layer(stems, points), height=22 * len(rows) + 80)


def duration_chart(rows: Rows) -> dict[str, Any]:
    """The seconds of each run by component, the newest run on top."""
    components = sorted(dict.fromkeys(row["component"] for row in rows), key=lambda name: name == REST)
    chart = alt.Chart(values(rows)).mark_bar(height={"band": 0.7}).encode(
        x=alt.X("sum(seconds):Q", title="duration (seconds)"),
        y=alt.Y("run:N", sort=alt.SortField("order"), title=None),
        color=alt.Color("component:N", title=None, scale=alt.Scale(domain=components),
                        legend=alt.Legend(orient="top")),
        order=alt.Order("part:Q"),
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("component:N"),
            alt.Tooltip("seconds:Q", title="seconds", format=".2f"),
            alt.Tooltip("state:N", title="the run's state"),
        ],
    ).transform_calculate(part=f"indexof({orjson.dumps(components).decode()}, datum.component)")  # fmt: skip
    return spec(chart, height=24 * len({row["order"] for row in rows}) + 90)


def contestants(names: Any) -> list[str]:
    """Return who is in a chart, the model first."""
    found = sorted(set(names))
    return sorted(found, key=lambda name: name not in ("model", "live"))


def values(rows: Rows) -> alt.Data:
    """Return rows as a chart's data."""
    return alt.Data(values=[dict(row) for row in rows])  # type: ignore[no-untyped-call]


def spec(chart: Any, height: int = HEIGHT) -> dict[str, Any]:
    """Return a chart that is as wide as its place on the page."""
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    sized = chart.properties(width="container", height=height, autosize=fit)
    found: dict[str, Any] = sized.to_dict(validate=False)
    return found


def drawn(make: Callable[..., dict[str, Any]], *arguments: Any) -> str:
    """Return a chart's JSON; made once for the same figures."""
    return _drawn(make, orjson.dumps(arguments), Unhashed(arguments))


class Unhashed:
    """Arguments that travel past the cache's key."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashed)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _drawn(make: Callable[..., dict[str, Any]], _: bytes, given: Unhashed) -> str:
    # A data block in the page: what could end it is written otherwise.
    return orjson.dumps(make(*given.arguments)).decode().replace("<", "\\u003c")
