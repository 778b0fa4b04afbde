"""Prefect's accounts beside the admin's, on a server that is started as in the stack."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect_server.permissions import withhold
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from infra.testing.servers import prefect_client, prefect_database, prefect_server
from infra.testing.waiting import wait_until
from trainyard.contract import Resource

ADMIN, READER = ("admin", "password-of-the-admin"), ("dashboard", "password-of-the-reader")
WORKER, DEPLOYER = ("worker", "password-of-the-worker"), ("deploy", "password-of-the-deployer")
OWN_BLOCK, FOREIGN_BLOCK = "weather-key", "foreign-key"
NO_ID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client, without a login, of a server with the accounts and a work pool."""
    folder = tmp_path_factory.mktemp("prefect")
    with (
        prefect_server(
            folder,
            admin=":".join(ADMIN),
            reader=":".join(READER),
            worker=":".join(WORKER),
            deployer=":".join(DEPLOYER),
            WORKER_BLOCKS=f"secret/{OWN_BLOCK}",
        ) as address,
        prefect_client(address) as api,
    ):
        response = api.post("/work_pools/", json={"name": "training", "type": "process"}, auth=ADMIN)
        assert response.status_code == 201, response.text
        yield api


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"/{kind}/{verb}"
            for kind in ("flow_runs", "task_runs", "flows", "deployments")
            for verb in ("filter", "count")
        ),
        "/flow_runs/paginate",
        "/work_pools/filter",
        "/work_pools/training/queues/filter",
        "/work_pools/training/workers/filter",
    ],
)
def test_it_reads_what_the_admin_reads(api: httpx.Client, path: str) -> None:
    as_reader, as_admin = (api.post(path, json={}, auth=account) for account in (READER, ADMIN))

    assert (as_reader.status_code, as_admin.status_code) == (200, 200), as_reader.text
    assert as_reader.json() == withhold(as_admin.json())


def test_it_reads_no_fields_that_may_hold_secrets(api: httpx.Client) -> None:
    secret = f"secret-{uuid4().hex}"
    template = {
        "variables": {"properties": {"token": {"type": "string", "default": secret}}},
        "job_configuration": {"token": "{{ token }}"},
    }
    pool = {"name": f"pool-{uuid4().hex[:8]}", "type": "process", "base_job_template": template}
    flow_id = api.post("/flows/", json={"name": "with-a-secret"}, auth=ADMIN).raise_for_status().json()["id"]
    given = {
        "flow_id": flow_id,
        "name": "with-a-secret",
        "parameters": {"token": secret},
        "job_variables": {"t": secret},
    }
    deployment = given | {"parameter_openapi_schema": {"type": "object", "properties": {"token": {"default": secret}}}}
    try:
        for path, body in (("/work_pools/", pool), ("/deployments/", deployment), ("/flow_runs/", given)):
            api.post(path, json=body, auth=ADMIN).raise_for_status()

        for kind in ("work_pools", "deployments", "flow_runs"):
            path = f"/{kind}/filter"
            assert secret in api.post(path, json={}, auth=ADMIN).text
            assert secret not in api.post(path, json={}, auth=READER).raise_for_status().text
        assert secret not in api.post("/flow_runs/paginate", json={}, auth=READER).raise_for_status().text
    finally:
        api.delete(f"/work_pools/{pool['name']}", auth=ADMIN).raise_for_status()
        api.delete(f"/flows/{flow_id}", auth=ADMIN).raise_for_status()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/flows/", {"name": "intruder"}),
        ("POST", "/flow_runs/", {"flow_id": NO_ID}),
        ("POST", f"/flow_runs/{NO_ID}/set_state", {"state": {"type": "CANCELLED"}}),
        ("POST", "/flow_runs/bulk_delete", {}),
        ("POST", f"/deployments/{NO_ID}/create_flow_run", {}),
        ("POST", "/work_pools/", {"name": "intruder", "type": "process"}),
        ("POST", "/work_pools/training/get_scheduled_flow_runs", {}),
        ("POST", "/work_pools/training/workers/heartbeat", {"name": "intruder"}),
        ("PATCH", "/work_pools/training", {"is_paused": True}),
        ("DELETE", "/work_pools/training", None),
        ("PUT", f"/deployments/{NO_ID}", {}),
        # Requests that read, from what may hold secrets.
        ("POST", "/block_documents/filter", {"include_secrets": True}),
        ("POST", "/variables/filter", {}),
        ("POST", "/logs/filter", {}),
        ("GET", "/flow_runs/filter", None),
        ("GET", "/admin/settings", None),
        ("POST", "/admin/database/clear", {"confirm": True}),
        # Variants of an allowed path.
        ("POST", "/work_pools/filter/../../block_documents/filter", {}),
        ("POST", "//block_documents/filter", {}),
        ("POST", "/block_documents%2Ffilter", {}),
        ("DELETE", "/flow_runs/filter", None),
    ],
)
def test_other_requests_are_refused(api: httpx.Client, method: str, path: str, body: dict[str, object] | None) -> None:
    address = (
        f"{api.base_url}".removesuffix("/") + path
    )  # joined here, as a path that begins with // is no relative one

    response = api.request(method, address, json=body, auth=READER)

    assert response.status_code == 403, response.text
    pools = api.post("/work_pools/filter", json={}, auth=ADMIN).json()
    assert [(pool["name"], pool["is_paused"]) for pool in pools] == [("training", False)]


