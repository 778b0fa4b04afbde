"""Metrics for Prometheus: who may read them, what they count, and that the override's files fit together."""

import asyncio
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from infra.backup import metrics as backup_metrics
from infra.secrets import vault
from infra.testing.stack import CHECKOUT
from tests.unit.test_compose import Loader, services
from tests.unit.test_vault import settings_file
from trainyard.mail.smtp import Tls
from trainyard.servers.request_metrics import RequestMetricsMiddleware

TOKEN = "token-of-prometheus"
OVERRIDE = CHECKOUT / "infra/compose/metrics.yml"
FOLDER = CHECKOUT / "infra/metrics"
PROMETHEUS = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
JOBS = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
(ALERTS,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]


def interpolated() -> dict[str, Any]:
    """Return the override as Compose reads it without any setting."""
    text = re.sub(r"\$\{\w+(:-(?P<default>[^}]*))?\}", lambda found: found["default"] or "", OVERRIDE.read_text())
    loaded: dict[str, Any] = yaml.load(text, Loader)
    return loaded


def respond(request: Request) -> PlainTextResponse:
    status = int(request.query_params.get("status", "200"))
    if status == 0:
        raise RuntimeError("the request cannot be answered")
    return PlainTextResponse("", status)


def get(path: str, token: str = "", refresh: Callable[[], Any] | None = None) -> httpx.Response:
    """Send a request to an application with the middleware."""
    app = Starlette(routes=[Route("/{path:path}", respond)])
    app.add_middleware(RequestMetricsMiddleware, token=TOKEN, refresh=refresh)
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(send())


def count(kind: str, status: int) -> float:
    return REGISTRY.get_sample_value("trainyard_requests_total", {"kind": kind, "status": str(status)}) or 0


@pytest.mark.parametrize("token", ["", "another", TOKEN[:-1]])
def test_metrics_need_the_token(token: str) -> None:
    answer = get("/metrics", token)

    assert answer.status_code == 401
    assert "trainyard" not in answer.text


def test_metrics_are_those_of_the_process_and_are_refreshed_before_they_are_read() -> None:
    refreshed = []

    async def refresh() -> None:
        refreshed.append(True)

    answer = get("/metrics", TOKEN, refresh)

    assert answer.status_code == 200
    assert "# TYPE trainyard_requests_total counter" in answer.text
    assert "# TYPE process_resident_memory_bytes gauge" in answer.text
    assert refreshed == [True]


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/api/2.0/mlflow/runs/search", "api", 200),
        ("/ajax-api/2.0/mlflow/runs/search?status=404", "api", 404),
        ("/api/2.0/mlflow-artifacts/artifacts/1/model?status=503", "artifacts", 503),
        ("/some/page", "pages", 200),
        ("/api/flows/filter?status=0", "api", 500),
    ],
)
def test_requests_are_counted_by_kind_and_status(path: str, kind: str, status: int) -> None:
    before = count(kind, status)

    assert get(path).status_code == status

    assert count(kind, status) == before + 1


@pytest.mark.parametrize("status", ["500", "503"])
def test_there_is_a_count_of_errors_before_the_first_one(status: str) -> None:
    get("/metrics", TOKEN)

    for kind in ("api", "artifacts", "pages"):
        assert REGISTRY.get_sample_value("trainyard_requests_total", {"kind": kind, "status": status}) is not None


def test_health_checks_are_not_counted() -> None:
    before = count("api", 200), count("pages", 200)

    get("/health")
    get("/api/ready")

    assert (count("api", 200), count("pages", 200)) == before


