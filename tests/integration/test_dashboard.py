"""The dashboard with real servers: sign-in, models and runs that the real producers logged, and servers that are down."""

import html
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import mlflow
import pandas as pd
import pytest
from dashboard.auth import MAX_FAILURES
from dashboard.mlflow_source import MAX_VERSIONS
from dashboard.prefect_source import LIST_PAGE
from mlflow import MlflowClient
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from infra.diagnosis.__main__ import keep
from infra.testing.servers import dashboard_server, prefect_client, prefect_server, serving_server
from infra.testing.waiting import wait_until
from tests.support import model_records
from tests.support.gate import Gate
from trainyard.contract import (
    MONITORING_EXPERIMENT,
    OUTCOME_COLUMNS,
    Alias,
    Artifact,
    MLflowPage,
    PrefectPage,
    Problem,
    State,
    Tag,
    Verdict,
)
from trainyard.diagnosis import Finding
from trainyard.drift import Shift
from trainyard.gate import Decision
from trainyard.tracking import Registered

LOGIN = {"user": "admin", "password": "a-password-of-the-tests"}
API_KEY, READING_KEY = "a-key-of-the-callers", "a-key-of-the-dashboard"
ADMIN_LOGIN, READER_LOGIN = "admin:password-of-the-admin", "dashboard:password-of-the-reader"
MLFLOW_UI, PREFECT_UI = "http://mlflow.test:5001", "http://prefect.test:4200"
PAGES = 9


@dataclass(frozen=True)
class Dashboards:
    """Starts dashboards over the given servers."""

    bundle: Path
    folders: pytest.TempPathFactory

    def start(self, stack: ExitStack, mlflow_address: str, prefect_api: str, **settings: str) -> str:
        """Start a dashboard that runs until the stack closes; return its address."""
        defaults = {"DASHBOARD_BUNDLE": str(self.bundle), "MLFLOW_UI_URL": MLFLOW_UI, "PREFECT_UI_URL": PREFECT_UI}
        folder = self.folders.mktemp("dashboard")
        return stack.enter_context(dashboard_server(folder, mlflow_address, prefect_api, **(defaults | settings)))


@pytest.fixture(scope="session")
def dashboards(tmp_path_factory: pytest.TempPathFactory) -> Dashboards:
    """Dashboards with a stand-in for the charts' script: these tests read pages without a browser."""
    bundle = tmp_path_factory.mktemp("bundle") / "vega.js"
    bundle.write_text("// draws nothing\n")
    return Dashboards(bundle, tmp_path_factory)


@pytest.fixture(scope="module")
def address(mlflow_address: str, prefect: SyncPrefectClient, dashboards: Dashboards) -> Iterator[str]:
    """A dashboard over the session's servers."""
    with ExitStack() as stack:
        yield dashboards.start(stack, mlflow_address, str(prefect.api_url))


def browser(address: str) -> httpx.Client:
    """Return a client that sends the Origin header with its posts, as browsers do."""
    return httpx.Client(base_url=address, headers={"Origin": address}, timeout=30)


@pytest.fixture
def anonymous(address: str) -> Iterator[httpx.Client]:
    """A client that has not signed in."""
    with browser(address) as client:
        yield client


@pytest.fixture
def user(address: str) -> Iterator[httpx.Client]:
    """A client that has signed in."""
    with browser(address) as client:
        assert client.post("/login", data=LOGIN).status_code == 303
        yield client


def text_of(page: httpx.Response) -> str:
    """Return a page's text without its tags."""
    assert page.status_code == 200, page.text
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page.text)))


def wait_for_text(client: httpx.Client, path: str, *expected: str, seconds: float = 60) -> str:
    """Return a page's text once it contains everything that is expected."""

    def matching_text() -> str | None:
        text = text_of(client.get(path))
        return text if all(each in text for each in expected) else None

    return wait_until(matching_text, seconds, f"{expected} at {path}")


