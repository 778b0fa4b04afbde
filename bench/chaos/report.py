"""Tables of the rounds that were played: `python -m bench.chaos.report` writes them into docs/faults.md."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results/chaos.jsonl"
PAGE = Path(__file__).parents[2] / "docs/faults.md"
BEGIN, END = "<!-- rounds -->\n", "<!-- end of rounds -->\n"
OUTCOMES = ("completed", "resumed", "ended truthfully", "idle", "broken")
Row = dict[str, Any]


def tables(rows: Sequence[Row]) -> str:
    """Return two tables in Markdown: by fault and target, and by moment."""
    by_fault = table(rows, "fault", lambda row: f"{row['fault']} {row['target']}")
    by_moment = table(rows, "moment", lambda row: str(row["moment"]))
    return f"{by_fault}\n{by_moment}"


def table(rows: Sequence[Row], title: str, key: Callable[[Row], str]) -> str:
    """Return the outcomes and the seconds until all promises held, by a property of the rounds."""
    lines = [
        f"| {title} | rounds | {' | '.join(OUTCOMES)} | settled, median | p95 | worst |",
        f"|---|{'---:|' * (len(OUTCOMES) + 4)}",
    ]
    groups = sorted({key(row) for row in rows})
    for name in [*groups, "all"]:
        group = [row for row in rows if name in (key(row), "all")]
        counts = Counter(row["outcome"] for row in group)
        seconds = sorted(row["settled_seconds"] for row in group)
        median, p95 = seconds[len(seconds) // 2], seconds[max(0, -(-95 * len(seconds) // 100) - 1)]
        outcomes = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {name} | {len(group)} | {outcomes} | {median:.0f} s | {p95:.0f} s | {seconds[-1]:.0f} s |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables of all recorded rounds into the page."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{tables(rows)}{END}{after}")


if __name__ == "__main__":
    main()
