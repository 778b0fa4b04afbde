"""MLflow's server and UI at a public address, as behind a proxy with TLS."""

from collections.abc import Iterator

import httpx
import pytest
from mlflow_server.public_address import accept_public_address
from playwright.sync_api import Route, expect

from infra.testing.browser import PATIENCE, chromium
from infra.testing.servers import mlflow_server

HOST = "mlflow.example.com"
SEARCH = "/ajax-api/2.0/mlflow/experiments/search"


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server whose public address is https://mlflow.example.com."""
    with (
        mlflow_server(tmp_path_factory.mktemp("mlflow"), public_address=f"https://{HOST}") as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (HOST, f"https://{HOST}", 200),
        (HOST, f"http://{HOST}", 403),
        (HOST, f"https://{HOST}:8443", 403),
        (HOST, f"https://{HOST}.evil.example", 403),
        (HOST, "https://evil.example", 403),
        (HOST, "null", 403),
        ("evil.example", f"https://{HOST}", 403),
        (f"{HOST}:5001", f"https://{HOST}", 403),
    ],
)
def test_pages_of_the_public_address_alone_may_post(
    behind_proxy: httpx.Client, host: str, origin: str, status: int
) -> None:
    answer = behind_proxy.post(SEARCH, json={"max_results": 1}, headers={"Host": host, "Origin": origin})

    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("host", ["mlflow:5000", "localhost:5001"])
def test_services_and_the_host_need_no_public_address(behind_proxy: httpx.Client, host: str) -> None:
    assert behind_proxy.post(SEARCH, json={"max_results": 1}, headers={"Host": host}).status_code == 200


def test_the_ui_works_at_the_public_address(behind_proxy: httpx.Client) -> None:
    def pass_on(route: Route) -> None:
        """Do what a proxy with TLS does that passes on the browser's Host header."""
        upstream = route.request.url.replace(f"https://{HOST}", str(behind_proxy.base_url).rstrip("/"))
        route.fulfill(response=route.fetch(url=upstream, headers={**route.request.all_headers(), "host": HOST}))

    with chromium() as browser, browser.new_page() as page:
        page.set_default_timeout(PATIENCE)
        page.route(f"https://{HOST}/**", pass_on)
        page.goto(f"https://{HOST}/#/experiments")
        page.get_by_role("button", name="Create", exact=True).first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("textbox").first.fill("made-in-the-browser")
        dialog.get_by_role("button", name="Create", exact=True).click()

        expect(page.get_by_text("made-in-the-browser").first).to_be_visible()
        page.unroute_all(behavior="ignoreErrors")  # requests that the page has under way die with it


@pytest.mark.parametrize(
    ("address", "origin", "host"),
    [
        ("https://MLflow.example.com:443", "https://mlflow.example.com", "mlflow.example.com"),
        ("http://ml.lan:80", "http://ml.lan", "ml.lan"),
        ("http://ml.lan:443", "http://ml.lan:443", "ml.lan:443"),
        ("http://[fd00::1]:5001", "http://[fd00::1]:5001", "[fd00::1]:5001"),
    ],
)
def test_host_and_origin_are_written_as_browsers_do(address: str, origin: str, host: str) -> None:
    environment = {"MLFLOW_UI_URL": address}
    accept_public_address(environment)

    assert environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == origin
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")[-1] == host