@pytest.fixture(scope="module")
def versions(mlflow_address: str, prefect: SyncPrefectClient) -> Iterator[tuple[Registered, Registered]]:
    """A champion with a holdout, and a challenger without one."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        model = f"demand-{uuid4().hex[:8]}"
        scores = {"model_brier": 0.1618, "prior_brier": 0.25, "model_accuracy": 0.75}
        promoted = Decision(promote=True, reason="There was no champion.")
        refused = Decision(promote=False, reason="brier 0.1999 <b>against</b> 0.1618")
        champion = model_records.train_classifier(model, scores, promoted, holdout_rows=30)
        challenger = model_records.train_classifier(model, scores | {"model_brier": 0.1999}, refused)
        yield champion, challenger


@pytest.fixture
def model(versions: tuple[Registered, Registered], tracking: MlflowClient) -> str:
    """The name of the registered model of `versions`."""
    return versions[0].model


@contextmanager
def of_reader(dashboards: Dashboards, mlflow_address: str, prefect: str) -> Iterator[httpx.Client]:
    """A signed-in client of a dashboard that has the stack's account in Prefect."""
    with ExitStack() as stack:
        address = dashboards.start(stack, mlflow_address, prefect, PREFECT_API_AUTH_STRING=READER_LOGIN)
        client = stack.enter_context(browser(address))
        client.post("/login", data=LOGIN)
        yield client


def test_a_fresh_installation_explains_what_is_missing(
    mlflow_address: str, prefect_with_reader: str, dashboards: Dashboards
) -> None:
    with of_reader(dashboards, mlflow_address, prefect_with_reader) as client:
        text = wait_for_text(client, "/", "No model is registered yet", "There is no work pool yet")

    assert "No run has started yet" in text
    assert "No run is scheduled" in text
    assert "No run has failed" in text


