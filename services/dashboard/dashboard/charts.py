"""The page's charts as Vega-Lite specifications; static/page.js gives them the page's colors and draws them.

Nothing is encoded by color alone: predictors differ in dash and shape as well, outcomes in shape.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from dashboard.calibration import Calibration
from dashboard.checks import OUTCOMES
from dashboard.metrics import describe_metric, sort_predictors
from dashboard.runs import UNATTRIBUTED
from dashboard.traffic import OUTCOMES as OUTCOMES_OF_REQUESTS
from trainyard.contract import Column

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3]]
SHAPES = ["circle", "square", "triangle-up", "diamond"]
DEFAULT_HEIGHT = 240
LINE = {"type": "line", "strokeWidth": 2}
STEM = {"type": "rule", "strokeWidth": 2}
POINT = {"type": "point", "filled": True, "size": 80, "opacity": 1}
TOP_LEGEND = {"orient": "top"}
PERCENT_AXIS = {"format": ".0%", "values": [0, 0.2, 0.4, 0.6, 0.8, 1]}
DAY_AXIS = {"tickCount": 6, "labelOverlap": True, "format": "%-d %b"}
RESIDUAL = "residual (ground truth minus prediction)"
RESIDUAL_POINT = {"type": "point", "size": 30, "opacity": 0.6, "style": "mark"}
ZERO_LINE = {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 4], "style": "muted"},
             "encoding": {"y": {"datum": 0}}}  # fmt: skip
MINUTE_AXIS = {"tickCount": 6, "labelOverlap": True, "format": "%H:%M"}
UNIT_SCALE = {"domain": [0, 1], "nice": False}


def metric_chart(points: Rows, metric: str, at_title: str = "start of the training") -> Spec:
    """Draw a metric over time: of model and baselines, or of live predictions and the holdout."""
    label, _, better = describe_metric(metric)
    predictors = sort_predictors(point["predictor"] for point in points)
    channels = categories("predictor", predictors)
    shape = {"shape": channels.pop("shape")}  # of the points only: a line with shapes draws points of its own
    encoding = {
        "x": quantity("at", f"{at_title} (your time)", type="temporal",
                      axis={"tickCount": 4, "labelOverlap": True, "format": "%-d %b, %H:%M"}),
        "y": quantity("value", f"{label} ({better} is better)" if better else label, scale={"zero": False}),
        **channels,
        "tooltip": [
            category("predictor", "predictor"),
            quantity("value", label, format=".4f"),
            category("version", "version"),
            quantity("at", at_title, type="temporal", format="%Y-%m-%d %H:%M"),
        ],
    }  # fmt: skip
    dashes = category("predictor", scale={"domain": predictors, "range": DASHES[: len(predictors)]})
    layers = [{"mark": LINE, "encoding": {"strokeDash": dashes}}, {"mark": {**POINT, "size": 55}, "encoding": shape}]
    return spec(points, layer=layers, encoding=encoding)


def calibration_chart(calibration: Calibration) -> Spec:
    """Draw the reliability diagram of a binary target, or the histogram of the true class's probability."""
    return reliability_chart(calibration.bins) if calibration.is_binary else true_class_chart(calibration.bins)


