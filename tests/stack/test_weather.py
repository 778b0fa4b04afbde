"""The weather pipeline on the stack: cache, gate, several places, concurrent runs and the schedule."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from trainyard.contract import Alias, Bucket, GateDecision, State, Tag

MODEL = "rain-tomorrow"
UNCHANGED = "Nothing has changed since it was trained."
RECIPE = {"families": ["logistic-regression"]}  # the first run of the stack has tried all of them
RERUN_STEPS = {"find_place", "fetch_archive", "build_features", "search_candidates", "fit"}
STORE = (
    "import io; from minio import Minio; from infra.provision.settings import Settings; s = Settings();"
    "store = Minio(endpoint='minio:9000', access_key=s.minio_root_user,"
    " secret_key=s.minio_root_password.get_secret_value(), secure=False);"
)


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[httpx.Client]:
    """Prefect's API, after the first run has ended."""
    stack.wait_for_first_run()
    with stack.prefect() as api:
        yield api


def make_run(stack: Stack, **parameters: Any) -> str:
    """Run the pipeline with `make run`; return its output."""
    arguments = shlex.quote(json.dumps(RECIPE | parameters))
    return stack.shell(f"make run DEPLOYMENT=weather-pipeline PARAMETERS={arguments}", check=False).stdout


@pytest.fixture(scope="module")
def trained(stack: Stack, api: httpx.Client) -> None:
    """Today's data has been trained on, and the model is the champion, whatever other tests have promoted."""
    make_run(stack, gate={"force": True})


@dataclass(frozen=True)
class Challenge:
    """The output of a run, and the champion before it."""

    output: str
    champion: int


@pytest.fixture(scope="module")
def challenged(stack: Stack, trained: None) -> Challenge:
    """A run of another recipe, whose model is a challenger."""
    champion = aliases(stack)[Alias.CHAMPION]
    return Challenge(
        make_run(stack, refresh=True, folds=4, holdout_fraction=0.3, gate={"min_improvement": 1}), champion
    )


def aliases(stack: Stack, model: str = MODEL) -> dict[str, int]:
    with stack.mlflow() as api:
        answer = api.get("/registered-models/get", params={"name": model}).raise_for_status().json()
    return {alias["alias"]: int(alias["version"]) for alias in answer["registered_model"].get("aliases", [])}


def version_tags(stack: Stack, version: int) -> dict[str, str]:
    with stack.mlflow() as api:
        answer = api.get("/model-versions/get", params={"name": MODEL, "version": str(version)})
    return {tag["key"]: tag["value"] for tag in answer.raise_for_status().json()["model_version"]["tags"]}


def states_below(api: httpx.Client, flow_run_id: str) -> dict[str, Counter[str]]:
    """Count the states of the task runs of a flow run and its subflow runs, by the task's name."""
    found: dict[str, Counter[str]] = {}
    remaining = [flow_run_id]
    while remaining:
        parent = remaining.pop()
        query: dict[str, Any] = {"task_runs": {"flow_run_id": {"any_": [parent]}}, "limit": 200}
        for task in api.post("/task_runs/filter", json=query).raise_for_status().json():
            name = task["task_key"].split("-")[0]
            found.setdefault(name, Counter())[task["state_name"]] += 1
        below = {"flow_runs": {"parent_flow_run_id": {"any_": [parent]}}}
        remaining += [run["id"] for run in api.post("/flow_runs/filter", json=below).raise_for_status().json()]
    return found


def test_a_rerun_takes_every_step_from_the_cache_in_the_bucket(stack: Stack, api: httpx.Client, trained: None) -> None:
    before = len(stack.model_versions())

    output = make_run(stack)

    newest = stack.flow_runs("weather-pipeline")[0]

    def recorded_states() -> dict[str, Counter[str]] | None:
        states = states_below(api, newest["id"])
        return states if states.keys() >= RERUN_STEPS else None

    states = wait_until(recorded_states, 20, "the task runs", every=0.5)
    objects = stack.provisioner(
        STORE + f"print(*(o.object_name for o in store.list_objects('{Bucket.RESULTS}', 'cache/', recursive=True)))"
    )
    assert UNCHANGED in output
    assert len(stack.model_versions()) == before
    assert {name: list(states[name]) for name in RERUN_STEPS} == {name: [State.CACHED] for name in RERUN_STEPS}
    assert "log_run" not in states
    assert "cache/0.25-days/fetch-archive/" in objects


