"""What the repository has for restores to any moment, and what of it a restore to one moment reads.

A base is a copy of the databases' files. A piece is WAL from one position to another, together with the objects that came since
the backup of its base. Pieces of the same series are ever longer versions of one: the last has all that the others had.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from infra.backup.errors import BackupError
from infra.backup.repository import Repository, Snapshot

FOLDER = "point-in-time"
"""Where in the repository of the backups. It has locks of its own: to clean up or check the backups delays no WAL."""
BASE, PIECE = "base", "wal"
BASE_FILE = "base.tar"


@dataclass(frozen=True)
class Base:
    """A copy of the databases' files."""

    id: str
    project: str
    system: str
    """Postgres's identifier of the installation's databases."""
    start: int
    """The position in the WAL from which it is read, at least."""
    end: datetime
    """When it was complete, rounded up to a second: the first moment to which it can be brought."""
    backup: str
    """The backup that has the objects of its time."""
    backup_time: datetime
    """When that was begun: objects that are younger are in pieces."""


@dataclass(frozen=True)
class Piece:
    """WAL, and the objects that came meanwhile."""

    id: str
    system: str
    series: str
    start: int
    stop: int
    until: datetime
    """Every transaction that was committed by then is in it, and every object that such a one names."""
    folder: str = ""
    """Where they are in the snapshot."""


@dataclass(frozen=True)
class Range:
    """The moments to which a base can be brought, by the pieces with WAL."""

    base: Base
    until: datetime | None
    """The last of them; None where there is no WAL yet."""
    is_broken: bool
    """Whether later WAL is there, after a gap."""


@dataclass(frozen=True)
class Plan:
    """What a restore to a moment reads."""

    base: Base
    pieces: Sequence[Piece]
    """In the order of time; those from before the base have objects alone that matter."""
    moment: datetime
    is_newest: bool
    """Whether nobody asked for a moment, and it is the last one that there is."""


def read_base(snapshot: Snapshot) -> Base:
    """Return the base that is in a snapshot."""
    tags = snapshot.tags
    return Base(
        id=snapshot.id,
        project=snapshot.project,
        system=tags["system"],
        start=int(tags["start"], 16),
        end=(snapshot.end or snapshot.time).replace(microsecond=0) + timedelta(seconds=1),
        backup=tags["backup"],
        backup_time=from_epoch(tags["backup-time"]),
    )


def read_piece(snapshot: Snapshot) -> Piece:
    """Return the piece that is in a snapshot."""
    tags = snapshot.tags
    return Piece(
        id=snapshot.id,
        system=tags["system"],
        series=tags["series"],
        start=int(tags["start"], 16),
        stop=int(tags["stop"], 16),
        until=from_epoch(tags["until"]),
        folder=snapshot.path,
    )


class Archive:
    """The bases and pieces of a repository."""

    def __init__(self, bases: Iterable[Base], pieces: Iterable[Piece]) -> None:
        self.bases = sorted(bases, key=lambda base: base.end)
        self.pieces = sorted(pieces, key=lambda piece: piece.until)

    @classmethod
    def read(cls, repository: Repository, project: str) -> Self:
        """Read what an installation has in a repository of bases and pieces; nothing where there is no such repository."""
        if not repository.exists():
            return cls((), ())
        bases, pieces = (
            [snapshot for snapshot in repository.snapshots(tag) if snapshot.project == project] for tag in (BASE, PIECE)
        )
        return cls(map(read_base, bases), map(read_piece, pieces))

    def range_of(self, base: Base) -> Range:
        """Return the moments to which a base can be brought."""
        position, until = base.start, None
        for piece in self.pieces:
            if piece.system != base.system or piece.stop <= position:
                continue
            if piece.start > position:
                return Range(base, until, is_broken=True)
            position = piece.stop
            until = piece.until if piece.until >= base.end else until
        return Range(base, until, is_broken=False)

    def ranges(self) -> list[tuple[datetime, datetime]]:
        """Return the first and the last moment of each range without a gap."""
        found: list[tuple[datetime, datetime]] = []
        for base in self.bases:
            until = self.range_of(base).until
            if until is None:
                continue
            if found and base.end <= found[-1][1]:
                found[-1] = (found[-1][0], max(until, found[-1][1]))
            else:
                found.append((base.end, until))
        return found

    def plan(self, moment: datetime | None) -> Plan:
        """Return what a restore to a moment reads, or to the last one that there is.

        Raises:
            BackupError: There is nothing for that moment.
        """
        if not self.bases:
            raise BackupError(
                "the repository has no moments to restore: BACKUP_POINT_IN_TIME was not true; restore a backup, without AT."
            )
        if moment is not None and moment < self.bases[0].end:
            raise BackupError(f"{moment} is before the first moment that can be restored, {show(self.bases[0].end)}.")
        known = [base for base in self.bases if moment is None or base.end <= moment]
        reached = [(until, base) for base in known if (until := self.range_of(base).until)]
        if not reached:
            raise BackupError("the repository has no WAL yet, and no moment can be restored.")
        newest = max(until for until, _ in reached)
        at = moment or newest
        reaching = [base for until, base in reached if until >= at]
        if not reaching:
            reason = "in a gap of the WAL" if self.range_of(known[-1]).is_broken else "after the last WAL"
            raise BackupError(f"{moment} is {reason}: the last moment before it is {show(newest)}.")
        base = reaching[-1]
        pieces: dict[str, Piece] = {}
        for piece in self.pieces:
            if piece.system == base.system and piece.until >= base.backup_time:
                pieces[piece.series] = piece
                if piece.until >= at:
                    break
        return Plan(base, list(pieces.values()), at, is_newest=moment is None)

    def unneeded(self, backups: Iterable[str], oldest: datetime) -> list[str]:
        """Return the ids of what nobody restores any more.

        Args:
            backups: The ids of the backups that are kept. A base goes with its own.
            oldest: Bases from before it go, but for the newest of all.
        """
        present = set(backups)
        kept = [base for base in self.bases if base.backup in present and base.end >= oldest] or self.bases[-1:]
        needed_since = min((base.backup_time for base in kept), default=datetime.max.replace(tzinfo=UTC))
        last = {piece.series: piece.id for piece in self.pieces}
        return [
            *(base.id for base in self.bases if base not in kept),
            *(piece.id for piece in self.pieces if piece.id != last[piece.series] or piece.until < needed_since),
        ]


def oldest_kept(now: datetime, daily: int) -> datetime:
    """Return since when moments are kept: as many days as there are daily backups, one at least."""
    return now - timedelta(days=max(1, daily))


def parse_moment(text: str) -> datetime | None:
    """Return the moment that somebody asked for, in UTC where no zone is given; None for none.

    Raises:
        BackupError: It is no moment.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BackupError(f"AT is {text!r} and must be a moment such as '2026-11-27 06:00:00+00:00'.") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)


def from_epoch(text: str) -> datetime:
    """Return the moment of seconds since 1970."""
    return datetime.fromtimestamp(float(text), UTC)


def show(moment: datetime) -> str:
    """Return a moment as people give it to `AT`, rounded down to a second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}+00:00"