@pytest.fixture(scope="module")
def prefect_with_reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server without any runs, with the accounts of the stack."""
    folder = tmp_path_factory.mktemp("prefect")
    with prefect_server(folder, admin=ADMIN_LOGIN, reader=READER_LOGIN) as api:
        yield api


def test_what_is_wrong_is_shown_as_make_doctor_says_it(
    mlflow_address: str, prefect_with_reader: str, dashboards: Dashboards
) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(of_reader(dashboards, mlflow_address, prefect_with_reader))
        admin = stack.enter_context(prefect_client(prefect_with_reader, ("admin", ADMIN_LOGIN.partition(":")[2])))

        before = wait_for_text(client, "/", "There is no work pool training, so no run can start. → make up")
        keep([Finding("mail is <not> running.", "docker compose up -d mail")], admin)
        wait_for_text(client, "/", "mail is <not> running. → docker compose up -d mail")
        keep([], admin)
        wait_for_text(client, "/", "databases, mail, deployments and backups: nothing is wrong.")

        assert "it has not been run yet" in before


def test_a_refused_account_is_named(mlflow_address: str, prefect_with_reader: str, dashboards: Dashboards) -> None:
    with ExitStack() as stack:
        settings = {"PREFECT_API_AUTH_STRING": "dashboard:wrong"}
        address = dashboards.start(stack, mlflow_address, prefect_with_reader, **settings)
        client = stack.enter_context(browser(address))
        client.post("/login", data=LOGIN)

        wait_for_text(client, "/", "Prefect refuses this service's account (401)")


def test_a_sign_in_is_required(anonymous: httpx.Client) -> None:
    pages = [anonymous.get(path) for path in ("/", "/?model=x")] + [anonymous.post("/refresh")]

    assert [(page.status_code, page.headers["location"]) for page in pages] == [(303, "/login")] * 3
    assert anonymous.get("/state").status_code == 401
    assert anonymous.get("/health").status_code == 200


def test_signing_out_revokes_the_cookie(user: httpx.Client, anonymous: httpx.Client) -> None:
    assert user.get("/").status_code == 200
    anonymous.cookies.update(dict(user.cookies))

    response = user.post("/logout")

    assert response.headers["location"] == "/login"
    assert user.get("/").status_code == 303
    assert anonymous.get("/").status_code == 303, "a copy of the cookie"


def test_the_cookie_is_hidden_from_scripts(anonymous: httpx.Client) -> None:
    plain = anonymous.post("/login", data=LOGIN).headers["set-cookie"].lower()
    behind_tls = anonymous.post("/login", data=LOGIN, headers={"X-Forwarded-Proto": "https"})

    assert "httponly" in plain
    assert "samesite=lax" in plain
    assert "secure" not in plain
    assert "secure" in behind_tls.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_sites_cannot_post(user: httpx.Client, headers: dict[str, str]) -> None:
    paths = ("/login", "/logout", "/refresh")

    statuses = [user.post(path, data=LOGIN, headers=headers).status_code for path in paths]

    assert statuses == [403, 403, 403]
    assert user.get("/").status_code == 200, "the session goes on"


@pytest.mark.parametrize("path", ["/", "/login", "/state", "/no-such-page", "/static/page.css"])
def test_every_response_has_the_security_headers(user: httpx.Client, path: str) -> None:
    headers = user.get(path).headers

    assert "script-src 'self';" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert ("no-store" in headers["cache-control"]) == (not path.startswith("/static/"))


def test_a_refused_post_has_the_security_headers(user: httpx.Client) -> None:
    response = user.post("/logout", headers={"Origin": "http://evil.test"})

    assert "script-src 'self';" in response.headers["content-security-policy"]


def test_static_files_are_compressed_and_confined(user: httpx.Client) -> None:
    assert user.get("/static/vega.js").headers["content-encoding"] == "gzip"
    assert user.get("/static/../settings.py").status_code == 404


def test_failed_sign_ins_are_limited(mlflow_address: str, prefect: SyncPrefectClient, dashboards: Dashboards) -> None:
    wrong = [
        {"user": "admin"},
        {"user": "other", "password": LOGIN["password"]},
        *({"user": "admin", "password": "x" * length} for length in (0, 1, 9999)),
    ]
    assert len(wrong) == MAX_FAILURES
    with ExitStack() as stack:
        address = dashboards.start(stack, mlflow_address, str(prefect.api_url))
        client = stack.enter_context(browser(address))

        failed = [client.post("/login", data=form) for form in wrong]
        blocked = client.post("/login", data=LOGIN)

    assert [(page.status_code, "User or password is wrong" in page.text) for page in failed] == [(401, True)] * 5
    assert blocked.status_code == 429
    assert 0 < int(blocked.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("settings", "status"),
    [({}, 429), ({"DASHBOARD_PROXY": "unknown.invalid"}, 429), ({"DASHBOARD_PROXY": "localhost"}, 303)],
    ids=["no proxy", "another proxy", "the proxy"],
)
def test_a_caller_s_address_is_taken_from_the_proxy_alone(
    mlflow_address: str, prefect: SyncPrefectClient, dashboards: Dashboards, settings: dict[str, str], status: int
) -> None:
    with ExitStack() as stack:
        address = dashboards.start(stack, mlflow_address, str(prefect.api_url), **settings)
        client = stack.enter_context(browser(address))
        for number in range(MAX_FAILURES):  # a caller may send the header as well: the proxy appends to it
            forwarded = {"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.1"}
            client.post("/login", data=LOGIN | {"password": "wrong"}, headers=forwarded)

        same = client.post("/login", data=LOGIN, headers={"X-Forwarded-For": "192.0.2.1"})
        other = client.post("/login", data=LOGIN, headers={"X-Forwarded-For": "192.0.2.2"})

    assert same.status_code == 429
    assert other.status_code == status


def test_sign_ins_whose_forms_arrive_together_are_limited(
    mlflow_address: str, prefect: SyncPrefectClient, dashboards: Dashboards
) -> None:
    count, form = 3 * MAX_FAILURES, b"user=admin&password=wrong"
    with ExitStack() as stack:
        address = dashboards.start(stack, mlflow_address, str(prefect.api_url))
        host, port = address.removeprefix("http://").split(":")
        callers = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(count)]
        head = (
            f"POST /login HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: {address}\r\nContent-Length: {len(form)}\r\n\r\n"
        )
        for caller in callers:
            caller.sendall(head.encode() + form[:1])
        httpx.get(f"{address}/health").raise_for_status()  # by then, the heads have been read
        for caller in callers:
            caller.sendall(form[1:])
        statuses = [int(caller.recv(4096).split()[1]) for caller in callers]

    assert sorted(statuses) == [401] * MAX_FAILURES + [429] * (count - MAX_FAILURES)


def test_a_browser_that_has_signed_in_before_is_not_locked_out_by_others(
    mlflow_address: str, prefect: SyncPrefectClient, dashboards: Dashboards
) -> None:
    with ExitStack() as stack:
        address = dashboards.start(stack, mlflow_address, str(prefect.api_url))
        known, other = stack.enter_context(browser(address)), stack.enter_context(browser(address))
        known.post("/login", data=LOGIN)
        known.post("/logout")
        for _ in range(MAX_FAILURES):
            other.post("/login", data=LOGIN | {"password": "wrong"})

        statuses = [client.post("/login", data=LOGIN).status_code for client in (other, known)]

    assert statuses == [429, 303]


def test_a_session_expires(mlflow_address: str, prefect: SyncPrefectClient, dashboards: Dashboards) -> None:
    with ExitStack() as stack:
        settings = {"DASHBOARD_SESSION_SECONDS": "2"}
        address = dashboards.start(stack, mlflow_address, str(prefect.api_url), **settings)
        client = stack.enter_context(browser(address))
        cookie, _, attributes = client.post("/login", data=LOGIN).headers["set-cookie"].partition(";")
        client.cookies.clear()
        headers = {"Cookie": cookie}  # of a client that ignores Max-Age

        assert "Max-Age=2" in attributes
        assert client.get("/state", headers=headers).status_code == 200
        wait_until(lambda: client.get("/state", headers=headers).status_code == 401, 30, "the end of the session")


def test_the_page_shows_the_champion_and_the_challenger(user: httpx.Client, model: str) -> None:
    expected = ("Version 1", "0.1618", "Why the last candidate was not promoted", "on 30 holdout rows")

    text = wait_for_text(user, f"/?model={model}", *expected)

    assert "brier 0.1999 <b>against</b> 0.1618" in text, "tags are escaped"
    assert "prior 0.2500" in text
    assert "has not checked this model yet" in text


def test_the_overview_lists_every_model(user: httpx.Client, tracking: MlflowClient, model: str) -> None:
    unused = f"unused-{uuid4().hex[:8]}"
    tracking.create_registered_model(unused)
    try:
        text = wait_for_text(user, f"/?model={model}", f"{unused} none", f"{model} version 1 Brier score")
    finally:
        tracking.delete_registered_model(unused)

    assert re.search(rf"{model} version 1 Brier score 0.1618 prior 0.2500 .*?\d{{4}}-", text), text
    assert "No address of serving is set" in text


def test_the_time_range_leaves_out_older_runs(user: httpx.Client, prefect: SyncPrefectClient) -> None:
    name, post = f"recent-{uuid4().hex[:8]}", prefect._client.post
    flow_id = post("/flows/", json={"name": name}).raise_for_status().json()["id"]
    for run, due in (("run-new", datetime.now(UTC)), ("run-old", datetime.now(UTC) - timedelta(hours=2))):
        scheduled = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        created = post("/flow_runs/", json={"flow_id": flow_id, "name": run, "state": scheduled}).raise_for_status()
        completed = {"state": {"type": "COMPLETED", "name": "Completed"}, "force": True}
        post(f"/flow_runs/{created.json()['id']}/set_state", json=completed).raise_for_status()

    recent = wait_for_text(user, f"/?flow={name}&range=1h", f"1 run of {name}", "run-new")
    everything = wait_for_text(user, f"/?flow={name}", f"2 runs of {name}")

    assert "run-old" not in recent
    assert "run-old" in everything


def test_a_flow_that_runs_often_hides_no_other_one_s_next_run(user: httpx.Client, prefect: SyncPrefectClient) -> None:
    created, post = [], prefect._client.post
    for name, hours in (("hourly", range(1, 8)), ("nightly", [9])):
        flow_id = post("/flows/", json={"name": f"{name}-{uuid4().hex[:8]}"}).raise_for_status().json()["id"]
        for hour in hours:
            due = datetime.now(UTC) + timedelta(hours=hour, minutes=-1)
            state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
            run = post("/flow_runs/", json={"flow_id": flow_id, "state": state}).raise_for_status().json()
            created.append(run["id"])
    try:
        text = wait_for_text(user, "/", "hourly-", "nightly-")
    finally:
        for run_id in created:
            prefect._client.delete(f"/flow_runs/{run_id}").raise_for_status()

    shown = re.findall(r"(hourly|nightly)-[0-9a-f]{8}", text.partition("Next scheduled")[2])
    assert shown == ["hourly", "nightly"]


def test_the_challenger_is_compared_with_the_champion(user: httpx.Client, model: str) -> None:
    text = wait_for_text(user, f"/?model={model}", "Comparison of two versions", "0.0381 ✕ worse")

    assert "Brier score 0.1999 0.1618 0.0381 ✕ worse" in text
    wait_for_text(user, f"/?model={model}&compare=1&against=2", "Brier score 0.1618 0.1999 -0.0381 ✓ better")


@pytest.fixture(scope="module")
def serving(mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of serving with an API key and a reading key."""
    keys = {"SERVING_API_KEY": API_KEY, "SERVING_READING_KEY": READING_KEY}
    with serving_server(tmp_path_factory.mktemp("serving"), mlflow_address, **keys) as address:
        yield address


