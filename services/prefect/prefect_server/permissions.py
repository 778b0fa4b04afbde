"""What each account beside the admin's may request of Prefect's API; everything else is refused.

A dashboard reads. Worker and runs do what runs need, on the platform's work pool. `deploy` saves deployments. None of them
changes work pools, blocks or others' automations, or deletes a run.
"""

import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from prefect_server import required
from prefect_server.accounts import Permissions, Refused
from trainyard.contract import LOCKS_PATH, Resource

ID = "[0-9a-f-]{36}"
NAME = "[^/]+"
POOL = f"work_pools/{Resource.WORK_POOL}"
RESULTS_BLOCK = f"{Resource.RESULTS_BLOCK_TYPE}/{Resource.RESULTS_BLOCK}"
BLOCK = re.compile("[a-z0-9-]+/[a-z0-9-]+")
SERVER = ("health", "ready", "version", "hello", "csrf-token", "admin/version")
PLATFORM_VARIABLES = (Resource.PROVISIONED, Resource.POOL_TEMPLATE, Resource.DEPLOYED, Resource.FIRST_RUNS)

WITHHELD = frozenset(
    {
        "parameters",
        "parameter_openapi_schema",
        "job_variables",
        "infra_overrides",
        "base_job_template",
        "pull_steps",
        "task_inputs",
        "context",
    }
)
"""Fields of runs, deployments and work pools in which people and projects may have put secrets."""


def withhold(value: Any) -> Any:
    """Return a JSON value without the fields of `WITHHELD`, at any depth."""
    if isinstance(value, dict):
        return {name: withhold(each) for name, each in value.items() if name not in WITHHELD}
    return [withhold(each) for each in value] if isinstance(value, list) else value


def paths(*patterns: str) -> re.Pattern[str]:
    """Return the pattern of paths under /api/."""
    return re.compile(f"/api/(?:{'|'.join(patterns)})")


READER = Permissions(
    refusal="The dashboard's account may only read runs, deployments and pools: use the admin's.",
    requests={
        "GET": paths("health", "ready", "version", LOCKS_PATH[1:], f"variables/name/{Resource.DIAGNOSIS}"),
        "POST": paths(
            "(?:flows|flow_runs|task_runs|deployments|work_pools|work_queues)/(?:filter|count|paginate|history)",
            f"work_pools/{NAME}/(?:queues|workers)/filter",
        ),
    },
    filters=[(re.compile(".*"), withhold)],
)


def worker_permissions(blocks: Collection[str]) -> Permissions:
    """Return the permissions of the worker and of the runs in it.

    Args:
        blocks: The blocks that they may read beside that of results, as TYPE/NAME.
    """
    readable = {RESULTS_BLOCK, *blocks}
    documents = [f"block_types/slug/{kind}/block_documents/name/{name}" for kind, name in map(split_block, readable)]

    def only_readable(document: Any) -> Any:
        """Return an answer if it is one of those blocks, or none at all, such as an error."""
        if "id" in document and f"{document['block_type']['slug']}/{document['name']}" not in readable:
            raise Refused
        return document

    return Permissions(
        refusal=(
            "The worker's account may run flows and nothing else: the admin's may do this, and WORKER_BLOCKS in .env names "
            "the blocks that flows may read."
        ),
        requests={
            "GET": paths(
                *SERVER,
                LOCKS_PATH[1:],
                f"(?:flows|flow_runs|task_runs|deployments|artifacts|work_queues|block_documents)/{ID}",
                f"flows/name/{NAME}",
                f"flow_runs/{ID}/input/{NAME}",
                "(?:flow|task)_run_states/",
                f"deployments/name/{NAME}/{NAME}",
                f"{POOL}(?:/queues/{NAME})?",
                f"variables/name/{NAME}",
                f"artifacts/{NAME}/latest",
                *documents,
            ),
            "POST": paths(
                "(?:flows|flow_runs|task_runs|artifacts|variables|logs|events|v2/concurrency_limits)/?",
                "(?:flows|flow_runs|task_runs|deployments|artifacts|work_pools|work_queues)/(?:filter|count|paginate|history)",
                f"(?:flow_runs|task_runs)/{ID}/set_state",
                f"flow_runs/{ID}/(?:input|input/filter|resume)",
                f"deployments/(?:{ID}/create_flow_run|get_scheduled_flow_runs)",
                f"{POOL}/(?:get_scheduled_flow_runs|workers/heartbeat|(?:queues|workers)/filter)",
                "v2/concurrency_limits/(?:increment|increment-with-lease|decrement-with-lease)",
                f"v2/concurrency_limits/leases/{ID}/renew",
                "concurrency_limits/(?:increment|decrement)",
            ),
            "PATCH": paths(
                f"(?:flow_runs|task_runs|artifacts)/{ID}",
                f"flow_runs/{ID}/labels",
                f"variables/name/(?!(?:{'|'.join(PLATFORM_VARIABLES)})){NAME}",
            ),
        },
        sockets=paths("events/(?:in|out)", f"{POOL}/workers/connect"),
        filters=[(paths(f"block_documents/{ID}"), only_readable)],
    )


