"""The mail about a run: what it says, composed from plain facts."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from html import escape
from typing import Any

VERBS = {"Completed": "completed", "Failed": "failed", "TimedOut": "timed out", "Crashed": "crashed"}
MOST_METRICS = 30
LONGEST_LINE = 500
LONGEST_REPORT = 5000
LONGEST_PARAMETER = 60


@dataclass(frozen=True)
class Root:
    """The run that somebody started and of which another is a component."""

    flow: str
    name: str


@dataclass(frozen=True)
class Tracked:
    """A run in MLflow; the model is the name and version that it registered, if it did."""

    url: str
    metrics: Mapping[str, float]
    model: str = ""


@dataclass(frozen=True)
class Facts:
    """What is told about a run that has ended."""

    id: str
    flow: str
    name: str
    url: str
    state: str
    """The state's name in Prefect: Completed, Failed, TimedOut, Crashed, or one that the flow gave it."""
    message: str
    """The state's message; that of a failure ends with the error."""
    good: bool
    started: datetime | None
    ended: datetime
    root: Root | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""
    """What the run wrote of itself in Markdown, or as a table."""
    tracked: Sequence[Tracked] = ()
    tracking_problem: str = ""
    """Why nothing is known of MLflow's runs."""
    tracking_url: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the mail, or some; a link is one that can be clicked."""

    title: str
    lines: Sequence[str]
    link: bool = False


def compose(facts: Facts, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """Return the mail about a run, in plain text and HTML."""
    mail = EmailMessage()
    mail["Subject"] = subject(facts)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Date"] = facts.ended
    # The same for each attempt: a server that took the mail and whose answer was lost shows it once.
    mail["Message-ID"] = f"<{facts.id}.{facts.ended.timestamp():.0f}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # an absent person's mailbox does not answer
    listed = list(rows(facts))
    mail.set_content(as_text(heading(facts), listed, facts.report))
    mail.add_alternative(as_html(heading(facts), listed, facts.report), subtype="html")
    return mail


def subject(facts: Facts) -> str:
    """Return for example "[Trainyard] weather-pipeline failed: happy-otter"."""
    return one_line(f"[Trainyard] {what(facts)} {verb(facts.state)}: {facts.name}", 200)


def heading(facts: Facts) -> str:
    """Return the mail's first sentence."""
    duration = f" after {human(seconds_of(facts))}" if facts.started else " before it had started"
    return one_line(f"{what(facts)} {verb(facts.state)}{duration}.")


def what(facts: Facts) -> str:
    """Name the flow, and of a component its pipeline."""
    return f"{facts.flow} of {facts.root.flow}" if facts.root else facts.flow


def verb(state: str) -> str:
    """Return what a run did that has this state now."""
    return VERBS.get(state, f"ended as {state}")


def rows(facts: Facts) -> Iterator[Row]:
    """Yield the mail's lines."""
    yield Row("Run", [facts.name])
    if facts.root:
        yield Row("Component of", [f"{facts.root.flow}, run {facts.root.name}"])
    yield Row("State", [facts.state])
    if facts.started:
        yield Row("Started", [f"{facts.started.astimezone(UTC):%F %T} UTC"])
        yield Row("Duration", [human(seconds_of(facts))])
    if parameters := shown_parameters(facts.parameters):
        yield Row("Parameters", [parameters])
    if not facts.good:
        yield Row("Error", [last_line(facts.message)])
    elif facts.state not in VERBS and facts.message:  # one that the flow gave a name of its own
        yield Row("Message", [facts.message])
    yield Row("Prefect", [facts.url], link=True)
    for run in facts.tracked:
        yield Row("MLflow", [run.url], link=True)
        if run.model:
            yield Row("Model", [run.model])
        if facts.good and run.metrics:
            yield Row("Metrics", list(shown_metrics(run.metrics)))
    if facts.tracking_problem:
        yield Row("MLflow", [f"Metrics are missing. {facts.tracking_problem}"])
    elif not facts.tracked:
        yield Row("MLflow", [facts.tracking_url], link=True)


