"""Which task runs are taken from the cache."""

import base64
import json
import os
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import Task, flow, task
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from prefect.settings import PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from trainyard import signing
from trainyard.cache import cached, keep, recall, refreshing, run_cached, stored_at_once
from trainyard.cache_storage import has_expired, remove
from trainyard.candidates import Candidate, Score
from trainyard.contract import State as StateName
from trainyard.search import search

FRAME = pd.DataFrame({"speed": [0.5, 2.5, 4.0]})
RATE = 1
RAN: list[str] = []
__state__ = ("RAN",)

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(autouse=True)
def storage(tmp_path: Path) -> Iterator[Path]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        yield tmp_path / "storage"


def get_rate() -> int:
    return RATE


def make_task(days: float = 1) -> Task[..., Any]:
    @task(name="multiply", **cached(days=days))
    def multiply(value: Any, factor: int) -> Any:
        return value * factor * get_rate()

    return multiply


def run(value: object, factor: int = 2, days: float = 1) -> tuple[str, Any]:
    """Run a task in a flow of its own; return its state's name and its result."""

    @flow(persist_result=False)
    def once() -> tuple[str, Any]:
        state: Any = make_task(days=days)(value, factor, return_state=True)
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


def test_a_change_of_code_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    run(FRAME)
    unchanged, _ = run(FRAME)
    monkeypatch.setattr("tests.integration.test_cache.RATE", 3)
    changed, result = run(FRAME)

    assert (unchanged, changed) == (StateName.CACHED, "Completed")
    pd.testing.assert_frame_equal(result, FRAME * 6)


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


def entry_of(storage: Path) -> Path:
    """Return the one entry in the storage."""
    (entry,) = (file for file in (storage / "cache").rglob("*") if file.is_file())
    return entry


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def forge(entry: Path, file: Path) -> None:
    """Replace the result by one that runs code, as somebody could who may write to the storage."""
    record = json.loads(entry.read_bytes())
    record["result"] = base64.b64encode(pickle.dumps(Attack(file))).decode()
    entry.write_text(json.dumps(record))