def reliability_chart(bins: Rows) -> Spec:
    """Draw the observed frequency with its 95 % interval in each bin, and the diagonal of perfect calibration."""
    y_title = "observed frequency"
    diagonal = {
        "data": {"values": [{"predicted": 0, "observed": 0}, {"predicted": 1, "observed": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 4], "style": "muted"},
        "encoding": {"y": quantity("observed", y_title)},
    }
    intervals = {"mark": STEM, "encoding": {"y": quantity("low", y_title), "y2": {"field": "high"}}}
    points = {
        "mark": {"type": "point", "filled": True, "opacity": 1, "style": "mark"},
        "encoding": {
            "y": quantity("observed", y_title, scale=UNIT_SCALE, axis=PERCENT_AXIS),
            "size": quantity("rows", scale={"range": [40, 320]}, legend=None),
            "tooltip": [
                quantity("predicted", "mean predicted probability", format=".1%"),
                quantity("observed", "observed frequency", format=".1%"),
                quantity("low", "95 % interval from", format=".1%"),
                quantity("high", "to", format=".1%"),
                quantity("rows", "holdout rows"),
            ],
        },
    }
    x = quantity("predicted", "predicted probability", scale=UNIT_SCALE, axis=PERCENT_AXIS)
    return spec(bins, layer=[diagonal, intervals, points], encoding={"x": x})


def true_class_chart(bins: Rows) -> Spec:
    """Draw the count of holdout rows by the probability that the model gave to their true class."""
    encoding = {
        "x": quantity("from", "predicted probability of the true class", bin="binned", axis={"format": ".0%"}),
        "x2": {"field": "to"},
        "y": quantity("rows", "holdout rows"),
        "tooltip": [
            quantity("from", "from", format=".0%"),
            quantity("to", "to", format=".0%"),
            quantity("rows", "holdout rows"),
        ],
    }
    return spec(bins, mark={"type": "bar", "style": "mark"}, encoding=encoding)


def residual_chart(points: Rows) -> Spec:
    """Draw a regression's residuals by its predictions: around 0 without a trend where the model is as good as it gets."""
    encoding = {
        "x": quantity("prediction", "prediction", scale={"zero": False}),
        "y": quantity("residual", RESIDUAL),
        "tooltip": RESIDUAL_TOOLTIP,
    }
    return spec(points, layer=[ZERO_LINE, {"mark": RESIDUAL_POINT, "encoding": encoding}])


def error_chart(points: Rows) -> Spec:
    """Draw a regression's residuals over time, and their mean by day."""
    y = quantity("residual", RESIDUAL)
    residuals = {
        "mark": RESIDUAL_POINT,
        "encoding": {"x": by_day("time"), "y": y, "tooltip": RESIDUAL_TOOLTIP},
    }
    means = {
        "mark": {**LINE, "point": True},
        "encoding": {
            "x": by_day("time", timeUnit="utcyearmonthdate"),
            "y": {**y, "aggregate": "mean"},
            "tooltip": [
                quantity("time", "day", type="temporal", timeUnit="utcyearmonthdate", format="%Y-%m-%d"),
                quantity("residual", "mean of the day", aggregate="mean", format=".4~g"),
            ],
        },
    }
    return spec(points, layer=[ZERO_LINE, residuals, means])


def loss_chart(points: Rows, title: str) -> Spec:
    """Draw the mean loss of the model and of the baseline by day."""
    predictors = list(dict.fromkeys(point["predictor"] for point in points))
    channels = categories("predictor", predictors)
    shape = {"shape": channels.pop("shape")}
    encoding = {
        "x": by_day("day"),
        "y": quantity("value", f"{title}, lower is better"),
        **channels,
        "tooltip": [
            category("predictor", "predictor"),
            quantity("value", title, format=".4~g"),
            category("day", "day"),
            quantity("rows", "predictions"),
        ],
    }
    dashes = category("predictor", scale={"domain": predictors, "range": DASHES[: len(predictors)]})
    layers = [{"mark": LINE, "encoding": {"strokeDash": dashes}}, {"mark": {**POINT, "size": 55}, "encoding": shape}]
    return spec(points, layer=layers, encoding=encoding)


def prediction_chart(rows: Rows, is_binary: bool) -> Spec:
    """Draw predictions over time with their ground truth: as the shape of a probability, or as a second point."""
    is_daily = all(len(row["time"]) == len("2026-01-01") for row in rows)
    time_axis = {"format": "%-d %b" if is_daily else "%-d %b, %H:%M", "tickCount": 6, "labelOverlap": True}
    x = quantity("time", "target time (UTC)", type="temporal", scale={"type": "utc"}, axis=time_axis)
    title = "probability of the positive class" if is_binary else "value"
    tooltip = [
        category("time", "time"),
        quantity("value", "prediction", format=".0%" if is_binary else ".4~g"),
        category("outcome", "ground truth"),
        category("version", "version"),
        category(Column.ISSUED_AT, "issued at"),
    ]
    if not is_binary:
        points = [{**row, "series": "prediction"} for row in rows]
        points += [
            {**row, "series": "ground truth", "value": row["observed"]} for row in rows if row["observed"] is not None
        ]
        y = quantity("value", title, scale={"zero": False})
        encoding = {"x": x, "y": y, **categories("series", ["prediction", "ground truth"]), "tooltip": tooltip}
        return spec(points, mark=POINT, encoding=encoding)
    y = quantity("value", title, scale={"domain": [0, 1]}, axis={"format": ".0%"})
    half = {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"y": {"datum": 0.5}}}
    stems = {"mark": {"type": "rule", "opacity": 0.5}, "encoding": {"x": x, "y": y, "y2": {"datum": 0.5}}}
    outcomes = {
        "mark": {**POINT, "size": 90},
        "encoding": {"x": x, "y": y, **categories("outcome", OUTCOMES), "tooltip": tooltip},
    }
    return spec(rows, layer=[half, stems, outcomes])


def drift_chart(rows: Rows) -> Spec:
    """Draw each column's population stability index."""
    shown = [{**row, "verdict": "drifted" if row["drifted"] else "no drift"} for row in rows]
    encoding = {
        "x": quantity("psi", "PSI (no unit; 0 is no change)"),
        "y": category("column", sort=None),
        **categories("verdict", ["no drift", "drifted"], ["circle", "diamond"]),
        "tooltip": [
            category("column", "column"),
            quantity("psi", "PSI", format=".3f"),
            quantity(Column.TRAINING_MEAN, "mean in training", format=".3~f"),
            quantity(Column.RECENT_MEAN, "recent mean", format=".3~f"),
            category("verdict", "verdict"),
        ],
    }
    layers = [{"mark": STEM, "encoding": {"x2": {"datum": 0}}}, {"mark": POINT}]
    return spec(shown, height=22 * len(rows) + 80, layer=layers, encoding=encoding)


