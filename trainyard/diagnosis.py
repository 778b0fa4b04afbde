"""What is wrong with an installation as far as Prefect tells, above all why runs wait, and what mends it.

`make doctor` and the dashboard share this module. Its questions to Prefect are yielded, so that a blocking and an
asynchronous client can ask them. It imports the standard library and the contract only.
"""

import json
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from trainyard.contract import Resource, State

Question = tuple[str, dict[str, Any]]
"""The path and the body of a POST request to Prefect's API that only reads."""
Run = Mapping[str, Any]

PATIENCE: Final = timedelta(seconds=30)
"""A worker that is free starts a run long before, and most locks are given back within it."""
MAIL_PERIOD: Final = timedelta(days=1)
MAX_RUNS, MAX_NAMED = 200, 3
PREFECT: Final = "docker compose run --rm --no-deps deploy prefect"
"""Prefect's command, with the installation's address and account, also while no worker runs."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong, and what mends it: a command where there is one."""

    problem: str
    remedy: str


Examination = Generator[Question, Any, list[Finding]]


@dataclass(frozen=True)
class Report:
    """What `make doctor` found at some time, but for what Prefect tells; kept for the dashboard in a variable of Prefect."""

    at: float
    """Seconds since the epoch."""
    findings: Sequence[Finding]

    def to_json(self) -> dict[str, Any]:
        """Return the report as Prefect keeps it, without the findings that would make it too long."""
        kept: list[list[str]] = []
        for finding in self.findings:
            entry = [finding.problem, finding.remedy]
            if len(json.dumps([*kept, entry])) > MAX_REPORT_CHARACTERS:
                break
            kept.append(entry)
        return {"at": self.at, "findings": kept, "left_out": len(self.findings) - len(kept)}


MAX_REPORT_CHARACTERS: Final = 4500
"""Prefect refuses variables of 5000 characters."""


@dataclass(frozen=True)
class Pools:
    """What Prefect says of the work pools, by their names."""

    pools: Mapping[str, Mapping[str, Any]]
    queues: Mapping[str, Mapping[str, Mapping[str, Any]]]
    workers: Mapping[str, int]
    """How many are online."""
    active: Mapping[str, Sequence[Run]]
    """The runs that have been claimed or have started and have not ended."""


def examine_prefect(now: datetime) -> Examination:
    """Find out what is wrong with runs, workers and mails.

    Args:
        now: The present moment.

    Returns:
        What was found, as the generator's value: send it each question's answer.
    """
    due = yield from _read_due_runs(now)
    waiting = yield from _read_runs({"name": {"any_": [State.WAITING]}})
    pools = yield from _read_pools({Resource.WORK_POOL, *(run["work_pool_name"] for run in due)} - {None})
    ids = sorted({run["deployment_id"] for run in due})
    deployments = (yield "/deployments/filter", {"deployments": {"id": {"any_": ids}}}) if ids else []
    held_up = [run for run in waiting if now - parse_time(run["state"]["timestamp"]) > PATIENCE]
    names = yield from _name_runs([*due, *held_up])
    by_id = {deployment["id"]: deployment for deployment in deployments}
    return [
        *_examine_workers(pools),
        *explain_due_runs(due, pools, by_id, names),
        *(explain_lock(names[run["id"]], run["state"]["message"] or "") for run in held_up),
        *(yield from _examine_mails(now)),
    ]


def _read_runs(state: dict[str, Any], **criteria: Any) -> Generator[Question, Any, list[Run]]:
    """Read the runs of deployments in a state: others are started by people, who see what they do."""
    query = {"flow_runs": {"state": state, **criteria}, "sort": "NEXT_SCHEDULED_START_TIME_ASC", "limit": MAX_RUNS}
    found = yield "/flow_runs/filter", query
    return [run for run in found if run["deployment_id"]]


def _read_due_runs(now: datetime) -> Generator[Question, Any, list[Run]]:
    """Read the runs that should have started, the oldest first."""
    before = {"before_": (now - PATIENCE).isoformat()}
    due = yield from _read_runs({"type": {"any_": ["SCHEDULED"]}}, next_scheduled_start_time=before)
    # A run that was refused a slot is due again in a moment, and has been due since its first time.
    refused = yield from _read_runs({"name": {"any_": [State.AWAITING_SLOT]}}, expected_start_time=before)
    runs = {run["id"]: run for run in [*due, *refused]}
    return sorted(runs.values(), key=lambda run: parse_time(run["expected_start_time"]))