def test_a_damaged_cache_entry_is_recomputed_with_a_warning(stack: Stack, trained: None) -> None:
    stack.provisioner(
        STORE
        + f"[store.put_object(bucket_name='{Bucket.RESULTS}', object_name=o.object_name, data=io.BytesIO(b'broken'),"
        f" length=6) for o in store.list_objects('{Bucket.RESULTS}', 'cache/7-days/fit/', recursive=True)]"
    )

    output = make_run(stack)

    (warning,) = [line for line in output.splitlines() if "is not used: it is damaged" in line]
    assert "WARNING" in warning
    assert "cache/7-days/fit/" in warning
    assert UNCHANGED in output, "the recomputed result is the same"


def test_a_changed_parameter_is_computed_once(stack: Stack, api: httpx.Client) -> None:
    before = len(stack.model_versions())

    outputs = [make_run(stack, holdout_fraction=0.25, gate={"min_improvement": 1}) for _ in range(2)]

    assert [UNCHANGED in output for output in outputs] == [False, True]
    assert len(stack.model_versions()) == before + 1


def test_changed_code_is_computed(stack: Stack, api: httpx.Client, trained: None) -> None:
    before = len(stack.model_versions())
    code = stack.home / "flows/weather/model.py"
    before_edit = code.read_text()
    edited = before_edit.replace('return (counts["sum"] + 1)', 'return 1 * (counts["sum"] + 1)')
    code.write_text(f"# An edit\n{edited}")

    output = make_run(stack)

    newest = stack.flow_runs("weather-pipeline")[0]["id"]

    def states_of_fit() -> list[str] | None:
        return list(states_below(api, newest).get("fit", ())) or None  # the server records task runs with a delay

    assert wait_until(states_of_fit, 20, "the task run", every=0.5) == ["Completed"]
    assert edited != before_edit
    assert "It is the champion" in output
    assert len(stack.model_versions()) == before, "the edit changes no prediction"


def test_a_refresh_that_learns_nothing_new_registers_no_version(stack: Stack, trained: None) -> None:
    before = len(stack.model_versions())

    output = make_run(stack, refresh=True)

    assert "It is the champion" in output
    assert len(stack.model_versions()) == before


def test_a_new_recipe_that_is_not_better_is_the_challenger(stack: Stack, challenged: Challenge) -> None:
    found = aliases(stack)
    tags = version_tags(stack, found[Alias.CHALLENGER])

    assert UNCHANGED not in challenged.output
    assert "it must be better by 1" in challenged.output
    assert found[Alias.CHAMPION] == challenged.champion
    assert tags[Tag.GATE_DECISION] == GateDecision.CHALLENGER
    assert "on the same holdout" in tags[Tag.GATE_REASON]


def test_a_candidate_below_the_thresholds_is_not_promoted(stack: Stack, api: httpx.Client) -> None:
    champion = aliases(stack)[Alias.CHAMPION]

    output = make_run(stack, refresh=True, holdout_fraction=0.15, gate={"min_skill": 0.9})

    assert "does not reach" in output
    assert aliases(stack)[Alias.CHAMPION] == champion


def test_make_promote_and_make_rollback_swap_champion_and_challenger(stack: Stack, challenged: Challenge) -> None:
    before = aliases(stack)
    champion, challenger = before[Alias.CHAMPION], before[Alias.CHALLENGER]

    promoted = stack.shell(f"make promote MODEL={MODEL} VERSION={challenger}").stdout
    after_promote = aliases(stack)
    rolled_back = stack.shell(f"make rollback MODEL={MODEL}").stdout
    after_rollback = aliases(stack)

    assert f"version {challenger} is the champion" in promoted
    assert after_promote == {Alias.CHAMPION: challenger, Alias.PREVIOUS: champion}
    assert f"version {champion} is the champion again" in rolled_back
    assert after_rollback == {Alias.CHAMPION: champion, Alias.PREVIOUS: challenger}


