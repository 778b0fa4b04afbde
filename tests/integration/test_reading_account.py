"""Prefect's reading account, on a server started as in the stack: it looks and changes nothing."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest

from tests.support.servers import prefect_server
from tests.support.waiting import wait_until

ADMIN, READER = ("admin", "password-of-the-admin"), ("dashboard", "password-of-the-reader")
NO_ID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with both accounts, and a work pool."""
    with prefect_server(tmp_path_factory.mktemp("prefect"), admin=":".join(ADMIN), reader=":".join(READER)) as address:
        made = httpx.post(f"{address}/work_pools/", json={"name": "training", "type": "process"}, auth=ADMIN)
        assert made.status_code == 201, made.text
        yield address


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
def test_it_reads_as_the_admin_does(api: str, path: str) -> None:
    ours, theirs = (httpx.post(f"{api}{path}", json={}, auth=account) for account in (READER, ADMIN))

    assert (ours.status_code, theirs.status_code) == (200, 200), ours.text
    assert ours.json() == theirs.json()


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
        # Reading, of what may hold secrets.
        ("POST", "/block_documents/filter", {"include_secrets": True}),
        ("POST", "/variables/filter", {}),
        ("POST", "/logs/filter", {}),
        ("GET", "/flow_runs/filter", None),
        ("GET", "/admin/settings", None),
        ("POST", "/admin/database/clear", {"confirm": True}),
        # Spellings of an address that is allowed.
        ("POST", "/work_pools/filter/../../block_documents/filter", {}),
        ("POST", "//block_documents/filter", {}),
        ("POST", "/block_documents%2Ffilter", {}),
        ("DELETE", "/flow_runs/filter", None),
    ],
)
def test_it_changes_nothing(api: str, method: str, path: str, body: dict[str, object] | None) -> None:
    answer = httpx.request(method, f"{api}{path}", json=body, auth=READER)

    assert answer.status_code == 403, answer.text
    pools = httpx.post(f"{api}/work_pools/filter", json={}, auth=ADMIN).json()
    assert [(pool["name"], pool["is_paused"]) for pool in pools] == [("training", False)]


def test_the_admin_does_as_before(api: str) -> None:
    made = httpx.post(f"{api}/flows/", json={"name": "greet"}, auth=ADMIN)

    assert made.status_code == 201
    assert httpx.delete(f"{api}/flows/{made.json()['id']}", auth=ADMIN).status_code == 204
    assert httpx.get(f"{api}/admin/version", auth=ADMIN).status_code == 200


@pytest.mark.parametrize("account", [None, ("dashboard", "wrong"), ("admin", READER[1]), ("dashboard", ADMIN[1])])
def test_nobody_else_reads(api: str, account: tuple[str, str] | None) -> None:
    assert httpx.post(f"{api}/flow_runs/filter", json={}, auth=account).status_code == 401


def test_two_credentials_at_once_give_no_more(api: str) -> None:
    def basic(account: tuple[str, str]) -> tuple[str, str]:
        return "Authorization", httpx.BasicAuth(*account)._auth_header

    both = [basic(ADMIN), basic(READER)]

    assert httpx.post(f"{api}/flows/", json={"name": "intruder"}, headers=both).status_code == 403


def test_automations_still_act(api: str) -> None:
    with httpx.Client(base_url=api, auth=ADMIN, timeout=30) as admin:
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

        def paused() -> bool:
            event = {
                "id": str(uuid4()),
                "event": "test.pause",
                "occurred": datetime.now(UTC).isoformat(),
                "resource": {"prefect.resource.id": "test.it"},
            }
            admin.post("/events", json=[event]).raise_for_status()  # again: the automation is loaded some time later
            return bool(admin.get("/work_pools/paused-by-event").raise_for_status().json()["is_paused"])

        wait_until(paused, 30, "the automation's action", every=0.5)