def test_the_admin_is_not_restricted(api: httpx.Client) -> None:
    created = api.post("/flows/", json={"name": "greet"}, auth=ADMIN)
    deleted = api.delete(f"/flows/{created.json()['id']}", auth=ADMIN)

    assert (created.status_code, deleted.status_code) == (201, 204)
    assert api.get("/admin/version", auth=ADMIN).status_code == 200


@pytest.mark.parametrize("account", [None, ("dashboard", "wrong"), ("admin", READER[1]), ("dashboard", ADMIN[1])])
def test_wrong_credentials_are_refused(api: httpx.Client, account: tuple[str, str] | None) -> None:
    with prefect_client(str(api.base_url), account) as client:
        answer = client.post("/flow_runs/filter", json={})

    assert answer.status_code == 401


def test_two_authorization_headers_are_refused(api: httpx.Client) -> None:
    def basic(account: tuple[str, str]) -> tuple[str, str]:
        return "Authorization", httpx.BasicAuth(*account)._auth_header

    headers = [basic(ADMIN), basic(READER)]
    response = api.post("/flows/", json={"name": "intruder"}, headers=headers)

    assert response.status_code == 403


def test_automations_still_run_their_actions(api: httpx.Client) -> None:
    with prefect_client(str(api.base_url), ADMIN) as admin:
        pool = admin.post("/work_pools/", json={"name": "paused-by-event", "type": "process"}).raise_for_status().json()
        automation = {
            "name": "pause",
            "trigger": {
                "type": "event",
                "posture": "Reactive",
                "expect": ["test.pause"],
                "match": {"prefect.resource.id": "test.*"},
                "threshold": 1,
                "within": 0,
            },
            "actions": [{"type": "pause-work-pool", "source": "selected", "work_pool_id": pool["id"]}],
        }
        admin.post("/automations/", json=automation).raise_for_status()

        def is_paused() -> bool:
            event = {
                "id": str(uuid4()),
                "event": "test.pause",
                "occurred": datetime.now(UTC).isoformat(),
                "resource": {"prefect.resource.id": "test.it"},
            }
            admin.post("/events", json=[event]).raise_for_status()  # repeated, since the automation is loaded later
            return bool(admin.get("/work_pools/paused-by-event").raise_for_status().json()["is_paused"])

        wait_until(is_paused, 30, "the automation's action", every=0.5)


@pytest.fixture(scope="module")
def things(api: httpx.Client) -> dict[str, str]:
    """Ids of a flow, a deployment, a run, an automation and blocks that the admin made, by the words of paths."""

    def create(path: str, body: dict[str, Any]) -> str:
        return str(api.post(path, json=body, auth=ADMIN).raise_for_status().json()["id"])

    flow = create("/flows/", {"name": "of-the-admin"})
    deployment = create("/deployments/", {"name": "of-the-admin", "flow_id": flow, "work_pool_name": "training"})
    create("/work_pools/", {"name": "foreign", "type": "process"})
    create("/v2/concurrency_limits/", {"name": "of-the-admin", "limit": 1})
    create("/variables/", {"name": Resource.POOL_TEMPLATE, "value": "a digest"})
    kind = api.get("/block_types/slug/secret", auth=ADMIN).raise_for_status().json()["id"]
    schemas = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = api.post("/block_schemas/filter", json=schemas, auth=ADMIN).raise_for_status().json()[0]["id"]
    blocks = {
        name: create(
            "/block_documents/",
            {"name": name, "data": {"value": name}, "block_type_id": kind, "block_schema_id": schema},
        )
        for name in (OWN_BLOCK, FOREIGN_BLOCK)
    }
    return {
        "FLOW": flow,
        "DEPLOYMENT": deployment,
        "RUN": create(f"/deployments/{deployment}/create_flow_run", {}),
        "AUTOMATION": create("/automations/", AUTOMATION),
        "OWN": blocks[OWN_BLOCK],
        "FOREIGN": blocks[FOREIGN_BLOCK],
        "KIND": kind,
        "SCHEMA": schema,
    }