def starts_deployments(automation: Any) -> bool:
    """Return whether an automation is a trigger of a deployment, as prefect.yaml declares them."""
    if not isinstance(automation, dict):
        return False
    actions = automation.get("actions")
    others = (automation.get("actions_on_trigger"), automation.get("actions_on_resolve"))
    return (
        str(automation.get("owner_resource")).startswith("prefect.deployment.")
        and isinstance(actions, list)
        and all(isinstance(action, dict) and action.get("type") == "run-deployment" for action in actions)
        and not any(others)
    )


DEPLOYER = Permissions(
    refusal="The account of `deploy` may save deployments and start runs, and nothing else: the admin's may do this.",
    requests={
        "GET": paths(
            *SERVER,
            "collections/views/aggregate-worker-metadata",
            f"(?:flows|flow_runs|deployments)/{ID}",
            f"flows/name/{NAME}",
            f"deployments/name/{NAME}/{NAME}",
            f"deployments/{ID}/schedules",
            f"{POOL}(?:/queues/{NAME})?",
            f"variables/name/{NAME}",
        ),
        "POST": paths(
            "(?:flows|deployments|variables|automations)/",
            "(?:flows|flow_runs|task_runs|deployments|work_pools|work_queues|logs)/(?:filter|count|paginate)",
            f"deployments/{ID}/(?:create_flow_run|schedules)",
            f"{POOL}/(?:queues|workers)/filter",
        ),
        "PATCH": paths(
            f"deployments/{ID}(?:/schedules/{ID})?",
            f"variables/name/(?:{Resource.FIRST_RUNS}|{Resource.DEPLOYED}(?:_[a-z0-9_-]+)?)",
        ),
        "DELETE": paths(f"deployments/{ID}/schedules/{ID}", f"automations/owned-by/prefect.deployment.{ID}"),
    },
    body_checks=[(paths("automations/"), starts_deployments)],
)


def split_block(block: str) -> tuple[str, str]:
    """Return type and name of a block, TYPE/NAME."""
    kind, _, name = block.partition("/")
    return kind, name


def read_blocks(setting: str) -> list[str]:
    """Return the blocks of the setting WORKER_BLOCKS, separated by commas.

    Raises:
        SystemExit: One has another form than TYPE/NAME; the message names it.
    """
    blocks = [name.strip() for name in setting.split(",") if name.strip()]
    for block in blocks:
        if not BLOCK.fullmatch(block):
            sys.exit(
                f"Prefect does not start: WORKER_BLOCKS names {block!r}; a block has the form TYPE/NAME, such as secret/api-key."
            )
    return blocks


def accounts_permissions(environment: Mapping[str, str]) -> dict[str, Permissions]:
    """Return the permissions of each account beside the admin's, by its login, from the process's variables.

    Raises:
        SystemExit: WORKER_BLOCKS is no list of blocks; the message says why.
    """
    return {
        environment[required.READER]: READER,
        environment[required.WORKER]: worker_permissions(read_blocks(environment.get("WORKER_BLOCKS") or "")),
        environment[required.DEPLOYER]: DEPLOYER,
    }