def shown_parameters(parameters: Mapping[str, Any]) -> str:
    """Return those that people set: numbers, texts and lists of names, but no data that a component was handed."""

    def is_set_by_people(value: Any) -> bool:
        is_list_of_names = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return is_list_of_names or isinstance(value, str | int | float)

    shown = {name: str(value) for name, value in parameters.items() if is_set_by_people(value)}
    return ", ".join(f"{name}={one_line(value, LONGEST_PARAMETER)}" for name, value in shown.items())


def shown_metrics(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yield a line each, and of a long list its beginning."""
    names = sorted(name for name in metrics if not name.startswith("system/"))
    width = max(map(len, names), default=0)
    for name in names[:MOST_METRICS]:
        yield f"{name:{width}}  {round(metrics[name], 4)}"
    if len(names) > MOST_METRICS:
        yield f"and {len(names) - MOST_METRICS} more"


def last_line(message: str) -> str:
    """Return the last line that says something."""
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "The run left no message."


def seconds_of(facts: Facts) -> float:
    """Return how long the run took, from its start to its end."""
    return max(0.0, (facts.ended - (facts.started or facts.ended)).total_seconds())


def human(seconds: float) -> str:
    """Return a duration as people say it: "4.2 s", "2 min 5 s", "1 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def table_text(data: str) -> str:
    """Return a table as lines of text.

    Args:
        data: As Prefect keeps it: JSON of a list of rows, or of a column each; other text is returned as it is.
    """
    try:
        table = json.loads(data)
    except json.JSONDecodeError:
        return data
    if isinstance(table, dict) and all(isinstance(column, list) for column in table.values()):
        table = [dict(zip(table, cells, strict=False)) for cells in zip(*table.values(), strict=False)]
    if not isinstance(table, list) or not table:
        return data
    header = list(table[0]) if isinstance(table[0], dict) else []
    cells = [header] if header else []
    cells += [[row.get(name, "") for name in header] if isinstance(row, dict) else row for row in table]
    texts = [[one_line(str(cell)) for cell in (row if isinstance(row, list) else [row])] for row in cells]
    widths = [max(len(row[i]) for row in texts if i < len(row)) for i in range(max(map(len, texts)))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) for row in texts)


def as_text(first: str, listed: Sequence[Row], report: str) -> str:
    """Return the plain text."""
    width = max(len(row.title) for row in listed)
    lines = [first, ""]
    for row in listed:
        titles = [row.title, *[""] * (len(row.lines) - 1)]
        lines += [f"{title:{width}}  {one_line(line)}" for title, line in zip(titles, row.lines, strict=True)]
    return "\n".join([*lines, *(["", clean(report)[:LONGEST_REPORT]] if report else [])]) + "\n"


def as_html(first: str, listed: Sequence[Row], report: str) -> str:
    """Return the same as a page without script, style sheet or image."""

    def cell(row: Row) -> str:
        lines = [escape(one_line(line)) for line in row.lines]
        if row.link:
            return f'<a href="{lines[0]}">{lines[0]}</a>'
        return f"<pre>{'<br>'.join(lines)}</pre>" if len(lines) > 1 else lines[0]

    table = "".join(
        f'<tr><th align="left" valign="top">{escape(row.title)}</th><td>{cell(row)}</td></tr>\n' for row in listed
    )
    written = f"<pre>{escape(clean(report)[:LONGEST_REPORT])}</pre>" if report else ""
    return f"<html><body><p>{escape(first)}</p>\n<table cellpadding=4>\n{table}</table>{written}</body></html>\n"


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text that may stand in a header or a row: no line break or other control character, and not long."""
    line = clean(text).replace("\n", " ").strip()
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def clean(text: str) -> str:
    """Return a text that a mail can carry: line breaks are the only control characters."""
    text = "\n".join(text.splitlines()).encode("utf-8", "replace").decode()
    return "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)
