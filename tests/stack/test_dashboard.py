"""The dashboard in a browser, with the composed stack and its first run."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from infra.testing.stack import Stack

MODEL = "rain-tomorrow"
TIMEOUT_MS = 60_000  # for a loaded machine
MAX_IDLE_MIB = 128


@pytest.fixture(scope="module")
def account(stack: Stack) -> tuple[str, str, str]:
    """The address, user and password of the dashboard, after the first run."""
    stack.wait_for_first_run()
    return stack.dashboard()


@contextmanager
def signed_in(browser: Browser, account: tuple[str, str, str], **options: Any) -> Iterator[BrowserContext]:
    """A new browser context that has signed in."""
    address, user, password = account
    with browser.new_context(**options) as context, context.new_page() as page:
        page.goto(address)
        page.get_by_label("User").fill(user)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{address}/")
        yield context


def open_model_page(page: Page, address: str) -> Page:
    """Open the model's page and wait until it is complete and its charts are rendered."""
    page.goto(f"{address}/?model={MODEL}")
    page.locator("html[data-ready=true]").wait_for(timeout=TIMEOUT_MS)
    page.locator("main:not([data-pending])").wait_for(timeout=TIMEOUT_MS)
    expect(page.locator(".chart .plot.rendered")).to_have_count(page.locator(".chart").count(), timeout=TIMEOUT_MS)
    return page


def read_champion(stack: Stack) -> tuple[str, dict[str, float]]:
    """Return the champion's version and its run's metrics from MLflow."""
    with stack.mlflow() as api:
        named = api.get("/registered-models/alias", params={"name": MODEL, "alias": "champion"}).raise_for_status()
        version = named.json()["model_version"]
        run = api.get("/runs/get", params={"run_id": version["run_id"]}).raise_for_status().json()["run"]
    return version["version"], {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}


def test_a_sign_in_is_required(account: tuple[str, str, str], browser: Browser) -> None:
    address, user, password = account
    with browser.new_context() as context, context.new_page() as page:
        assert context.request.get(f"{address}/state").status == 401
        page.goto(f"{address}/?model={MODEL}")
        expect(page).to_have_url(f"{address}/login")
        page.get_by_label("User").fill(user)
        page.get_by_label("Password").fill("not-the-password")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("wrong")
        page.get_by_label("User").fill(user)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Pipeline runs")).to_be_visible(timeout=TIMEOUT_MS)
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_url(f"{address}/login")
        page.goto(address)
        expect(page).to_have_url(f"{address}/login")


def test_the_scores_are_those_of_mlflow(stack: Stack, account: tuple[str, str, str], browser: Browser) -> None:
    version, metrics = read_champion(stack)
    with signed_in(browser, account) as context:
        page = open_model_page(context.new_page(), account[0])
        expect(page.locator(".tiles").get_by_role("link")).to_have_text(f"Version {version}")
        expect(page.locator("[data-score=champion-brier]")).to_have_text(f"{metrics['model_brier']:.4f}")
        tile = page.locator(".tile", has=page.locator("[data-score]"))
        for baseline in ("climatology", "persistence"):
            expect(tile).to_contain_text(f"{baseline} {metrics[f'{baseline}_brier']:.4f}")
        for metric in ("log_loss", "roc_auc", "accuracy", "calibration_error", "average_precision"):
            page.goto(f"{account[0]}/?model={MODEL}&metric={metric}")
            expect(page.locator(f"[data-score=champion-{metric}]")).to_have_text(f"{metrics[f'model_{metric}']:.4f}")


