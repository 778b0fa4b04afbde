"""A real Postgres as a local process, where its programs are installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

from infra.testing.servers import end, free_port
from infra.testing.waiting import wait_until

# Debian keeps the programs beside the PATH.
FOLDERS = [*os.environ["PATH"].split(os.pathsep), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]


def find(program: str) -> str:
    """Return a program's path; skip the test where Postgres is not installed."""
    return shutil.which(program, path=os.pathsep.join(FOLDERS)) or pytest.skip("Postgres is not installed here")


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a Postgres of its own; yields the address of a database."""
    initdb, postgres = find("initdb"), find("postgres")
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        if user:
            shutil.chown(home, user)
        data = f"{home}/data"
        make = [initdb, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", data]
        subprocess.run(make, check=True, capture_output=True, user=user, cwd=home)
        command = [postgres, "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with Path(home, "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-c", "unix_socket_directories="], user=user, cwd=home, stdout=log, stderr=log
            )
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(Path(home, "log").read_text())
            try:
                with closing(psycopg2.connect(url, connect_timeout=2)):
                    return True
            except psycopg2.OperationalError:
                return False

        try:
            wait_until(answers, 60, "Postgres")
            yield url
        finally:
            end(process)
