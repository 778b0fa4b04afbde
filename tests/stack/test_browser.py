"""Both UIs in a browser: sign-in, the first run and its model."""

from playwright.sync_api import Browser, HttpCredentials, expect

from infra.testing.browser import PATIENCE, visit
from infra.testing.stack import Stack


def test_prefects_ui_shows_the_first_run(stack: Stack, browser: Browser) -> None:
    run, variables = stack.wait_for_first_run(), stack.variables()
    with browser.new_page() as page:
        page.set_default_timeout(PATIENCE)
        address, password = variables["PREFECT_API_URL"].removesuffix("/api"), page.locator("input[type=password]")
        visit(page, address, password)
        password.fill("admin:wrong-password")
        password.press("Enter")
        expect(password).to_be_visible()
        password.fill(variables["PREFECT_API_AUTH_STRING"])
        password.press("Enter")
        expect(page.get_by_role("link", name="Deployments").first).to_be_visible()
        visit(page, f"{address}/runs/flow-run/{run['id']}", page.get_by_text(run["name"]).first)
        expect(page.get_by_text("Completed").first).to_be_visible()


def test_mlflows_ui_shows_the_champion(stack: Stack, browser: Browser) -> None:
    stack.wait_for_first_run()
    variables = stack.variables()
    address = variables["MLFLOW_TRACKING_URI"]
    with browser.new_context() as anonymous:
        assert anonymous.request.get(f"{address}/ajax-api/2.0/mlflow/experiments/search?max_results=1").status == 401
    login: HttpCredentials = {
        "username": variables["MLFLOW_TRACKING_USERNAME"],
        "password": variables["MLFLOW_TRACKING_PASSWORD"],
        "origin": address,
    }
    with browser.new_context(http_credentials=login) as context, context.new_page() as page:
        page.set_default_timeout(PATIENCE)
        visit(page, f"{address}/#/models/rain-tomorrow", page.get_by_role("heading", name="rain-tomorrow"))
        expect(page.get_by_text("champion").first).to_be_visible()
