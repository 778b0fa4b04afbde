"""The secrets without which Prefect's server does not start."""

import os
import sys

ADMIN = "PREFECT_SERVER_API_AUTH_STRING"
READER = "PREFECT_READING_AUTH_STRING"
WORKER = "PREFECT_WORKER_AUTH_STRING"
DEPLOYER = "PREFECT_DEPLOY_AUTH_STRING"
LOGINS = (READER, WORKER, DEPLOYER, ADMIN)
ENCRYPTION_KEY = "PREFECT_SERVER_ENCRYPTION_KEY"
FORMER_KEY = "PREFECT_FORMER_ENCRYPTION_KEY"
"""Before `make rotate`, while there may be blocks under it."""


def require_secrets() -> None:
    """Refuse to start without the secrets that protect the server.

    Raises:
        SystemExit: One is missing or incomplete; the message names it.
    """
    missing = [name for name in LOGINS if not all(os.environ.get(name, "").partition(":"))]  # user:password
    if not os.environ.get(ENCRYPTION_KEY):
        missing.append(ENCRYPTION_KEY)
    if missing:
        sys.exit(
            f"Prefect does not start without {' and '.join(missing)}, missing or incomplete in the volume secrets: "
            "`docker compose up -d` completes them."
        )
