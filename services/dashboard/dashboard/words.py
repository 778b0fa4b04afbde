"""Figures and times as the page's text says them."""

import math
from datetime import UTC, datetime

from markupsafe import Markup, escape

NONE = "–"  # noqa: RUF001 - a dash, as in a table of figures


def moment(seconds: float | None, *, ago: bool = True) -> Markup:
    """Return a time that the browser shows in the reader's zone; without scripts it stands there in UTC."""
    if not seconds:
        return escape(NONE)
    at = datetime.fromtimestamp(seconds, UTC)
    template = Markup('<time datetime="{}" data-kind="{}">{}</time>')
    return template.format(at.isoformat(timespec="seconds"), "ago" if ago else "at", f"{at:%Y-%m-%d %H:%M} UTC")


def took(seconds: float | None) -> str:
    """Return a duration: 0.42 s, 12.3 s, 4 min 5 s, 2 h 3 min."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def figure(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits after the point, or a dash."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """Return a share as percent."""
    return NONE if value is None or not math.isfinite(value) else f"{value * 100:.0f} %"


def count(value: float | None) -> str:
    """Return a count with a thin space between thousands."""
    return NONE if value is None else f"{round(value):,}".replace(",", "\u202f")


def paragraphs(text: str) -> Markup:
    """Return a text of several lines with its breaks."""
    return Markup("<br>").join(escape(line) for line in text.splitlines())
