"""Mail about runs: real runs on a real Prefect server, real runs in MLflow, and mail servers in every mood."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
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
from infra.testing.servers import free_port
from infra.testing.waiting import wait_until
from tests.support.smtp_server import SmtpServer
from trainyard.flows import mail
from trainyard.flows.mail import send_mail
from trainyard.tracking import LAST_COMPONENT, LAST_RUN

TEAM = ["ada@example.com", "bob@example.com"]


@flow(name="station", persist_result=False)
def station(fails: bool = False) -> None:
    """Complete, or leave a table of what was wrong and fail."""
    if fails:
        create_table_artifact([{"day": "2026-01-01", "error": "too cold"}], key="rejected", description="1 bad day")
        raise ValueError("the data is wrong:\n7 days are too cold")


@flow(name="line", persist_result=False)
def line() -> str:
    """Call one component; return the id of its run."""
    state: State[None] = station(return_state=True)
    return str(state.state_details.flow_run_id)


def run_of(state: State) -> UUID:
    """Return the id of the run that ended so."""
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SmtpServer:
    """A mail server that the flow is told of and that a test starts."""
    server = SmtpServer(port=free_port())
    monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("SMTP_PORT", str(server.port))
    monkeypatch.setenv("MAIL_FROM", "trainyard@example.com")
    monkeypatch.setenv("MAIL_TO", ",".join(TEAM))
    return server


@pytest.fixture(scope="module")
def deployment(prefect: SyncPrefectClient) -> UUID:
    """The flow's deployment, which no worker looks after."""
    return prefect.create_deployment(prefect.create_flow(send_mail), name="send-mail")


@pytest.fixture
def scheduled(prefect: SyncPrefectClient, deployment: UUID) -> Iterator[list[FlowRun]]:
    """The later attempts, which the test fills by `find_scheduled`; removed at its end."""
    found: list[FlowRun] = []
    yield found
    for run in found:
        prefect.delete_flow_run(run.id)


def find_scheduled(prefect: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """Return the runs of the deployment that wait."""
    waiting = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    return prefect.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(waiting))


def test_a_completed_run_is_mailed_with_its_metrics(
    prefect: SyncPrefectClient, tracking: MlflowClient, server: SmtpServer
) -> None:
    run_id = run_of(station(return_state=True))
    experiment = tracking.create_experiment(f"mail-{uuid4()}")
    links = {
        "prefect.flow_run_id": str(run_id),
        LAST_RUN: str(run_id),
        "model": "rain-tomorrow",
        "model_version": "3",
    }
    run = tracking.create_run(experiment, tags=links)
    child = tracking.create_run(experiment, tags={**links, "mlflow.parentRunId": run.info.run_id})
    tracking.log_metric(run.info.run_id, "brier", 0.123456)
    tracking.log_metric(child.info.run_id, "brier", 0.999999)

    with server:
        state = send_mail(run_id, return_state=True)

    assert state.is_completed()
    (received,) = server.mails
    assert (received.sender, received.recipients) == ("trainyard@example.com", TEAM)
    name = prefect.read_flow_run(run_id).name
    assert received.mail["Subject"] == f"[Trainyard] station completed: {name}"
    assert state.message == f"Sent the mail about station {name} to {', '.join(TEAM)}."
    for text in (received.text(), received.text("html")):
        assert "station completed after 0." in text
        assert "0.1235" in text
        assert "0.9999" not in text
        assert text.count("rain-tomorrow version 3") == 1
        assert f"http://prefect.test:4200/runs/flow-run/{run_id}" in text
        assert f"http://mlflow.test:5001/#/experiments/{experiment}/runs/{run.info.run_id}" in text


@pytest.mark.usefixtures("prefect", "tracking")
def test_a_failed_run_is_mailed_with_the_errors_last_line_and_what_it_wrote(server: SmtpServer) -> None:
    run_id = run_of(station(fails=True, return_state=True))
    with server:
        send_mail(run_id)
    text = server.mails[0].text()
    assert "station failed after" in server.mails[0].mail["Subject"] + text
    assert "Error       7 days are too cold" in text
    assert "1 bad day" in text
    assert "2026-01-01  too cold" in text
    assert f"http://prefect.test:4200/runs/flow-run/{run_id}" in text


