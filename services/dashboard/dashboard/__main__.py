"""Run the service."""

import sys

import uvicorn
from pydantic import ValidationError

from dashboard.app import create_app
from dashboard.settings import Settings


def main() -> None:
    """Run the service until it is stopped; exit with one line per invalid setting."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    except ValidationError as error:
        sys.exit("\n".join(f"{str(problem['loc'][0]).upper()}: {problem['msg']}." for problem in error.errors()))
    uvicorn.run(
        create_app(settings),
        host=settings.dashboard_host,
        port=settings.dashboard_port,
        access_log=False,
        proxy_headers=False,  # uvicorn knows proxies by address, and a container's changes: see proxy.py
        server_header=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
