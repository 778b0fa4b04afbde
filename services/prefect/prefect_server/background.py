"""Run Prefect's background services apart from the servers that answer (infra/compose/replicas.yml).

There is one such process: it frees concurrency slots without a lease, which two would do twice, and what an event was being
handled for when it starts is nobody's any more.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from prefect_server.retention import set_retention
from prefect_server.shared import share

set_retention(os.environ)  # Prefect reads them on import
share(os.environ)

from prefect.cli._server_utils import _run_all_services
from prefect_redis.client import get_async_redis_client

from prefect_server.leases import reconcile_slots
from prefect_server.required import require_secrets
from prefect_server.schema import wait_for_schema

ALIVE = Path("/tmp/alive")  # noqa: S108 - a tmpfs of the container's own
ALIVE_SECONDS = 5


async def forget_interrupted_events() -> None:
    """Let the events be handled again that the last process was handling when it was killed.

    Prefect takes them for handled by another process, and lets the events that follow upon them wait for 15 minutes.
    """
    redis = get_async_redis_client()
    async for key in redis.scan_iter("*processing:*"):
        await redis.delete(key)


async def show_life() -> None:
    """Touch a file every few seconds, as long as the event loop turns; the container's health check looks at it."""
    while True:
        ALIVE.touch()
        await asyncio.sleep(ALIVE_SECONDS)


async def run() -> None:
    """Run the services once the database has the schema of this image, until SIGTERM.

    Raises:
        SystemExit: A later version has migrated the database.
    """
    main = asyncio.current_task()
    assert main
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
    await wait_for_schema()
    await forget_interrupted_events()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_run_all_services())
        tasks.create_task(reconcile_slots())
        tasks.create_task(show_life())


if __name__ == "__main__":
    require_secrets()
    with suppress(asyncio.CancelledError):
        asyncio.run(run())