def test_servings_traffic_is_shown(
    serving: str, mlflow_address: str, prefect: SyncPrefectClient, model: str, dashboards: Dashboards
) -> None:
    def predict(row: dict[str, float]) -> int:
        headers = {"X-API-Key": API_KEY}
        return httpx.post(f"{serving}/models/{model}/predict", json=row, headers=headers).status_code

    wait_until(lambda: predict({"temperature": 1.0}) == 200, 60, "the champion to be served")
    assert predict({"wind": 1.0}) == 422
    with ExitStack() as stack:
        settings = {"SERVING_URL": serving, "SERVING_READING_KEY": READING_KEY}
        address = dashboards.start(stack, mlflow_address, str(prefect.api_url), **settings)
        client = stack.enter_context(browser(address))
        client.post("/login", data=LOGIN)

        text = wait_for_text(client, f"/?model={model}", "version requests failed refused p50 p95 p99")

    rows = re.findall(r"(?<= )(\d+|unknown) (\d+) (\d+) (\d+) [\d.]+ ms [\d.]+ ms [\d.]+ ms", text)
    requests = {version: int(count) for version, count, _, _ in rows}
    assert requests["1"] >= 1, text
    assert sum(int(refused) for *_, refused in rows) >= 1, "the row that does not fit the signature"


