"""Run `prefect server start`, with a reading account if PREFECT_READING_AUTH_STRING is set.

Remove this when Prefect has accounts with read permissions.
"""

import os
import sys
from typing import Any

import prefect.server.api.server as server
from prefect.cli import app as cli

from prefect_server.reading_account import ReadingAccountMiddleware

create_prefect_app = server.create_app  # `prefect server start` looks it up under this name


def create_app(*arguments: Any, **options: Any) -> Any:
    """Create Prefect's application and add the middleware once.

    Prefect caches the application: services inside the server, such as those that run automations' actions, call this
    again and get the same one.
    """
    app = create_prefect_app(*arguments, **options)
    reader, admin = (os.environ.get(f"PREFECT_{name}_AUTH_STRING") for name in ("READING", "SERVER_API"))
    added: list[Any] = [middleware.cls for middleware in app.user_middleware]
    if reader and admin and ReadingAccountMiddleware not in added:
        app.add_middleware(ReadingAccountMiddleware, reader=reader, admin=admin)
    return app


server.create_app = create_app
if __name__ == "__main__":
    sys.argv[:1] = ["prefect", "server", "start"]
    cli()
