"""Which bases and pieces of WAL a moment needs, and the sentence for one that cannot be restored."""

from datetime import UTC, datetime, timedelta

import pytest

from infra.backup.errors import BackupError
from infra.backup.point_in_time import Archive, Base, Piece, oldest_kept, parse_moment
from infra.backup.receiver import position, start_of

START = datetime(2026, 11, 27, 6, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def base(name: str, minutes: float, start: int, system: str = "1") -> Base:
    return Base(name, "trainyard", system, start, at(minutes), f"backup-of-{name}", at(minutes - 1))


def piece(name: str, series: str, start: int, stop: int, minutes: float, system: str = "1") -> Piece:
    return Piece(name, system, series, start, stop, at(minutes))


BASES = [base("monday", 0, 100), base("tuesday", 60, 300)]
PIECES = [
    piece("a1", "a", 50, 150, 1),
    piece("a2", "a", 50, 200, 30),
    piece("b1", "b", 200, 310, 61),
    piece("b2", "b", 200, 400, 90),
]


def refusal(archive: Archive, moment: datetime | None) -> str:
    with pytest.raises(BackupError) as refused:
        archive.plan(moment)
    return str(refused.value)


class TestPlan:
    def test_a_moment_is_reached_from_the_newest_base_before_it_by_the_shortest_piece_of_each_series(self) -> None:
        plan = Archive(BASES, PIECES).plan(at(61))

        assert plan.base.id == "tuesday"
        assert [each.id for each in plan.pieces] == ["b1"]

    def test_wal_of_several_series_is_joined(self) -> None:
        plan = Archive(BASES, PIECES).plan(at(59))

        assert plan.base.id == "monday"
        assert [each.id for each in plan.pieces] == ["a2", "b1"]

    def test_without_a_moment_it_is_the_last_one(self) -> None:
        plan = Archive(BASES, PIECES).plan(None)

        assert (plan.moment, plan.is_newest) == (at(90), True)
        assert [each.id for each in plan.pieces] == ["b2"]

    def test_a_base_without_wal_yet_gives_way_to_the_one_before(self) -> None:
        plan = Archive([*BASES, base("wednesday", 89, 390)], PIECES[:3]).plan(None)

        assert (plan.base.id, plan.moment) == ("tuesday", at(61))

    def test_another_installations_wal_is_not_joined(self) -> None:
        archive = Archive([base("new", 100, 10, "2")], [*PIECES, piece("c", "c", 5, 500, 110, "2")])

        assert [each.id for each in archive.plan(at(105)).pieces] == ["c"]

    def test_the_setting_was_off(self) -> None:
        assert "BACKUP_POINT_IN_TIME was not true" in refusal(Archive((), ()), at(1))

    def test_a_moment_before_the_first_base(self) -> None:
        assert "before the first moment that can be restored, 2026-11-27 06:00:00+00:00" in refusal(
            Archive(BASES, PIECES), at(-1)
        )

    def test_a_moment_after_the_last_wal(self) -> None:
        assert "after the last WAL: the last moment before it is 2026-11-27 07:30:00+00:00" in refusal(
            Archive(BASES, PIECES), at(91)
        )

    def test_a_moment_in_a_gap(self) -> None:
        pieces = [*PIECES, piece("c", "c", 401, 500, 120)]

        assert "in a gap of the WAL: the last moment before it is 2026-11-27 07:30:00+00:00" in refusal(
            Archive(BASES, pieces), at(110)
        )

    def test_a_base_after_a_gap_can_be_restored_again(self) -> None:
        archive = Archive([*BASES, base("after", 119, 450)], [*PIECES, piece("c", "c", 401, 500, 120)])

        assert archive.plan(at(120)).base.id == "after"
        assert archive.ranges() == [(at(0), at(90)), (at(119), at(120))]


class TestRetention:
    def test_what_a_longer_piece_replaces_goes(self) -> None:
        assert Archive(BASES, PIECES).unneeded(["backup-of-monday", "backup-of-tuesday"], at(-1)) == ["a1", "b1"]

    def test_a_base_goes_with_its_backup_and_with_the_wal_before_the_next_one(self) -> None:
        assert Archive(BASES, PIECES).unneeded(["backup-of-tuesday"], at(-1)) == ["monday", "a1", "a2", "b1"]

    def test_an_old_base_goes_and_the_newest_of_all_stays(self) -> None:
        backups = ["backup-of-monday", "backup-of-tuesday"]

        assert "monday" in Archive(BASES, PIECES).unneeded(backups, at(1))
        assert "tuesday" not in Archive(BASES, PIECES).unneeded(backups, at(10_000))

    def test_as_many_days_are_kept_as_there_are_daily_backups(self) -> None:
        assert oldest_kept(START, 7) == START - timedelta(days=7)
        assert oldest_kept(START, 0) == START - timedelta(days=1)


@pytest.mark.parametrize(
    "text", ["2026-11-27 06:00:00+00:00", "2026-11-27 07:00:00+01:00", "2026-11-27 06:00", "2026-11-27T06:00:00Z"]
)
def test_a_moment_is_read(text: str) -> None:
    assert parse_moment(text) == START


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(BackupError, match="AT is 'yesterday' and must be a moment such as"):
        parse_moment("yesterday")


def test_positions_are_numbers() -> None:
    assert position("1/2000028") == (1 << 32) + 0x2000028
    assert start_of("000000010000000100000002") == position("1/2000000")
