"""Which changes of the code invalidate the cached results of the weather pipeline's tasks."""

from pathlib import Path
from types import ModuleType

import pytest
from prefect import Task

from flows.weather import model, places, plots
from flows.weather.pipeline import fit, log_run, search_candidates
from trainyard.cache import cached
from trainyard.fingerprint import code_fingerprint


def code_part_of_key(task: Task[..., object]) -> str:
    """Return the part of a task's cache key that depends on code."""
    policy = task.cache_policy
    assert isinstance(policy, type(cached()["cache_policy"]))
    return code_fingerprint(task.fn, policy.modules)


@pytest.mark.parametrize(
    ("task", "module", "invalidates"),
    [
        (search_candidates, model, True),
        (search_candidates, plots, False),
        (search_candidates, places, False),
        (fit, plots, False),
        (log_run, plots, True),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_task_is_invalidated_by_changes_of_the_modules_that_it_uses(
    monkeypatch: pytest.MonkeyPatch, task: Task[..., object], module: ModuleType, invalidates: bool
) -> None:
    before, read_bytes = code_part_of_key(task), Path.read_bytes
    changed_file = Path(str(module.__file__)).resolve()

    def read_changed(path: Path) -> bytes:
        return read_bytes(path) + (b"\n# a changed title\n" if path == changed_file else b"")

    monkeypatch.setattr(Path, "read_bytes", read_changed)

    assert (code_part_of_key(task) != before) is invalidates
