"""Prefect's read-only account, on a server that is started as in the stack."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
from prefect_server.reading_account import withhold

from infra.testing.servers import prefect_client, prefect_server
from infra.testing.waiting import wait_until

ADMIN, READER = ("admin", "password-of-the-admin"), ("dashboard", "password-of-the-reader")
NO_ID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client, without a login, of a server with both accounts and a work pool."""
    folder = tmp_path_factory.mktemp("prefect")
    with (
        prefect_server(folder, admin=":".join(ADMIN), reader=":".join(READER)) as address,
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
    try:
        for path, body in (("/work_pools/", pool), ("/deployments/", given), ("/flow_runs/", given)):
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
