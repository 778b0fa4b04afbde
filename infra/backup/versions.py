"""The versions of what wrote a backup, and whether this checkout can read it."""

import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.backup.archive import FORMAT
from infra.backup.errors import BackupError

HOME = Path(__file__).parents[2]
SERVERS = ("prefect", "mlflow")


def own_versions(home: Path = HOME) -> dict[str, str]:
    """Return the versions of this checkout: of Trainyard and, from the locks, of the servers."""
    versions = {"trainyard": str(tomllib.loads((home / "pyproject.toml").read_text())["project"]["version"])}
    for server in SERVERS:
        found = re.search(rf"^{server}==([\w.]+)", (home / f"requirements/{server}.txt").read_text(), re.MULTILINE)
        assert found, f"no lock names {server}"
        versions[server] = found[1]
    return versions


def client_version() -> str:
    """Return the version of Postgres's programs, which is the server's major version."""
    output = subprocess.run(["pg_restore", "--version"], capture_output=True, text=True, check=True).stdout
    return output.split()[2]


def refuse_newer(manifest: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Return if a backup was written by these or older versions.

    Raises:
        BackupError: It is newer.
    """
    if manifest["format"] > FORMAT:
        raise BackupError(
            f"the backup has format {manifest['format']}, and this version reads {FORMAT}: update Trainyard."
        )
    for name, present in own.items():
        found = manifest["versions"][name]
        # Postgres loads the dumps of any minor version of its own major one.
        length = 1 if name == "postgres" else 3
        if as_numbers(found)[:length] > as_numbers(present)[:length]:
            raise BackupError(f"the backup is of {name} {found}, and this is {present}: update Trainyard first.")


def as_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, for comparison."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