def _read_pools(names: Iterable[str]) -> Generator[Question, Any, Pools]:
    """Read some work pools with their queues, workers and active runs."""
    found = yield "/work_pools/filter", {"work_pools": {"name": {"any_": sorted(names)}}}
    queues: dict[str, dict[str, Any]] = {}
    workers: dict[str, int] = {}
    active: dict[str, list[Run]] = {}
    for name in (pool["name"] for pool in found):
        listed = yield f"/work_pools/{name}/queues/filter", {"limit": MAX_RUNS}
        queues[name] = {queue["name"]: queue for queue in listed}
        listed = yield f"/work_pools/{name}/workers/filter", {"limit": MAX_RUNS}
        workers[name] = sum(worker["status"] == "ONLINE" for worker in listed)
        query = {
            "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
            "work_pools": {"name": {"any_": [name]}},
            "limit": MAX_RUNS,
        }
        active[name] = yield "/flow_runs/filter", query
    return Pools({pool["name"]: pool for pool in found}, queues, workers, active)


def _name_runs(runs: Sequence[Run]) -> Generator[Question, Any, dict[str, str]]:
    """Return each run's name, FLOW/RUN, by its id."""
    ids = sorted({run["flow_id"] for run in runs})
    flows = (yield "/flows/filter", {"flows": {"id": {"any_": ids}}, "limit": MAX_RUNS}) if ids else []
    names = {flow["id"]: flow["name"] for flow in flows}
    return {run["id"]: f"{names.get(run['flow_id'], 'a deleted flow')}/{run['name']}" for run in runs}


def _examine_workers(pools: Pools) -> list[Finding]:
    name = Resource.WORK_POOL
    if name not in pools.pools:
        problem = f"There is no work pool {name}, so no run can start."
        return [Finding(problem, "make up")]
    if pools.workers[name]:
        return []
    return [Finding(f"No worker is online for the work pool {name}, so no run starts.", START_WORKER)]


START_WORKER: Final = "docker compose up -d worker; if it does not stay, docker compose logs --tail 50 worker"