def test_the_reading_key_opens_figures_alone(serving: str, model: str) -> None:
    headers = {"Authorization": f"Bearer {READING_KEY}"}
    paths = ("/traffic", f"/models/{model}/shadow", "/models", f"/models/{model}/predictions")

    with httpx.Client(base_url=serving, headers=headers) as client:
        statuses = {path: client.get(path).status_code for path in paths}
        predicted = client.post(f"/models/{model}/predict", json={"temperature": 1.0}).status_code

    assert list(statuses.values()) == [200, 404, 401, 401], "nothing is recorded here"
    assert predicted == 401
    assert httpx.get(f"{serving}/traffic").status_code == 401
    assert httpx.get(f"{serving}/traffic", headers={"X-API-Key": API_KEY}).status_code == 200


def test_the_page_links_to_both_uis(
    user: httpx.Client, tracking: MlflowClient, model: str, versions: tuple[Registered, Registered]
) -> None:
    champion = versions[0]
    flow_run_id = tracking.get_run(champion.run_id).data.tags[Tag.FLOW_RUN_ID]
    wait_for_text(user, f"/?model={model}", "Version 1")

    page = user.get(f"/?model={model}").text

    assert MLflowPage.run(MLFLOW_UI, champion.experiment_id, champion.run_id) in page
    assert MLflowPage.version(MLFLOW_UI, model, 1) in page
    assert PrefectPage.flow_run(PREFECT_UI, flow_run_id) in page


def test_another_metric_can_be_selected(user: httpx.Client, model: str) -> None:
    text = wait_for_text(user, f"/?model={model}&metric=accuracy", "Accuracy by training")

    assert "0.7500" in text


def test_a_champion_without_a_holdout_has_no_calibration(
    user: httpx.Client, tracking: MlflowClient, model: str
) -> None:
    tracking.set_registered_model_alias(model, Alias.CHAMPION, "2")
    try:
        wait_for_text(user, f"/?model={model}", f"run has no {Artifact.HOLDOUT}")
    finally:
        tracking.set_registered_model_alias(model, Alias.CHAMPION, "1")