def test_make_promote_refuses_an_unknown_version(stack: Stack, api: httpx.Client) -> None:
    refused = stack.shell(f"make promote MODEL={MODEL} VERSION=999", check=False)

    assert refused.returncode != 0
    assert f"There is no {MODEL} version 999" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make promote", "make promote VERSION=3"),
        ("make rollback MODEL=unheard-of", "There is no registered model unheard-of"),
    ],
)
def test_promotion_commands_say_what_is_wrong(stack: Stack, api: httpx.Client, command: str, message: str) -> None:
    assert message in stack.shell(command, check=False).stderr


def test_two_concurrent_runs_leave_one_champion(stack: Stack, api: httpx.Client) -> None:
    deployment = find_deployment(api, "weather-pipeline")["id"]
    body = {"parameters": RECIPE | {"refresh": True, "gate": {"force": True}}}
    runs = [
        api.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()["id"]
        for _ in range(2)
    ]

    def final_states() -> list[str] | None:
        states = [api.get(f"/flow_runs/{run}").raise_for_status().json()["state_type"] for run in runs]
        return states if State.FINAL_TYPES.issuperset(states) else None

    states = wait_until(final_states, 120, "the end of both runs", every=0.5)
    found = aliases(stack)
    names = [api.get(f"/flow_runs/{run}").json()["name"] for run in runs]
    histories = [api.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json() for run in runs]
    waits = [[state["message"] for state in history if state["name"] == State.WAITING] for history in histories]
    first, second = ("", "") if not any(waits) else (names if waits[1] else names[::-1])

    assert states == ["COMPLETED", "COMPLETED"]
    assert f"Waiting for the lock weather-47.61n-122.33w, held by the run {first} (" in str(waits), (
        f"{second} says who holds it"
    )
    assert found[Alias.CHAMPION] != found.get(Alias.CHALLENGER)
    assert set(found) <= {Alias.CHAMPION, Alias.PREVIOUS, Alias.CHALLENGER}


def test_a_place_with_invalid_data_fails_alone_with_a_table(stack: Stack, api: httpx.Client) -> None:
    output = make_run(stack, places=["Oslo", "Gapville"])

    tables = api.post("/artifacts/filter", json={"artifacts": {"key": {"any_": ["data-problems"]}}})
    (row,) = json.loads(tables.raise_for_status().json()[0]["data"])
    assert "1 of 2 places failed, the others are done. Gapville" in output
    assert aliases(stack, "rain-tomorrow-59.91n-10.75e") == {Alias.CHAMPION: 1}
    assert "not consecutive" in row["check"]
    assert row["count"] == 12


@pytest.mark.parametrize("parameters", [{"years": 0}, {"places": []}, {"overlap": "maybe"}, {"gate": {"min_skill": 2}}])
def test_invalid_parameters_are_refused_before_a_run_is_created(
    stack: Stack, api: httpx.Client, parameters: dict[str, Any]
) -> None:
    before = len(stack.flow_runs("weather-pipeline"))
    deployment = find_deployment(api, "weather-pipeline")["id"]

    refused = api.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters})

    assert refused.status_code == httpx.codes.CONFLICT, refused.text
    assert next(iter(parameters)) in refused.text
    assert len(stack.flow_runs("weather-pipeline")) == before


def test_it_is_scheduled_daily_in_the_time_zone_of_its_place(api: httpx.Client) -> None:
    (schedule,) = find_deployment(api, "weather-pipeline")["schedules"]
    auto_scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": ["auto-scheduled"]}}}

    wait_until(
        lambda: api.post("/flow_runs/filter", json=auto_scheduled).raise_for_status().json(), 60, "a scheduled run"
    )

    assert schedule["active"]
    assert schedule["schedule"]["timezone"] == "America/Los_Angeles"