def duration_chart(parts: Rows) -> Spec:
    """Draw the seconds of each run by component, the newest run on top."""
    components = sorted(dict.fromkeys(part["component"] for part in parts), key=lambda name: name == UNATTRIBUTED)
    ordered = [{**part, "position": components.index(part["component"])} for part in parts]
    encoding = {
        "x": quantity("seconds", "duration (seconds)", aggregate="sum"),
        "y": category("run", sort={"field": "order"}),
        "color": category("component", scale={"domain": components}, legend=TOP_LEGEND),
        "order": {"field": "position", "type": "quantitative"},
        "tooltip": [
            category("run", "run"),
            category("component", "component"),
            quantity("seconds", "seconds", format=".2f"),
            category("state", "the run's state"),
        ],
    }
    height = 24 * len({part["order"] for part in parts}) + 90
    return spec(ordered, height=height, mark={"type": "bar", "height": {"band": 0.7}}, encoding=encoding)


def request_chart(points: Rows) -> Spec:
    """Draw a model's requests by minute, stacked by outcome."""
    ordered = [{**point, "position": OUTCOMES_OF_REQUESTS.index(point["outcome"])} for point in points]
    encoding = {
        "x": quantity("at", "minute (your time)", type="temporal", axis=MINUTE_AXIS),
        "x2": {"field": "until"},
        "y": quantity("requests", "requests a minute"),
        "color": category("outcome", scale={"domain": OUTCOMES_OF_REQUESTS}, legend=TOP_LEGEND),
        "order": {"field": "position", "type": "quantitative"},
        "tooltip": [
            quantity("at", "minute", type="temporal", format="%H:%M"),
            category("outcome", "outcome"),
            quantity("requests", "requests"),
        ],
    }
    return spec(ordered, height=180, mark={"type": "bar"}, encoding=encoding)


def latency_chart(points: Rows) -> Spec:
    """Draw the quantiles of a model's latency by minute."""
    quantiles = sorted({point["quantile"] for point in points})
    channels = categories("quantile", quantiles)
    shape = {"shape": channels.pop("shape")}
    encoding = {
        "x": quantity("at", "minute (your time)", type="temporal", axis=MINUTE_AXIS),
        "y": quantity("milliseconds", "latency (ms)", scale={"type": "log"}),
        **channels,
        "tooltip": [
            quantity("at", "minute", type="temporal", format="%H:%M"),
            category("quantile", "quantile"),
            quantity("milliseconds", "ms", format=".3~g"),
        ],
    }
    dashes = category("quantile", scale={"domain": quantiles, "range": DASHES[: len(quantiles)]})
    layers = [{"mark": LINE, "encoding": {"strokeDash": dashes}}, {"mark": {**POINT, "size": 40}, "encoding": shape}]
    return spec(points, height=180, layer=layers, encoding=encoding)


def quantity(field: str, title: str | None = None, **options: Any) -> Spec:
    """Return the definition of a quantitative channel."""
    return {"field": field, "type": "quantitative", "title": title, **options}


def by_day(field: str, **options: Any) -> Spec:
    """Return the definition of a channel of days in UTC."""
    return quantity(field, "day (UTC)", **{"type": "temporal", "scale": {"type": "utc"}, "axis": DAY_AXIS, **options})


def category(field: str, title: str | None = None, **options: Any) -> Spec:
    """Return the definition of a nominal channel."""
    return {"field": field, "type": "nominal", "title": title, **options}


def categories(field: str, domain: Iterable[str], shapes: Sequence[str] = SHAPES) -> Spec:
    """Return color and shape channels of a field."""
    values = list(domain)
    return {
        "color": category(field, scale={"domain": values}, legend=TOP_LEGEND),
        "shape": category(field, scale={"domain": values, "range": list(shapes[: len(values)])}),
    }


def spec(rows: Rows, height: int = DEFAULT_HEIGHT, **view: Any) -> Spec:
    """Return the specification of a chart that is as wide as its container."""
    return {
        "$schema": SCHEMA,
        "data": {"values": rows},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        **view,
    }


RESIDUAL_TOOLTIP = [
    category("time", "time"),
    quantity("prediction", "prediction", format=".4~g"),
    quantity("observed", "ground truth", format=".4~g"),
    quantity("residual", "residual", format=".4~g"),
]


def to_json(chart: Spec) -> str:
    """Return a specification as JSON that cannot end the script element that holds it."""
    return orjson.dumps(chart).decode().replace("<", "\\u003c")
