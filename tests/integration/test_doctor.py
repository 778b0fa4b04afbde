"""`make doctor`, with real servers that are broken in one way each: the line that says so, and what mends it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg2
import pytest
from serving.record_store import TABLE

from infra.diagnosis.__main__ import ask, keep, read_deployments
from infra.diagnosis.__main__ import prefect_client as doctors_client
from infra.diagnosis.databases import examine_database
from infra.diagnosis.imports import examine_code_of_deployments, import_all
from infra.diagnosis.mail import examine_mail
from infra.testing.servers import free_port, prefect_client, prefect_server
from infra.testing.waiting import wait_until
from tests.support.smtp_server import SmtpServer
from trainyard.contract import Resource, State
from trainyard.diagnosis import MAX_REPORT_CHARACTERS, Finding, Report, examine_prefect

CHECKOUT = Path(__file__).parents[2]
ADMIN, READER = ("admin", "password-of-the-admin"), ("dashboard", "password-of-the-reader")
POOL = Resource.WORK_POOL
INDEXES = (CHECKOUT / "infra/diagnosis/indexes.sql").read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that is started as in the stack."""
    with prefect_server(tmp_path_factory.mktemp("prefect"), admin=":".join(ADMIN), reader=":".join(READER)) as address:
        yield address


class Installation:
    """What a test arranges in Prefect: work pools, workers, deployments and runs."""

    def __init__(self, api: httpx.Client, reader: httpx.Client) -> None:
        self.api, self.reader = api, reader

    def post(self, path: str, **body: Any) -> Any:
        return self.api.post(path, json=body).raise_for_status().json()

    def add_pool(self, name: str = POOL, **settings: Any) -> None:
        self.post("/work_pools/", name=name, type="process", **settings)

    def start_worker(self, pool: str = POOL, queues: tuple[str, ...] = ("default",)) -> None:
        """Do what a worker does that finds no run: send a heartbeat, and poll."""
        body = {"name": "worker", "heartbeat_interval_seconds": 30}
        self.api.post(f"/work_pools/{pool}/workers/heartbeat", json=body).raise_for_status()

        def is_ready() -> bool:
            self.post(f"/work_pools/{pool}/get_scheduled_flow_runs", work_queue_names=list(queues))
            listed = self.post(f"/work_pools/{pool}/queues/filter")
            return all(queue["status"] == "READY" for queue in listed if queue["name"] in queues)

        if queues:
            wait_until(is_ready, 30, "the queues to be polled", every=0.3)

    def deploy(self, name: str = "forecast", pool: str | None = POOL, **settings: Any) -> str:
        flow = self.post("/flows/", name="weather")["id"]
        place = {"work_pool_name": pool} if pool else {}
        return str(self.post("/deployments/", name=name, flow_id=flow, **place, **settings)["id"])

    def schedule(self, deployment: str, name: str = "amber-fox") -> str:
        """Create a run that has been due since the beginning of the year."""
        due = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-01T00:00:00Z"}}
        return str(self.post(f"/deployments/{deployment}/create_flow_run", name=name, state=due)["id"])

    def start(self, deployment: str, name: str = "busy-bee") -> str:
        run = self.schedule(deployment, name)
        self.set_state(run, type="RUNNING")
        return run

    def set_state(self, run: str, **state: Any) -> None:
        self.post(f"/flow_runs/{run}/set_state", state=state, force=True)

    def examine(self) -> list[Finding]:
        """Return what is wrong a minute from now, as the worker's account sees it; the dashboard's sees the same."""
        now = datetime.now(UTC) + timedelta(minutes=1)
        findings = ask(examine_prefect(now), self.api)
        assert ask(examine_prefect(now), self.reader) == findings
        return findings

    def clear(self) -> None:
        for kind in ("flow_runs", "deployments", "flows"):
            for found in self.post(f"/{kind}/filter"):
                self.api.delete(f"/{kind}/{found['id']}")
        for pool in self.post("/work_pools/filter"):
            self.api.delete(f"/work_pools/{pool['name']}").raise_for_status()


