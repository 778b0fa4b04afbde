"""Run `prefect server start` with accounts beside the admin's: the dashboard's, the worker's and that of `deploy`.

On Postgres it starts while the database is being prepared, and opens it once it has the schema of this image. It stops where
a later version has migrated the database.

It does not start without an account and the installation's key: Prefect itself would then be open to everybody, and would
keep a key of its own beside what it encrypts.

It deletes old runs and events (`prefect_server.retention`).

Remove the accounts when Prefect has some with permissions.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect_server.retention import set_retention
from prefect_server.shared import share

set_retention(os.environ)  # Prefect reads them on import
share(os.environ)

import prefect.server.api.server as server
from prefect.cli import app as cli

from prefect_server.accounts import AccountsMiddleware
from prefect_server.encryption import adopt_blocks
from prefect_server.leases import reconcile_slots
from prefect_server.leases import router as leases_router
from prefect_server.permissions import accounts_permissions
from prefect_server.required import ADMIN, ENCRYPTION_KEY, FORMER_KEY, require_secrets
from prefect_server.schema import connect, wait_for_schema
from trainyard.servers.request_metrics import RequestMetricsMiddleware

ON_POSTGRES = "PREFECT_SERVER_DATABASE_HOST" in os.environ
HAS_SERVICES = "--no-services" not in sys.argv  # else they are apart (prefect_server.background)
create_prefect_app = server.create_app  # `prefect server start` looks it up under this name
_running: list[Any] = []


def create_app(**options: Any) -> Any:
    """Create Prefect's application and extend it; without options, return the one that was created first.

    Prefect's services call it without options for each client that they make, such as that of an automation's action. Prefect
    would set up its logging and hash all settings each time, which holds up the server for a fifth of a second.
    """
    if _running and not options:
        return _running[0]
    app = create_prefect_app(**options)
    if app in _running:
        return app
    _running.append(app)
    app.add_middleware(AccountsMiddleware, admin=os.environ[ADMIN], accounts=accounts_permissions(os.environ))
    if ON_POSTGRES:
        app.router.lifespan_context = after_schema(app.router.lifespan_context)
    if "METRICS_ENABLED" in os.environ:
        from prefect_server.metrics import refresh

        app.add_middleware(
            RequestMetricsMiddleware, token=os.environ["METRICS_TOKEN"], refresh=refresh if ON_POSTGRES else None
        )
    return app


def after_schema(lifespan: Any) -> Any:
    """Return a lifespan that begins once the database has the schema, and keeps slots and leases in agreement."""

    @asynccontextmanager
    async def waiting(app: Any) -> AsyncIterator[Any]:
        try:
            await wait_for_schema()
        except SystemExit as refusal:  # the framework would print it amid a traceback
            print(refusal, file=sys.stderr, flush=True)
            os._exit(1)
        async with connect() as connection:  # here, not in the migration, while a server of the last version may write
            await adopt_blocks(connection, os.environ[ENCRYPTION_KEY], os.environ.get(FORMER_KEY, ""))
        async with lifespan(app) as state:
            if HAS_SERVICES:
                reconciling = asyncio.create_task(reconcile_slots())
            yield state
            if HAS_SERVICES:
                reconciling.cancel()

    return waiting


server.create_app = create_app  # type: ignore[assignment]
if ON_POSTGRES:
    server.API_ROUTERS += (leases_router,)  # type: ignore[assignment]
if __name__ == "__main__":
    require_secrets()
    accounts_permissions(os.environ)  # exits where a setting is wrong
    sys.argv[:1] = ["prefect", "server", "start"]
    cli()
