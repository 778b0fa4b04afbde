"""Prometheus's metrics of every service, the Grafana dashboard's queries, and alerts that fire and are mailed."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from infra.provision.follow import find_deployment
from infra.testing.stack import CHECKOUT, Stack
from infra.testing.waiting import wait_until
from tests.stack.conftest import OWN_FLOW

FOLDER = CHECKOUT / "infra/metrics"
IMAGE = re.search(r"PROMETHEUS_IMAGE:-([^}]+)", (CHECKOUT / "infra/compose/metrics.yml").read_text())
JOBS = {job["job_name"] for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]}
(ALERTS,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
SUBJECTS = {
    "ServiceDown": "dashboard does not answer",
    "NoWorker": "No worker takes runs of the pool training",
    "RunsLate": "Runs wait longer than they should",
    "RunsFail": "Most runs fail",
    "ServerErrors": "mlflow fails to answer requests",
    "DiskAlmostFull": "The disk of the backups is almost full",
    "BackupOld": "The newest backup is too old",
}


@pytest.fixture(scope="module")
def prometheus(own: Stack) -> Iterator[httpx.Client]:
    """Prometheus's API, once it has scraped every service."""
    address = f"http://127.0.0.1:{own.ports['PROMETHEUS_PORT']}/api/v1"
    with httpx.Client(base_url=address, timeout=30) as client:

        def answering() -> set[str]:
            found = query(client, "up == 1")
            return {each["metric"]["job"] for each in found}

        try:
            wait_until(lambda: answering() == JOBS, 60, "metrics of each service", every=1)
        except TimeoutError:
            targets = client.get("/targets").json()["data"]["activeTargets"]
            errors = {each["labels"]["job"]: each["lastError"] for each in targets if each["health"] != "up"}
            raise AssertionError(f"not scraped: {errors}") from None
        yield client


def query(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """Return the series of an expression at this moment."""
    answer = prometheus.get("/query", params={"query": expression}).raise_for_status().json()
    series: list[dict[str, Any]] = answer["data"]["result"]
    return series


@pytest.fixture(scope="module")
def predicted(own: Stack, prometheus: httpx.Client) -> None:
    """Make serving and the object store answer, and Prometheus see it."""
    variables = own.variables()
    headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
    with httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30) as client:
        models = wait_until(lambda: client.get("/models").json()["models"], 30, "the champion")
        for model, about in models.items():
            client.post(f"/models/{model}/predict", json=about["example"]).raise_for_status()
    wait_until(lambda: query(prometheus, "rate(serving_requests_total[1m])"), 30, "the predictions")


@pytest.fixture(scope="module")
def mails(own: Stack, prometheus: httpx.Client, predicted: None) -> Iterator[dict[str, dict[str, Any]]]:
    """Break what each alert is about, all at once, and return the mails by alert; mend it at the end."""
    own.shell("docker compose stop worker dashboard")
    own.shell(psql("prefect", "UPDATE worker SET last_heartbeat_time = now() - interval '1 hour'"))
    own.exec("backup", "touch", "-d", "3 days ago", "/tmp/newest")
    own.exec("backup", "dd", "if=/dev/zero", "of=/backups/filler", "bs=1M", "count=30")
    with own.mlflow() as mlflow:
        artifacts = str(mlflow.base_url).replace("/mlflow/", "/mlflow-artifacts/artifacts/9999/no-such-file")
        answers = {mlflow.get(artifacts).status_code for _ in range(30)}
    assert answers == {500}
    with own.prefect() as prefect:
        completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        ended = prefect.post("/flow_runs/count", json=completed).raise_for_status().json()
        flow = prefect.post("/flows/", json={"name": "failing"}).raise_for_status().json()["id"]
        for _ in range(ended + 3):
            body = {"flow_id": flow, "state": {"type": "FAILED", "name": "Failed"}}
            prefect.post("/flow_runs/", json=body).raise_for_status()
        deployment = find_deployment(prefect, OWN_FLOW)["id"]
        late = prefect.post(f"/deployments/{deployment}/create_flow_run", json={}).raise_for_status().json()["id"]
    try:
        with mailbox(own) as box:
            found: dict[str, dict[str, Any]] = {}

            def have_arrived() -> bool:
                found.update(find_mails(box, {name: f"[Trainyard] {text}" for name, text in SUBJECTS.items()}))
                return found.keys() == SUBJECTS.keys()

            try:
                wait_until(have_arrived, 90, "a mail about each alert", every=1)
            except TimeoutError:
                states = {each["metric"]["alertname"] for each in query(prometheus, 'ALERTS{alertstate="firing"}')}
                raise AssertionError(f"no mail of {SUBJECTS.keys() - found.keys()}; firing: {states}") from None
            yield found
    finally:
        with own.prefect() as prefect:
            prefect.delete(f"/flow_runs/{late}").raise_for_status()
        own.exec("backup", "rm", "/backups/filler")
        own.exec("backup", "touch", "/tmp/newest")
        own.shell("docker compose start worker dashboard")
        own.wait_until_healthy(services=("worker", "dashboard"))