@pytest.fixture
def installation(address: str) -> Iterator[Installation]:
    """An installation without a work pool."""
    with prefect_client(address, ADMIN) as api, prefect_client(address, READER) as reader:
        installation = Installation(api, reader)
        yield installation
        installation.clear()


@pytest.fixture
def running(installation: Installation) -> Installation:
    """An installation whose worker polls the default queue."""
    installation.add_pool()
    installation.start_worker()
    return installation


def test_nothing_is_wrong_with_a_worker_and_no_late_run(running: Installation) -> None:
    running.start(running.deploy())

    assert running.examine() == []


def test_an_installation_without_a_work_pool_is_named(installation: Installation) -> None:
    assert installation.examine() == [Finding("There is no work pool training, so no run can start.", "make up")]


def test_a_run_waits_because_no_worker_is_online(installation: Installation) -> None:
    installation.add_pool()
    installation.schedule(installation.deploy())

    worker, run = installation.examine()

    assert worker.problem == "No worker is online for the work pool training, so no run starts."
    assert run.problem == (
        "weather/amber-fox waits since 2026-01-01 00:00 UTC: no worker is online for its work pool training."
    )
    assert worker.remedy.startswith("docker compose up -d worker")


def test_runs_that_wait_for_the_same_reason_are_one_line(installation: Installation) -> None:
    installation.add_pool()
    deployment = installation.deploy()
    for name in ("amber-fox", "brown-owl", "clever-cat"):
        installation.schedule(deployment, name)

    _, runs = installation.examine()

    assert re.fullmatch(
        r"3 runs wait, the first, weather/\S+, since 2026-01-01 00:00 UTC: no worker is .*", runs.problem
    )


def test_a_run_waits_because_its_pool_has_no_worker(running: Installation) -> None:
    running.add_pool("gpu")
    running.schedule(running.deploy(pool="gpu"))

    (run,) = running.examine()

    assert run.problem.endswith(": no worker is online for its work pool gpu.")
    assert run.remedy.startswith("name training in prefect.yaml, then make deploy")


def test_a_run_waits_because_its_deployment_is_on_no_pool(running: Installation) -> None:
    running.schedule(running.deploy(pool=None))

    (run,) = running.examine()

    assert run.problem.endswith(": the deployment forecast is on no work pool.")
    assert "work_pool: {name: training}" in run.remedy


def test_a_run_waits_because_its_pool_is_paused(running: Installation) -> None:
    running.schedule(running.deploy())
    running.api.patch(f"/work_pools/{POOL}", json={"is_paused": True}).raise_for_status()

    (run,) = running.examine()

    assert run.problem.endswith(": the work pool training is paused.")
    assert run.remedy == "docker compose run --rm --no-deps deploy prefect work-pool resume training"


def test_a_run_waits_because_its_queue_is_paused(running: Installation) -> None:
    running.schedule(running.deploy())
    running.api.patch(f"/work_pools/{POOL}/queues/default", json={"is_paused": True}).raise_for_status()

    (run,) = running.examine()

    assert run.problem.endswith(": the work queue default is paused.")
    assert run.remedy.endswith("prefect work-queue resume default --pool training")


def test_a_run_waits_because_no_worker_polls_its_queue(running: Installation) -> None:
    running.schedule(running.deploy(work_queue_name="second"))

    (run,) = running.examine()

    assert run.problem.endswith(": no worker takes runs from its work queue second.")
    assert run.remedy.startswith("name the queue default")


def test_a_run_waits_for_a_slot_of_its_deployment(running: Installation) -> None:
    deployment = running.deploy(concurrency_limit=1)
    running.start(deployment)
    running.set_state(running.schedule(deployment), type="SCHEDULED", name=State.AWAITING_SLOT)

    (run,) = running.examine()

    assert run.problem.endswith(": the deployment forecast may have 1 run at once, now busy-bee.")
    assert "raise its concurrency_limit in prefect.yaml" in run.remedy


