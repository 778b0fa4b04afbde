"""The names of Prefect that are not part of its documented interface.

tests/integration/warm_process/test_private_names.py checks each of them, so that it fails with the reason when a new
version of Prefect moves one. Where the control channel is missing at run time, every run is a cold start.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.workers.process import ProcessJobConfiguration

# Where the engine connects to be notified that a SIGTERM means "cancelled".
CONTROL_PORT = "PREFECT__CONTROL_PORT"
CONTROL_TOKEN = "PREFECT__CONTROL_TOKEN"  # noqa: S105 - the name of a variable
FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"
# "false": the starter of the process sets the Cancelled state and runs the hooks of it.
ENGINE_OWNS_CANCELLATION = "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS"

WORKER_NAME_LABEL = "prefect.worker.name"
"""The label that a worker gives to the runs that it starts."""

WORKER_ATTRIBUTES = ("_logger", "_description")
"""Attributes of BaseWorker that WarmProcessWorker uses or sets."""
WORKER_METHODS = ("_setup_cancellation_observer", "_give_worker_labels_to_flow_run")
"""Methods of BaseWorker that WarmProcessWorker overrides."""

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


class CancelChannel:
    """Notifies the engine in a child that it is about to be stopped because its run was cancelled.

    Without the notification the engine reports the SIGTERM that follows as a crash.
    """

    def __init__(self) -> None:
        """Create a channel.

        Raises:
            ImportError: This version of Prefect has no such channel.
            AttributeError: This version of Prefect has another kind of channel.
        """
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
        except RuntimeError:  # no loopback port was free: a cancelled run gets the signal alone
            return {}
        return {CONTROL_PORT: str(port), CONTROL_TOKEN: token}

    def unregister(self, flow_run_id: UUID) -> None:
        self._channel.unregister(flow_run_id)

    async def announce_cancel(self, flow_run_id: UUID, timeout: float) -> bool | None:
        """Announce a cancellation to the engine, which may still be starting.

        Returns:
            True when the engine expects the signal, None when the run has ended, False when the engine has not
            acknowledged within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = await self._channel.signal(flow_run_id, "cancel")
            if status is self._acknowledged:
                return True
            if status is self._concluded:
                return None
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)


def is_command_configured(configuration: ProcessJobConfiguration) -> bool:
    """Tell whether the job variables of a prepared configuration set a command."""
    return configuration._command_configured


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
