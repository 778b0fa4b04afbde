"""Compose the mail about a run."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from html import escape
from typing import Any

VERBS = {"Completed": "completed", "Failed": "failed", "TimedOut": "timed out", "Crashed": "crashed"}
MAX_METRICS = 30
MAX_COMPONENTS = 100
MAX_LINE_LENGTH = 500
MAX_SUBJECT_LENGTH = 200
MAX_REPORT_LENGTH = 5000
MAX_PARAMETER_LENGTH = 60


@dataclass(frozen=True)
class Pipeline:
    """The top-level run of a subflow's run."""

    flow: str
    name: str


@dataclass(frozen=True)
class MlflowRun:
    """A run in MLflow."""

    url: str
    metrics: Mapping[str, float]
    model: str = ""
    """Name and version of the registered model, if there is one."""


@dataclass(frozen=True)
class Component:
    """A subflow's run that has no mail of its own."""

    flow: str
    name: str
    state: str
    """The state's name in Prefect."""
    error: str = ""
    """The last line of the message of one that failed."""


@dataclass(frozen=True)
class RunSummary:
    """What a mail says about a run that has ended."""

    id: str
    flow: str
    name: str
    url: str
    state: str
    """The state's name in Prefect: Completed, Failed, TimedOut, Crashed, or one that the flow chose."""
    message: str
    """The state's message; that of a failure ends with the error."""
    is_completed: bool
    started: datetime | None
    ended: datetime
    pipeline: Pipeline | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""
    """The run's newest artifact: Markdown or a table."""
    mlflow_runs: Sequence[MlflowRun] = ()
    components: Sequence[Component] = ()
    """In the order in which they started."""
    mlflow_error: str = ""
    """Why MLflow's runs could not be read."""
    mlflow_url: str = ""


@dataclass(frozen=True)
class Row:
    """A title with one or more lines; a link has one."""

    title: str
    lines: Sequence[str]
    is_link: bool = False


