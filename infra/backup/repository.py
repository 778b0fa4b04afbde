"""The repository of backups, kept by restic: encrypted, deduplicated, in a folder or on any S3."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Self

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
    """When it was begun."""
    project: str
    end: datetime | None = None
    """When it was complete."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The values of tags of the form NAME=VALUE."""
    path: str = ""
    """Of the file or folder that it has."""


class Repository:
    """A restic repository."""

    def __init__(
        self, address: str, environment: Mapping[str, str], former_password: str = "", cache: Path | None = None
    ) -> None:
        self._address, self._former_password, self._cache = address, former_password, cache
        self._environment = {**environment, "RESTIC_REPOSITORY": address}

    def inside(self, name: str, cache: Path | None = None) -> Self:
        """Return a repository in a folder of this one, with the same password. It has locks of its own."""
        return type(self)(f"{self._address}/{name}", self._environment, self._former_password, cache)

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

    def snapshots(self, tag: str = TAG) -> list[Snapshot]:
        """Return the backups, or what else has a tag, the oldest first."""
        found = json.loads(self._restic("snapshots", "--no-lock", "--tag", tag, "--json").stdout or "[]")
        return sorted(map(read_snapshot, found), key=lambda snapshot: snapshot.time)

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
        return self.keep_output(project, command, FILE, [TAG])

    def keep_output(self, project: str, command: Sequence[str], file: str, tags: Sequence[str]) -> dict[str, Any]:
        """Keep what a command writes as a file of a snapshot with tags; return restic's summary.

        Raises:
            BackupError: The command failed, or the repository cannot be written.
        """
        arguments = ["--host", project, "--stdin-filename", file, "--stdin-from-command", "--", *command]
        return summary_of(self._restic("backup", "--json", *as_options(tags), *arguments))

    def keep_folder(self, project: str, folder: Path, tags: Sequence[str]) -> dict[str, Any]:
        """Keep a folder as a snapshot with tags; return restic's summary. What the one before it had is not read again.

        Raises:
            BackupError: The folder cannot be read, or the repository cannot be written.
        """
        arguments = ["--host", project, "--no-scan", str(folder)]
        return summary_of(self._restic("backup", "--json", *as_options(tags), *arguments))

    def remove(self, ids: Sequence[str], *, prune: bool) -> None:
        """Remove snapshots, and with `prune` the data that only they had. Those that are gone already do not matter.

        Raises:
            BackupError: Others use the repository, and do not end.
        """
        if ids:
            self._restic("forget", *(["--prune"] if prune else []), *ids)

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
        with self.read_path(snapshot.id, f"/{FILE}") as source:
            yield source

    @contextmanager
    def read_path(self, snapshot: str, path: str, *, is_all_read: bool = False) -> Iterator[IO[bytes]]:
        """Open a file of a snapshot, or a folder as a tar. restic verifies each piece of it.

        Args:
            snapshot: Its id.
            path: The path in it.
            is_all_read: Whether the stream will be read to its end, so that restic's exit code says whether it is whole.

        Raises:
            BackupError: What was read is damaged, and restic says why.
        """
        command = ["restic", "--no-cache", "--no-lock", "dump", snapshot, path]
        process = subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with reported_damage():
                yield process.stdout
                if is_all_read and process.wait():
                    raise BackupError("the backup is damaged:")
        except BackupError as error:
            process.stdout.close()
            reason = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise BackupError(" ".join([str(error), *reason[-1:]])) from error
        finally:
            process.stdout.close()
            process.stderr.close()
            process.wait()

    def _restic(self, *arguments: str, check: bool = True, password: str = "") -> subprocess.CompletedProcess[str]:
        cache = ["--cache-dir", str(self._cache)] if self._cache else ["--no-cache"]
        command = ["restic", *cache, f"--retry-lock={RETRY_LOCK}", *arguments]
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


def read_snapshot(found: Mapping[str, Any]) -> Snapshot:
    """Return what restic says of a snapshot."""
    summary = found.get("summary") or {}
    return Snapshot(
        id=found["short_id"],
        time=parse_time(found["time"]),
        project=found["hostname"],
        end=parse_time(summary["backup_end"]) if "backup_end" in summary else None,
        tags=dict(tag.split("=", 1) for tag in found.get("tags") or [] if "=" in tag),
        path=found["paths"][0],
    )


def summary_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return restic's summary of a backup."""
    messages = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    (summary,) = [message for message in messages if message["message_type"] == "summary"]
    return dict(summary)


def as_options(tags: Sequence[str]) -> list[str]:
    """Return restic's options for tags."""
    return [word for tag in tags for word in ("--tag", tag)]


def policy(keep: Mapping[str, int]) -> list[str]:
    """Return restic's options for how many backups to keep."""
    return [f"--keep-{unit}={count}" for unit, count in keep.items() if count]


def parse_time(text: str) -> datetime:
    """Return the moment of restic's time, whose nanoseconds Python does not know."""
    date, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    return datetime.fromisoformat((date + zone).replace("Z", "+00:00")).astimezone(UTC)
