"""The dashboard over real servers: signing in, what it shows of real runs, and what it does while a server is down."""

import html
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import mlflow
import pandas as pd
import pytest
from dashboard.sessions import WRONG_TRIES
from mlflow import MlflowClient
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from infra.testing.servers import dashboard_server, mlflow_server, prefect_server
from infra.testing.waiting import wait_until
from tests.support.gate import Gate

LOGIN = {"user": "admin", "password": "a-password-of-the-tests"}
UI = {"MLFLOW_UI_URL": "http://mlflow.test:5001", "PREFECT_UI_URL": "http://prefect.test:4200"}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the script that draws the charts: these tests look at pages without a browser."""
    file = tmp_path_factory.mktemp("bundle") / "vega.js"
    file.write_text("// draws nothing\n")
    return file


@pytest.fixture(scope="module")
def address(
    mlflow_address: str, prefect: SyncPrefectClient, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A dashboard over the session's servers."""
    folder = tmp_path_factory.mktemp("dashboard")
    with dashboard_server(folder, mlflow_address, str(prefect.api_url), DASHBOARD_BUNDLE=str(bundle), **UI) as found:
        yield found


def browser(address: str) -> httpx.Client:
    """Return a client that sends with its posts what a browser would."""
    return httpx.Client(base_url=address, headers={"Origin": address}, timeout=30)


@pytest.fixture
def stranger(address: str) -> Iterator[httpx.Client]:
    """Somebody who has not signed in."""
    with browser(address) as client:
        yield client


@pytest.fixture
def person(address: str) -> Iterator[httpx.Client]:
    """Somebody who has signed in."""
    with browser(address) as client:
        assert client.post("/login", data=LOGIN).status_code == 303
        yield client


def text(page: httpx.Response) -> str:
    """Return a page's text without its tags."""
    assert page.status_code == 200, page.text
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page.text)))


def wait_for(client: httpx.Client, path: str, *said: str, seconds: float = 60) -> str:
    """Return a page's text once it says all of this."""

    def found() -> str | None:
        shown = text(client.get(path))
        return shown if all(each in shown for each in said) else None

    return wait_until(found, seconds, f"{said} at {path}")