def test_the_newest_check_is_shown(user: httpx.Client, model: str) -> None:
    model_records.check_champion(
        model,
        Verdict.ALERT,
        "wind has drifted",
        metrics={"predictions": 40, "scored": 1, "live_brier": 0.2121, "holdout_brier": 0.1618},
        shifts=[Shift("wind", 0.4321, 0.3111, 0.001, 4.0, 9.0, True), Shift("kind", 0.1, 5.5, 0.2, None, None, False)],
        forecasts=[
            ("store 1", "2026-11-20", "2026-11-19T06:00:00Z", 1, 0.81, 1, 1),
            ("store 1", "2026-11-21", "2026-11-20T06:00:00Z", 1, 0.33, None, 1),
        ],
    )

    text = wait_for_text(user, f"/?model={model}", "Alert", "wind has drifted", "ground truth: store 1")

    assert "Ground truth is known for 1 prediction; 1 correct" in text
    assert "2026-11-20 81 % positive 1" in text
    assert "2026-11-21 33 % not yet known 1" in text
    assert "Brier score 0.212 0.162" in text
    assert "wind 0.432 Kolmogorov-Smirnov 0.311 0.001 4.00 9.00 drifted" in text
    assert "kind 0.100 chi-squared 5.500 0.200" in text


def test_a_check_of_too_few_predictions_is_shown(user: httpx.Client, model: str) -> None:
    model_records.check_champion(model, Verdict.TOO_FEW, "3 predictions are too few")

    text = wait_for_text(user, f"/?model={model}", "Too few predictions", "3 predictions are too few")

    assert f"no {Artifact.DRIFT}" in text
    assert f"no {Artifact.FORECASTS}" in text


def test_a_check_from_before_the_columns_were_renamed_is_shown(
    user: httpx.Client, tracking: MlflowClient, model: str
) -> None:
    mlflow.set_experiment(MONITORING_EXPERIMENT)
    forecasts = {
        "columns": ["place", "day", "issued_at", "version", "probability", "observed"],
        "data": [["Bergen", "2026-11-20", "2026-11-19T06:00:00Z", 1, 0.81, 0]],
    }
    drift = {
        "columns": ["column", "psi", "ks_statistic", "ks_p_value", "training_mean", "recent_mean", "drifted"],
        "data": [["wind", 0.4321, 0.3111, 0.001, 4.0, 9.0, True]],
    }
    with mlflow.start_run(tags={Tag.MODEL: model, Tag.VERDICT: Verdict.OK}):
        mlflow.log_dict(forecasts, Artifact.FORECASTS)
        mlflow.log_dict(drift, Artifact.DRIFT)

    text = wait_for_text(user, f"/?model={model}", "ground truth: Bergen")

    assert "2026-11-20 81 % negative 1" in text
    assert "wind 0.432 Kolmogorov-Smirnov 0.311 0.001 4.00 9.00 drifted" in text


def test_a_regression_is_shown(user: httpx.Client, tracking: MlflowClient) -> None:
    model = f"price-{uuid4().hex[:8]}"
    promoted = Decision(promote=True, reason="There was no champion.")
    model_records.train_regressor(model, {"model_rmse": 1.25, "prior_rmse": 9.5}, promoted)
    model_records.check_champion(
        model,
        Verdict.OK,
        "No input has drifted.",
        metrics={"predictions": 2, "scored": 1, "live_rmse": 2.5, "holdout_rmse": 1.25},
        outcomes=pd.DataFrame(
            [("store 1", "2026-11-20T06:00:00Z", "2026-11-19T06:00:00Z", 1, 12.5, 10.0, None, 1, 0.25, 1.5)],
            columns=list(OUTCOME_COLUMNS),
        ),
        problem=Problem.REGRESSION,
        forecasts=[
            ("store 1", "2026-11-20T06:00:00Z", "2026-11-19T06:00:00Z", 1, 12.5, 10.0, 1),
            ("store 1", "2026-11-20T07:00:00Z", "2026-11-19T06:00:00Z", 1, 14.25, None, 1),
        ],
    )

    text = wait_for_text(user, f"/?model={model}", "1.2500", "No input has drifted.", "ground truth: store 1")

    page = user.get(f"/?model={model}").text
    assert "Residuals of the champion" in text
    assert "Error over time" in text
    assert "1 prediction of version 1 with ground truth" in text
    assert "2026-11-20 model 0.2500 1" in text
    assert page.count('"residual":-2.5') == 2, "over time, and by prediction"
    assert "Root mean squared error 2.500 1.250" in text
    assert "mean absolute error 2.500" in text
    assert "2026-11-20T06:00:00Z 12.5 10.0 1" in text


