"""Caching of tasks by their inputs and code: a task whose inputs and code are unchanged is not run again.

Results lie in Prefect's default result storage, on the stack a bucket that all workers share. A task whose result is
taken from the cache ends in the state `State.CACHED`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, TypeVar

from prefect import Task, get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import ResultRecord, get_result_store  # type: ignore[attr-defined]
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE

from trainyard.contract import State
from trainyard.fingerprint import code_fingerprint, fingerprint

Result = TypeVar("Result")
_refreshed_since: ContextVar[datetime | None] = ContextVar("refreshed_since", default=None)


@dataclass
class InputsAndCode(CachePolicy):
    """A cache key made of a task's inputs and its code.

    This is one policy and not a sum of Prefect's own, because a sum skips a part that cannot compute its key, and the
    remaining parts may then match a stale result. Where this one raises, the task is not cached at all.
    """

    modules: tuple[ModuleType, ...] = field(default=())

    def __deepcopy__(self, memo: dict[int, Any]) -> "InputsAndCode":
        return self  # modules cannot be copied

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 - a task depends on its own inputs only
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        """Return the path of the result in the result storage.

        Raises:
            TypeError: An input has no fingerprint; Prefect then runs the task without the cache.
        """
        code = code_fingerprint(task_ctx.task.fn, self.modules)
        key = f"cache/{task_ctx.task.name}/{fingerprint([code, inputs])}"
        if PREFECT_TASKS_REFRESH_CACHE.value():
            return key
        _warn_if_unreadable(key)
        if (since := _refreshed_since.get()) and task_ctx.task.cache_expiration:
            _expire_if_older(key, since, task_ctx.task.cache_expiration)
        return key


def cached(*modules: ModuleType, days: float = 7) -> dict[str, Any]:
    """Return options for `@task(...)` that cache its result by its inputs and code.

    Args:
        modules: The modules that the task's function calls; they count together with all that they import of the
            project and the library. Without any, the module that defines the task counts instead.
        days: The age at which a cached result expires.
    """
    return {
        "persist_result": True,
        "cache_policy": InputsAndCode(modules=modules),
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


def _warn_if_unreadable(key: str) -> None:
    """Log a warning where the entry exists but is damaged; Prefect recomputes it silently."""
    storage: Any = get_result_store().result_storage
    try:
        content = storage.read_path(key, _sync=True)
    except Exception:  # noqa: BLE001 - each storage has its own error for a missing entry
        return
    try:
        ResultRecord.deserialize(content)
    except Exception as error:  # noqa: BLE001 - unpickling may raise anything
        reason = f"{type(error).__name__}: {error}"
        get_run_logger().warning("The cache entry %s cannot be read (%s); the task runs again.", key, reason)


def _expire_if_older(key: str, since: datetime, lifetime: timedelta) -> None:
    """Expire an entry that was stored before a time, so that Prefect recomputes it."""
    storage: Any = get_result_store().result_storage
    try:
        record = json.loads(storage.read_path(key, _sync=True))
        stored = datetime.fromisoformat(record["metadata"]["expiration"]) - lifetime
    except Exception:  # noqa: BLE001 - missing or damaged: recomputed anyway
        return
    if stored < since:
        record["metadata"]["expiration"] = stored.isoformat()
        storage.write_path(key, json.dumps(record).encode(), _sync=True)
