"""The names of Prefect that are not part of its documented interface.

The worker checks each of them when it starts (`missing_names`): where one is missing, every run is a cold start, as on
Prefect's process worker. tests/integration/warm_process/test_private_names.py fails when a new version of Prefect moves
one.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import time
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Mapping

Intent = Literal["cancel", "reschedule", "relinquish"]
"""Why an engine is stopped; it reports the first only."""

# Where the engine connects to be told why it gets SIGTERM.
CONTROL_PORT = "PREFECT__CONTROL_PORT"
CONTROL_TOKEN = "PREFECT__CONTROL_TOKEN"  # noqa: S105 - the name of a variable
FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"
# "false": the starter of the process sets the Cancelled state and runs the hooks of it.
ENGINE_OWNS_CANCELLATION = "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS"

_CHANNEL = "prefect.runner._control_channel"
NAMES: Mapping[str, tuple[str, ...] | None] = {
    f"{_CHANNEL}:ControlChannel.register": ("self", "flow_run_id"),
    f"{_CHANNEL}:ControlChannel.unregister": ("self", "flow_run_id"),
    f"{_CHANNEL}:ControlChannel.signal": ("self", "flow_run_id", "intent"),
    f"{_CHANNEL}:ControlChannel.get_conclusion": ("self", "flow_run_id"),
    f"{_CHANNEL}:ControlSignalStatus.ACKNOWLEDGED": None,
    f"{_CHANNEL}:ControlSignalStatus.ALREADY_CONCLUDED": None,
    "prefect._internal.attempt_control:EngineOutcomeReceipt.state_id": None,
    "prefect.workers.base:BaseWorker._give_worker_labels_to_flow_run": ("self", "flow_run_id"),
    "prefect.flow_engine:_send_heartbeats": ("engine", "join_on_exit"),
    "prefect.context:refresh_global_settings_context": (),
    "prefect.logging.configuration:setup_logging": ("incremental",),
}
"""Functions with their parameters, and other names with None."""
SOURCES: Mapping[str, tuple[str, ...]] = {
    "prefect._internal.control_listener": (f'"{CONTROL_PORT}"', f'"{CONTROL_TOKEN}"'),
    "prefect.engine": (f'"{FLOW_RUN_ID}"', 'if __name__ == "__main__":'),
    "prefect.client.base": ("if self._has_connected:",),
    "prefect.flow_engine": (
        f'"{ENGINE_OWNS_CANCELLATION}"',
        "with _send_heartbeats(self):",
        'frozenset({"reschedule", "relinquish"})',
    ),
}
"""What the source of a module contains."""

# What the engine imports only once a run has started.
ENGINE_MODULES = (
    "anyio._backends._asyncio",
    "prefect._internal.control_listener",
    "prefect._internal.metrics",
    "prefect.artifacts",
    "prefect.client.orchestration",
    "prefect.deployments.steps.core",
    "prefect.deployments.steps.pull",
    "prefect.engine",
    "prefect.events.clients",
    "prefect.events.worker",
    "prefect.flow_engine",
    "prefect.futures",
    "prefect.logging.handlers",
    "prefect.main",
    "prefect.results",
    "prefect.runner.storage",
    "prefect.states",
    "prefect.task_engine",
    "prefect.task_runners",
    "prefect.telemetry.run_telemetry",
    "pydantic.v1",
    "websockets.asyncio.client",
)


def missing_names() -> list[str]:
    """List the names that this version of Prefect lacks or has changed."""
    names = [name for name, parameters in NAMES.items() if not _is_unchanged(name, parameters)]
    texts = [f"{module}: {text}" for module, parts in SOURCES.items() for text in parts if not _contains(module, text)]
    return names + texts


def _is_unchanged(name: str, parameters: tuple[str, ...] | None) -> bool:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return parameters is None or tuple(inspect.signature(found).parameters) == parameters


def _contains(module: str, text: str) -> bool:
    try:
        return text in inspect.getsource(importlib.import_module(module))
    except (ImportError, OSError):
        return False


class ControlChannel:
    """Tells the engine in a child why it is about to be stopped, and learns from it that it has reported its end.

    Without the announcement the engine reports the SIGTERM that follows as a crash.
    """

    def __init__(self) -> None:
        module = importlib.import_module("prefect.runner._control_channel")
        self._acknowledged = module.ControlSignalStatus.ACKNOWLEDGED
        self._concluded = module.ControlSignalStatus.ALREADY_CONCLUDED
        self._channel: Any = module.ControlChannel()

    async def open(self) -> None:
        await self._channel.__aenter__()

    async def close(self) -> None:
        await self._channel.__aexit__(None, None, None)

    def register(self, flow_run_id: UUID) -> dict[str, str]:
        """Return the environment through which the child of this run finds the channel."""
        try:
            port, token = self._channel.register(flow_run_id)
        except RuntimeError:  # no loopback port was free: a stopped run gets the signal alone
            return {}
        return {CONTROL_PORT: str(port), CONTROL_TOKEN: token}

    def unregister(self, flow_run_id: UUID) -> None:
        self._channel.unregister(flow_run_id)

    def has_reported_end(self, flow_run_id: UUID) -> bool:
        """Tell whether the engine of a run has reported to the server that it has ended or is suspended."""
        return getattr(self._channel.get_conclusion(flow_run_id), "state_id", None) is not None

    async def announce(self, flow_run_id: UUID, intent: Intent, timeout: float) -> bool | None:
        """Announce to the engine, which may still be starting, why it gets SIGTERM.

        Args:
            flow_run_id: The run.
            intent: "cancel"; "reschedule" or "relinquish" for an end that the engine must not report.
            timeout: Seconds that the engine gets to acknowledge.

        Returns:
            True when the engine expects the signal, None when it has reported its end, False when it has not
            acknowledged in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = await self._channel.signal(flow_run_id, intent)
            if status is self._acknowledged:
                return True
            if status is self._concluded:
                return None
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)


def refresh_settings() -> None:
    """Make Prefect read its settings and configure its logging again, from the current environment."""
    context = importlib.import_module("prefect.context")
    logging_configuration = importlib.import_module("prefect.logging.configuration")
    context.refresh_global_settings_context()
    logging_configuration.setup_logging(incremental=False)


def end_without_heartbeat_thread() -> None:
    """Let a run end without waiting for its heartbeat thread, which notices the end up to a second later.

    A run holds its slot until its process ends.
    """
    engine: Any = importlib.import_module("prefect.flow_engine")
    engine._send_heartbeats = functools.partial(engine._send_heartbeats, join_on_exit=False)


def retry_refused_connections() -> None:
    """Have all of Prefect's clients in this process retry refused connections, as they do after their first success.

    A run makes many clients, and each would fail at once while the server restarts.
    """
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    for client in (PrefectHttpxAsyncClient, PrefectHttpxSyncClient):
        client._has_connected = property(lambda _: True, lambda *_: None)  # type: ignore[assignment]
