"""The flow `send-mail`, against real Prefect and MLflow servers and a mail server with scripted replies."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow import MlflowClient
from prefect import flow, tags
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State

from infra.provision.automations import find_automations, mail_run_events, save_automation
from infra.testing.servers import free_port, prefect_client
from infra.testing.waiting import wait_until
from tests.support.smtp_server import SmtpServer
from trainyard.contract import MLflowPage, PrefectPage, Resource, RunTag, Tag
from trainyard.flows.mail import RETRY_DELAYS, send_mail

ADA, BOB = TEAM = ["ada@example.com", "bob@example.com"]
PREFECT_UI, MLFLOW_UI = "http://prefect.test:4200", "http://mlflow.test:5001"

pytestmark = pytest.mark.usefixtures("prefect", "tracking")


@flow(name="train", persist_result=False)
def train(fails: bool = False) -> None:
    """Complete, or write a table artifact and fail."""
    if fails:
        create_table_artifact([{"day": "2026-01-01", "error": "too cold"}], key="rejected", description="1 bad day")
        raise ValueError("the data is wrong:\n7 days are too cold")


@flow(name="pipeline", persist_result=False)
def pipeline() -> UUID:
    """Run `train` as a subflow; return the id of its run."""
    return run_train()


def run_train(fails: bool = False) -> UUID:
    """Run `train`; return the id of its run."""
    return flow_run_id(train(fails, return_state=True))


def flow_run_id(state: State) -> UUID:
    """Return the id of the run of a state."""
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


@pytest.fixture(scope="module")
def completed(prefect: SyncPrefectClient) -> FlowRun:
    """A completed run, which any number of mails can be about."""
    return prefect.read_flow_run(run_train())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SmtpServer:
    """The mail server of the settings, which the test starts."""
    server = SmtpServer(port=free_port())
    monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("SMTP_PORT", str(server.port))
    monkeypatch.setenv("MAIL_FROM", "trainyard@example.com")
    monkeypatch.setenv("MAIL_TO", ",".join(TEAM))
    return server


@pytest.fixture(scope="module")
def deployment(prefect: SyncPrefectClient) -> UUID:
    """The flow's deployment, which no worker polls."""
    return prefect.create_deployment(prefect.create_flow(send_mail), name=Resource.SEND_MAIL)


