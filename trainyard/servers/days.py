"""Settings of servers in days."""

import sys
from collections.abc import Mapping

from trainyard.contract import MAX_DAYS


def read_days(server: str, variables: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """Return a setting in days, 0 for no end, or the default where it is not set.

    Raises:
        SystemExit: It is neither 0 nor a whole number from `least` to MAX_DAYS; the message names it.
    """
    text = variables.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not (int(text) == 0 or least <= int(text) <= MAX_DAYS):
        sys.exit(
            f"{server} does not start: {name} is {text!r} and must be a whole number of days from {least}, or 0 for no end."
        )
    return int(text)
