"""Caching of tasks by their inputs and code: a task whose inputs and code are unchanged is not run again.

Results lie in Prefect's default result storage, on the stack a bucket that all workers share. A task whose result is
taken from the cache ends in the state `State.CACHED`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, TypeVar

from prefect import Task, get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import (  # type: ignore[attr-defined]
    ResultRecord,
    ResultRecordMetadata,
    ResultStore,
    get_result_store,
)
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE
from prefect.transactions import CommitMode, transaction

from trainyard.cache_storage import default_storage, entry_path
from trainyard.contract import State
from trainyard.fingerprint import fingerprint, key_fingerprint
from trainyard.signing import Entry, MetadataPart, ResultPart, UnsignedEntryError, unwrap

Result = TypeVar("Result")
_refreshed_since: ContextVar[datetime | None] = ContextVar("refreshed_since", default=None)


@dataclass
class InputsAndCode(CachePolicy):
    """A cache key made of a task's inputs and its code.

    This is one policy and not a sum of Prefect's own, because a sum skips a part that cannot compute its key, and the
    remaining parts may then match a stale result. Where this one raises, the task is not cached at all.
    """

    modules: tuple[ModuleType, ...] = field(default=())
    days: float = 7

    def __deepcopy__(self, memo: dict[int, Any]) -> "InputsAndCode":
        return self  # modules cannot be copied

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 - a task depends on its own inputs only
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        """Return the path of the result in the result storage, and have entries there signed and verified.

        Raises:
            TypeError: An input, or a value that the code refers to, has no fingerprint; Prefect then runs the task
                without the cache.
        """
        digest = key_fingerprint([task_ctx.task.fn, *self.modules], inputs)
        key = entry_path(self.days, task_ctx.task.name, digest)
        entry, store = _open(key, get_result_store())
        if not PREFECT_TASKS_REFRESH_CACHE.value():
            _load(entry, store, _refreshed_since.get(), timedelta(days=self.days))
        return key


def cached(*modules: ModuleType, days: float = 7) -> dict[str, Any]:
    """Return options for `@task(...)` that cache its result by its inputs and code.

    The code is the task's function with all own functions, classes and module-level values that it refers to, directly
    or not, and the versions of the distributions that they use.

    Args:
        modules: Further modules that count as a whole: those in which the task looks something up by a name that is
            made at run time, which cannot be seen in its code.
        days: The age at which a cached result expires.
    """
    return {
        "persist_result": True,
        "cache_policy": InputsAndCode(modules=modules, days=days),
        "cache_expiration": timedelta(days=days),
    }


@contextmanager
def refreshing(refresh: bool) -> Iterator[None]:
    """If `refresh` is set, recompute and overwrite the cached results of all tasks that run in this context.

    Results that the current flow run has stored itself are used: what an earlier attempt has finished is not run again.
    """
    if not refresh:
        yield
        return
    context = FlowRunContext.get()
    created = context.flow_run.created if context and context.flow_run else None
    token = _refreshed_since.set(created or datetime.now(UTC))
    try:
        yield
    finally:
        _refreshed_since.reset(token)


def stored_at_once() -> AbstractContextManager[Any]:
    """Have the result of each cached task that is run in this context stored when that task ends.

    Within another task, Prefect stores it only when the outer one has ended, and not at all if that one fails.
    """
    return transaction(commit_mode=CommitMode.EAGER)


def keep(name: str, identity: Any, value: Any, days: float) -> None:
    """Store a value that did not come from a cached task, for `recall`.

    Args:
        name: What kind of value it is.
        identity: What the value depends on, with the code that makes it: arguments of `fingerprint`.
        value: The value.
        days: The age at which it expires.
    """
    entry, store = _open(entry_path(days, name, fingerprint(identity)), _new_store())
    expiration: Any = datetime.now(UTC) + timedelta(days=days)
    store.persist_result_record(store.create_result_record(value, key=entry.key, expiration=expiration))


def recall(name: str, identity: Any, days: float) -> Any:
    """Return a value that `keep` stored under the same name, identity and days; None without one, or in a refresh."""
    entry, store = _open(entry_path(days, name, fingerprint(identity)), _new_store())
    _load(entry, store, _refreshed_since.get(), timedelta(days=days))
    return store.read(entry.key).result if store.exists(entry.key) else None


def run_cached(task: Task[..., Result], *arguments: Any, is_valid: Callable[[Result], bool]) -> tuple[Result, bool]:
    """Run a cached task, and run it again where its cached result is not valid any more.

    Args:
        task: A task with the options of `cached`.
        arguments: The task's arguments.
        is_valid: Decides whether a cached result can be used; it is not called for a fresh one.

    Returns:
        The result, and whether it was taken from the cache.
    """
    state: Any = task(*arguments, return_state=True)
    result: Result = state.result()
    if state.name != State.CACHED:
        return result, False
    if is_valid(result):
        return result, True
    return task.with_options(refresh_cache=True)(*arguments), False


def _new_store() -> ResultStore:
    """Return a store for an entry of its own, with the storage of the run."""
    return ResultStore(result_storage=unwrap(get_result_store().result_storage))


def _open(key: str, store: ResultStore) -> tuple[Entry, ResultStore]:
    """Have a store sign and verify the entry of a key."""
    entry = Entry(unwrap(store.result_storage) or default_storage(), key)
    store.result_storage, store.metadata_storage = ResultPart.of(entry), MetadataPart.of(entry)
    return entry, store


def _load(entry: Entry, store: ResultStore, since: datetime | None, lifetime: timedelta) -> None:
    """Read an entry into the store's memory, so that it is read and unpickled once; log a warning if it cannot be used.

    One that was stored before `since` is treated as missing.
    """
    try:
        metadata, result = entry.load()
        expiration = ResultRecordMetadata.load_bytes(metadata).expiration
        if since and expiration and expiration - lifetime < since:
            entry.forget()
        elif expiration is None or expiration > datetime.now(UTC):
            record: ResultRecord[Any] = ResultRecord.deserialize_from_result_and_metadata(result, metadata)
            record.mark_persisted()
            store.cache[store._resolved_key_path(entry.key)] = record
    except UnsignedEntryError as error:
        get_run_logger().warning("The cache entry %s is not used: %s.", entry.key, error)
    except Exception as error:  # noqa: BLE001 - each storage has its own error for a missing entry, unpickling may raise any
        if entry.is_loaded:
            entry.forget()
            reason = f"{type(error).__name__}: {error}"
            get_run_logger().warning("The cache entry %s cannot be read (%s).", entry.key, reason)