class Retries:
    """The scheduled runs of the deployment."""

    def __init__(self, prefect: SyncPrefectClient, deployment: UUID) -> None:
        self._prefect, self._deployment = prefect, deployment

    def read(self) -> list[FlowRun]:
        query = {"deployment_id": {"any_": [self._deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
        return self._prefect.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(query))

    def delete(self) -> None:
        for run in self.read():
            self._prefect.delete_flow_run(run.id)


@pytest.fixture
def retries(prefect: SyncPrefectClient, deployment: UUID) -> Iterator[Retries]:
    """The retries that a test schedules."""
    retries = Retries(prefect, deployment)
    yield retries
    retries.delete()


def send(run_id: UUID, server: SmtpServer | None = None, attempt: int = 1) -> State[Any]:
    """Run the flow, with the mail server up if it is given; return its final state."""
    if server is None:
        return send_mail(run_id, attempt, return_state=True)
    with server:
        return send_mail(run_id, attempt, return_state=True)


def test_the_mail_about_a_completed_run_has_the_metrics_of_its_mlflow_run(
    completed: FlowRun, tracking: MlflowClient, server: SmtpServer
) -> None:
    experiment = tracking.create_experiment(f"mail-{uuid4()}")
    ids = {Tag.FLOW_RUN_ID: str(completed.id), Tag.LAST_FLOW_RUN_ID: str(completed.id)}
    run_tags = {**ids, Tag.MODEL: "rain-tomorrow", Tag.MODEL_VERSION: "3"}
    run = tracking.create_run(experiment, tags=run_tags)
    candidate = tracking.create_run(experiment, tags={**run_tags, Tag.PARENT_RUN_ID: run.info.run_id})
    tracking.log_metric(run.info.run_id, "brier", 0.123456)
    tracking.log_metric(candidate.info.run_id, "brier", 0.999999)
    state = send(completed.id, server)
    (received,) = server.mails

    assert state.is_completed()
    assert state.message == f"Sent the mail about train {completed.name} to {ADA}, {BOB}."
    assert (received.sender, received.recipients) == ("trainyard@example.com", TEAM)
    assert received.mail["Subject"] == f"[Trainyard] train completed: {completed.name}"
    for text in (received.text(), received.text("html")):
        assert "train completed after 0." in text
        assert "0.1235" in text
        assert "0.9999" not in text
        assert text.count("rain-tomorrow version 3") == 1
        assert PrefectPage.flow_run(PREFECT_UI, str(completed.id)) in text
        assert MLflowPage.run(MLFLOW_UI, experiment, run.info.run_id) in text


def test_the_mail_about_a_failed_run_has_the_errors_last_line_and_the_artifact(server: SmtpServer) -> None:
    run_id = run_train(fails=True)
    send(run_id, server)
    (received,) = server.mails
    text = received.text()

    assert "train failed after" in text
    assert "Error       7 days are too cold" in text
    assert "1 bad day" in text
    assert "2026-01-01  too cold" in text
    assert PrefectPage.flow_run(PREFECT_UI, str(run_id)) in text


def test_the_mail_about_a_subflow_has_its_pipeline_and_a_reused_training(
    tracking: MlflowClient, server: SmtpServer
) -> None:
    subflow = pipeline()
    experiment = tracking.create_experiment(f"mail-{uuid4()}")
    reused = {Tag.FLOW_RUN_ID: str(uuid4()), Tag.LAST_SUBFLOW_RUN_ID: str(subflow)}
    run = tracking.create_run(experiment, tags=reused)
    tracking.log_metric(run.info.run_id, "auc", 0.75)
    send(subflow, server)
    (received,) = server.mails

    assert received.mail["Subject"].startswith("[Trainyard] train of pipeline completed: ")
    assert "auc  0.75" in received.text()


def test_without_mlflow_the_mail_says_why_metrics_are_missing(
    completed: FlowRun, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    send(completed.id, server)
    (received,) = server.mails

    assert "Metrics are missing. MLflow does not answer at http://127.0.0.1:9" in received.text()


def test_no_mail_is_sent_about_a_deleted_run(server: SmtpServer) -> None:
    state = send(uuid4(), server)

    assert state.is_completed()
    assert "was deleted" in str(state.message)
    assert not server.mails


def test_no_mail_is_sent_about_the_flow_itself(server: SmtpServer) -> None:
    state = send(flow_run_id(send(uuid4())), server)

    assert state.is_completed()
    assert state.message == "No mail: this flow sends none about itself."
    assert not server.mails


@pytest.mark.parametrize("replies", [{"CONNECT": "421 too busy"}, {"RCPT": "451 later"}, {"END OF DATA": "452"}])
def test_a_temporary_failure_is_retried_by_another_run(
    completed: FlowRun, retries: Retries, server: SmtpServer, replies: dict[str, str]
) -> None:
    server.replies = replies
    state = send(completed.id, server)
    (retry,) = retries.read()
    server.replies = {}
    with server:
        second = send_mail(**retry.parameters, return_state=True)

    assert state.is_completed()
    assert state.message == f"Scheduled another attempt to send the mail about train {completed.name} to {ADA}, {BOB}."
    assert retry.parameters == {"flow_run_id": str(completed.id), "attempt": 2, "recipients": TEAM}
    assert retry.parent_task_run_id is None
    assert second.is_completed()
    assert server.mails[-1].recipients == TEAM


@pytest.mark.parametrize("attempt", range(1, 6))
def test_the_delays_between_attempts_grow(
    completed: FlowRun, retries: Retries, server: SmtpServer, attempt: int
) -> None:
    before = datetime.now(UTC)
    state = send(completed.id, attempt=attempt)
    (retry,) = retries.read()

    assert state.is_completed()
    assert retry.parameters["attempt"] == attempt + 1
    assert retry.expected_start_time is not None
    assert timedelta() <= retry.expected_start_time - before - RETRY_DELAYS[attempt - 1] < timedelta(seconds=30)


def test_after_the_last_attempt_the_run_fails(completed: FlowRun, retries: Retries, server: SmtpServer) -> None:
    state = send(completed.id, attempt=6)

    assert state.is_failed()
    assert str(state.message).startswith(
        f"Could not send the mail about train {completed.name} to {ADA}, {BOB} after 6 attempts: "
        f"the mail server 127.0.0.1:{server.port} does not answer: "
    )
    assert "\n" not in str(state.message)
    assert not retries.read()


@pytest.mark.parametrize(
    "replies", [{"MAIL": "550 not from you"}, {"RCPT": "553 no such mailbox"}, {"END OF DATA": "554 looks like spam"}]
)
def test_a_permanent_failure_is_not_retried(
    completed: FlowRun, retries: Retries, server: SmtpServer, replies: dict[str, str]
) -> None:
    server.replies = replies
    state = send(completed.id, server)
    (reply,) = replies.values()

    assert state.is_failed()
    assert f"the mail server 127.0.0.1:{server.port} replied {reply}." in str(state.message)
    assert not retries.read()


def test_a_retry_is_for_those_who_did_not_get_the_mail(
    completed: FlowRun, retries: Retries, server: SmtpServer
) -> None:
    server.replies = {f"RCPT TO:<{BOB}>": "450 greylisted"}
    state = send(completed.id, server)
    (retry,) = retries.read()
    mail = f"the mail about train {completed.name}"

    assert server.mails[0].recipients == [ADA]
    assert state.message == f"Sent {mail} to {ADA}. Scheduled another attempt to send {mail} to {BOB}."
    assert retry.parameters["recipients"] == [BOB]


def test_an_invalid_setting_fails_with_one_line(
    completed: FlowRun, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_USER", "me")
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    state = send(completed.id)

    assert state.is_failed()
    assert state.message == (
        f"The mail about train {completed.name} is not sent: "
        "SMTP_PASSWORD would be sent unencrypted: set SMTP_TLS to starttls or tls."
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, self-signed, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.fixture
def encrypted(server: SmtpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> SmtpServer:
    """A mail server with a certificate, which requires a password."""
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate)
    server.login = "me:correct-horse"
    monkeypatch.setenv("SMTP_HOST", "localhost")
    monkeypatch.setenv("SMTP_TLS", "starttls")
    monkeypatch.setenv("SMTP_USER", "me")
    monkeypatch.setenv("SMTP_PASSWORD", "correct-horse")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return server


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_password_is_sent_over_tls(
    completed: FlowRun, encrypted: SmtpServer, monkeypatch: pytest.MonkeyPatch, tls: str
) -> None:
    encrypted.implicit = tls == "tls"
    monkeypatch.setenv("SMTP_TLS", tls)
    state = send(completed.id, encrypted)

    assert state.is_completed(), state.message
    assert encrypted.mails[0].encrypted
    assert encrypted.mails[0].login == "me:correct-horse"


def test_a_wrong_password_is_not_retried(
    completed: FlowRun, retries: Retries, encrypted: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    state = send(completed.id, encrypted)

    assert state.is_failed()
    assert "replied 535 wrong user or password" in str(state.message)
    assert not retries.read()


def test_nothing_is_sent_to_a_server_whose_certificate_is_not_trusted(
    completed: FlowRun, retries: Retries, encrypted: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    send(completed.id, encrypted)

    assert not encrypted.mails
    assert len(retries.read()) == 1


def test_no_password_is_sent_to_a_server_without_starttls(completed: FlowRun, encrypted: SmtpServer) -> None:
    encrypted.tls = None
    state = send(completed.id, encrypted)

    assert state.is_failed()
    assert "STARTTLS" in str(state.message)
    assert not encrypted.mails


def test_the_automation_sends_mail_about_tagged_runs_that_end_in_one_of_its_events(
    prefect: SyncPrefectClient, deployment: UUID, retries: Retries
) -> None:
    with prefect_client(str(prefect.api_url)) as api:
        for _ in range(2):  # the second call replaces the automation
            save_automation(api, mail_run_events(str(deployment), ["Failed"]))
        (automation,) = find_automations(api, Resource.MAIL_RUN_EVENTS)
        try:
            run_train()
            run_train(fails=True)
            with tags(RunTag.MAIL):
                run_train()
                failed = run_train(fails=True)

            def mailed() -> set[str]:
                return {str(run.parameters["flow_run_id"]) for run in retries.read()}

            wait_until(mailed, 60, "the first mail")
            with tags(RunTag.MAIL):
                last = run_train(fails=True)
            wait_until(lambda: str(last) in mailed(), 60, "the last run's mail")

            assert mailed() == {str(failed), str(last)}
        finally:
            api.delete(f"/automations/{automation['id']}")