def test_a_champion_older_than_the_listed_versions_is_shown(
    user: httpx.Client, tracking: MlflowClient, versions: tuple[Registered, Registered]
) -> None:
    name, run_id = f"old-{uuid4().hex[:8]}", versions[0].run_id
    tracking.create_registered_model(name)
    for _ in range(MAX_VERSIONS + 1):
        tracking.create_model_version(name, f"runs:/{run_id}/model", run_id)
    tracking.set_registered_model_alias(name, Alias.CHAMPION, "1")
    try:
        expected = (f"Champion of {name} Version 1", "0.1618 prior 0.2500", "Version 1 on 30 holdout rows")
        wait_for_text(user, f"/?model={name}", *expected)
    finally:
        tracking.delete_registered_model(name)


def test_runs_of_more_flows_than_a_page_of_prefects_lists_are_shown(
    user: httpx.Client, prefect: SyncPrefectClient
) -> None:
    post, last = prefect._client.post, f"zz-{uuid4().hex[:8]}"
    names = [*(f"bulk-{uuid4().hex[:8]}" for _ in range(LIST_PAGE)), last]
    flows = [post("/flows/", json={"name": name}).raise_for_status().json()["id"] for name in names]
    try:
        run = {"flow_id": flows[-1], "name": "of-the-last", "state": {"type": "COMPLETED", "name": "Completed"}}
        post("/flow_runs/", json=run).raise_for_status()

        wait_for_text(user, "/", f"of-the-last {last}")
    finally:
        for flow_id in flows:
            prefect._client.delete(f"/flows/{flow_id}")


def test_names_and_queries_are_quoted(user: httpx.Client, tracking: MlflowClient) -> None:
    name = "o'clock & <co>"
    tracking.create_registered_model(name)
    try:
        text = wait_for_text(user, "/?model=o%27clock+%26+%3Cco%3E", "The model has no version yet")
        injected = user.get("/", params={"model": "x' OR name != '", "metric": "\x00", "flow": "'; --"})
    finally:
        tracking.delete_registered_model(name)

    assert name in text
    assert injected.status_code == 200


