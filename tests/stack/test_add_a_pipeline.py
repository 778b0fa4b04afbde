"""docs/add-a-pipeline.md, followed to the letter."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.testing.stack import CHECKOUT, Stack, copy_checkout
from infra.testing.waiting import wait_until
from trainyard.contract import MONITORING_EXPERIMENT, Problem, Tag, Verdict

PAGE = CHECKOUT / "docs/add-a-pipeline.md"
MODEL, DEPLOYMENT = "parcel-hours", "parcels-pipeline"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"(The whole|the end) of `(?P<file>[^`]+)`[^`.]*(`\w+`)?:$", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A block of the page, and the last line of the text above it."""

    language: str
    text: str
    above: str


def blocks() -> Iterator[Block]:
    page = PAGE.read_text()
    for found in FENCE.finditer(page):
        above = page[: found.start()].rstrip().rpartition("\n")[2]
        text = re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        yield Block(found["language"], text, above)


def follow(stack: Stack) -> None:
    """Write the page's files, run its commands, and compare their output with the page's."""
    output = ""
    for block in blocks():
        match block.language:
            case "shell":
                ended = stack.shell(f"set -e\n{block.text}")
                output = ended.stdout + ended.stderr
            case "text":
                for line in block.text.splitlines():
                    assert appears(line, output), f"{line!r} is not in:\n{output}"
            case _:
                place = PLACE.search(block.above)
                assert place, f"the page does not name the file of this block: {block.text[:80]!r}"
                write(stack.home / place["file"], block.text, whole=place[1].lower() == "the whole")


def appears(line: str, output: str) -> bool:
    return bool(re.search(".*".join(map(re.escape, line.split("..."))), output))


def write(file: Path, text: str, *, whole: bool) -> None:
    file.write_text(text if whole else f"{file.read_text().rstrip()}\n{text}")


@pytest.fixture(scope="module")
def followed(
    tmp_path_factory: pytest.TempPathFactory, boot: Callable[..., AbstractContextManager[Stack]]
) -> Iterator[Stack]:
    """The installation that following the page has made."""
    home = tmp_path_factory.mktemp("tutorial") / "trainyard"
    copy_checkout(home)
    # Tags of its own for the images: they hold the project's packages, and the shared stack runs on the others.
    stack = Stack(home, COMPOSE_FILE="docker-compose.yml", TRAINYARD_VERSION="tutorial")
    try:
        with boot(stack, follow):
            yield stack
    finally:
        stack.remove_images()


def pipeline_runs(stack: Stack) -> list[dict[str, Any]]:
    """Return the runs that the page started, in order; scheduled runs have no start time."""
    runs = [run for run in reversed(stack.flow_runs(DEPLOYMENT)) if run["start_time"]]
    return runs[:6]


def test_every_run_completed(followed: Stack) -> None:
    runs = pipeline_runs(followed)

    assert [run["state"]["name"] for run in runs] == ["Completed"] * 6
    assert all(run["tags"] == ["mail"] for run in runs if run["deployment_id"])


def test_the_versions_are_registered_with_the_gates_reasons(followed: Stack) -> None:
    with followed.mlflow() as api:
        model = api.get("/registered-models/get", params={"name": MODEL}).raise_for_status().json()["registered_model"]
        found = api.get("/model-versions/search", params={"filter": f"name = '{MODEL}'"}).raise_for_status().json()
    reasons = {
        version["version"]: {tag["key"]: tag["value"] for tag in version["tags"]}["gate.reason"]
        for version in found["model_versions"]
    }

    assert {alias["alias"]: alias["version"] for alias in model["aliases"]}["champion"] == "1"
    assert "there was no champion" in reasons["1"]
    assert "it must be better by" in reasons["2"]


def test_the_second_run_is_taken_from_the_cache(followed: Stack) -> None:
    second = pipeline_runs(followed)[1]
    with followed.prefect() as api:
        query = {"flow_runs": {"id": {"any_": [second["id"]]}}}
        tasks = api.post("/task_runs/filter", json=query).raise_for_status().json()
    states = {task["task_key"].rpartition("-")[0]: task["state"]["name"] for task in tasks}

    assert {name: states[name] for name in ("search_candidates", "fit", "promote")} == {
        "search_candidates": "Cached",
        "fit": "Cached",
        "promote": "Completed",
    }


