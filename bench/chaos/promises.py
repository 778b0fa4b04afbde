"""What holds after every fault. Each check returns a sentence for each violation."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx

from bench.chaos.faults import Faults
from infra.testing.stack import RUNNING, Stack
from trainyard.contract import Alias, RunTag, ServingPath, State, Tag

LATE_SECONDS = 15
LIST_OBJECTS = """
import os, boto3
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
for page in store.get_paginator("list_objects_v2").paginate(Bucket="mlflow"):
    for found in page.get("Contents", []):
        print(found["Key"])
"""
# Files in memory, mounts, and of the ledgers, whose files have names of their own, a line for each file.
# The caches of Prefect and matplotlib appear when the warm process has started.
LEFTOVERS = "find /tmp /tmp/prefect -mindepth 1 -maxdepth 1 2>/dev/null | grep -vxE '/tmp/(prefect|matplotlib)'"
LEFTOVERS += "; find /var/lib/warm-process -type f -printf 'of-the-ledger\\n'; cut -d' ' -f2 /proc/mounts"


class Promises:
    """Checks a stack after a round; what was there at the beginning of the round is the measure of what is left behind."""

    def __init__(self, stack: Stack, faults: Faults) -> None:
        self.stack, self.faults = stack, faults
        self.prefect, self.mlflow = stack.prefect(), stack.mlflow()
        user, password = stack.exec("mail", "cat", "/run/secrets/login").stdout.strip().split(":", 1)
        self.mail = httpx.Client(
            base_url=f"http://localhost:{stack.ports['MAIL_PORT']}/api/v1", auth=(user, password), timeout=10
        )
        variables = stack.variables()
        headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
        self.serving = httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=10)
        self.before: Counter[str] = Counter()

    def close(self) -> None:
        """Close the connections to the stack's servers."""
        for client in (self.prefect, self.mlflow, self.mail, self.serving):
            client.close()

    def begin(self) -> None:
        """Note what is there before a round."""
        self.before = self.left_behind()

    def left_behind(self) -> Counter[str]:
        """Count the processes below the worker, the files in its folders and its mounts."""
        worker = self.faults.pids()["worker"]
        lines = self.faults.agent("processes", worker).splitlines()
        names = (re.sub(r"\d+", "N", line)[:100] for line in lines)  # file descriptors differ
        processes = Counter(f"process {name}" for name in names)
        files = self.stack.exec("worker", "bash", "-c", LEFTOVERS).stdout.split()
        return processes + Counter(f"file or mount {name}" for name in files)

    def violations(self, runs: Sequence[str]) -> list[str]:
        """Return how the first broken promise is broken, for the runs of the round and the installation; nothing if all hold."""
        try:
            checks: tuple[Iterable[str], ...] = (
                self._unhealthy(),
                self._runs_that_have_not_ended(),
                self._slots(),
                self._runs_that_ran_twice(runs),
                self._disagreements(runs),
                self._mails(runs),
                self._champions(),
                self._artifacts(),
            )
            for check in checks:  # a look that fails costs no more than it must: the next comes in a second
                if found := list(check):
                    return found
            # Last: what belongs to a run that has not ended is no leftover.
            left = self.left_behind() - self.before
            return sorted(f"left behind: {each} ({count})" for each, count in left.items())
        except (httpx.HTTPError, AssertionError, KeyError) as error:
            return [f"a service does not answer: {type(error).__name__}: {str(error)[:200]}"]

    def state(self, run: str) -> dict[str, Any]:
        """Return a flow run with its state."""
        found: dict[str, Any] = self.prefect.get(f"/flow_runs/{run}").raise_for_status().json()
        return found

    def _unhealthy(self) -> Iterable[str]:
        containers = self.stack.containers()
        for service in sorted(RUNNING):
            state = containers[service]["State"]
            if not state["Running"] or state.get("Health", {}).get("Status") != "healthy":
                yield f"{service} is {state['Status']}, {state.get('Health', {}).get('Status')}"

    def _runs_that_have_not_ended(self) -> Iterable[str]:
        unfinished = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING", "SCHEDULED"]}}}
        now = datetime.now(UTC)
        for run in self.prefect.post("/flow_runs/filter", json={"flow_runs": unfinished}).raise_for_status().json():
            due = datetime.fromisoformat(run["expected_start_time"])
            if run["state_type"] != "SCHEDULED" or due < now - timedelta(seconds=LATE_SECONDS):
                yield f"the run {run['name']} is {run['state_name']}"

    def _runs_that_ran_twice(self, runs: Sequence[str]) -> Iterable[str]:
        for run in runs:
            history = self.prefect.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
            names = [state["name"] for state in history if state["name"] != State.WAITING]
            starts = [n for n, name in enumerate(names) if name == "Running" and names[n - 1 : n] != ["Running"]]
            for first, second in pairwise(starts):
                if not {"Pending", "AwaitingRetry", "Retrying"} & set(names[first:second]):
                    yield f"the run {run} started twice: {', '.join(names)}"
            registered = [each for each in self._logged_by(run) if Tag.MODEL_VERSION in each["tags"]]
            by_model = Counter(each["tags"].get(Tag.MODEL) for each in registered)
            yield from (f"the run {run} registered {model} {n} times" for model, n in by_model.items() if n > 1)

    def _slots(self) -> Iterable[str]:
        limits = self.prefect.post("/v2/concurrency_limits/filter", json={}).raise_for_status().json()
        yield from (f"the lock {each['name']} is held" for each in limits if each["active_slots"])

    def _runs_of_mlflow(self, view: str = "ACTIVE_ONLY", condition: str = "") -> list[dict[str, Any]]:
        experiments = self.mlflow.get("/experiments/search", params={"max_results": 100}).raise_for_status().json()
        found: list[dict[str, Any]] = []
        token: str | None = ""
        while token is not None:
            query = {
                "experiment_ids": [each["experiment_id"] for each in experiments["experiments"]],
                "run_view_type": view,
                "max_results": 1000,
                "filter": condition,
                "page_token": token,
            }
            page = self.mlflow.post("/runs/search", json=query).raise_for_status().json()
            found += page.get("runs", [])
            token = page.get("next_page_token")
        for run in found:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        return found

    def _logged_by(self, run: str) -> list[dict[str, Any]]:
        return self._runs_of_mlflow(condition=f"tags.`{Tag.FLOW_RUN_ID}` = '{run}'")

    def _disagreements(self, runs: Sequence[str]) -> Iterable[str]:
        for run in runs:
            statuses = {each["info"]["status"] for each in self._logged_by(run)}
            if statuses and self.state(run)["state_type"] == "COMPLETED" and "FINISHED" not in statuses:
                yield f"the run {run} is completed, MLflow's runs of it are {', '.join(sorted(statuses))}"
        for found in self._runs_of_mlflow(condition="attributes.status = 'RUNNING'"):
            flow_run = found["tags"].get(Tag.FLOW_RUN_ID)
            yield f"MLflow's run {found['info']['run_name']} is RUNNING, of the flow run {flow_run}"

    def _versions(self) -> list[dict[str, Any]]:
        found = self.mlflow.get("/model-versions/search", params={"max_results": 1000}).raise_for_status().json()
        versions: list[dict[str, Any]] = found.get("model_versions", [])
        return versions

    def _champions(self) -> Iterable[str]:
        served = self.serving.get(ServingPath.MODELS).raise_for_status().json()["models"]
        by_name = {name: str(each["version"]) for name, each in served.items()}
        models = self.mlflow.get("/registered-models/search").raise_for_status().json().get("registered_models", [])
        for model in models:
            aliases = {each["alias"]: each["version"] for each in model.get("aliases", [])}
            champion = aliases.get(Alias.CHAMPION)
            if champion is None:
                yield f"{model['name']} has no champion"
            elif by_name.get(model["name"]) != champion:
                yield f"{model['name']} version {champion} is champion, served is {by_name.get(model['name'])}"

    def _artifacts(self) -> Iterable[str]:
        """Compare MLflow's rows with the objects of the store."""
        keys = self.stack.python("mlflow", LIST_OBJECTS).stdout.splitlines()
        owners: defaultdict[str, set[str]] = defaultdict(set)
        for key in keys:  # EXPERIMENT/RUN/artifacts/FILE or EXPERIMENT/models/MODEL/artifacts/FILE
            owner, _, file = key.split("/", 1)[1].removeprefix("models/").partition("/artifacts/")
            owners[owner].add(file)
        runs = {run["info"]["run_id"] for run in self._runs_of_mlflow(view="ALL")}
        experiments = sorted({key.split("/")[0] for key in keys})
        query = {"experiment_ids": experiments, "max_results": 1000}
        models = self.mlflow.post("/logged-models/search", json=query).raise_for_status().json().get("models", [])
        rows = runs | {model["info"]["model_id"] for model in models}
        yield from (f"objects of {owner}, which MLflow does not know" for owner in sorted(owners.keys() - rows))
        for version in self._versions():
            model = version.get("model_id") or version["source"].rpartition("/")[2]
            if "MLmodel" not in owners.get(model, set()):
                yield f"{version['name']} version {version['version']} has no model file"

    def _mails(self, runs: Sequence[str]) -> Iterable[str]:
        for run_id in runs:
            run = self.state(run_id)
            if run["state_type"] not in ("FAILED", "CRASHED") or RunTag.MAIL not in run["tags"]:
                continue
            if not (run["state"]["message"] or "").strip():
                yield f"the run {run['name']} is {run['state_name']} without a reason"
            found = self.mail.get("/search", params={"query": f'"{run_id}"'}).raise_for_status().json()["messages"]
            subjects = [each["Subject"] for each in found if run["state_name"].lower() in each["Subject"].lower()]
            if len(subjects) != 1:
                yield f"{len(subjects)} mails about the run {run['name']}, which is {run['state_name']}"
