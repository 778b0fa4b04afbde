"""Provisioning's settings about mail."""

import sys

import pytest

from infra.provision.__main__ import main
from infra.provision.automations import mail_run_events
from infra.provision.settings import Settings


@pytest.fixture(autouse=True)
def required(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the required settings."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("text", "events"), [("", ()), ("Failed", ("Failed",)), (" Failed, Crashed ,", ("Failed", "Crashed"))]
)
def test_events_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, events: tuple[str, ...]) -> None:
    monkeypatch.setenv("MAIL_EVENTS", text)
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment

    assert settings.mail_events == events
    automation = mail_run_events("some-id", settings.mail_events)
    assert automation["enabled"] == bool(events)


def test_an_unknown_event_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_EVENTS", "Completed,Finished")
    monkeypatch.setattr(sys, "argv", ["provision", "platform"])
    with pytest.raises(SystemExit) as refused:
        main()

    assert refused.value.code == "MAIL_EVENTS: 'Finished' is none of Completed, Failed, Crashed."
