"""The words for how a process ended."""

from pathlib import Path

import pytest
from warm_process.reasons import Memory, describe_ending

GIB = 1 << 30


@pytest.mark.parametrize(
    ("code", "clean", "words"),
    [
        (None, False, "its process is gone"),
        (-11, False, "its process was killed by signal 11 (SIGSEGV)"),
        (0, False, "its process exited with code 0 in the middle of the run"),
        (0, True, "its process ended without reporting an end of the run"),
        (3, True, "its process exited with code 3 before it reported an end; the run's log may say why"),
    ],
)
def test_endings(code: int | None, clean: bool, words: str) -> None:
    assert describe_ending(code, clean=clean, before=Memory(), now=Memory()) == words


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (Memory(), Memory(), "killed by signal 9; probably out of memory"),
        (Memory(2 * GIB), Memory(2 * GIB), "killed by signal 9; probably out of memory, limit 2 GiB"),
        (Memory(2 * GIB, 1), Memory(2 * GIB, 2), "killed by signal 9: out of memory, limit 2 GiB"),
        (Memory(GIB // 2, 0), Memory(GIB // 2, 1), "killed by signal 9: out of memory, limit 512 MiB"),
        (Memory(2 * GIB, 1), Memory(2 * GIB, 1), "killed by signal 9 from outside; it was not out of memory"),
    ],
)
def test_out_of_memory(before: Memory, now: Memory, words: str) -> None:
    assert describe_ending(-9, clean=False, before=before, now=now) == f"its process was {words}"


def test_the_control_group_is_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    root = tmp_path / "root"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (root / "outer" / "memory.max").write_text(f"{GIB}\n")
    (inner / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\n")
    assert Memory.read(own, root) == Memory(GIB, 2)


def test_the_older_control_group_is_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:memory:/docker/abc\n0::/docker/abc\n")
    group = tmp_path / "root" / "memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert Memory.read(own, tmp_path / "root") == Memory(GIB, 3)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert Memory.read(own, tmp_path / "root").limit is None


def test_no_control_group(tmp_path: Path) -> None:
    assert Memory.read(tmp_path / "none", tmp_path) == Memory()