def test_a_run_waits_for_a_slot_of_its_queue(running: Installation) -> None:
    running.api.patch(f"/work_pools/{POOL}/queues/default", json={"concurrency_limit": 1}).raise_for_status()
    running.start(running.deploy("another"))
    running.schedule(running.deploy())

    (run,) = running.examine()

    assert run.problem.endswith(": the work queue default may have 1 run at once, now busy-bee.")
    assert run.remedy.endswith("work-queue set-concurrency-limit default 2 --pool training")


def test_a_run_waits_for_a_slot_of_its_pool(running: Installation) -> None:
    running.api.patch(f"/work_pools/{POOL}", json={"concurrency_limit": 2}).raise_for_status()
    other = running.deploy("another")
    for name in ("busy-bee", "calm-cow"):
        running.start(other, name)
    running.schedule(running.deploy())

    (run,) = running.examine()

    assert run.problem.endswith(": the work pool training may have 2 runs at once, now busy-bee, calm-cow.")
    assert run.remedy.endswith("work-pool set-concurrency-limit training 3")


def test_a_run_waits_for_a_busy_worker(running: Installation) -> None:
    other = running.deploy("another")
    for name in ("busy-bee", "calm-cow", "deft-dog", "eager-elk"):
        running.start(other, name)
    running.schedule(running.deploy())

    (run,) = running.examine()

    assert run.problem.endswith(": the worker is busy with busy-bee, calm-cow, deft-dog and 1 more.")
    assert "raise WORKER_LIMIT in .env" in run.remedy


def test_a_worker_that_starts_nothing_is_sent_to_its_log(running: Installation) -> None:
    running.schedule(running.deploy())

    (run,) = running.examine()

    assert run.problem.endswith(": a worker is online, but has not started it.")
    assert run.remedy == "docker compose logs --tail 50 worker"


def test_a_run_waits_for_a_lock_whose_holder_is_named(running: Installation) -> None:
    holder = str(uuid4())
    message = (
        f"Waiting for the lock model-rain, held by the run busy-bee (http://x/runs/flow-run/{holder}) since 2026 UTC."
    )
    run = running.start(running.deploy(), "amber-fox")
    running.set_state(run, type="RUNNING", name=State.WAITING, message=message)

    (lock,) = running.examine()

    assert lock.problem == f"weather/amber-fox waits: {message}"
    assert lock.remedy.endswith(f"prefect flow-run cancel {holder} ends it")


def test_mails_that_were_given_up_are_counted_with_the_last_reason(running: Installation) -> None:
    flow = running.post("/flows/", name=Resource.SEND_MAIL)["id"]
    run = running.post("/flow_runs/", flow_id=flow, name="mail")["id"]
    running.set_state(run, type="FAILED", message="Could not send the mail about x to a@b: the server said no.")

    (mails,) = running.examine()

    assert mails.problem == (
        "1 mail of the last day was not sent, the last one: Could not send the mail about x to a@b: the server said no."
    )


# --- What is kept for the dashboard ----------------------------------------------------------------------------------


def test_the_report_is_the_only_variable_that_the_dashboard_may_read(running: Installation) -> None:
    findings = [Finding("mail is not running.", "docker compose up -d mail")]
    running.post("/variables/", name="token", value="secret")
    keep(findings, running.api)
    keep([*findings, *findings], running.api)

    report = running.reader.get(f"/variables/name/{Resource.DIAGNOSIS}").raise_for_status().json()["value"]

    assert report["findings"] == [["mail is not running.", "docker compose up -d mail"]] * 2
    assert running.reader.get("/variables/name/token").status_code == 403
    assert running.reader.patch(f"/variables/name/{Resource.DIAGNOSIS}", json={"value": "x"}).status_code == 403


def test_a_long_report_is_cut_and_says_so(running: Installation) -> None:
    findings = [Finding(f"{number} is wrong " + "x" * 300, "make up") for number in range(30)]

    keep(findings, running.api)

    report = running.reader.get(f"/variables/name/{Resource.DIAGNOSIS}").raise_for_status().json()["value"]
    assert 0 < len(report["findings"]) < 30
    assert report["left_out"] == 30 - len(report["findings"])
    assert len(str(Report(0, findings).to_json()["findings"])) < MAX_REPORT_CHARACTERS


# --- Code of deployments ---------------------------------------------------------------------------------------------

