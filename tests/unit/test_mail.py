"""The mail about a run: what it says, and the settings that say where it goes."""

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
from trainyard.mail.message import Facts, Root, Tracked
from trainyard.mail.settings import MailSettings, problems
from trainyard.mail.smtp import Tls

STARTED = datetime(2026, 11, 23, 10, 12, 5, tzinfo=UTC)
COMPLETED = Facts(
    id="0f3c",
    flow="weather-pipeline",
    name="happy-otter",
    url="http://prefect.test/runs/flow-run/0f3c",
    state="Completed",
    message="",
    good=True,
    started=STARTED,
    ended=STARTED + timedelta(seconds=125),
    parameters={"places": ["Oslo", "Bergen"], "years": 5, "examples": [1, 2, 3]},
    tracked=[Tracked("http://mlflow.test/#/r", {"brier": 0.123456, "auc": 0.9}, "rain-tomorrow version 3")],
)
FAILED = replace(
    COMPLETED, state="Failed", good=False, tracked=(), message="Flow run encountered\n\nValueError: 7 <b>bad</b> days\n"
)


def texts(facts: Facts) -> tuple[str, str]:
    """Return a mail's plain text and HTML as a reader's program gets them."""
    mail = message.compose(facts, "trainyard@example.com", ["a@example.com", "b@example.com"])
    received = message_from_bytes(mail.as_bytes(policy=SMTP), policy=default)
    assert received["To"] == "a@example.com, b@example.com"
    assert received["Message-ID"] == mail["Message-ID"]
    bodies = [received.get_body((kind,)) for kind in ("plain", "html")]
    plain, html = [str(body.get_content()) if body else "" for body in bodies]
    return plain, html


def test_a_completed_run_tells_its_metrics() -> None:
    assert message.subject(COMPLETED) == "[Trainyard] weather-pipeline completed: happy-otter"
    for text in texts(COMPLETED):
        assert "weather-pipeline completed after 2 min 5 s." in text
        assert "brier  0.1235" in text
        assert "rain-tomorrow version 3" in text
        assert "2026-11-23 10:12:05 UTC" in text
        assert "places=['Oslo', 'Bergen'], years=5" in unescape(text)
        assert "examples" not in text
        assert "http://prefect.test/runs/flow-run/0f3c" in text
        assert "http://mlflow.test/#/r" in text


def test_a_failed_run_tells_the_errors_last_line_and_its_report() -> None:
    plain, html = texts(replace(FAILED, report="| day | error |\n<script>"))
    assert message.subject(FAILED) == "[Trainyard] weather-pipeline failed: happy-otter"
    assert "Error       ValueError: 7 <b>bad</b> days" in plain
    assert "encountered" not in plain
    assert "| day | error |" in plain
    assert "7 &lt;b&gt;bad&lt;/b&gt; days" in html
    assert "<script>" not in html


def test_a_component_names_its_pipeline() -> None:
    facts = replace(FAILED, flow="train", root=Root("weather-pipeline", "calm-owl"), state="TimedOut")
    assert message.subject(facts) == "[Trainyard] train of weather-pipeline timed out: happy-otter"
    assert "weather-pipeline, run calm-owl" in texts(facts)[0]


def test_a_run_that_never_started_and_one_without_mlflow() -> None:
    facts = replace(FAILED, state="Crashed", started=None, message="", tracking_problem="It does not answer.")
    plain, _ = texts(facts)
    assert "weather-pipeline crashed before it had started." in plain
    assert "The run left no message." in plain
    assert "Metrics are missing. It does not answer." in plain


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
def test_durations(seconds: float, text: str) -> None:
    assert message.human(seconds) == text


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
    assert message.table_text(data) == text


@given(name=st.text(), message=st.text())
def test_whatever_a_run_is_called_the_headers_are_ours(name: str, message: str) -> None:
    facts = replace(FAILED, name=f"x\r\nBcc: thief@example.com\n{name}", message=message)
    mail = message.compose(facts, "trainyard@example.com", ["a@example.com"])
    received = message_from_bytes(mail.as_bytes(policy=SMTP), policy=default)
    assert set(received.keys()) == {
        "Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
    }  # fmt: skip
    assert received["Bcc"] is None
    assert "Bcc: thief@example.com" in received["Subject"]


def test_a_long_name_and_many_metrics_stay_readable() -> None:
    metrics = {f"metric_{number:03}": float(number) for number in range(100)} | {"system/cpu": 1.0}
    facts = replace(COMPLETED, name="n" * 5000, tracked=[Tracked("http://mlflow.test", metrics)])
    plain, _ = texts(facts)
    assert len(message.subject(facts)) == 200
    assert "and 70 more" in plain
    assert "system/cpu" not in plain
    assert max(map(len, plain.splitlines())) < 600


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> MailSettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return MailSettings()


def test_settings_have_defaults_that_send_to_the_stacks_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, SMTP_HOST="mail", SMTP_USER="", MAIL_TO="")
    assert settings.mail_to == ["team@localhost"]
    assert (settings.server.host, settings.server.port, settings.server.tls) == ("mail", 1025, Tls.NONE)


def test_recipients_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, MAIL_TO="a@example.com, b@example.com,").mail_to == ["a@example.com", "b@example.com"]


@pytest.mark.parametrize(
    ("variables", "said"),
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
            "SMTP_PASSWORD needs SMTP_USER, the account that it opens.",
        ),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        read(monkeypatch, **variables)
    assert problems(refused.value).startswith(said)
    assert "\n" not in problems(refused.value)
    assert "hunter2" not in problems(refused.value) + str(refused.value) + repr(refused.value)