AUTOMATION: dict[str, Any] = {
    "name": "anything",
    "trigger": {"type": "event", "posture": "Reactive", "expect": ["test.never"], "threshold": 1, "within": 0},
    "actions": [{"type": "do-nothing"}],
}
SECRET = "/block_types/slug/secret/block_documents"
FORBIDDEN_TO_BOTH: list[tuple[str, str, Any]] = [
    ("DELETE", "/flows/FLOW", None),
    ("DELETE", "/deployments/DEPLOYMENT", None),
    ("DELETE", "/flow_runs/RUN", None),
    ("POST", "/flow_runs/bulk_delete", {"flow_runs": {"id": {"any_": ["RUN"]}}}),
    ("POST", "/deployments/bulk_delete", {"deployments": {"id": {"any_": ["DEPLOYMENT"]}}}),
    ("POST", "/automations/", AUTOMATION),
    ("POST", "/automations/filter", {}),
    ("PUT", "/automations/AUTOMATION", AUTOMATION),
    ("PATCH", "/automations/AUTOMATION", {"enabled": False}),
    ("DELETE", "/automations/AUTOMATION", None),
    ("POST", "/work_pools/", {"name": "own", "type": "process"}),
    ("PATCH", "/work_pools/training", {"is_paused": True}),
    ("DELETE", "/work_pools/training", None),
    ("POST", "/work_pools/training/queues", {"name": "own"}),
    ("PATCH", "/work_pools/training/queues/default", {"is_paused": True}),
    ("POST", "/work_pools/foreign/get_scheduled_flow_runs", {}),
    ("POST", "/work_pools/foreign/workers/heartbeat", {"name": "own"}),
    ("PATCH", "/v2/concurrency_limits/of-the-admin", {"limit": 0}),
    ("DELETE", "/v2/concurrency_limits/of-the-admin", None),
    ("POST", "/concurrency_limits/", {"tag": "own", "concurrency_limit": 1}),
    ("DELETE", f"/variables/name/{Resource.POOL_TEMPLATE}", None),
    ("PATCH", f"/variables/name/{Resource.POOL_TEMPLATE}", {"value": "another digest"}),
    ("POST", "/variables/filter", {}),
    ("GET", f"{SECRET}/name/{FOREIGN_BLOCK}?include_secrets=true", None),
    ("GET", f"{SECRET}/", None),
    ("GET", "/block_documents/FOREIGN?include_secrets=true", None),
    ("POST", "/block_documents/filter", {"include_secrets": True}),
    ("POST", "/block_documents/", {"name": "own", "data": {}, "block_type_id": "KIND", "block_schema_id": "SCHEMA"}),
    ("PATCH", "/block_documents/OWN", {"data": {"value": "another"}}),
    ("DELETE", "/block_documents/OWN", None),
    ("GET", "/admin/settings", None),
    ("POST", "/admin/database/clear", {"confirm": True}),
    ("POST", "/work_pools/training/../foreign/get_scheduled_flow_runs", {}),
    ("POST", "//automations/filter", {}),
]
FORBIDDEN_TO_THE_WORKER: list[tuple[str, str, Any]] = [
    *FORBIDDEN_TO_BOTH,
    ("POST", "/deployments/", {"name": "own", "flow_id": "FLOW"}),
    ("PATCH", "/deployments/DEPLOYMENT", {"paused": True}),
    ("POST", "/deployments/DEPLOYMENT/pause_deployment", {}),
    ("POST", "/deployments/DEPLOYMENT/schedules", []),
    ("DELETE", "/automations/owned-by/prefect.deployment.DEPLOYMENT", None),
]
FORBIDDEN_TO_THE_DEPLOYER: list[tuple[str, str, Any]] = [
    *FORBIDDEN_TO_BOTH,
    ("POST", "/automations/", AUTOMATION | {"owner_resource": "prefect.deployment.DEPLOYMENT"}),
    ("POST", "/flow_runs/RUN/set_state", {"state": {"type": "CANCELLED"}}),
    ("POST", "/work_pools/training/get_scheduled_flow_runs", {}),
    ("GET", f"{SECRET}/name/{OWN_BLOCK}?include_secrets=true", None),
    ("GET", "/block_documents/OWN?include_secrets=true", None),
    ("POST", "/events", []),
]


def send(
    api: httpx.Client, account: tuple[str, str], method: str, path: str, body: object, things: dict[str, str]
) -> httpx.Response:
    """Send a request of an account, with the words of `things` replaced by ids."""
    text = json.dumps([path, body])
    for word, id_ in things.items():
        text = text.replace(word, id_)
    path, body = json.loads(text)
    return api.request(method, f"{api.base_url}".removesuffix("/") + path, json=body, auth=account)


