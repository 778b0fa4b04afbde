"""How the end of a process is described."""

from pathlib import Path

import pytest
from warm_process.cgroup import CgroupMemory
from warm_process.reasons import OomKills, ProcessExit, describe_exit

GIB = 1 << 30


@pytest.mark.parametrize(
    ("code", "ran_to_end", "reason"),
    [
        (None, False, "its process is gone"),
        (-11, False, "its process was killed by signal 11 (SIGSEGV)"),
        (0, False, "its process exited with code 0 in the middle of the run"),
        (0, True, "its process ended without reporting an end of the run"),
        (3, True, "its process exited with code 3 before it reported an end; the run's log may say why"),
    ],
)
def test_exits(code: int | None, ran_to_end: bool, reason: str) -> None:
    process_exit = ProcessExit(code, ran_to_end)

    assert describe_exit(process_exit, before=CgroupMemory(), after=CgroupMemory()) == reason


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (CgroupMemory(), CgroupMemory(), "killed by signal 9; probably out of memory"),
        (CgroupMemory(2 * GIB), CgroupMemory(2 * GIB), "killed by signal 9; probably out of memory, limit 2 GiB"),
        (CgroupMemory(2 * GIB, 1), CgroupMemory(2 * GIB, 2), "killed by signal 9: out of memory, limit 2 GiB"),
        (CgroupMemory(GIB // 2, 0), CgroupMemory(GIB // 2, 1), "killed by signal 9: out of memory, limit 512 MiB"),
        (
            CgroupMemory(2 * GIB, 1),
            CgroupMemory(2 * GIB, 1),
            "killed by signal 9 from outside; it was not out of memory",
        ),
    ],
)
def test_out_of_memory(before: CgroupMemory, after: CgroupMemory, reason: str) -> None:
    process_exit = ProcessExit(-9, ran_to_end=False)

    assert describe_exit(process_exit, before=before, after=after) == f"its process was {reason}"


def test_the_control_group_is_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    root = tmp_path / "root"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (root / "outer" / "memory.max").write_text(f"{GIB}\n")
    (inner / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\n")

    assert CgroupMemory.read(own, root) == CgroupMemory(GIB, 2)


def test_the_older_control_group_is_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:memory:/docker/abc\n0::/docker/abc\n")
    group = tmp_path / "root" / "memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    limited = CgroupMemory.read(own, tmp_path / "root")
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    unlimited = CgroupMemory.read(own, tmp_path / "root")

    assert limited == CgroupMemory(GIB, 3)
    assert unlimited.limit is None


def test_no_control_group(tmp_path: Path) -> None:
    assert CgroupMemory.read(tmp_path / "none", tmp_path) == CgroupMemory()


def test_one_kill_is_the_reason_of_one_run() -> None:
    kills, killed = OomKills(), ProcessExit(-9, ran_to_end=False)
    both_started, one_kill_later, two_kills_later = (CgroupMemory(GIB, number) for number in range(3))
    first = kills.describe(killed, before=both_started, after=one_kill_later)
    second = kills.describe(killed, before=both_started, after=one_kill_later)
    third = kills.describe(killed, before=both_started, after=two_kills_later)

    assert "out of memory, limit 1 GiB" in first
    assert second.endswith("killed by signal 9 from outside; it was not out of memory")
    assert "out of memory, limit 1 GiB" in third
