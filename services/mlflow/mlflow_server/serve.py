"""Run `mlflow server` with uvicorn in this process instead of a second interpreter.

That one would import MLflow again: 180 MiB and seconds of each start. Everything that `mlflow server` prepares stays.
Remove this when MLflow can do without the parent process.

The accounts of services that only read are refused writes. The UI works at the address that people reach it by. What was
deleted is removed for good where the platform asks for it (`mlflow_server.retention`).

It does not start without the secrets of its accounts and the installation's keys.

It starts while the databases are being prepared, and opens them once they have the schemas of this image.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow_server.public_address import accept_public_address
from mlflow_server.uploads import clear_uploads

clear_uploads(os.environ)
accept_public_address(os.environ)  # MLflow reads them on import


@contextmanager
def without_unused() -> Iterator[None]:
    """Import as if two packages were not installed that a server has no use for: pandas would import the one, and MLflow's code
    for the inputs of models the other. It saves a second of CPU time at each start, and 40 MiB. Later imports find them.
    """
    names = ("pyarrow", "scipy")
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


with without_unused():
    import mlflow.server
    from mlflow.cli import cli
import uvicorn.main

from mlflow_server.encryption import adopt_gateway_secrets, adopt_webhooks
from mlflow_server.reading_accounts import refuse_writes
from mlflow_server.required import require_secrets
from mlflow_server.retention import Settings, add_route
from mlflow_server.schema import accounts_database, tracking_database


def run_uvicorn(command: Sequence[str], *, extra_env: Mapping[str, str], **_: Any) -> None:
    """Replace the function that starts `python -m uvicorn ...`."""
    assert command[1:3] == ["-m", "uvicorn"], command
    os.environ.update(extra_env)
    if "METRICS_ENABLED" in os.environ:
        from mlflow_server import metrics  # its import takes what the accounts need, as below

        assert command[-1] == metrics.MLFLOW_APP, command
        command = [*command[:-1], metrics.APP]
    uvicorn.main.main(command[3:], standalone_mode=True)


PRIVATE_NAME = "_exec_cmd"
assert callable(getattr(mlflow.server, PRIVATE_NAME))  # if MLflow moves it, the image's build fails here
setattr(mlflow.server, PRIVATE_NAME, run_uvicorn)
mlflow.server.app.before_request(refuse_writes)
if __name__ == "__main__":
    require_secrets()
    Settings.read()
    with without_unused():
        import mlflow.server.auth  # takes seconds, in which the databases come up; needs the accounts' settings

    add_route()
    tracking_database().wait_for_schema()
    accounts_database().wait_for_schema()
    # Here, not in the migration, while a server of the last version may write.
    adopt_gateway_secrets(tracking_database())
    adopt_webhooks(tracking_database())
    cli(["server", *sys.argv[1:]])