def table(columns: list[str], rows: list[list[Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)


def register(
    tracking: MlflowClient, model: str, brier: float, decision: str, reason: str, **files: pd.DataFrame
) -> str:
    """Log a training and register a version as the pipelines do; return the version."""
    mlflow.set_experiment("dashboard-tests")
    with mlflow.start_run(tags={"model": model, "prefect.flow_run_id": "11111111-2222-3333-4444-555555555555"}) as run:
        mlflow.log_metrics({"model_brier": brier, "climatology_brier": 0.25, "model_accuracy": 0.75})
        for name, frame in files.items():
            mlflow.log_table(frame, f"evaluation/{name}.json")
    if not any(known.name == model for known in tracking.search_registered_models(f"name = '{model}'")):
        tracking.create_registered_model(model)
    made = tracking.create_model_version(model, source=f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)
    tracking.set_tag(run.info.run_id, "model_version", made.version)
    gate = {"decision": decision, "reason": reason, "decided_at": "2026-11-23T10:00:00+00:00", "judged_against": "1"}
    for name, value in gate.items():
        tracking.set_model_version_tag(model, made.version, f"gate.{name}", value)
    return str(made.version)


@pytest.fixture
def model(tracking: MlflowClient) -> Iterator[str]:
    """A registered model with a champion and one that lost."""
    name = f"rain-{uuid4().hex[:8]}"
    holdout = table(
        ["time", "observed", "model", "climatology"],
        [["2026-01-01", n % 2, 0.15 + 0.6 * (n % 2), 0.5] for n in range(30)],
    )
    champion = register(tracking, name, 0.1618, "promoted", "there was no champion", holdout=holdout)
    register(tracking, name, 0.1999, "challenger", "brier 0.1999 <b>against</b> 0.1618")
    tracking.set_registered_model_alias(name, "champion", champion)
    yield name
    tracking.delete_registered_model(name)


def check(model: str, verdict: str, **tables: pd.DataFrame) -> None:
    """Log what the flow `monitor` logs."""
    mlflow.set_experiment("monitoring")
    with mlflow.start_run(
        tags={"model": model, "model_version": "1", "verdict": verdict, "reasons": "wind has drifted"}
    ):
        mlflow.log_metrics({"predictions": 40, "scored": 12, "live_brier": 0.2121, "holdout_brier": 0.1618})
        for name, frame in tables.items():
            mlflow.log_table(frame, f"monitoring/{name}.json")


def test_a_sign_in_is_needed(stranger: httpx.Client) -> None:
    for path in ("/", "/?model=x"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert stranger.get("/state").status_code == 401
    assert stranger.post("/refresh").headers["location"] == "/login"
    assert stranger.get("/health").status_code == 200


def test_a_session_begins_and_ends(person: httpx.Client, stranger: httpx.Client) -> None:
    assert person.get("/").status_code == 200
    kept = dict(person.cookies)
    assert person.post("/logout").headers["location"] == "/login"
    assert person.get("/").status_code == 303
    stranger.cookies.update(kept)
    assert stranger.get("/").status_code == 303, "a cookie that somebody kept"


def test_the_cookie_is_out_of_reach_of_scripts(stranger: httpx.Client) -> None:
    given = stranger.post("/login", data=LOGIN).headers["set-cookie"].lower()
    assert "httponly" in given
    assert "samesite=lax" in given
    assert "secure" not in given
    assert (
        "secure"
        in stranger.post("/login", data=LOGIN, headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"].lower()
    )


def test_other_sites_cannot_post(person: httpx.Client) -> None:
    for headers in (
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path in ("/login", "/logout", "/refresh"):
            assert person.post(path, data=LOGIN, headers=headers).status_code == 403
    assert person.get("/").status_code == 200


def test_every_answer_has_the_security_headers(person: httpx.Client) -> None:
    for path in ("/", "/login", "/state", "/no-such-page", "/static/page.css"):
        headers = person.get(path).headers
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert ("no-store" in headers["cache-control"]) == (not path.startswith("/static/"))
    assert person.get("/static/../settings.py").status_code == 404
    assert person.get("/static/vega.js").headers["content-encoding"] == "gzip"


def test_wrong_tries_are_slowed_down(
    mlflow_address: str, prefect: SyncPrefectClient, bundle: Path, tmp_path: Path
) -> None:
    with (
        dashboard_server(tmp_path, mlflow_address, str(prefect.api_url), DASHBOARD_BUNDLE=str(bundle)) as address,
        browser(address) as client,
    ):
        for wrong in (
            {"user": "admin"},
            {"user": "other", "password": LOGIN["password"]},
            *[{"user": "admin", "password": "x" * n} for n in (0, 1, 9999)],
        ):
            answer = client.post("/login", data=wrong)
            assert answer.status_code == 401
            assert "wrong" in text_of(answer)
        assert WRONG_TRIES == 5
        answer = client.post("/login", data=LOGIN)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 60


def text_of(page: httpx.Response) -> str:
    return html.unescape(page.text)


def test_a_session_expires(mlflow_address: str, prefect: SyncPrefectClient, bundle: Path, tmp_path: Path) -> None:
    settings = {"DASHBOARD_BUNDLE": str(bundle), "DASHBOARD_SESSION_SECONDS": "2"}
    with (
        dashboard_server(tmp_path, mlflow_address, str(prefect.api_url), **settings) as address,
        browser(address) as client,
    ):
        cookie = client.post("/login", data=LOGIN).headers["set-cookie"].partition(";")[0]
        assert "Max-Age=2" in client.post("/login", data=LOGIN).headers["set-cookie"]
        client.cookies.clear()
        held = {"Cookie": cookie}  # by a client that does not heed Max-Age
        assert client.get("/state", headers=held).status_code == 200
        wait_until(lambda: client.get("/state", headers=held).status_code == 401, 30, "the session's end")


def test_a_fresh_installation(bundle: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tracking = stack.enter_context(mlflow_server(tmp_path / "mlflow"))
        api = stack.enter_context(prefect_server(tmp_path / "prefect"))
        address = stack.enter_context(dashboard_server(tmp_path, tracking, api, DASHBOARD_BUNDLE=str(bundle)))
        client = stack.enter_context(browser(address))
        client.post("/login", data=LOGIN)
        shown = wait_for(client, "/", "No model is registered yet", "No run has begun yet", "There is no work pool")
        assert "No run is scheduled" in shown
        assert "No run has failed" in shown


def test_the_page_shows_what_mlflow_has(person: httpx.Client, tracking: MlflowClient, model: str) -> None:
    shown = wait_for(
        person, f"/?model={model}", "Version 1", "0.1618", "Why the last candidate lost", "on 30 holdout rows"
    )
    assert "brier 0.1999 <b>against</b> 0.1618" in shown, "a tag's text is no HTML of ours"
    assert "climatology 0.2500" in shown
    assert "No check of this model" in shown
    page = person.get(f"/?model={model}").text
    (run,) = tracking.search_runs(experiment_ids(tracking), f"tags.model = '{model}' and tags.model_version = '1'")
    assert f"http://mlflow.test:5001/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in page
    assert f"http://mlflow.test:5001/#/models/{model}/versions/1" in page
    assert "http://prefect.test:4200/runs/flow-run/11111111-2222-3333-4444-555555555555" in page
    assert "0.7500" in wait_for(person, f"/?model={model}&metric=accuracy", "Accuracy of each training")


def experiment_ids(tracking: MlflowClient) -> list[str]:
    return [each.experiment_id for each in tracking.search_experiments()]


def test_a_run_without_its_holdout_is_told_in_a_sentence(
    person: httpx.Client, tracking: MlflowClient, model: str
) -> None:
    tracking.set_registered_model_alias(model, "champion", "2")
    wait_for(person, f"/?model={model}", "has no evaluation/holdout.json")


def test_what_monitoring_found_is_shown(person: httpx.Client, tracking: MlflowClient, model: str) -> None:
    forecasts = table(
        ["place", "day", "issued_at", "version", "probability", "observed"],
        [
            ["Bergen", "2026-11-20", "2026-11-19T06:00:00Z", 1, 0.81, 1.0],
            ["Bergen", "2026-11-21", "2026-11-20T06:00:00Z", 1, 0.33, None],
        ],
    )
    drift = table(
        ["column", "psi", "ks_statistic", "ks_p_value", "training_mean", "recent_mean", "drifted"],
        [["wind", 0.4321, 0.3, 0.001, 4.0, 9.0, True]],
    )
    check(model, "alert", forecasts=forecasts, drift=drift)
    shown = wait_for(person, f"/?model={model}", "Alert", "wind has drifted", "Will it rain in Bergen")
    for said in ("Of 1 days whose outcome is known, 1 fell", "81 %", "not yet known", "0.212", "0.432"):
        assert said in shown
    check(model, "too-few")
    shown = wait_for(person, f"/?model={model}", "Too few to judge", "logged no monitoring/drift.json")
    assert "monitoring/forecasts.json is missing or empty" in shown


def test_a_name_with_quotes_is_no_part_of_a_query(person: httpx.Client, tracking: MlflowClient, model: str) -> None:
    odd = "o'clock & <co>"
    tracking.create_registered_model(odd)
    try:
        assert odd in wait_for(
            person, "/?model=o%27clock+%26+%3Cco%3E", "The model is registered and has no version yet"
        )
        assert (
            person.get("/", params={"model": "x' OR name != '", "metric": "\x00", "flow": "'; --"}).status_code == 200
        )
    finally:
        tracking.delete_registered_model(odd)


def make_runs(storage: Path) -> str:
    """Run a pipeline twice, with a component, a task from cache and one that is tried again; return its name."""
    name, tried = f"pipeline-{uuid4().hex[:8]}", []

    @task(cache_policy=INPUTS, persist_result=True)
    def add(one: int) -> int:
        return one + 1

    @task(retries=2, retry_delay_seconds=0)
    def falter() -> None:
        tried.append(1)
        if len(tried) == 1:
            raise ConnectionError("not yet")

    @flow(name=f"{name}-part", persist_result=False)
    def part() -> None:
        add(1)
        falter()

    @flow(name=name, persist_result=False)
    def pipeline() -> None:
        part()

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: storage}):
        pipeline()
        pipeline()
    return name


def test_runs_have_their_components_retries_and_cache_hits(person: httpx.Client, tmp_path: Path) -> None:
    name = make_runs(tmp_path)
    shown = wait_for(person, f"/?flow={name}", f"2 runs of {name}", "1 of 2 tasks")
    newest, oldest = re.findall(rf"✓ Completed ([\w-]+) {name} ", shown)
    assert newest != oldest
    assert re.search(rf"{name}-part [\d.]+ s +1 of 2 tasks –", shown), shown  # noqa: RUF001
    assert re.search(rf"{name}-part [\d.]+ s +0 of 2 tasks 1", shown), shown


def test_the_last_failure_is_told(person: httpx.Client) -> None:
    @flow(name=f"fails-{uuid4().hex[:8]}")
    def fails() -> None:
        raise ValueError("the sea was <too> rough")

    with pytest.raises(ValueError, match="rough"):
        fails()
    wait_for(person, "/", "the sea was <too> rough", "✕ Failed")


def test_five_hundred_runs_are_shown_page_by_page(person: httpx.Client, prefect: SyncPrefectClient) -> None:
    name, post = f"many-{uuid4().hex[:8]}", prefect._client.post
    flow_id = post("/flows/", json={"name": name}).json()["id"]
    for number in range(500):
        run = {"flow_id": flow_id, "name": f"run-{number}", "state": {"type": "COMPLETED", "name": "Completed"}}
        assert post("/flow_runs/", json=run).is_success
    rows = []
    for page in (1, 2, 42):
        wait_for(person, f"/?flow={name}&page={page}", f"500 runs of {name}", "run-499 " if page == 1 else "Newer")
        rows += re.findall(r">(run-\d+)</a>", person.get(f"/?flow={name}&page={page}").text)
    assert len(rows) == len(set(rows)) == 12 + 12 + 8
    wait_for(person, f"/?flow={name}&page=43", "There is no page 43")


def test_the_work_pool_says_who_is_there(person: httpx.Client, prefect: SyncPrefectClient) -> None:
    name = f"pool-{uuid4().hex[:8]}"
    prefect._client.post("/work_pools/", json={"name": name, "type": "process"}).raise_for_status()
    try:
        wait_for(person, "/", name, "No worker is online: nothing is run", "No worker has been seen in the last day")
        prefect._client.post(f"/work_pools/{name}/workers/heartbeat", json={"name": "hand"}).raise_for_status()
        wait_for(person, "/", "✓ online hand last heartbeat", "queue default")
        prefect._client.patch(f"/work_pools/{name}", json={"is_paused": True}).raise_for_status()
        wait_for(person, "/", "Paused: no run is started")
    finally:
        prefect._client.delete(f"/work_pools/{name}").raise_for_status()


@pytest.mark.parametrize("which", ["MLflow", "Prefect"])
def test_a_server_that_is_down_is_named_and_its_last_word_stays(
    which: str, mlflow_address: str, prefect: SyncPrefectClient, model: str, bundle: Path, tmp_path: Path
) -> None:
    name = make_runs(tmp_path)
    path, said = f"/?model={model}&flow={name}", ("0.1618", f"2 runs of {name}")
    with Gate(mlflow_address) as tracking, Gate(str(prefect.api_url)) as api, ExitStack() as stack:
        door = {"MLflow": tracking, "Prefect": api}[which]
        for each in (tracking, api):
            each.open()
        door.shut()
        api_url = f"{api.address}/api"
        address = stack.enter_context(
            dashboard_server(tmp_path, tracking.address, api_url, DASHBOARD_BUNDLE=str(bundle))
        )
        client = stack.enter_context(browser(address))
        client.post("/login", data=LOGIN)
        wait_for(client, path, f"{which} does not answer.", "Nothing has been read yet")
        states = [client.get(f"/state{path[1:]}").json()["state"]]
        door.open()
        assert "does not answer" not in wait_for(client, path, *said)
        states.append(client.get(f"/state{path[1:]}").json()["state"])
        door.shut()
        wait_for(client, path, f"{which} does not answer.", "it is read anew by itself", *said)
        states.append(client.get(f"/state{path[1:]}").json()["state"])
        assert len(set(states)) == 3, "the page's script sees each change"
        door.open()
        gone: Callable[[], bool] = lambda: "does not answer" not in text(client.get(path))  # noqa: E731
        wait_until(gone, 60, f"{which}'s return")


def test_a_refused_account_is_named(bundle: Path, mlflow_address: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        admin, reader = "admin:password-of-the-admin", "dashboard:password-of-the-reader"
        api = stack.enter_context(prefect_server(tmp_path / "prefect", admin=admin, reader=reader))
        for login, said in (
            ("dashboard:wrong", "Prefect refuses this service's account (401)"),
            (reader, "No run has begun yet"),
        ):
            settings = {"DASHBOARD_BUNDLE": str(bundle), "PREFECT_API_AUTH_STRING": login}
            with dashboard_server(tmp_path, mlflow_address, api, **settings) as address, browser(address) as client:
                client.post("/login", data=LOGIN)
                wait_for(client, "/", said)


@pytest.mark.parametrize("missing", ["DASHBOARD_PASSWORD", "DASHBOARD_SESSION_KEY"])
def test_it_does_not_start_without_its_secrets(missing: str, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=missing),
        dashboard_server(tmp_path, "http://x", "http://x", **{missing: ""}),
    ):
        pass