@pytest.fixture(scope="module")
def pipeline(prefect: SyncPrefectClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a flow that ran twice, with a component, a task that the second run takes from cache, and a retry."""
    name, attempts = f"pipeline-{uuid4().hex[:8]}", []

    @task(cache_policy=INPUTS, persist_result=True)
    def add_one(number: int) -> int:
        return number + 1

    @task(retries=2, retry_delay_seconds=0)
    def fail_once() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("not yet")

    @flow(name=f"{name}-part", persist_result=False)
    def part() -> None:
        add_one(1)
        fail_once()

    @flow(name=name, persist_result=False)
    def run_pipeline() -> None:
        part()

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("results")}):
        run_pipeline()
        run_pipeline()
    return name


def test_runs_have_their_components_retries_and_cache_hits(user: httpx.Client, pipeline: str) -> None:
    text = wait_for_text(user, f"/?flow={pipeline}", f"2 runs of {pipeline}", "1 of 2 tasks")

    newest, oldest = re.findall(rf"✓ Completed ([\w-]+) {pipeline} ", text)
    assert newest != oldest
    assert re.search(rf"{pipeline}-part [\d.]+ s +1 of 2 tasks –", text), text  # noqa: RUF001
    assert re.search(rf"{pipeline}-part [\d.]+ s +0 of 2 tasks 1", text), text


def test_the_last_failure_is_shown(user: httpx.Client) -> None:
    @flow(name=f"fails-{uuid4().hex[:8]}")
    def fails() -> None:
        raise ValueError("the file was <too> long")

    with pytest.raises(ValueError, match="long"):
        fails()

    wait_for_text(user, "/", "the file was <too> long", "✕ Failed")


def test_a_run_that_waits_for_a_lock_says_who_holds_it(user: httpx.Client, prefect: SyncPrefectClient) -> None:
    name, post = f"waits-{uuid4().hex[:8]}", prefect._client.post
    flow_id = post("/flows/", json={"name": name}).json()["id"]
    message = "Waiting for the lock demand, held by the run quick-fox."
    state = {"type": "RUNNING", "name": State.WAITING, "message": message}
    run = post("/flow_runs/", json={"flow_id": flow_id, "state": state}).raise_for_status().json()

    wait_for_text(user, f"/?flow={name}", f"1 run of {name}", f"… Waiting {message}")
    post(f"/flow_runs/{run['id']}/set_state", json={"state": {"type": "COMPLETED"}, "force": True}).raise_for_status()


def test_many_runs_are_shown_page_by_page(user: httpx.Client, prefect: SyncPrefectClient) -> None:
    name, post, rows = f"many-{uuid4().hex[:8]}", prefect._client.post, []
    flow_id = post("/flows/", json={"name": name}).json()["id"]
    for number in range(100):
        run = {"flow_id": flow_id, "name": f"run-{number}", "state": {"type": "COMPLETED", "name": "Completed"}}
        post("/flow_runs/", json=run).raise_for_status()

    for page in range(1, PAGES + 1):
        path = f"/?flow={name}&page={page}"
        wait_for_text(user, path, f"100 runs of {name}", "run-99 " if page == 1 else "Newer")
        rows += re.findall(r">(run-\d+)</a>", user.get(path).text)

    assert sorted(rows) == sorted(f"run-{number}" for number in range(100))
    wait_for_text(user, f"/?flow={name}&page={PAGES + 1}", f"Page {PAGES + 1} does not exist")


def test_a_work_pool_has_its_workers_and_its_status(user: httpx.Client, prefect: SyncPrefectClient) -> None:
    name = f"pool-{uuid4().hex[:8]}"
    prefect._client.post("/work_pools/", json={"name": name, "type": "process"}).raise_for_status()
    try:
        no_heartbeat = "No worker has sent a heartbeat in the last day"
        wait_for_text(user, "/", name, "No worker online: no runs are started", no_heartbeat)
        prefect._client.post(f"/work_pools/{name}/workers/heartbeat", json={"name": "hand"}).raise_for_status()
        wait_for_text(user, "/", "✓ online hand last heartbeat", "queue default")
        prefect._client.patch(f"/work_pools/{name}", json={"is_paused": True}).raise_for_status()
        wait_for_text(user, "/", "Paused: no runs are started")
    finally:
        prefect._client.delete(f"/work_pools/{name}").raise_for_status()


@pytest.mark.parametrize("name", ["MLflow", "Prefect"])
def test_a_server_that_is_down_is_named_and_its_last_data_stays(
    name: str, mlflow_address: str, prefect: SyncPrefectClient, model: str, pipeline: str, dashboards: Dashboards
) -> None:
    path, data = f"/?model={model}&flow={pipeline}", ("0.1618", f"2 runs of {pipeline}")
    with Gate(mlflow_address) as tracking, Gate(str(prefect.api_url)) as api, ExitStack() as stack:
        gate = {"MLflow": tracking, "Prefect": api}[name]
        tracking.open()
        api.open()
        gate.shut()
        address = dashboards.start(stack, tracking.address, f"{api.address}/api")
        client = stack.enter_context(browser(address))
        client.post("/login", data=LOGIN)
        fingerprints = []

        def has_recovered() -> bool:
            return "does not answer" not in text_of(client.get(path))

        def record_fingerprint() -> None:
            fingerprints.append(client.get(f"/state{path[1:]}").json()["state"])

        wait_for_text(client, path, f"{name} does not answer.", "There is no data yet")
        record_fingerprint()
        gate.open()
        wait_until(has_recovered, 60, f"{name} to be reached")
        wait_for_text(client, path, *data)
        record_fingerprint()
        gate.shut()
        wait_for_text(client, path, f"{name} does not answer.", "Showing data from", *data)
        record_fingerprint()
        gate.open()
        wait_until(has_recovered, 60, f"{name} to be reached again")

        assert len(set(fingerprints)) == 3, "the page's script sees each change"


def test_it_does_not_start_without_its_secrets(tmp_path: Path) -> None:
    missing = {"DASHBOARD_PASSWORD": "", "DASHBOARD_SESSION_KEY": ""}

    with pytest.raises(RuntimeError) as error, dashboard_server(tmp_path, "http://x", "http://x", **missing):
        pass

    assert "DASHBOARD_PASSWORD: Field required" in str(error.value)
    assert "DASHBOARD_SESSION_KEY: Field required" in str(error.value)
