"""What a reader has selected, as the page's address holds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

MAX_PAGE = 100_000
MAX_TEXT = 300


@dataclass(frozen=True)
class Selection:
    """Model, metric and flow, where empty means the default, and the pages of runs and versions."""

    model: str = ""
    metric: str = ""
    flow: str = ""
    page: int = 1
    versions: int = 1

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Selection":
        """Parse the query of an address; invalid values count as missing."""

        def page_number(name: str) -> int:
            text = query.get(name, "")
            return min(max(int(text), 1), MAX_PAGE) if text.isdecimal() and len(text) < 9 else 1

        texts = {name: query.get(name, "")[:MAX_TEXT] for name in ("model", "metric", "flow")}
        return cls(**texts, page=page_number("page"), versions=page_number("versions"))

    def url(self, anchor: str = "", **changes: Any) -> str:
        """Return the address of this selection with some changes."""
        values = {**asdict(self), **changes}
        query = urlencode({name: value for name, value in values.items() if value not in ("", 1)})
        return "/" + (f"?{query}" if query else "") + (f"#{anchor}" if anchor else "")
