"""The mail about a run, and its settings."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import SMTP, default
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainyard.mail import message
from trainyard.mail.message import Component, MlflowRun, Pipeline, RunSummary
from trainyard.mail.settings import MailSettings, describe_errors
from trainyard.mail.smtp import Tls

STARTED = datetime(2026, 11, 23, 10, 12, 5, tzinfo=UTC)
COMPLETED = RunSummary(
    id="0f3c",
    flow="weather-pipeline",
    name="happy-otter",
    url="http://prefect.test/runs/flow-run/0f3c",
    state="Completed",
    message="",
    is_completed=True,
    started=STARTED,
    ended=STARTED + timedelta(seconds=125),
    parameters={"places": ["Oslo", "Bergen"], "years": 5, "examples": [1, 2, 3]},
    mlflow_runs=[MlflowRun("http://mlflow.test/#/r", {"brier": 0.123456, "auc": 0.9}, "rain-tomorrow version 3")],
)
FAILED = replace(
    COMPLETED,
    state="Failed",
    is_completed=False,
    mlflow_runs=(),
    message="Flow run encountered\n\nValueError: 7 <b>bad</b> days\n",
)


def compose_bodies(summary: RunSummary) -> tuple[str, str]:
    """Return the plain text and the HTML of a mail after its transport."""
    mail = message.compose(summary, "trainyard@example.com", ["a@example.com", "b@example.com"])
    received = message_from_bytes(mail.as_bytes(policy=SMTP), policy=default)
    bodies = [received.get_body((kind,)) for kind in ("plain", "html")]
    plain, html = [str(body.get_content()) if body else "" for body in bodies]

    assert received["To"] == "a@example.com, b@example.com"
    assert received["Message-ID"] == mail["Message-ID"]
    return plain, html


def test_the_mail_about_a_run_lists_its_components_by_name() -> None:
    components = [
        Component("preprocess", "Oslo happy-otter", "Completed"),
        Component("preprocess", "Atlantis happy-otter", "Failed", "UnknownSubjectError: no such <place>"),
        Component("train", "Oslo happy-otter", "TimedOut"),
    ]
    for text in compose_bodies(replace(COMPLETED, components=components)):
        assert "Oslo happy-otter: preprocess completed, train timed out" in unescape(text)
        assert "Atlantis happy-otter: preprocess failed (UnknownSubjectError: no such <place>)" in unescape(text)


def test_the_mail_about_a_run_with_very_many_components_is_cut() -> None:
    components = [Component("train", f"place {number}", "Completed") for number in range(130)]
    text, _ = compose_bodies(replace(COMPLETED, components=components))

    assert "place 99: train completed" in text
    assert "and 30 more" in text


def test_the_mail_about_a_completed_run_has_its_metrics() -> None:
    assert message.format_subject(COMPLETED) == "[Trainyard] weather-pipeline completed: happy-otter"
    for text in compose_bodies(COMPLETED):
        assert "weather-pipeline completed after 2 min 5 s." in text
        assert "brier  0.1235" in text
        assert "rain-tomorrow version 3" in text
        assert "2026-11-23 10:12:05 UTC" in text
        assert "places=['Oslo', 'Bergen'], years=5" in unescape(text)
        assert "examples" not in text
        assert "http://prefect.test/runs/flow-run/0f3c" in text
        assert "http://mlflow.test/#/r" in text


def test_the_mail_about_a_failed_run_has_the_errors_last_line_and_the_report() -> None:
    plain, html = compose_bodies(replace(FAILED, report="| day | error |\n<script>"))

    assert message.format_subject(FAILED) == "[Trainyard] weather-pipeline failed: happy-otter"
    assert "Error       ValueError: 7 <b>bad</b> days" in plain
    assert "encountered" not in plain
    assert "| day | error |" in plain
    assert "7 &lt;b&gt;bad&lt;/b&gt; days" in html
    assert "<script>" not in html


def test_the_mail_about_a_subflow_names_its_pipeline() -> None:
    summary = replace(FAILED, flow="train", pipeline=Pipeline("weather-pipeline", "calm-owl"), state="TimedOut")

    assert message.format_subject(summary) == "[Trainyard] train of weather-pipeline timed out: happy-otter"
    assert "weather-pipeline, run calm-owl" in compose_bodies(summary)[0]


def test_the_mail_about_a_run_that_did_not_start_and_has_no_metrics() -> None:
    summary = replace(FAILED, state="Crashed", started=None, message="", mlflow_error="MLflow does not answer.")
    plain, _ = compose_bodies(summary)

    assert "weather-pipeline crashed before it started." in plain
    assert "The run left no message." in plain
    assert "Metrics are missing. MLflow does not answer." in plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_is_readable(seconds: float, text: str) -> None:
    assert message.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('[{"day": "2026-01-01", "error": "cold"}]', "day         error\n2026-01-01  cold "),
        ('{"day": ["1", "2"], "n": [3, 44]}', "day  n \n1    3 \n2    44"),
        ('[["a", 1], ["b"]]', "a  1\nb"),
        ("[]", "[]"),
        ("no JSON", "no JSON"),
        ("7", "7"),
    ],
)
def test_a_table_artifact_becomes_text(data: str, text: str) -> None:
    assert message.format_table(data) == text


@given(name=st.text(), error=st.text())
def test_no_run_can_add_headers(name: str, error: str) -> None:
    summary = replace(FAILED, name=f"x\r\nBcc: thief@example.com\n{name}", message=error)
    mail = message.compose(summary, "trainyard@example.com", ["a@example.com"])
    received = message_from_bytes(mail.as_bytes(policy=SMTP), policy=default)

    assert set(received.keys()) == {
        "Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
    }  # fmt: skip

    assert received["Bcc"] is None
    assert "Bcc: thief@example.com" in received["Subject"]


def test_long_names_and_many_metrics_are_cut() -> None:
    metrics = {f"metric_{number:03}": float(number) for number in range(100)} | {"system/cpu": 1.0}
    summary = replace(COMPLETED, name="n" * 5000, mlflow_runs=[MlflowRun("http://mlflow.test", metrics)])
    plain, _ = compose_bodies(summary)

    assert len(message.format_subject(summary)) == 200
    assert "and 70 more" in plain
    assert "system/cpu" not in plain
    assert max(map(len, plain.splitlines())) < 600


def read_settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> MailSettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return MailSettings()


def test_the_default_settings_are_those_of_the_stacks_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(monkeypatch, SMTP_HOST="mail", SMTP_USER="", MAIL_TO="")

    assert settings.mail_to == ["team@localhost"]
    assert (settings.server.host, settings.server.port, settings.server.tls) == ("mail", 1025, Tls.NONE)


def test_recipients_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings(monkeypatch, MAIL_TO="a@example.com, b@example.com,").mail_to == [
        "a@example.com",
        "b@example.com",
    ]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MAIL_TO": "a@example.com, nobody"}, "MAIL_TO: 'nobody' is not an address such as team@example.com."),
        ({"MAIL_TO": ","}, "MAIL_TO: List should have at least 1 item after validation, not 0."),
        ({"MAIL_FROM": "a@example.com\nBcc: b@example.com"}, "MAIL_FROM: "),
        ({"MAIL_FROM": "Me <a@example.com>"}, "MAIL_FROM: "),
        ({"SMTP_TLS": "ssl"}, "SMTP_TLS: Input should be 'none', 'starttls' or 'tls'."),
        ({"SMTP_PORT": "70000"}, "SMTP_PORT: Input should be less than or equal to 65535."),
        (
            {"SMTP_USER": "me", "SMTP_PASSWORD": "hunter2"},
            "SMTP_PASSWORD would be sent unencrypted: set SMTP_TLS to starttls or tls.",
        ),
        (
            {"SMTP_TLS": "tls", "SMTP_PASSWORD": "hunter2"},
            "SMTP_PASSWORD needs SMTP_USER, its account.",
        ),
    ],
)
def test_an_invalid_setting_is_named_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        read_settings(monkeypatch, **variables)

    assert describe_errors(refused.value).startswith(expected)
    assert "\n" not in describe_errors(refused.value)
    assert "hunter2" not in describe_errors(refused.value) + str(refused.value) + repr(refused.value)
