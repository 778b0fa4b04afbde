"""Recognizes the moments of a run by Prefect's events, as they happen."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from trainyard.contract import Event, Resource, State

# By moment, the event that begins it, and the beginning of the name of its task or flow run's deployment.
TASKS = {"task": "fit", "upload": "log-to-mlflow", "register": "log-to-mlflow", "alias": "promote"}


class Moments:
    """Listens to the events of a stack's Prefect server in a thread, also when the server restarts."""

    def __init__(self, api_url: str, auth: str) -> None:
        self.settings = {PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: auth}
        self.events: list[Any] = []
        self.arrived = threading.Condition()
        self.connected = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._listening = self._loop.create_task(self._listen())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._listening)
        self._loop.close()

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._listening.cancel)
        self._thread.join(10)

    async def _listen(self) -> None:
        names = EventNameFilter(prefix=[f"{Event.FLOW_RUN}.", "prefect.task-run."])
        while True:
            try:
                with temporary_settings(self.settings):
                    async with get_events_subscriber(
                        filter=EventFilter(event=names), reconnection_attempts=0
                    ) as events:
                        self.connected.set()
                        async for event in events:
                            with self.arrived:
                                self.events.append(event)
                                self.arrived.notify_all()
            except Exception:  # noqa: BLE001 - the server is one of the targets
                self.connected.clear()
                await asyncio.sleep(1)

    def forget(self) -> None:
        """Drop the events so far: a new round begins."""
        with self.arrived:
            self.events.clear()

    def wait_for(self, moment: str, run: str, seconds: float) -> bool:
        """Wait for a moment of a run; return whether it came."""
        if moment in ("scheduled", "idle"):
            return True
        matches = matcher(moment, run)
        with self.arrived:
            return self.arrived.wait_for(lambda: any(map(matches, self.events)), seconds)


def matcher(moment: str, run: str) -> Callable[[Any], bool]:
    """Return a test for the event that begins a moment of a flow run."""

    def is_run(event: Any, *states: str) -> bool:
        return event.event in {f"{Event.FLOW_RUN}.{state}" for state in states} and run in str(event.resource.id)

    def matches(event: Any) -> bool:
        match moment:
            case "pending":
                return is_run(event, "Pending")
            case "started":
                return is_run(event, "Running")
            case "lock":
                return bool(event.event == f"{Event.FLOW_RUN}.{State.WAITING}")
            case "mail":
                flows = {related.name for related in event.related if related.role == "flow"}
                return bool(event.event == Event.FLOW_RUN_RUNNING) and Resource.SEND_MAIL in flows
            case _:
                name = event.resource.get("prefect.resource.name") or ""
                return bool(event.event == "prefect.task-run.Running") and str(name).startswith(TASKS[moment])

    return matches