WORKING = "from prefect import flow\n\n\n@flow\ndef work() -> None:\n    pass\n"


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'", "make lock"),
        ("def work(:", "SyntaxError: ", "correct flows/broken.py"),
        ("raise SystemExit(3)", "its import ended the process with exit code 3", "correct flows/broken.py"),
        ("work = 1", "MissingFlowError: ", "correct flows/broken.py"),
    ],
)
def test_a_deployment_whose_code_does_not_import_is_named(
    running: Installation, tmp_path: Path, text: str, problem: str, remedy: str
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/broken.py").write_text(text)
    (tmp_path / "flows/working.py").write_text(WORKING)
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    for name in ("broken", "working"):
        running.deploy(name, entrypoint=f"flows/{name}.py:work", pull_steps=[step])

    (finding,) = examine_code_of_deployments(read_deployments(running.api, {}))

    assert finding.problem.startswith(f"The code of the deployment broken does not import: {problem}")
    assert remedy in finding.remedy


def test_an_import_that_does_not_end_does_not_hold_up_the_others(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("while True: pass")
    (tmp_path / "working.py").write_text(WORKING)
    codes = [(str(tmp_path), f"{name}.py:work") for name in ("endless", "working", "missing")]

    endless, working, missing = import_all(codes, seconds=20).values()

    assert endless == "its import took longer than 20 s"
    assert working is None
    assert missing is not None
    assert "missing.py" in missing


def test_code_that_is_fetched_for_each_run_is_not_imported(running: Installation) -> None:
    step = {"prefect.deployments.steps.git_clone": {"repository": "https://git.example.com/x.git"}}
    running.deploy(entrypoint="flows/x.py:x", pull_steps=[step])

    assert examine_code_of_deployments(read_deployments(running.api, {})) == []


# --- Mail ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def smtp(monkeypatch: pytest.MonkeyPatch) -> SmtpServer:
    """The mail server of the settings, which the test starts."""
    server = SmtpServer(port=free_port())
    for name, value in {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(server.port), "MAIL_TO": "ada@example.com"}.items():
        monkeypatch.setenv(name, value)
    return server


def test_a_mail_server_that_takes_the_platform_s_mail_gets_none(smtp: SmtpServer) -> None:
    with smtp:
        assert examine_mail() == []

    assert smtp.mails == []


@pytest.mark.parametrize(
    ("replies", "problem", "remedy"),
    [
        ({"CONNECT": "421 too busy"}, "replied 421 too busy", "SMTP_HOST"),
        ({"MAIL": "550 unknown sender"}, "replied 550 unknown sender", "MAIL_FROM"),
        ({"RCPT": "550 no such user"}, "No mail to ada@example.com can be sent: ", "MAIL_TO"),
        ({"RCPT": "421 too late"}, "replied 421 too late", "MAIL_TO"),
    ],
)
def test_a_mail_server_that_refuses_is_quoted(
    smtp: SmtpServer, replies: dict[str, str], problem: str, remedy: str
) -> None:
    smtp.replies = replies
    with smtp:
        (finding,) = examine_mail()

    assert problem in finding.problem
    assert remedy in finding.remedy


def test_a_mail_server_that_is_away_is_named(smtp: SmtpServer) -> None:
    (finding,) = examine_mail()

    assert f"the mail server 127.0.0.1:{smtp.port} does not answer" in finding.problem


def test_settings_of_mail_that_make_no_sense_are_named(smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_TO", "nobody")

    (finding,) = examine_mail()

    assert "MAIL_TO: 'nobody' is not an address" in finding.problem


# --- Databases -------------------------------------------------------------------------------------------------------

DUMP = """
CREATE TABLE public.runs (
    id integer NOT NULL,
    name text
);
CREATE TABLE public.alembic_version (version_num character varying(32) NOT NULL);
INSERT INTO public.alembic_version VALUES ('5f3a');
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT pk_runs PRIMARY KEY (id);
CREATE INDEX ix_runs_name ON public.runs USING btree (name) WHERE (name <> 'x''y'::text);
"""


class Database:
    """A database that `infra/diagnose` would ask by psql."""

    def __init__(self, url: str) -> None:
        self.url = url

    def execute(self, sql: str) -> None:
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)

    def indexes(self) -> str:
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute(INDEXES)
            return "".join(f"{name}|{'t' if is_valid else 'f'}\n" for name, is_valid in cursor.fetchall())


@pytest.fixture(scope="module")
def migrated(database: str) -> Database:
    """A database with the schema of its image."""
    migrated = Database(database)
    migrated.execute(DUMP)
    migrated.execute(TABLE)
    return migrated


def test_a_database_with_the_schema_of_its_image_lacks_nothing(migrated: Database) -> None:
    assert examine_database("mlflow", DUMP, migrated.indexes(), "5f3a") == []
    assert examine_database("serving", TABLE, migrated.indexes()) == []


@pytest.mark.parametrize(
    ("schema", "drop", "index"),
    [
        (DUMP, "DROP INDEX ix_runs_name", "ix_runs_name"),
        (DUMP, "ALTER TABLE runs DROP CONSTRAINT pk_runs", "pk_runs"),
        (TABLE, "DROP INDEX predictions_by_version", "predictions_by_version"),
    ],
)
def test_a_missing_index_is_named_with_the_statement_that_makes_it(
    migrated: Database, schema: str, drop: str, index: str
) -> None:
    migrated.execute(drop)

    (finding,) = examine_database("mlflow", schema, migrated.indexes())
    command = subprocess.run(
        ["bash", "-c", finding.remedy.replace("docker compose exec postgres psql", "printf '%s\\n'")],
        capture_output=True,
        text=True,
        check=True,
    )
    migrated.execute(command.stdout.splitlines()[-1])

    assert finding.problem == f"The database mlflow lacks the index {index}, so that queries read whole tables."
    assert examine_database("mlflow", schema, migrated.indexes()) == []


def test_an_index_whose_creation_was_interrupted_is_named(migrated: Database) -> None:
    migrated.execute("DROP INDEX ix_runs_name; INSERT INTO runs VALUES (1, 'a'), (2, 'a')")
    with suppress(psycopg2.errors.UniqueViolation):
        migrated.execute("CREATE UNIQUE INDEX CONCURRENTLY ix_runs_name ON runs (name)")

    (finding,) = examine_database("mlflow", DUMP, migrated.indexes())
    migrated.execute("DROP INDEX ix_runs_name; CREATE INDEX ix_runs_name ON runs (name)")

    assert finding.problem == "The index ix_runs_name of the database mlflow is invalid: its creation was interrupted."
    assert finding.remedy.endswith("'REINDEX INDEX ix_runs_name'")


def test_a_database_of_another_version_is_named_with_both_revisions(migrated: Database) -> None:
    (finding,) = examine_database("mlflow", DUMP, migrated.indexes(), "77aa")

    assert finding.problem == ("The database mlflow has the revision 77aa, and the image of its server expects 5f3a.")


# --- Without the stack -----------------------------------------------------------------------------------------------


def test_without_docker_the_command_says_so_and_ends() -> None:
    result = subprocess.run(
        ["make", "doctor"],
        cwd=CHECKOUT,
        env={"PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix:///nowhere/docker.sock"},
        capture_output=True,
        text=True,
    )

    (line,) = result.stdout.splitlines()
    assert line.startswith("✗ Trainyard needs Docker Engine 26")
    assert result.returncode == 2  # of make


def test_without_prefect_the_command_says_so_and_goes_on() -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(CHECKOUT),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "MAIL_TO": "nobody",
    }

    result = subprocess.run(
        ["bash", "-c", f"tar -c -T /dev/null | {sys.executable} -m infra.diagnosis"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert "✗ Prefect does not answer, so runs and deployments were not examined: " in result.stdout, result.stderr
    assert "✗ No mail can be sent: MAIL_TO: 'nobody' is not an address" in result.stdout
    assert result.returncode == 1


def test_the_doctor_asks_with_the_account_of_the_worker(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", ":".join(ADMIN))

    with doctors_client() as client:
        assert client.post("/variables/filter", json={}).status_code == 200