@pytest.mark.parametrize(
    ("account", "request_"),
    [
        *((WORKER, each) for each in FORBIDDEN_TO_THE_WORKER),
        *((DEPLOYER, each) for each in FORBIDDEN_TO_THE_DEPLOYER),
    ],
    ids=str,
)
def test_worker_and_deploy_may_do_no_more_than_they_need(
    api: httpx.Client,
    things: dict[str, str],
    account: tuple[str, str],
    request_: tuple[str, str, Any],
) -> None:
    answer = send(api, account, *request_, things)

    assert answer.status_code == 403, answer.text
    assert "the admin's may" in answer.json()["detail"]
    assert FOREIGN_BLOCK not in answer.text


@pytest.mark.parametrize(
    ("account", "method", "path", "body"),
    [
        (WORKER, "GET", f"{SECRET}/name/{OWN_BLOCK}?include_secrets=true", None),
        (WORKER, "GET", "/block_documents/OWN?include_secrets=true", None),
        (WORKER, "POST", "/deployments/DEPLOYMENT/create_flow_run", {}),
        (WORKER, "POST", "/work_pools/training/get_scheduled_flow_runs", {}),
        (WORKER, "POST", "/deployments/get_scheduled_flow_runs", {"deployment_ids": ["DEPLOYMENT"]}),
        (WORKER, "POST", "/variables/", {"name": "of_a_flow", "value": 1}),
        (WORKER, "PATCH", "/variables/name/of_a_flow", {"value": 2}),
        (WORKER, "POST", "/flow_runs/RUN/set_state", {"state": {"type": "CANCELLED"}}),
        (DEPLOYER, "POST", "/deployments/", {"name": "of-the-project", "flow_id": "FLOW", "tags": ["x"]}),
        (DEPLOYER, "PATCH", "/deployments/DEPLOYMENT", {"paused": False}),
        (DEPLOYER, "DELETE", "/automations/owned-by/prefect.deployment.DEPLOYMENT", None),
        (
            DEPLOYER,
            "POST",
            "/automations/",
            AUTOMATION
            | {
                "owner_resource": "prefect.deployment.DEPLOYMENT",
                "actions": [{"type": "run-deployment", "source": "selected", "deployment_id": "DEPLOYMENT"}],
            },
        ),
    ],
    ids=str,
)
def test_worker_and_deploy_may_do_what_they_need(
    api: httpx.Client, things: dict[str, str], account: tuple[str, str], method: str, path: str, body: object
) -> None:
    assert send(api, account, method, path, body, things).is_success


def socket_answer(api: httpx.Client, path: str, token: str) -> str:
    """Return the type of a web socket's answer to a login, or `closed`."""
    address = f"{api.base_url}".rstrip("/").replace("http", "ws", 1) + path
    with connect(address, subprotocols=["prefect"]) as socket:  # type: ignore[list-item]
        socket.send(json.dumps({"type": "auth", "token": token}))
        try:
            return str(json.loads(socket.recv(timeout=20))["type"])
        except ConnectionClosed:
            return "closed"


@pytest.mark.parametrize(
    ("account", "path", "answer"),
    [
        (WORKER, "/events/in", "auth_success"),
        (WORKER, "/events/out", "auth_success"),
        (WORKER, "/work_pools/training/workers/connect", "auth_success"),
        (WORKER, "/work_pools/foreign/workers/connect", "closed"),
        (WORKER, "/logs/out", "closed"),
        (("worker", "wrong"), "/events/in", "closed"),
        (DEPLOYER, "/events/in", "closed"),
        (READER, "/events/out", "closed"),
        (ADMIN, "/logs/out", "auth_success"),
    ],
    ids=str,
)
def test_web_sockets_are_restricted_too(api: httpx.Client, account: tuple[str, str], path: str, answer: str) -> None:
    assert socket_answer(api, path, ":".join(account)) == answer


LOOK_UP = """
import prefect_server.serve as serve

create, created = serve.create_prefect_app, []
serve.create_prefect_app = lambda **options: created.append(options) or create(**options)
app = serve.create_app(final=True, webserver_only=False)
print(serve.create_app() is app, len(created))
"""


def test_services_of_the_server_find_its_application_without_making_it_again(tmp_path: Path) -> None:
    logins = {f"PREFECT_{name}_AUTH_STRING": "somebody:else" for name in ("SERVER_API", "READING", "WORKER", "DEPLOY")}
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", LOOK_UP], env=os.environ | logins | settings, check=True, capture_output=True, text=True
    )

    assert ended.stdout.split() == ["True", "1"]
