"""What a reader has selected, as the page's address holds it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from urllib.parse import urlencode

MAX_PAGE = 100_000
MAX_TEXT = 300


class TimeRange(NamedTuple):
    """A period that ends now."""

    label: str
    seconds: float


RANGES = {
    "": TimeRange("all time", math.inf),
    "30d": TimeRange("30 days", 30 * 86_400),
    "7d": TimeRange("7 days", 7 * 86_400),
    "24h": TimeRange("24 hours", 86_400),
    "1h": TimeRange("1 hour", 3600),
    "15m": TimeRange("15 minutes", 900),
}
"""By name in the page's address."""


@dataclass(frozen=True)
class Selection:
    """Model, metric, flow, time range and the versions that are compared, where empty means the default, and pages.

    The pages are those of runs and of versions.
    """

    model: str = ""
    metric: str = ""
    flow: str = ""
    range: str = ""
    compare: str = ""
    against: str = ""
    page: int = 1
    versions: int = 1

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Selection":
        """Parse the query of an address; invalid values count as missing."""

        def page_number(name: str) -> int:
            text = query.get(name, "")
            return min(max(int(text), 1), MAX_PAGE) if text.isdecimal() and len(text) < 9 else 1

        texts = {name: query.get(name, "")[:MAX_TEXT] for name in ("model", "metric", "flow", "compare", "against")}
        period = query.get("range", "")
        return cls(
            **texts,
            range=period if period in RANGES else "",
            page=page_number("page"),
            versions=page_number("versions"),
        )

    @property
    def period(self) -> TimeRange:
        """The time range."""
        return RANGES[self.range]

    def since(self, now: float) -> float:
        """Return the first moment of the time range; minus infinity without one. Both are seconds since the epoch."""
        return now - self.period.seconds

    def url(self, anchor: str = "", **changes: Any) -> str:
        """Return the address of this selection with some changes."""
        values = {**asdict(self), **changes}
        query = urlencode({name: value for name, value in values.items() if value not in ("", 1)})
        return "/" + (f"?{query}" if query else "") + (f"#{anchor}" if anchor else "")
