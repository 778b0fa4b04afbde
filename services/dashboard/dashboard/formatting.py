"""Numbers and times as text of the page; registered as Jinja filters."""

import math
from datetime import UTC, datetime

from markupsafe import Markup, escape

PLACEHOLDER = "–"  # noqa: RUF001 - an en dash, as usual in tables


def time_tag(timestamp: float | None, *, relative: bool = True) -> Markup:
    """Return a <time> element, which page.js shows in the reader's time zone; without scripts it shows UTC."""
    if not timestamp:
        return escape(PLACEHOLDER)
    at = datetime.fromtimestamp(timestamp, UTC)
    template = Markup('<time datetime="{}" data-format="{}">{}</time>')
    text = f"{at:%Y-%m-%d %H:%M} UTC"
    return template.format(at.isoformat(timespec="seconds"), "relative" if relative else "absolute", text)


def duration(seconds: float | None) -> str:
    """Return a duration: 0.42 s, 12.3 s, 4 min 5 s, 2 h 3 min."""
    if seconds is None:
        return PLACEHOLDER
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def milliseconds(seconds: float | None) -> str:
    """Return a latency in milliseconds with three digits: 0.42 ms, 12.3 ms, 1230 ms."""
    if seconds is None:
        return PLACEHOLDER
    value = seconds * 1000
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def decimal(value: float | None, digits: int = 4) -> str:
    """Return a number with a fixed count of decimals."""
    return PLACEHOLDER if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(fraction: float | None) -> str:
    """Return a fraction as percent."""
    return PLACEHOLDER if fraction is None or not math.isfinite(fraction) else f"{fraction * 100:.0f} %"


def integer(value: float | None) -> str:
    """Return a count with a thin space between thousands."""
    return PLACEHOLDER if value is None else f"{round(value):,}".replace(",", "\u202f")


def line_breaks(text: str) -> Markup:
    """Return a text with its line breaks as HTML."""
    return Markup("<br>").join(escape(line) for line in text.splitlines())


FILTERS = {f.__name__: f for f in (time_tag, duration, milliseconds, decimal, percent, integer, line_breaks)}
