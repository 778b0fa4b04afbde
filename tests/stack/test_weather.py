"""The weather pipeline as a team runs it: cached, gated, several places, two runs at once, on a schedule."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.provision.follow import FINAL, find_deployment
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until

MODEL = "rain-tomorrow"
UNCHANGED = "Nothing has changed since it was trained."
STORE = (
    "import io; from minio import Minio; from infra.provision.settings import Settings; s = Settings();"
    "store = Minio(endpoint='minio:9000', access_key=s.minio_root_user,"
    " secret_key=s.minio_root_password.get_secret_value(), secure=False);"
)


@pytest.fixture
def api(stack: Stack) -> Iterator[httpx.Client]:
    """Prefect's API, once the first run has ended."""
    stack.wait_for_first_run()
    with stack.prefect() as api:
        yield api


def make_run(stack: Stack, **parameters: Any) -> str:
    """Run the pipeline as a person does; its log."""
    arguments = shlex.quote(json.dumps(parameters))
    return stack.shell(f"make run DEPLOYMENT=weather-pipeline PARAMETERS={arguments}", check=False).stdout


def aliases(stack: Stack, model: str = MODEL) -> dict[str, int]:
    with stack.mlflow() as api:
        answer = api.get("/registered-models/get", params={"name": model}).raise_for_status().json()
    return {alias["alias"]: int(alias["version"]) for alias in answer["registered_model"].get("aliases", [])}


def version_tags(stack: Stack, version: int) -> dict[str, str]:
    with stack.mlflow() as api:
        answer = api.get("/model-versions/get", params={"name": MODEL, "version": str(version)})
    return {tag["key"]: tag["value"] for tag in answer.raise_for_status().json()["model_version"]["tags"]}


def states_below(api: httpx.Client, flow_run_id: str) -> dict[str, Counter[str]]:
    """Count the states of all task runs below a flow run, by the task's name."""
    found: dict[str, Counter[str]] = {}
    waiting = [flow_run_id]
    while waiting:
        parent = waiting.pop()
        query: dict[str, Any] = {"task_runs": {"flow_run_id": {"any_": [parent]}}, "limit": 200}
        for task in api.post("/task_runs/filter", json=query).raise_for_status().json():
            name = task["task_key"].split("-")[0]
            found.setdefault(name, Counter())[task["state_name"]] += 1
        below = {"flow_runs": {"parent_flow_run_id": {"any_": [parent]}}}
        waiting += [run["id"] for run in api.post("/flow_runs/filter", json=below).raise_for_status().json()]
    return found


def test_a_re_run_is_taken_from_the_cache_in_the_bucket(stack: Stack, api: httpx.Client) -> None:
    make_run(stack)
    before = len(stack.model_versions())
    output = make_run(stack)
    assert UNCHANGED in output
    assert len(stack.model_versions()) == before

    newest = stack.flow_runs("weather-pipeline")[0]
    cached = {"find_place", "fetch_archive", "build_features", "search_candidates", "fit", "log_run"}

    def recorded() -> dict[str, Counter[str]] | None:
        states = states_below(api, newest["id"])
        return states if cached <= states.keys() else None

    states = wait_until(recorded, 20, "the task runs", every=0.5)
    assert {name: list(states[name]) for name in cached} == {name: ["Cached"] for name in cached}

    objects = stack.provisioner(
        STORE + "print(*(o.object_name for o in store.list_objects('prefect-results', 'cache/', recursive=True)))"
    )
    assert "cache/fetch-archive/" in objects


def test_an_entry_that_cannot_be_read_is_computed_anew_with_a_warning(stack: Stack, api: httpx.Client) -> None:
    make_run(stack)
    stack.provisioner(
        STORE
        + "[store.put_object(bucket_name='prefect-results', object_name=o.object_name, data=io.BytesIO(b'broken'), length=6)"
        " for o in store.list_objects('prefect-results', 'cache/fit/', recursive=True)]"
    )
    output = make_run(stack)
    warnings = [line for line in output.splitlines() if "cannot be read" in line]
    assert len(warnings) == 1
    assert "WARNING" in warnings[0]
    assert "cache/fit/" in warnings[0]
    assert UNCHANGED in output, "what was computed anew is the same"


def test_a_changed_parameter_and_changed_code_are_computed(stack: Stack, api: httpx.Client) -> None:
    before = len(stack.model_versions())
    assert UNCHANGED not in make_run(stack, holdout_fraction=0.25)
    assert len(stack.model_versions()) == before + 1
    assert UNCHANGED in make_run(stack, holdout_fraction=0.25)

    code = stack.home / "flows/weather/model.py"
    code.write_text(code.read_text() + "\n# An edit\n")
    assert UNCHANGED not in make_run(stack)
    assert len(stack.model_versions()) == before + 2


