"""The sizes of MLflow's objects by kind, and by the run or model that they belong to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from infra.backup.objects import Listed

# Of MLflow's bucket: EXPERIMENT/RUN/..., EXPERIMENT/models/MODEL/..., EXPERIMENT/traces/TRACE/...
MODEL = re.compile(r"[^/]+/models/(?P<owner>m-[0-9a-f]{32})/")
RUN = re.compile(r"[^/]+/(?P<owner>[0-9a-f]{32})/")
KINDS = {"models": MODEL, "files of runs": RUN, "traces": re.compile(r"[^/]+/traces/")}
OTHER = "other"


@dataclass
class Usage:
    """Number and bytes of some objects."""

    count: int = 0
    size: int = 0

    def add(self, count: int, size: int) -> None:
        """Add objects."""
        self.count += count
        self.size += size


@dataclass
class MLflowObjects:
    """The objects of MLflow's bucket."""

    kinds: dict[str, Usage] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    """Bytes by run or model."""


def measure_objects(listed: Iterable[Listed]) -> MLflowObjects:
    """Return the sizes of MLflow's objects."""
    found = MLflowObjects()
    for entry in listed:
        kind, match = next(
            ((kind, match) for kind, pattern in KINDS.items() if (match := pattern.match(entry.name))), (OTHER, None)
        )
        found.kinds.setdefault(kind, Usage()).add(1, entry.size)
        if owner := match and match.groupdict().get("owner"):
            found.owners[owner] = found.owners.get(owner, 0) + entry.size
    return found