def test_the_first_run_is_mailed(followed: Stack) -> None:
    first = pipeline_runs(followed)[0]
    user, password = followed.exec("mail", "cat", "/run/secrets/login").stdout.strip().split(":", 1)
    address = f"http://localhost:{followed.ports['MAIL_PORT']}/api/v1/messages?limit=200"

    def mailed() -> bool:
        found = httpx.get(address, auth=(user, password), timeout=10).raise_for_status().json()["messages"]
        return any(mail["Subject"].endswith(f": {first['name']}") for mail in found)

    wait_until(mailed, 60, "the mail", every=0.5)


def test_the_schedule_and_the_parameters_are_deployed(followed: Stack) -> None:
    with followed.prefect() as api:
        deployment = api.get("/deployments/name/parcels-pipeline/parcels-pipeline").raise_for_status().json()
    (schedule,) = deployment["schedules"]

    assert schedule["schedule"]["cron"] == "30 2 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Paris"
    assert schedule["active"]
    assert deployment["parameters"] == {"gate": {"min_skill": 0.01}}


def test_the_buckets_key_is_in_no_deployment_and_opens_no_other_bucket(followed: Stack) -> None:
    program = (
        "from prefect_aws import MinIOCredentials as C; block = C.load('parcels'); s3 = block.get_s3_client()\n"
        "print(block.minio_root_password.get_secret_value())\n"
        "try: s3.list_objects_v2(Bucket='prefect-results')\n"
        "except s3.exceptions.ClientError as error: print(error.response['Error']['Code'])"
    )
    key, code = followed.python("worker", program).stdout.split()[-2:]
    with followed.prefect() as api:
        deployments = api.post("/deployments/filter", json={}).raise_for_status().text

    assert code == "AccessDenied"
    assert key not in deployments


def test_labeled_predictions_are_scored_by_the_monitor(followed: Stack) -> None:
    with followed.mlflow() as api:
        query = {"experiment_name": MONITORING_EXPERIMENT}
        experiment = api.get("/experiments/get-by-name", params=query).raise_for_status().json()["experiment"]
        search = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1}
        (run,) = api.post("/runs/search", json=search).raise_for_status().json()["runs"]
    tags, metrics = ({one["key"]: one["value"] for one in run["data"][kind]} for kind in ("tags", "metrics"))

    assert (tags[Tag.MODEL], tags[Tag.PROBLEM]) == (MODEL, Problem.REGRESSION)
    assert tags[Tag.VERDICT] == Verdict.OK, tags[Tag.REASONS]
    assert metrics["predictions"] == metrics["scored"] == 60
    assert metrics["live_mae"] > 0


def test_unusable_data_fails_the_run_with_its_reason(followed: Stack) -> None:
    folder = followed.home.parent / "parcels/flows/parcels"
    parcels = (folder / "parcels.csv").read_text().splitlines()
    (folder / "far.csv").write_text("\n".join([parcels[0], "1,2025-01-02,Oslo,-1,2.5,9.0", *parcels[2:]]))
    for location, reason in {
        "flows/parcels/far.csv": "kilometres: in_range(0, 3000) (row 0: -1.0)",
        "flows/parcels/gone.csv": "flows/parcels/gone.csv cannot be read in /trainyard: No such file or directory.",
        "s3://parcels/gone.csv": "s3://parcels/gone.csv cannot be read: there is no such object in the bucket.",
        "s3://prefect-results/a": "these keys may not read it",
    }.items():
        parameters = f"""PARAMETERS='{{"location": "{location}"}}'"""
        failed = followed.shell(f"make run DEPLOYMENT={DEPLOYMENT} {parameters}", check=False)

        assert failed.returncode != 0
        assert reason in failed.stdout.splitlines()[-1]
