"""Run the service."""

import sys

import uvicorn
from pydantic import ValidationError

from dashboard.app import create_app
from dashboard.settings import Settings


def main() -> None:
    """Run the service until it is stopped; end with one message where a setting is wrong."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    except ValidationError as error:
        sys.exit("\n".join(f"{str(each['loc'][0]).upper()}: {each['msg']}." for each in error.errors()))
    uvicorn.run(
        create_app(settings),
        host=settings.dashboard_host,
        port=settings.dashboard_port,
        access_log=False,
        server_header=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
