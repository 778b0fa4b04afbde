"""The names of Prefect that are not part of its documented interface, all in one place.

tests/integration/warm_process/test_private_names.py fails with the reason when a new Prefect moves
one of them. Where they are missing the worker still works: it then starts every run the stock way.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any
from uuid import UUID

# The engine connects back to this address to be told that a SIGTERM means "cancelled".
CONTROL_PORT = "PREFECT__CONTROL_PORT"
CONTROL_TOKEN = "PREFECT__CONTROL_TOKEN"  # noqa: S105 - the name of a variable
FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"
# "false": whoever started the process owns the Cancelled state and the hooks that go with it.
ENGINE_OWNS_CANCELLATION = "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS"

# What the engine imports only once a run is under way.
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
    """Tells the engine in a child that it is about to be stopped because its run was cancelled.

    Without it the engine would report the SIGTERM that follows as a crash.
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
        """Return the environment by which the child of this run finds the channel."""
        try:
            port, token = self._channel.register(flow_run_id)
        except RuntimeError:  # no loopback port could be had: cancelling works by signal alone
            return {}
        return {CONTROL_PORT: str(port), CONTROL_TOKEN: token}

    def unregister(self, flow_run_id: UUID) -> None:
        self._channel.unregister(flow_run_id)

    async def announce_cancel(self, flow_run_id: UUID, within: float) -> bool | None:
        """Announce a cancellation to the engine, which may still be on its way to connect.

        True when it expects the signal, None when the run ended first, False when it does not answer
        within the given seconds.
        """
        deadline = time.monotonic() + within
        while True:
            status = await self._channel.signal(flow_run_id, "cancel")
            if status is self._acknowledged:
                return True
            if status is self._concluded:
                return None
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)


def refresh_settings() -> None:
    """Make Prefect read its settings and set up its logging again, from the environment as it is now."""
    context = importlib.import_module("prefect.context")
    logging_configuration = importlib.import_module("prefect.logging.configuration")
    context.refresh_global_settings_context()
    logging_configuration.setup_logging(incremental=False)


def stop_heartbeat_at_once() -> None:
    """Let the engine's heartbeat thread see the end of the run when it comes, not a second later.

    It waits in steps of `time.sleep(1)`, and a run holds its slot until that thread has ended. In its
    module `time` becomes one whose `sleep` waits for the thread's own stop event.
    """
    engine: Any = importlib.import_module("prefect.flow_engine")

    def sleep(seconds: float) -> None:
        stop = sys._getframe(1).f_locals.get("stop_event")
        if isinstance(stop, threading.Event):
            stop.wait(seconds)
        else:
            time.sleep(seconds)

    engine.time = SimpleNamespace(**{**vars(time), "sleep": sleep})
