"""Locks of the whole installation: Prefect's concurrency limits of one slot, whose lease ends with its holder.

A run that waits says so in its log, with the run that holds the lock, and is in the state `Waiting` meanwhile.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, StateType
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import MissingContextError, ObjectAlreadyExists, ObjectNotFound
from prefect.states import Running
from prefect.utilities.urls import url_for

from trainyard.contract import LOCKS_PATH, State
from trainyard.errors import LockTimeoutError

__state__ = ("_waiting", "_waiting_lock")

TIMEOUT_SECONDS, POLL_SECONDS, LEASE_SECONDS = 600.0, 0.3, 60
QUIET_SECONDS = 1.0
"""A wait that is over by then is not worth a word."""

_waiting: Counter[str] = Counter()  # by flow run, how many of its threads wait
_waiting_lock = threading.Lock()


@contextmanager
def lock(name: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Hold a lock; it is released within a minute if the holder dies.

    Args:
        name: The name of the lock.
        timeout_seconds: How long to wait for another holder.

    Raises:
        LockTimeoutError: Another run holds it for longer than that.
    """
    logging.getLogger("prefect._internal.concurrency").addFilter(_is_no_refusal)
    began = monotonic()
    with ExitStack() as held:
        with ExitStack() as waiting:
            said = False
            # Polled here, because Prefect's own wait backs off to as much as half a minute.
            while not _try_acquire(name, held):
                waited = monotonic() - began
                if waited > timeout_seconds:
                    raise LockTimeoutError(f"{name} is locked by {_describe_holder(name)}.")
                if waited > QUIET_SECONDS and not said:
                    waiting.enter_context(_waiting_state(name))
                    said = True
                threading.Event().wait(POLL_SECONDS)
        yield


def _try_acquire(name: str, held: ExitStack) -> bool:
    """Acquire the lock if it is free; create it for the next attempt if it does not exist yet."""
    try:
        run = runtime.flow_run.root_flow_run_id
        held.enter_context(
            concurrency(
                name,
                max_retries=0,
                strict=True,
                lease_duration=LEASE_SECONDS,
                holder=ConcurrencyLeaseHolder(type="flow_run", id=UUID(str(run))) if run else None,
                raise_on_lease_renewal_failure=False,
            )
        )
    except ConcurrencySlotAcquisitionError as error:
        response = getattr(error.__cause__, "response", None)
        if response is None and "must be created" in str(error):
            with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):  # another run was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
            return _try_acquire(name, held)
        if response is None or response.status_code != httpx.codes.LOCKED:
            raise
        return False
    return True


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Leave out what Prefect logs as an error each time that a lock is still held; the lock gets the same as an exception."""
    return "ConcurrencySlotAcquisition" not in record.getMessage()


@contextmanager
def _waiting_state(name: str) -> Iterator[None]:
    """Say what the run waits for; it is in the state `Waiting` while any of its threads is in here."""
    message = f"Waiting for the lock {name}, held by {_describe_holder(name)}."
    try:
        get_run_logger().info(message)
    except MissingContextError:  # `make promote`
        print(message)
    run = runtime.flow_run.id
    if run is None:
        yield
        return
    with _waiting_lock:
        _waiting[run] += 1
        if _waiting[run] == 1:
            _set_state(run, State.WAITING, message)
    try:
        yield
    finally:
        with _waiting_lock:
            _waiting[run] -= 1
            if not _waiting[run]:
                _set_state(run, "Running", "")


def _set_state(run: str, name: str, message: str) -> None:
    """Name the state of a run, unless it was cancelled or ended meanwhile; it goes on without where the server refuses."""
    with get_client(sync_client=True) as client, suppress(httpx.HTTPError, ObjectNotFound):
        found = client.read_flow_run(UUID(run))
        if found.state_type == StateType.RUNNING:
            # Else Prefect would count another attempt, of which a flow's `retries` allow so many.
            found.empirical_policy.resuming = True
            client.update_flow_run(UUID(run), empirical_policy=found.empirical_policy)
            # Forced: to Prefect, Running after Running is no transition.
            client.set_flow_run_state(run, Running(name=name, message=message), force=True)


def _describe_holder(name: str) -> str:
    """Return which run holds a lock, as far as the server tells: the platform's does, `prefect server start` does not."""
    with get_client(sync_client=True) as client, suppress(httpx.HTTPError, LookupError):
        holder = _holders(client, name)[0]
        return (
            f"the run {holder['name']} ({url_for('flow-run', holder['flow_run_id'])}) since {holder['since'][:19]} UTC"
        )
    return "another run"


def _holders(client: SyncPrefectClient, name: str) -> list[dict[str, Any]]:
    answer = client.request("GET", cast(Any, LOCKS_PATH), params={"name": name})
    return cast(list[dict[str, Any]], answer.json()[0]["holders"])