def compose(summary: RunSummary, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """Return the mail about a run, in plain text and HTML."""
    mail = EmailMessage()
    mail["Subject"] = format_subject(summary)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Date"] = summary.ended
    # The same for each attempt, so that a mailbox can drop the copy of a mail that was delivered without a reply.
    mail["Message-ID"] = f"<{summary.id}.{summary.ended.timestamp():.0f}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # suppresses out-of-office replies
    rows = list(summary_rows(summary))
    mail.set_content(render_text(format_heading(summary), rows, summary.report))
    mail.add_alternative(render_html(format_heading(summary), rows, summary.report), subtype="html")
    return mail


def format_subject(summary: RunSummary) -> str:
    """Return the subject, such as "[Trainyard] my-pipeline failed: happy-otter"."""
    subject = f"[Trainyard] {format_flow(summary)} {format_outcome(summary.state)}: {summary.name}"
    return to_single_line(subject, MAX_SUBJECT_LENGTH)


def format_heading(summary: RunSummary) -> str:
    """Return the first sentence of the mail."""
    duration = f" after {format_duration(duration_seconds(summary))}" if summary.started else " before it started"
    return to_single_line(f"{format_flow(summary)} {format_outcome(summary.state)}{duration}.")


def format_flow(summary: RunSummary) -> str:
    """Return the name of the flow, with its pipeline if it is a subflow."""
    return f"{summary.flow} of {summary.pipeline.flow}" if summary.pipeline else summary.flow


def format_outcome(state: str) -> str:
    """Return the verb for a state, such as "timed out"."""
    return VERBS.get(state, f"ended as {state}")


def summary_rows(summary: RunSummary) -> Iterator[Row]:
    """Yield the rows of the mail."""
    yield Row("Run", [summary.name])
    if summary.pipeline:
        yield Row("Component of", [f"{summary.pipeline.flow}, run {summary.pipeline.name}"])
    yield Row("State", [summary.state])
    if summary.started:
        yield Row("Started", [f"{summary.started.astimezone(UTC):%F %T} UTC"])
        yield Row("Duration", [format_duration(duration_seconds(summary))])
    if parameters := format_parameters(summary.parameters):
        yield Row("Parameters", [parameters])
    if not summary.is_completed:
        yield Row("Error", [last_line(summary.message)])
    elif summary.state not in VERBS and summary.message:
        yield Row("Message", [summary.message])
    if summary.components:
        yield Row("Components", list(format_components(summary.components)))
    yield Row("Prefect", [summary.url], is_link=True)
    for run in summary.mlflow_runs:
        yield Row("MLflow", [run.url], is_link=True)
        if run.model:
            yield Row("Model", [run.model])
        if summary.is_completed and run.metrics:
            yield Row("Metrics", list(format_metrics(run.metrics)))
    if summary.mlflow_error:
        yield Row("MLflow", [f"Metrics are missing. {summary.mlflow_error}"])
    elif not summary.mlflow_runs:
        yield Row("MLflow", [summary.mlflow_url], is_link=True)


def format_parameters(parameters: Mapping[str, Any]) -> str:
    """Return the parameters that are numbers, texts or lists of texts; others hold data of the pipeline."""

    def is_shown(value: Any) -> bool:
        is_list_of_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return is_list_of_texts or isinstance(value, str | int | float)

    shown = {name: str(value) for name, value in parameters.items() if is_shown(value)}
    return ", ".join(f"{name}={to_single_line(value, MAX_PARAMETER_LENGTH)}" for name, value in shown.items())


def format_components(components: Sequence[Component]) -> Iterator[str]:
    """Yield a line for all components of a name, such as "Oslo happy-otter: preprocess completed, train failed (why)"."""
    by_name: dict[str, list[str]] = {}
    for component in components:
        reason = f" ({component.error})" if component.error else ""
        by_name.setdefault(component.name, []).append(f"{component.flow} {format_outcome(component.state)}{reason}")
    for name, outcomes in list(by_name.items())[:MAX_COMPONENTS]:
        yield f"{name}: {', '.join(outcomes)}"
    if len(by_name) > MAX_COMPONENTS:
        yield f"and {len(by_name) - MAX_COMPONENTS} more"


def format_metrics(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each metric, up to `MAX_METRICS`."""
    names = sorted(name for name in metrics if not name.startswith("system/"))
    width = max(map(len, names), default=0)
    for name in names[:MAX_METRICS]:
        yield f"{name:{width}}  {round(metrics[name], 4)}"
    if len(names) > MAX_METRICS:
        yield f"and {len(names) - MAX_METRICS} more"


def last_line(message: str) -> str:
    """Return the last line that is not blank."""
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "The run left no message."


def duration_seconds(summary: RunSummary) -> float:
    """Return the seconds from start to end; 0 if the run did not start."""
    return max(0.0, (summary.ended - (summary.started or summary.ended)).total_seconds())


def format_duration(seconds: float) -> str:
    """Return a duration such as "4.2 s", "2 min 5 s" or "1 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def format_table(data: str) -> str:
    """Return the data of a table artifact as aligned text.

    Args:
        data: JSON, a list of rows or an object of columns; other text is returned unchanged.
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
    rows = [header] if header else []
    rows += [[row.get(name, "") for name in header] if isinstance(row, dict) else row for row in table]
    cells = [[to_single_line(str(cell)) for cell in (row if isinstance(row, list) else [row])] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) for row in cells)


def render_text(heading: str, rows: Sequence[Row], report: str) -> str:
    """Return the mail's plain text."""
    width = max(len(row.title) for row in rows)
    lines = [heading, ""]
    for row in rows:
        titles = [row.title, *[""] * (len(row.lines) - 1)]
        lines += [f"{title:{width}}  {to_single_line(line)}" for title, line in zip(titles, row.lines, strict=True)]
    if report:
        lines += ["", strip_control_characters(report)[:MAX_REPORT_LENGTH]]
    return "\n".join(lines) + "\n"


def render_html(heading: str, rows: Sequence[Row], report: str) -> str:
    """Return the mail's HTML, without scripts, style sheets and images."""

    def render_cell(row: Row) -> str:
        lines = [escape(to_single_line(line)) for line in row.lines]
        if row.is_link:
            return f'<a href="{lines[0]}">{lines[0]}</a>'
        return f"<pre>{'<br>'.join(lines)}</pre>" if len(lines) > 1 else lines[0]

    table = "".join(
        f'<tr><th align="left" valign="top">{escape(row.title)}</th><td>{render_cell(row)}</td></tr>\n' for row in rows
    )
    quoted = f"<pre>{escape(strip_control_characters(report)[:MAX_REPORT_LENGTH])}</pre>" if report else ""
    return f"<html><body><p>{escape(heading)}</p>\n<table cellpadding=4>\n{table}</table>{quoted}</body></html>\n"


def to_single_line(text: str, max_length: int = MAX_LINE_LENGTH) -> str:
    """Return a text that is safe in a header or a row: one line without control characters, cut to `max_length`."""
    line = strip_control_characters(text).replace("\n", " ").strip()
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def strip_control_characters(text: str) -> str:
    """Return a text that a mail can carry: valid UTF-8, and no control characters but line breaks."""
    text = "\n".join(text.splitlines()).encode("utf-8", "replace").decode()
    return "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)