@pytest.mark.usefixtures("prefect")
def test_a_component_is_mailed_with_its_pipeline_and_its_own_metrics(
    tracking: MlflowClient, server: SmtpServer
) -> None:
    component = line()
    experiment = tracking.create_experiment(f"mail-{uuid4()}")
    # Another run logged it, and this component took it over.
    links = {"prefect.flow_run_id": str(uuid4()), LAST_COMPONENT: component}
    run = tracking.create_run(experiment, tags=links)
    tracking.log_metric(run.info.run_id, "auc", 0.75)
    with server:
        send_mail(UUID(component))
    assert server.mails[0].mail["Subject"].startswith("[Trainyard] station of line completed: ")
    assert "auc  0.75" in server.mails[0].text()


@pytest.mark.usefixtures("prefect")
def test_without_mlflow_the_mail_says_so(server: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_id = run_of(station(return_state=True))
    with server:
        send_mail(run_id)
    assert "Metrics are missing. MLflow does not answer at http://127.0.0.1:9" in server.mails[0].text()


@pytest.mark.usefixtures("prefect")
def test_a_deleted_run_and_the_mails_own_are_not_mailed(prefect: SyncPrefectClient, server: SmtpServer) -> None:
    with server:
        first = send_mail(uuid4(), return_state=True)
        second = send_mail(run_of(first), return_state=True)
    assert first.is_completed()
    assert "has been deleted" in str(first.message)
    assert second.is_completed()
    assert not server.mails


@pytest.mark.parametrize("answers", [None, {"CONNECT": "421 too busy"}, {"RCPT": "451 later"}, {"END OF DATA": "452"}])
@pytest.mark.usefixtures("tracking")
def test_where_the_server_cannot_take_it_now_a_later_run_tries_again(
    prefect: SyncPrefectClient,
    deployment: UUID,
    scheduled: list[FlowRun],
    server: SmtpServer,
    answers: dict[str, str] | None,
) -> None:
    run_id = run_of(station(return_state=True))
    before = datetime.now(UTC)
    if answers is None:
        state = send_mail(run_id, return_state=True)
    else:
        server.answers = answers
        with server:
            state = send_mail(run_id, return_state=True)

    assert state.is_completed()
    assert "waits for the mail server" in str(state.message)
    scheduled += find_scheduled(prefect, deployment)
    (later,) = scheduled
    assert later.parameters == {"flow_run_id": str(run_id), "attempt": 2, "recipients": TEAM}
    assert later.parent_task_run_id is None
    assert later.expected_start_time is not None
    assert timedelta(0) <= later.expected_start_time - before - timedelta(minutes=1) < timedelta(seconds=30)

    server.answers = {}
    with server:
        assert send_mail(**later.parameters, return_state=True).is_completed()
    assert server.mails[-1].recipients == TEAM


@pytest.mark.parametrize("attempt", range(1, 6))
@pytest.mark.usefixtures("tracking")
def test_each_wait_is_longer(
    prefect: SyncPrefectClient, deployment: UUID, scheduled: list[FlowRun], server: SmtpServer, attempt: int
) -> None:
    run_id = run_of(station(return_state=True))
    before = datetime.now(UTC)
    send_mail(run_id, attempt=attempt)
    scheduled += find_scheduled(prefect, deployment)
    assert scheduled[0].parameters["attempt"] == attempt + 1
    assert scheduled[0].expected_start_time is not None
    waits = scheduled[0].expected_start_time - before
    assert abs(waits - mail.DELAYS[attempt - 1]) < timedelta(seconds=30)


@pytest.mark.usefixtures("tracking")
def test_after_the_last_attempt_the_loss_is_on_record(
    prefect: SyncPrefectClient, deployment: UUID, server: SmtpServer
) -> None:
    run_id = run_of(station(return_state=True))
    state = send_mail(run_id, attempt=6, return_state=True)
    name = prefect.read_flow_run(run_id).name
    assert state.is_failed()
    assert str(state.message).startswith(
        f"Lost the mail about station {name} to ada@example.com, bob@example.com after 6 attempts: "
        f"the mail server 127.0.0.1:{server.port} does not answer: "
    )
    assert "\n" not in str(state.message)
    assert not find_scheduled(prefect, deployment)


@pytest.mark.parametrize(
    "answers", [{"MAIL": "550 not from you"}, {"RCPT": "553 no such mailbox"}, {"END OF DATA": "554 looks like spam"}]
)
@pytest.mark.usefixtures("tracking")
def test_a_server_that_says_no_is_not_asked_again(
    prefect: SyncPrefectClient, deployment: UUID, server: SmtpServer, answers: dict[str, str]
) -> None:
    run_id = run_of(station(return_state=True))
    server.answers = answers
    with server:
        state = send_mail(run_id, return_state=True)
    assert state.is_failed()
    assert next(iter(answers.values())) in str(state.message)
    assert not find_scheduled(prefect, deployment)


@pytest.mark.usefixtures("tracking")
def test_those_who_got_it_do_not_get_it_again(
    prefect: SyncPrefectClient, deployment: UUID, scheduled: list[FlowRun], server: SmtpServer
) -> None:
    server.answers = {"RCPT TO:<bob@example.com>": "450 greylisted"}
    with server:
        state = send_mail(run_of(station(return_state=True)), return_state=True)
    assert server.mails[0].recipients == ["ada@example.com"]
    assert "to ada@example.com." in str(state.message)
    assert str(state.message).endswith("for bob@example.com.")
    scheduled += find_scheduled(prefect, deployment)
    assert scheduled[0].parameters["recipients"] == ["bob@example.com"]


@pytest.mark.usefixtures("prefect")
def test_a_wrong_setting_is_one_clear_line(server: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_USER", "me")
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    state = send_mail(run_of(station(return_state=True)), return_state=True)
    assert state.is_failed()
    message = str(state.message)
    assert message.endswith("SMTP_PASSWORD would be sent unencrypted: set SMTP_TLS to starttls or tls.")
    assert "hunter2" not in message


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
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
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.fixture
def encrypted(server: SmtpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> SmtpServer:
    """A mail server with a certificate, which wants a password."""
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
@pytest.mark.usefixtures("prefect", "tracking")
def test_over_tls_with_a_password(encrypted: SmtpServer, monkeypatch: pytest.MonkeyPatch, tls: str) -> None:
    encrypted.implicit = tls == "tls"
    monkeypatch.setenv("SMTP_TLS", tls)
    run_id = run_of(station(return_state=True))
    with encrypted:
        state = send_mail(run_id, return_state=True)
    assert state.is_completed(), state.message
    assert encrypted.mails[0].encrypted
    assert encrypted.mails[0].login == "me:correct-horse"


@pytest.mark.usefixtures("tracking")
def test_a_wrong_password_is_not_tried_again(
    prefect: SyncPrefectClient, deployment: UUID, encrypted: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    run_id = run_of(station(return_state=True))
    with encrypted:
        state = send_mail(run_id, return_state=True)
    assert state.is_failed()
    assert "said 535 wrong user or password" in str(state.message)
    assert not find_scheduled(prefect, deployment)


@pytest.mark.usefixtures("tracking")
def test_nothing_is_said_to_a_server_whose_certificate_nobody_vouches_for(
    prefect: SyncPrefectClient,
    deployment: UUID,
    scheduled: list[FlowRun],
    encrypted: SmtpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    run_id = run_of(station(return_state=True))
    with encrypted:
        send_mail(run_id)
    assert not encrypted.mails
    scheduled += find_scheduled(prefect, deployment)
    assert len(scheduled) == 1


@pytest.mark.usefixtures("tracking")
def test_a_server_without_starttls_never_hears_the_password(
    deployment: UUID, encrypted: SmtpServer, certificate: Path
) -> None:
    encrypted.tls = None
    run_id = run_of(station(return_state=True))
    with encrypted:
        state = send_mail(run_id, return_state=True)
    assert state.is_failed()
    assert "STARTTLS" in str(state.message)
    assert not encrypted.mails


def test_the_automation_starts_it_for_tagged_runs_that_end_as_wanted(
    prefect: SyncPrefectClient, deployment: UUID, scheduled: list[FlowRun]
) -> None:
    with httpx.Client(base_url=str(prefect.api_url), timeout=30) as api:
        for _ in range(2):
            save_automation(api, mail_run_events(str(deployment), ["Failed"]))
        (saved,) = find_automations(api, "mail-run-events")
        try:
            station(return_state=True)
            station(fails=True, return_state=True)
            with tags("mail"):
                completed = run_of(station(return_state=True))
                failed = run_of(station(fails=True, return_state=True))

            def mailed() -> set[str]:
                found = {run.id: run for run in [*scheduled, *find_scheduled(prefect, deployment)]}
                scheduled[:] = found.values()
                return {str(run.parameters["flow_run_id"]) for run in scheduled}

            with tags("mail"):
                wait_until(mailed, 60, "the run that sends the mail")
                last = run_of(station(fails=True, return_state=True))
            wait_until(lambda: str(last) in mailed(), 60, "the last run's mail")
            assert mailed() == {str(failed), str(last)}
            assert str(completed) not in mailed()
        finally:
            api.delete(f"/automations/{saved['id']}")
