"""The repository of backups, kept by restic: encrypted, deduplicated, in a folder or on any S3."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any, Final

from infra.backup.archive import reported_damage
from infra.backup.errors import BackupError

TAG: Final = "trainyard"
FILE: Final = "trainyard.tar"
RETRY_LOCK: Final = "10m"
DAYS_OF_A_FULL_CHECK: Final = 30


class Exit:
    """What restic's exit codes say."""

    NO_REPOSITORY = 10
    LOCKED = 11
    WRONG_PASSWORD = 12


@dataclass(frozen=True)
class Snapshot:
    """One backup in the repository."""

    id: str
    time: datetime
    project: str


class Repository:
    """A restic repository."""

    def __init__(self, address: str, environment: Mapping[str, str], former_password: str = "") -> None:
        self._address, self._environment, self._former_password = address, environment, former_password

    def ensure(self) -> None:
        """Create the repository if there is none.

        Raises:
            BackupError: It is there and cannot be opened, or cannot be created.
        """
        # In this order: where the bucket does not exist yet either, restic looks for a repository for a quarter of an hour.
        if self._restic("init", "--repository-version", "2", check=False).returncode:
            if self._former_password and self._opens(self._former_password):
                self._change_password(self._former_password)
            self._restic("cat", "config")
        self._restic("unlock")  # of those who left more than half an hour ago without a word

    def exists(self) -> bool:
        """Return whether there is a repository, readable or not."""
        return self._restic("cat", "config", "--no-lock", check=False).returncode != Exit.NO_REPOSITORY

    def _opens(self, password: str) -> bool:
        return not self._restic("cat", "config", check=False, password=password).returncode

    def _change_password(self, former: str) -> None:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(self._environment["RESTIC_PASSWORD"])
            file.flush()
            self._restic("key", "passwd", "--new-password-file", file.name, password=former)

    def snapshots(self) -> list[Snapshot]:
        """Return the backups, the oldest first."""
        found = json.loads(self._restic("snapshots", "--no-lock", "--tag", TAG, "--json").stdout or "[]")
        return sorted(
            (Snapshot(each["short_id"], parse_time(each["time"]), each["hostname"]) for each in found),
            key=lambda snapshot: snapshot.time,
        )

    def find(self, name: str) -> Snapshot:
        """Return a backup by its id, or the newest by `latest`.

        Raises:
            BackupError: There is none.
        """
        snapshots = self.snapshots()
        if not snapshots:
            raise BackupError(f"{self._address} holds no backup of Trainyard.")
        found = snapshots[-1:] if name == "latest" else [each for each in snapshots if name.startswith(each.id)]
        if not found:
            raise BackupError(f"there is no backup {name}; there are {', '.join(each.id for each in snapshots)}.")
        return found[0]

    def back_up(self, project: str, command: Sequence[str]) -> dict[str, Any]:
        """Keep what a command writes to its standard output as a backup; return restic's summary.

        Raises:
            BackupError: The command failed, or the repository cannot be written. There is no backup then.
        """
        arguments = ["--tag", TAG, "--host", project, "--stdin-filename", FILE, "--stdin-from-command", "--", *command]
        result = self._restic("backup", "--json", *arguments)
        messages = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        (summary,) = [message for message in messages if message["message_type"] == "summary"]
        return dict(summary)

    def forget(self, keep: Mapping[str, int]) -> None:
        """Remove the backups beyond those to keep, and the data that only they had."""
        self._restic("forget", "--tag", TAG, "--group-by", "host", "--prune", *policy(keep))

    def count_unneeded(self, keep: Mapping[str, int]) -> int:
        """Return how many backups `forget` would remove now."""
        arguments = ["--tag", TAG, "--group-by", "host", "--dry-run", "--no-lock", "--json", *policy(keep)]
        groups = json.loads(self._restic("forget", *arguments).stdout or "[]")
        return sum(len(group["remove"] or []) for group in groups)

    def check(self, day: int) -> None:
        """Check the repository's structure, and read a thirtieth of its data, another one each day of the month.

        Raises:
            BackupError: The repository is damaged.
        """
        part = min(day, DAYS_OF_A_FULL_CHECK)
        self._restic("check", f"--read-data-subset={part}/{DAYS_OF_A_FULL_CHECK}")

    @contextmanager
    def read(self, snapshot: Snapshot) -> Iterator[IO[bytes]]:
        """Open a backup's stream. restic verifies each piece of it.

        Raises:
            BackupError: The stream was read to its end, and restic says that it is damaged.
        """
        command = ["restic", "--no-cache", "--no-lock", "dump", snapshot.id, f"/{FILE}"]
        process = subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with reported_damage():
                yield process.stdout
        except BackupError as error:
            process.stdout.close()
            reason = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise BackupError(" ".join([str(error), *reason[-1:]])) from error
        finally:
            process.stdout.close()
            process.stderr.close()
            process.wait()

    def _restic(self, *arguments: str, check: bool = True, password: str = "") -> subprocess.CompletedProcess[str]:
        command = ["restic", "--no-cache", f"--retry-lock={RETRY_LOCK}", *arguments]
        environment = {**self._environment, **({"RESTIC_PASSWORD": password} if password else {})}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if check and result.returncode:
            raise self._error(result.returncode, result.stderr)
        return result

    def _error(self, code: int, output: str) -> BackupError:
        reasons = {
            Exit.NO_REPOSITORY: f"there is no repository of backups at {self._address}.",
            Exit.LOCKED: f"{self._address} is in use by another backup or its clean-up; try again later.",
            Exit.WRONG_PASSWORD: f"{self._address} has another password: set BACKUP_PASSWORD to the one that it was made with.",
        }
        if code not in reasons:
            print(output.strip(), file=sys.stderr)
        return BackupError(reasons.get(code, f"restic failed with {self._address}: see above."))


def policy(keep: Mapping[str, int]) -> list[str]:
    """Return restic's options for how many backups to keep."""
    return [f"--keep-{unit}={count}" for unit, count in keep.items() if count]


def parse_time(text: str) -> datetime:
    """Return the moment of restic's time, whose nanoseconds Python does not know."""
    date, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    return datetime.fromisoformat((date + zone).replace("Z", "+00:00")).astimezone(UTC)