def test_an_entry_that_others_have_written_is_not_unpickled(
    storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(FRAME)
    forge(entry_of(storage), tmp_path / "ran")
    state, _ = run(FRAME)
    after, _ = run(FRAME)

    assert not (tmp_path / "ran").exists()
    assert (state, after) == ("Completed", StateName.CACHED)
    warnings = [line.message for line in caplog.records if line.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "its signature is not of this installation." in warnings[0]


def test_an_entry_of_another_installation_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    run(FRAME)
    monkeypatch.setenv("CACHE_SIGNING_KEY", "the key of another installation, long enough")
    other, _ = run(FRAME)
    same, _ = run(FRAME)

    assert (other, same) == ("Completed", StateName.CACHED)


def test_an_entry_is_not_valid_in_another_place(storage: Path) -> None:
    run(FRAME, 3)
    three = entry_of(storage)
    content = three.read_bytes()
    three.unlink()
    run(FRAME, 2)
    entry_of(storage).write_bytes(content)
    state, result = run(FRAME, 2)

    assert state == "Completed"
    pd.testing.assert_frame_equal(result, FRAME * 2)


def test_an_entry_cannot_be_prolonged(storage: Path) -> None:
    run(FRAME)
    entry = entry_of(storage)
    record = json.loads(entry.read_bytes())
    record["metadata"]["expiration"] = (datetime.now(UTC) + timedelta(days=365)).isoformat()
    entry.write_text(json.dumps(record))

    assert run(FRAME)[0] == "Completed"


class Loaded:
    """Counts how often it is unpickled."""

    def __reduce__(self) -> Any:
        return load, ()


def load() -> Loaded:
    if "UNPICKLING_FAILS" in os.environ:
        raise AttributeError("the class was moved")
    RAN.append("unpickled")
    return Loaded()


def load_once() -> str:
    """Run a task whose result counts how often it is unpickled; return the state's name."""

    @task(**cached())
    def make() -> Loaded:
        return Loaded()

    @flow(persist_result=False)
    def once() -> str:
        return str(make(return_state=True).name)

    return once()


def test_a_hit_is_read_and_unpickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    load_once()
    reads: list[str] = []
    read_path = LocalFileSystem.read_path

    def count(self: LocalFileSystem, path: str, **options: Any) -> Any:
        reads.append(path)
        return read_path(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "read_path", count)
    RAN.clear()

    assert load_once() == StateName.CACHED
    assert len(reads) == len(RAN) == 1


def test_expired_entries_are_removed_by_their_age(storage: Path) -> None:
    ages = {
        "1-days/fit/a": 1.01,
        "1-days/fit/b": 0.99,
        "0.25-days/fetch/c": 0.3,
        "90-days/weather-year/d": 89,
        "search/e": 31,  # as earlier releases wrote them
        "search/f": 29,
    }
    for path, days in ages.items():
        file = storage / "cache" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        written = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        os.utime(file, (written, written))
    (storage / "result").touch()

    @flow(persist_result=False)
    def clean() -> int:  # without a run, Prefect leaves a connection open
        return len(remove(has_expired))

    removed = clean()

    left = {file.relative_to(storage / "cache").as_posix() for file in (storage / "cache").rglob("*") if file.is_file()}
    assert removed == 3
    assert left == {"1-days/fit/b", "90-days/weather-year/d", "search/f"}
    assert (storage / "result").exists()


def test_kept_values_are_recalled_until_a_refresh() -> None:
    @flow(persist_result=False)
    def once(value: int | None, refresh: bool) -> Any:
        with refreshing(refresh):
            if value is not None:
                keep("number", ["a", 1], value, days=1)
            return recall("number", ["a", 1], days=1)

    results = [once(None, False), once(5, False), once(None, False), once(None, True), once(6, True), once(None, False)]

    assert results == [None, 5, 5, None, 6, 6]


def test_prefect_can_read_an_entry(storage: Path) -> None:
    run(FRAME)
    record: ResultRecord[Any] = ResultRecord.deserialize(entry_of(storage).read_bytes())

    pd.testing.assert_frame_equal(record.result, FRAME * 2)


def test_a_key_that_is_not_given_is_kept_in_the_home_of_prefect() -> None:
    key = signing.signing_key()

    assert len(key) >= signing.MIN_KEY_LENGTH
    assert signing._key_of_home.__wrapped__(PREFECT_HOME.value() / signing.KEY_FILE) == key
    assert (PREFECT_HOME.value() / signing.KEY_FILE).stat().st_mode & 0o077 == 0


def test_cached_tasks_within_a_cached_task_have_entries_of_their_own() -> None:
    inner = make_task()

    @task(**cached())
    def outer(value: int) -> list[Any]:
        return [inner(value, 2), inner(value, 3), inner.submit(value, 4).result()]

    @flow(persist_result=False)
    def nested(value: int) -> tuple[str, list[Any]]:
        state: Any = outer(value, return_state=True)
        return str(state.name), state.result()

    assert nested(5) == ("Completed", [10, 15, 20])
    assert nested(5) == (StateName.CACHED, [10, 15, 20])
    assert run(5, 3) == (StateName.CACHED, 15)


def test_what_a_task_within_a_failed_task_has_finished_is_stored() -> None:
    states: list[str] = []

    @task(persist_result=False)
    def outer(value: int) -> None:
        with stored_at_once():
            state: Any = make_task()(value, 2, return_state=True)
            states.append(str(state.name))
            raise ConnectionError("The outer task fails.")

    @flow(persist_result=False)
    def once() -> None:
        outer(5, return_state=True)

    once()
    once()

    assert states == ["Completed", StateName.CACHED]


def test_the_candidates_of_a_search_are_stored_before_the_search_ends() -> None:
    candidates = [Candidate("constant", (("value", value),)) for value in (1, 2)]

    @task(**cached())
    def evaluate(candidate: Candidate) -> Score:
        return Score(candidate, {"loss": 1.0})

    @task(persist_result=False)
    def search_and_fail() -> None:
        search(evaluate, candidates)
        raise ConnectionError("The search ends, and its task fails.")

    @flow(persist_result=False)
    def once() -> list[str]:
        search_and_fail(return_state=True)
        return [str(evaluate(candidate, return_state=True).name) for candidate in candidates]

    assert once() == [StateName.CACHED] * 2


@pytest.mark.parametrize("damage", [b"", b"{", b'{"metadata": {}, "result": "bm8="}', None])
def test_a_damaged_entry_is_replaced_with_a_warning(
    storage: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    run(FRAME)
    entry = entry_of(storage)
    content = entry.read_bytes()
    entry.write_bytes(content[: len(content) // 2] if damage is None else damage)
    state, result = run(FRAME)
    after, _ = run(FRAME)

    assert (state, after) == ("Completed", StateName.CACHED)
    pd.testing.assert_frame_equal(result, FRAME * 2)
    assert any("damaged" in line.message and line.levelname == "WARNING" for line in caplog.records)


def test_an_entry_that_cannot_be_unpickled_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_once()
    with monkeypatch.context() as changed:
        changed.setenv("UNPICKLING_FAILS", "yes")
        without_code = load_once()

    assert (without_code, load_once()) == ("Completed", StateName.CACHED)
    assert any("cannot be read (AttributeError" in line.message for line in caplog.records)


def test_an_input_without_content_is_never_cached() -> None:
    def count() -> Iterator[int]:
        yield 1

    @task(**cached())
    def total(values: Iterator[int]) -> int:
        return sum(values)

    @flow(persist_result=False)
    def once() -> list[str]:
        return [str(total(count(), return_state=True).name) for _ in range(2)]

    assert once() == ["Completed", "Completed"]


def test_a_cached_result_that_is_no_longer_valid_is_computed_again() -> None:
    multiply = make_task()

    @flow(persist_result=False)
    def attempts() -> list[bool]:
        run_cached(multiply, FRAME, 2, is_valid=lambda _: True)
        _, valid = run_cached(multiply, FRAME, 2, is_valid=lambda _: True)
        _, invalid = run_cached(multiply, FRAME, 2, is_valid=lambda _: False)
        return [valid, invalid]

    assert attempts() == [True, False]