def test_refresh_computes_all_and_does_not_promote_what_is_only_as_good(stack: Stack, api: httpx.Client) -> None:
    champion = aliases(stack)["champion"]
    output = make_run(stack, refresh=True)
    assert UNCHANGED not in output
    assert "on the same holdout; it must be better by 0.001" in output
    found = aliases(stack)
    assert found["champion"] == champion
    tags = version_tags(stack, found["challenger"])
    assert tags["gate.decision"] == "challenger"
    assert "on the same holdout" in tags["gate.reason"]


def test_a_worse_candidate_is_refused(stack: Stack, api: httpx.Client) -> None:
    champion = aliases(stack)["champion"]
    assert "does not reach" in make_run(stack, refresh=True, gate={"min_skill": 0.9})
    assert aliases(stack)["champion"] == champion


def test_people_promote_and_roll_back(stack: Stack, api: httpx.Client) -> None:
    make_run(stack, refresh=True)
    before = aliases(stack)
    challenger = before["challenger"]
    assert f"version {challenger} is the champion" in stack.shell(f"make promote VERSION={challenger}").stdout
    assert aliases(stack) == {"champion": challenger, "previous": before["champion"]}
    assert f"version {before['champion']} is the champion again" in stack.shell("make rollback").stdout
    assert aliases(stack) == {"champion": before["champion"], "previous": challenger}

    refused = stack.shell("make promote VERSION=999", check=False)
    assert refused.returncode != 0
    assert f"There is no {MODEL} version 999" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "make promote VERSION=3" in stack.shell("make promote", check=False).stderr
    assert (
        "There is no registered model unheard-of" in stack.shell("make rollback MODEL=unheard-of", check=False).stderr
    )


def test_two_runs_at_once_leave_one_champion(stack: Stack, api: httpx.Client) -> None:
    deployment = find_deployment(api, "weather-pipeline")["id"]
    body = {"parameters": {"refresh": True, "families": ["logistic-regression"], "gate": {"min_improvement": 0}}}
    runs = [
        api.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()["id"]
        for _ in range(2)
    ]

    def ended() -> list[str] | None:
        found = [api.get(f"/flow_runs/{run}").raise_for_status().json() for run in runs]
        return [run["state_type"] for run in found] if all(run["state_type"] in FINAL for run in found) else None

    assert wait_until(ended, 120, "both runs' end", every=0.5) == ["COMPLETED", "COMPLETED"]
    found = aliases(stack)
    assert found["champion"] != found.get("challenger")
    assert set(found) <= {"champion", "previous", "challenger"}


def test_one_bad_place_fails_alone_with_a_table(stack: Stack, api: httpx.Client) -> None:
    output = make_run(stack, places=["Oslo", "Gapville"], families=["logistic-regression"])
    assert "1 of 2 places failed, the others are done. Gapville" in output
    assert aliases(stack, "rain-tomorrow-oslo-oslo-county-norway") == {"champion": 1}
    tables = api.post("/artifacts/filter", json={"artifacts": {"key": {"any_": ["data-problems"]}}})
    (row,) = json.loads(tables.raise_for_status().json()[0]["data"])
    assert "not consecutive" in row["check"]
    assert row["count"] == 12


def test_the_form_refuses_nonsense_before_a_run_starts(stack: Stack, api: httpx.Client) -> None:
    before = len(stack.flow_runs("weather-pipeline"))
    nonsense: list[dict[str, Any]] = [{"years": 0}, {"places": []}, {"overlap": "maybe"}, {"gate": {"min_skill": 2}}]
    for parameters in nonsense:
        refused = stack.shell(
            f"make run DEPLOYMENT=weather-pipeline PARAMETERS={shlex.quote(json.dumps(parameters))}", check=False
        )
        assert refused.returncode != 0
        assert "Prefect refused the parameters" in refused.stdout + refused.stderr
    assert len(stack.flow_runs("weather-pipeline")) == before


def test_it_runs_daily_by_the_clock_of_its_place(api: httpx.Client) -> None:
    (schedule,) = find_deployment(api, "weather-pipeline")["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["timezone"] == "America/Los_Angeles"
    query = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": ["auto-scheduled"]}}}
    wait_until(lambda: api.post("/flow_runs/filter", json=query).raise_for_status().json(), 60, "a scheduled run")