def explain_due_runs(
    due: Sequence[Run], pools: Pools, deployments: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> list[Finding]:
    """Say why runs have not started, once for all runs with the same reason.

    Args:
        due: The runs that should have started.
        pools: Their work pools, and that of the platform.
        deployments: Their deployments by id.
        names: Their names by id.
    """
    by_reason: dict[Finding, list[Run]] = {}
    for run in due:
        by_reason.setdefault(find_reason(run, pools, deployments.get(run["deployment_id"], {})), []).append(run)
    findings = []
    for reason, runs in by_reason.items():
        since = parse_time(runs[0]["expected_start_time"])
        one = f"{names[runs[0]['id']]} waits since {since:%Y-%m-%d %H:%M} UTC"
        subject = one if len(runs) == 1 else f"{len(runs)} runs wait, the first, {one.replace(' waits', ',')}"
        findings.append(Finding(f"{subject}: {reason.problem}.", reason.remedy))
    return findings


def find_reason(run: Run, pools: Pools, deployment: Mapping[str, Any]) -> Finding:
    """Return why a run has not started: what keeps all runs of its pool, then of its queue, then of its deployment."""
    pool_name, queue_name, name = run["work_pool_name"], run["work_queue_name"], deployment.get("name", "of the run")
    pool = pools.pools.get(pool_name or "")
    if pool is None:
        remedy = f"name it in prefect.yaml, work_pool: {{name: {Resource.WORK_POOL}}}, then make deploy"
        return Finding(f"the deployment {name} is on no work pool", remedy)
    queue = pools.queues[pool_name].get(queue_name, {})
    active = pools.active[pool_name]
    if pool["is_paused"]:
        return Finding(f"the work pool {pool_name} is paused", f"{PREFECT} work-pool resume {pool_name}")
    if queue.get("is_paused") or queue.get("status") == "PAUSED":
        remedy = f"{PREFECT} work-queue resume {queue_name} --pool {pool_name}"
        return Finding(f"the work queue {queue_name} is paused", remedy)
    if not pools.workers[pool_name]:
        remedy = START_WORKER
        if pool_name != Resource.WORK_POOL:
            remedy = f"name {Resource.WORK_POOL} in prefect.yaml, then make deploy; or start a worker for {pool_name}"
        return Finding(f"no worker is online for its work pool {pool_name}", remedy)
    if queue.get("status") == "NOT_READY":
        remedy = "name the queue default in prefect.yaml, then make deploy; or start a worker for this one"
        return Finding(f"no worker takes runs from its work queue {queue_name}", remedy)
    limit = (deployment.get("global_concurrency_limit") or {}).get("limit")
    own = [other for other in active if other["deployment_id"] == run["deployment_id"]]
    if limit is not None and (len(own) >= limit or run["state_name"] == State.AWAITING_SLOT):
        problem = f"the deployment {name} may have {_count(limit, 'run')} at once, now {_list(own)}"
        return Finding(problem, "wait, or raise its concurrency_limit in prefect.yaml, then make deploy")
    return _find_shared_limit(pool, queue, active)


def _find_shared_limit(pool: Mapping[str, Any], queue: Mapping[str, Any], active: Sequence[Run]) -> Finding:
    """Return which limit of queue, pool or worker a run waits for, behind runs of other deployments."""
    in_queue = [run for run in active if run["work_queue_name"] == queue.get("name")]
    limit = queue.get("concurrency_limit")
    if limit is not None and len(in_queue) >= limit:
        problem = f"the work queue {queue['name']} may have {_count(limit, 'run')} at once, now {_list(in_queue)}"
        remedy = (
            f"wait, or {PREFECT} work-queue set-concurrency-limit {queue['name']} {limit + 1} --pool {pool['name']}"
        )
        return Finding(problem, remedy)
    limit = pool["concurrency_limit"]
    if limit is not None and len(active) >= limit:
        problem = f"the work pool {pool['name']} may have {_count(limit, 'run')} at once, now {_list(active)}"
        return Finding(problem, f"wait, or {PREFECT} work-pool set-concurrency-limit {pool['name']} {limit + 1}")
    if active:
        problem = f"the worker is busy with {_list(active)}"
        return Finding(problem, "wait, or raise WORKER_LIMIT in .env, and WORKER_MEMORY with it, then make up")
    return Finding("a worker is online, but has not started it", "docker compose logs --tail 50 worker")


def explain_lock(name: str, message: str) -> Finding:
    """Say which lock a run waits for.

    Args:
        name: The run's.
        message: That of its state, which names the lock and its holder.
    """
    holder = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", message)
    remedy = "it goes on when that run ends"
    if holder:
        remedy += f"; {PREFECT} flow-run cancel {holder[0]} ends it"
    return Finding(f"{name} waits: {message.removesuffix('.')}.", remedy)


def _examine_mails(now: datetime) -> Examination:
    """Look for mails of the last day that were given up."""
    query = {
        "flows": {"name": {"any_": [Resource.SEND_MAIL]}},
        "flow_runs": {
            "state": {"type": {"any_": ["FAILED", "CRASHED"]}},
            "end_time": {"after_": (now - MAIL_PERIOD).isoformat()},
        },
        "sort": "END_TIME_DESC",
        "limit": MAX_RUNS,
    }
    failed = yield "/flow_runs/filter", query
    if not failed:
        return []
    message = (failed[0]["state"].get("message") or "it gave no reason").removesuffix(".")
    problem = f"{_count(len(failed), 'mail')} of the last day {'was' if len(failed) == 1 else 'were'} not sent, the last one: {message}."
    return [Finding(problem, "correct the settings of mail in .env (MAIL_TO, SMTP_HOST and so on), then make up")]


def _list(runs: Sequence[Run]) -> str:
    """Return runs by their names, the first of them where there are many."""
    named = ", ".join(sorted(str(run["name"]) for run in runs)[:MAX_NAMED])
    more = len(runs) - MAX_NAMED
    return f"{named} and {more} more" if more > 0 else named or "none"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def parse_time(text: str) -> datetime:
    """Return the moment of a time in Prefect's answers."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