def test_a_request_whose_caller_left_is_no_error_of_the_server() -> None:
    async def stall(_: Any, __: Any, ___: Any) -> None:
        await asyncio.Event().wait()

    async def leave() -> None:
        middleware = RequestMetricsMiddleware(stall, TOKEN)
        request = asyncio.create_task(middleware({"type": "http", "path": "/api/x"}, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    before = count("api", 499), count("api", 500)
    asyncio.run(leave())

    assert (count("api", 499), count("api", 500)) == (before[0] + 1, before[1])


def test_the_backups_metrics_are_the_age_of_the_newest_and_the_space_on_the_disks(tmp_path: Path) -> None:
    newest = tmp_path / "newest"
    newest.touch()
    os.utime(newest, (1000, 1000))
    registry = backup_metrics.make_registry(6, False, newest, disks={"backups": tmp_path})

    assert registry.get_sample_value("trainyard_backup_interval_seconds") == 6 * 3600
    assert registry.get_sample_value("trainyard_backup_newest_timestamp_seconds") == 1000
    free, size = (
        registry.get_sample_value(f"trainyard_disk_{name}_bytes", {"disk": "backups"}) for name in ("free", "size")
    )
    assert free is not None
    assert size is not None
    assert 0 < free < size
    os.utime(newest, (2000, 2000))
    assert registry.get_sample_value("trainyard_backup_newest_timestamp_seconds") == 2000
    assert math.isnan(registry.get_sample_value("trainyard_wal_newest_timestamp_seconds") or 0)


def test_the_age_of_the_newest_wal_is_a_metric_of_point_in_time_recovery(tmp_path: Path) -> None:
    archived = tmp_path / "archived"
    archived.touch()
    os.utime(archived, (1000, 1000))
    registry = backup_metrics.make_registry(6, True, tmp_path, archived, {"backups": tmp_path})

    assert registry.get_sample_value("trainyard_wal_newest_timestamp_seconds") == 1000


def test_nothing_is_published_to_another_machine() -> None:
    published = [port for service in services(OVERRIDE).values() for port in service.get("ports", [])]

    assert published == ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"], "whatever BIND_ADDRESS is"


def test_flows_reach_neither_alertmanager_nor_the_exporter() -> None:
    worker = set(services(CHECKOUT / "docker-compose.yml")["worker"]["networks"])
    override = services(OVERRIDE)

    for service in ("alertmanager", "postgres-exporter"):
        assert not worker & set(override[service]["networks"]), service


def test_each_service_that_is_scraped_exists_and_has_what_prometheus_reads(tmp_path: Path) -> None:
    known = services(CHECKOUT / "docker-compose.yml").keys() | services(OVERRIDE).keys()
    vault.make(tmp_path, settings_file(tmp_path))

    for job in JOBS.values():
        if found := job.get("dns_sd_configs"):  # each container of the service
            (target,) = found[0]["names"]
        elif found := job.get("file_sd_configs"):
            file = Path(found[0]["files"][0])
            (((target,),),) = (each.values() for each in json.loads((tmp_path / "prometheus" / file.name).read_text()))
        else:
            ((target,),) = (each["targets"] for each in job["static_configs"])
        assert target.partition(":")[0] in known | {"localhost"}, job
        if "authorization" in job:
            file = Path(job["authorization"]["credentials_file"])
            assert (tmp_path / "prometheus" / file.name).read_text()
    # What keeps running is watched; the exporter is Postgres's job.
    running = {name for name, each in services(CHECKOUT / "docker-compose.yml").items() if "healthcheck" in each}
    assert running <= JOBS.keys()


def test_an_alert_says_what_is_wrong_and_which_command_or_page_helps() -> None:
    for rule in ALERTS["rules"]:
        text = rule["annotations"]
        assert set(text) == {"summary", "description", "help"}, rule["alert"]
        assert re.search(r"`(docker|make) |The page ", text["help"]), rule["alert"]
        assert not text["summary"].endswith(".")
        assert "for" in rule


def test_each_alert_has_a_test() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    kept_quiet = {case["alertname"] for test in tests for case in test["alert_rule_test"] if not case["exp_alerts"]}

    assert fired == {rule["alert"] for rule in ALERTS["rules"]}
    assert fired - kept_quiet == {"ServerErrors"}  # its one test has servers that do not fire


def test_alerts_are_mailed_by_the_settings_of_mail_and_the_password_is_sent_encrypted_alone() -> None:
    config = yaml.safe_load(interpolated()["configs"]["alertmanager"]["content"])
    receivers = {receiver["name"]: receiver["email_configs"][0] for receiver in config["receivers"]}

    assert receivers.keys() == {tls.value for tls in Tls}
    assert config["route"]["receiver"] == "none"
    assert config["global"]["smtp_smarthost"] == "mail:1025"
    assert [name for name, mail in receivers.items() if "auth_password_file" in mail] == ["starttls", "tls"]
    assert receivers["starttls"]["require_tls"] is True
    assert receivers["tls"]["smarthost"].endswith(":465")
    assert not any(name.startswith(("auth", "smtp_auth")) for name in (*receivers["none"], *config["global"]))


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]

    (source,) = dashboard["__inputs"]
    assert {panel["datasource"]["uid"] for panel in panels} == {f"${{{source['name']}}}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
