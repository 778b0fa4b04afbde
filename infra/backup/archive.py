"""The format of a backup: one tar stream, which restic keeps as one file of one snapshot.

manifest.json              first, so that a backup of a newer version is refused after a few bytes
databases/NAME/00000000    a database's dump, in parts, because a member's size comes before its content
objects/BUCKET/KEY         an object; its ETag, type and metadata are PAX headers
secrets.json               the vault
end.json                   last: how many members precede it, so that a shortened stream is noticed
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

from infra.backup.errors import BackupError

FORMAT = 1
MANIFEST, SECRETS, END = "manifest.json", "secrets.json", "end.json"
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """One member of the stream. Its content can be read until the next member is asked for."""

    name: str
    size: int
    headers: Mapping[str, str]
    stream: IO[bytes]
    modified: int = 0

    @property
    def section(self) -> str:
        """The first parts of the name: `databases/NAME`, `objects`, or the whole of a file beside these."""
        parts = self.name.split("/")
        return "/".join(parts[:2]) if parts[0] == "databases" else parts[0]

    def read(self) -> bytes:
        """Return the whole content.

        Raises:
            BackupError: The stream ends within it.
        """
        data = self.stream.read(self.size)
        if len(data) != self.size:
            raise BackupError("the backup is damaged: it ends early.")
        return data

    def json(self) -> Any:
        """Return the content as JSON."""
        return json.loads(self.read())


class Writer:
    """Writes a backup's stream."""

    def __init__(self, output: IO[bytes]) -> None:
        self._tar = tarfile.open(  # noqa: SIM115 - `end` closes it; a stream that failed has to stay without an end
            fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BUFFER_BYTES
        )
        self._count = 0

    def add(self, name: str, data: bytes) -> None:
        """Add a member."""
        self.add_stream(name, BytesIO(data), len(data))

    def add_stream(
        self, name: str, stream: IO[bytes], size: int, *, modified: int = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        """Add a member of `size` bytes.

        Raises:
            OSError: The stream ends before.
        """
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.pax_headers = size, modified, dict(headers or {})
        self._tar.addfile(member, stream)
        self._tar.members.clear()  # type: ignore[attr-defined] # else memory grows with the number of objects
        self._count += 1

    def end(self) -> None:
        """Complete the stream."""
        self.add(END, json.dumps({"members": self._count}).encode())
        self._tar.close()


def read_members(source: IO[bytes]) -> Iterator[Member]:
    """Yield a stream's members; to be read under `reported_damage`.

    Raises:
        BackupError: The stream ends early, or has members missing.
    """
    count = 0
    with tarfile.open(fileobj=source, mode="r|", bufsize=BUFFER_BYTES) as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # as above
            stream = tar.extractfile(entry)
            if stream is None:
                raise BackupError(f"the backup is damaged: {entry.name} is not a file.")
            member = Member(entry.name, entry.size, entry.pax_headers, stream, int(entry.mtime))
            if member.name == END:
                if member.json() != {"members": count}:
                    raise BackupError("the backup is damaged: members are missing.")
                return
            count += 1
            yield member
    raise BackupError("the backup is damaged: it ends early.")


@contextmanager
def reported_damage() -> Iterator[None]:
    """Raise what tarfile says of a stream, or of a member that is being read, as a BackupError."""
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"the backup is damaged: {error}.") from error