def test_the_first_run_and_the_worker_are_shown(stack: Stack, account: tuple[str, str, str], browser: Browser) -> None:
    run = stack.wait_for_first_run()
    with signed_in(browser, account) as context:
        page = open_model_page(context.new_page(), account[0])
        page.get_by_label("flow", exact=True).get_by_role("link", name="weather-pipeline").click()
        row = page.locator("#runs tr", has_text=run["name"])
        expect(row).to_contain_text("Completed", timeout=TIMEOUT_MS)
        expect(row).to_contain_text("preprocess")
        expect(row).to_contain_text("train")
        link = row.get_by_role("link", name=run["name"])
        assert link.get_attribute("href") == (
            f"http://localhost:{stack.ports['PREFECT_PORT']}/runs/flow-run/{run['id']}"
        )
        workers = page.locator("#workers")
        expect(workers).to_contain_text("training", timeout=TIMEOUT_MS)
        expect(workers).to_contain_text("online")
        expect(page.locator("#schedule")).to_contain_text("weather-pipeline")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_each_width_and_color_scheme(
    account: tuple[str, str, str], browser: Browser, width: int, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    messages: list[str] = []
    hosts: set[str] = set()
    with signed_in(browser, account, viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        open_model_page(page, account[0])
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator(".chart").count() >= 2
        for chart in page.locator(".plot").all():
            box = chart.locator("svg").bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        # The Content-Security-Policy must allow the tooltip.
        page.locator(".plot svg .mark-symbol.role-mark path").first.hover()
        expect(page.locator("#vg-tooltip-element.visible")).to_be_visible(timeout=TIMEOUT_MS)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) / 3
        assert (brightness < 128) == (scheme == "dark")
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)

    assert messages == []
    assert hosts == {account[0].split("/")[2]}


def test_it_reports_that_mlflow_is_down_and_recovers(
    stack: Stack, account: tuple[str, str, str], browser: Browser
) -> None:
    version, metrics = read_champion(stack)
    with signed_in(browser, account) as context:
        page = open_model_page(context.new_page(), account[0])
        stack.shell("docker compose stop mlflow")
        try:
            status = page.locator("#metrics").get_by_role("status")
            expect(status).to_contain_text("MLflow does not answer", timeout=TIMEOUT_MS)  # the page updates itself
            expect(page.locator("[data-score=champion-brier]")).to_have_text(f"{metrics['model_brier']:.4f}")
            expect(page.locator("#runs").get_by_role("status")).to_have_count(0)
        finally:
            stack.shell("docker compose up --detach --wait --no-recreate mlflow")
        expect(page.get_by_text("MLflow does not answer")).to_have_count(0, timeout=2 * TIMEOUT_MS)
        expect(page.locator(".tiles").get_by_role("link")).to_have_text(f"Version {version}")


def test_its_accounts_are_read_only(stack: Stack, account: tuple[str, str, str]) -> None:
    program = (
        "import os, httpx; e = os.environ; login = (e['MLFLOW_TRACKING_USERNAME'], e['MLFLOW_TRACKING_PASSWORD']);"
        "u = e['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/registered-models/alias';"
        f"print(httpx.get(u, auth=login, params={{'name': '{MODEL}', 'alias': 'champion'}}).status_code,"
        f"httpx.post(u, auth=login, json={{'name': '{MODEL}', 'alias': 'intruder', 'version': '1'}}).status_code,"
        "httpx.post(u.replace('alias', 'create'), auth=login, json={'name': 'intruder'}).status_code);"
        "p = e['PREFECT_API_URL']; login = tuple(e['PREFECT_API_AUTH_STRING'].split(':', 1));"
        "print(*(httpx.post(p + path, auth=login, json={}).status_code for path in"
        "('/flow_runs/count', '/flows/', '/block_documents/filter', '/flow_runs/bulk_delete')));"
        "print([name for name in e if name.startswith('AWS')])"
    )

    lines = stack.python("dashboard", program).stdout.split("\n")

    assert lines[:3] == ["200 403 403", "200 403 403 403", "[]"]


def test_it_cannot_reach_the_stores(stack: Stack, account: tuple[str, str, str]) -> None:
    for host, port in (("postgres", 5432), ("minio", 9000)):
        program = f"import socket; socket.create_connection(({host!r}, {port}), timeout=3)"
        assert stack.python("dashboard", program, check=False).returncode == 1, f"the dashboard reached {host}"


def test_its_idle_memory_is_limited(stack: Stack, account: tuple[str, str, str]) -> None:
    used = statistics.median(stack.pss_mib("dashboard") for _ in range(3))

    assert 20 < used <= MAX_IDLE_MIB
