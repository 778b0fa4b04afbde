"""Run the service: `python -m serving`."""

import logging
import sys
import warnings

import uvicorn
from pydantic import ValidationError

from serving.app import create_app
from serving.direct import DirectRequests
from serving.protocol import protocol_with
from serving.settings import Settings


def main() -> None:
    """Serve until a signal arrives; exit with one line where a setting is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for each poll
    try:
        settings = Settings()  # type: ignore[call-arg] # from the environment
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        sys.exit("; ".join(f"{'.'.join(map(str, e['loc'])).upper()} {e['msg']}".strip() for e in found))
    # An estimator that was fitted with names gets a matrix without, in the order that was verified at its warm-up.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    # One process: each of several would hold every model.
    app = create_app(settings)
    uvicorn.run(
        DirectRequests(app),
        host=settings.serving_host,
        port=settings.serving_port,
        loop="uvloop",
        http=protocol_with(app.state.service.limiters),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
