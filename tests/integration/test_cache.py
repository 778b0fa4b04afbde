"""Which task runs are taken from the cache."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from prefect import Task, flow, task
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from trainyard import metrics
from trainyard.cache import cached, refreshing, run_cached
from trainyard.contract import State as StateName

FRAME = pd.DataFrame({"speed": [0.5, 2.5, 4.0]})

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(autouse=True)
def storage(tmp_path: Path) -> Iterator[Path]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        yield tmp_path / "storage"


def make_task(*modules: ModuleType, days: float = 1) -> Task[..., Any]:
    @task(name="multiply", **cached(*(modules or (metrics,)), days=days))
    def multiply(value: Any, factor: int) -> Any:
        return value * factor

    return multiply


def run(value: object, factor: int = 2, *modules: ModuleType, days: float = 1) -> tuple[str, Any]:
    """Run a task in a flow of its own; return its state's name and its result."""

    @flow(persist_result=False)
    def once() -> tuple[str, Any]:
        state: Any = make_task(*modules, days=days)(value, factor, return_state=True)
        return str(state.name), state.result()

    return once()


def test_unchanged_inputs_are_a_cache_hit() -> None:
    run(FRAME)
    state, result = run(FRAME.copy())

    assert state == StateName.CACHED
    pd.testing.assert_frame_equal(result, FRAME * 2)


def test_a_change_of_data_or_parameter_is_a_miss() -> None:
    run(FRAME)

    assert run(FRAME.iloc[1:])[0] == "Completed"
    assert run(FRAME, 3)[0] == "Completed"


def test_a_change_of_code_is_a_miss(tmp_path: Path) -> None:
    module = ModuleType("other")
    module.__file__ = str(tmp_path / "other.py")
    Path(module.__file__).write_text("FACTOR = 2")
    run(FRAME, 2, module)
    unchanged, _ = run(FRAME, 2, module)
    Path(module.__file__).write_text("FACTOR = 3")
    changed, _ = run(FRAME, 2, module)

    assert (unchanged, changed) == (StateName.CACHED, "Completed")


def test_refreshing_recomputes_and_stores_the_new_result() -> None:
    @flow(persist_result=False)
    def refresh() -> str:
        with refreshing(True):
            state: Any = make_task()(FRAME, 2, return_state=True)
        return str(state.name)

    run(FRAME)
    refreshed = refresh()
    after, _ = run(FRAME)

    assert (refreshed, after) == ("Completed", StateName.CACHED)


def test_a_retry_of_a_refresh_uses_what_the_attempt_before_has_finished() -> None:
    names: list[str] = []

    @flow(retries=1, persist_result=False)
    def refresh() -> None:
        with refreshing(True):
            state: Any = make_task()(FRAME, 2, return_state=True)
        names.append(str(state.name))
        if len(names) == 1:
            raise ConnectionError("The first attempt fails.")

    run(FRAME)
    refresh()

    assert names == ["Completed", StateName.CACHED]


def test_an_expired_entry_is_a_miss() -> None:
    run(FRAME, days=1e-9)

    assert run(FRAME, days=1e-9)[0] == "Completed"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"metadata": {}, "result": "bm8="}', None])
def test_a_damaged_entry_is_replaced_with_a_warning(
    storage: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    run(FRAME)
    (entry,) = [file for file in (storage / "cache" / "multiply").iterdir() if file.is_file()]
    content = entry.read_bytes()
    entry.write_bytes(content[: len(content) // 2] if damage is None else damage)
    state, result = run(FRAME)
    after, _ = run(FRAME)

    assert (state, after) == ("Completed", StateName.CACHED)
    pd.testing.assert_frame_equal(result, FRAME * 2)
    assert any("cannot be read" in line.message and line.levelname == "WARNING" for line in caplog.records)


def test_an_input_without_a_fingerprint_is_never_cached() -> None:
    class Thing:
        def __mul__(self, factor: int) -> int:
            return factor

    run(Thing())

    assert run(Thing())[0] == "Completed"


def test_a_cached_result_that_is_no_longer_valid_is_computed_again() -> None:
    multiply = make_task()

    @flow(persist_result=False)
    def attempts() -> list[bool]:
        run_cached(multiply, FRAME, 2, is_valid=lambda _: True)
        _, valid = run_cached(multiply, FRAME, 2, is_valid=lambda _: True)
        _, invalid = run_cached(multiply, FRAME, 2, is_valid=lambda _: False)
        return [valid, invalid]

    assert attempts() == [True, False]