def mailbox(own: Stack) -> httpx.Client:
    """Return a client of Mailpit's API."""
    user, password = own.exec("mail", "cat", "/run/secrets/login").stdout.strip().split(":", 1)
    return httpx.Client(base_url=f"http://localhost:{own.ports['MAIL_PORT']}/api/v1", auth=(user, password), timeout=10)


def find_mails(box: httpx.Client, subjects: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the mails that have one of the subjects."""
    listed = box.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
    ids = {mail["Subject"]: mail["ID"] for mail in listed}
    found = {name: ids[subject] for name, subject in subjects.items() if subject in ids}
    return {name: box.get(f"/message/{each}").raise_for_status().json() for name, each in found.items()}


def psql(database: str, statement: str) -> str:
    """Return a command that runs a statement as Postgres's superuser."""
    psql = ["psql", "--no-align", "--tuples-only", "--username", "postgres", "--command", statement, database]
    return shlex.join(["docker", "compose", "exec", "-T", "postgres", *psql])


def test_each_alert_fires_when_it_should(own: Stack) -> None:
    assert IMAGE
    run = ["docker", "run", "--rm", "-v", f"{FOLDER}:/rules:ro", "--entrypoint", "promtool", IMAGE[1]]

    result = own.shell(shlex.join([*run, "test", "rules", "/rules/alerts_test.yml"]), check=False)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
def test_alertmanager_takes_the_settings_of_mail(own: Stack, tls: str) -> None:
    settings = f"SMTP_TLS={tls} SMTP_USER=ada@example.com MAIL_TO=a@example.com,b@example.com"
    config = json.loads(own.shell(f"{settings} docker compose config --format json").stdout)
    content = shlex.quote(config["configs"]["alertmanager"]["content"].replace("$$", "$"))
    check = "docker compose exec -T alertmanager amtool check-config /dev/stdin"

    result = own.shell(f"printf %s {content} | {check}", check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 templates" in result.stdout


def test_metrics_need_a_token_which_opens_nothing_else(own: Stack, prometheus: httpx.Client) -> None:
    token = own.exec("prometheus", "cat", "/run/secrets/token").stdout
    headers = {"Authorization": f"Bearer {token}"}
    variables = own.variables()
    prefect, mlflow = variables["PREFECT_API_URL"].removesuffix("/api"), variables["MLFLOW_TRACKING_URI"]
    dashboard, _, _ = own.dashboard()

    for address in (prefect, mlflow, dashboard):
        assert httpx.get(f"{address}/metrics").status_code == 401, address
        assert httpx.get(f"{address}/metrics", headers=headers).status_code == 200, address
    runs = "/api/2.0/mlflow/runs/search"
    assert httpx.post(f"{prefect}/api/flow_runs/filter", json={}, headers=headers).status_code == 401
    # MLflow knows passwords alone, and answers a token with 500.
    assert httpx.post(f"{mlflow}{runs}", json={"experiment_ids": ["0"]}, headers=headers).is_error
    assert httpx.get(f"{dashboard}/", headers=headers).status_code == 303


def test_the_accounts_of_metrics_read_no_data(own: Stack, prometheus: httpx.Client) -> None:
    for database, table in (("prefect", "flow_run"), ("mlflow", "runs"), ("serving", "records.records")):
        privilege = "SELECT has_table_privilege('metrics', c.oid, 'SELECT') FROM pg_class c WHERE relkind IN ('r', 'p')"
        table_only = f"{privilege} AND relname = '{table.rpartition('.')[2]}'"
        assert own.shell(psql(database, table_only)).stdout.split() in (["f"], []), database
    program = (
        "import os, minio\n"
        "store = minio.Minio(endpoint='minio:9000', access_key='metrics', secret_key=os.environ['METRICS_S3_KEY'],"
        " secure=False)\n"
        "for bucket in ('mlflow', 'prefect-results'):\n"
        "    try:\n"
        "        print(list(store.list_objects(bucket_name=bucket)))\n"
        "    except minio.error.S3Error as error:\n"
        "        print(error.code)\n"
    )
    assert own.provisioner(program).split() == ["AccessDenied"] * 2


def test_flows_do_not_reach_what_silences_alerts(own: Stack, prometheus: httpx.Client) -> None:
    program = (
        "import socket\ntry:\n    print(socket.gethostbyname('alertmanager'))\nexcept OSError:\n    print('unknown')"
    )

    assert own.python("worker", program).stdout.strip() == "unknown"


def test_the_worker_counts_its_runs(own: Stack, prometheus: httpx.Client) -> None:
    (forked,) = query(prometheus, 'worker_runs_started_total{start="forked"}')
    (reported,) = query(prometheus, 'worker_runs_ended_total{end="reported"}')
    (slots,) = query(prometheus, "worker_slots")
    (used,) = query(prometheus, "worker_memory_bytes / worker_memory_limit_bytes")

    assert float(forked["value"][1]) >= 1
    assert float(reported["value"][1]) >= 1
    assert slots["value"][1] == "8"
    assert 0 < float(used["value"][1]) < 1


@pytest.mark.parametrize("alert", SUBJECTS)
def test_an_alert_is_mailed_in_plain_words(own: Stack, mails: dict[str, dict[str, Any]], alert: str) -> None:
    mail = mails[alert]
    (rule,) = [rule for rule in ALERTS["rules"] if rule["alert"] == alert]

    text = " ".join(mail["Text"].split())
    assert [to["Address"] for to in mail["To"]] == ["team@localhost"]
    assert mail["From"]["Address"] == "trainyard@localhost"
    assert SUBJECTS[alert] in text
    assert re.sub(r"{{.*?}}", "dashboard", rule["annotations"]["help"]).partition("`")[0] in text
    assert "What to do: " in text
    assert f"in the installation {own.project} ({alert})" in text


def test_one_thing_is_mailed_once(own: Stack, mails: dict[str, dict[str, Any]]) -> None:
    with mailbox(own) as box:
        subjects = [mail["Subject"] for mail in box.get("/messages", params={"limit": 200}).json()["messages"]]

    assert "[Trainyard] worker does not answer" not in subjects
    assert "[Trainyard] No worker takes runs of the pool training" in subjects


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_of_the_dashboard_returns_series(
    prometheus: httpx.Client, mails: dict[str, dict[str, Any]], expression: str
) -> None:
    now = time.time()
    span = {"start": now - 300, "end": now, "step": 2}

    answer = prometheus.get("/query_range", params={"query": expression.replace("$__rate_interval", "1m"), **span})

    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["result"], "no such metric is exposed"


def test_each_metric_of_an_alert_is_exposed(prometheus: httpx.Client, mails: dict[str, dict[str, Any]]) -> None:
    expressions = " ".join(rule["expr"] for rule in ALERTS["rules"])
    names = set(re.findall(r"\b(?:trainyard|serving|pg|up)\w*", expressions))
    start = time.time() - 300

    exposed = prometheus.get("/label/__name__/values", params={"start": start}).raise_for_status().json()["data"]

    assert len(names) > 8
    assert names <= {*exposed}, names - {*exposed}


def test_the_end_of_an_alert_is_mailed(own: Stack, mails: dict[str, dict[str, Any]]) -> None:
    own.exec("backup", "touch", "/tmp/newest")
    with mailbox(own) as box:
        over = {"over": f"[Trainyard] Over: {SUBJECTS['BackupOld']}"}
        found = wait_until(lambda: find_mails(box, over), 60, "the mail that it is over", every=1)

    assert found["over"]["Text"].startswith("Over since ")
