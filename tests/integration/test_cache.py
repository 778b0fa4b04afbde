"""Which task runs are taken from the cache, and which are not."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from prefect import flow, task
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows.weather import features
from tests.unit.weather import make_frame
from trainyard.cache import cached, refreshing

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(autouse=True)
def storage(tmp_path: Path) -> Iterator[Path]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        yield tmp_path / "storage"


def state_of(value: object, factor: int = 2, *modules: ModuleType, days: float = 1) -> tuple[str, Any]:
    """Run a task in a flow of its own; its state's name and its result."""

    @task(name="multiply", **cached(*(modules or (features,)), days=days))
    def multiply(value: pd.DataFrame, factor: int) -> pd.DataFrame:
        return value * factor

    @flow(persist_result=False)
    def once() -> tuple[str, Any]:
        state = multiply(value, factor, return_state=True)
        return str(state.name), state.result()

    return once()


def test_inputs_that_have_not_changed() -> None:
    assert state_of(make_frame(60))[0] == "Completed"
    name, result = state_of(make_frame(60))
    assert name == "Cached"
    pd.testing.assert_frame_equal(result, make_frame(60) * 2)


def test_any_change_of_data_parameter_or_code(tmp_path: Path) -> None:
    state_of(make_frame(60))
    assert state_of(make_frame(61))[0] == "Completed"
    assert state_of(make_frame(60), 3)[0] == "Completed"
    other = ModuleType("other")
    other.__file__ = str(tmp_path / "other.py")
    Path(other.__file__).write_text("FACTOR = 2")
    assert state_of(make_frame(60), 2, other)[0] == "Completed"
    assert state_of(make_frame(60), 2, other)[0] == "Cached"
    Path(other.__file__).write_text("FACTOR = 3")
    assert state_of(make_frame(60), 2, other)[0] == "Completed"


def test_refresh_computes_anew_and_keeps_the_new_result() -> None:
    state_of(make_frame(60))
    with refreshing(True):
        assert state_of(make_frame(60))[0] == "Completed"
    with refreshing(False):
        assert state_of(make_frame(60))[0] == "Cached"


def test_an_entry_that_is_too_old() -> None:
    state_of(make_frame(60), days=1e-9)
    assert state_of(make_frame(60), days=1e-9)[0] == "Completed"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"metadata": {}, "result": "bm8="}', None])
def test_an_entry_that_cannot_be_read(storage: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    state_of(make_frame(60))
    (entry,) = [file for file in (storage / "cache" / "multiply").iterdir() if file.is_file()]
    content = entry.read_bytes()
    entry.write_bytes(content[: len(content) // 2] if damage is None else damage)
    name, result = state_of(make_frame(60))
    assert name == "Completed"
    pd.testing.assert_frame_equal(result, make_frame(60) * 2)
    assert any("cannot be read" in line.message and line.levelname == "WARNING" for line in caplog.records)
    assert state_of(make_frame(60))[0] == "Cached", "the entry is whole again"


def test_an_input_that_nobody_can_compare_is_never_taken_from_the_cache() -> None:
    class Thing:
        def __mul__(self, factor: int) -> int:
            return factor

    assert state_of(Thing())[0] == "Completed"
    assert state_of(Thing())[0] == "Completed"
