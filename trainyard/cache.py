"""Tasks that are skipped when inputs, parameters and code have not changed.

Their results lie in the default result storage, on the stack a bucket that all workers share. A task
that was taken from there ends in a state called Cached.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import Any

from prefect import get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.results import ResultRecord, get_result_store  # type: ignore[attr-defined]
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE, temporary_settings

from trainyard.fingerprint import code_fingerprint, fingerprint


@dataclass
class Unchanged(CachePolicy):
    """A key made of a task's inputs and its code.

    It is one policy and not a sum of Prefect's own: where a part of a sum cannot compute its key, the
    others alone decide, and a stale result is taken. Where this one cannot, nothing is cached.
    """

    modules: tuple[ModuleType, ...] = field(default=())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unchanged":
        return self  # a module cannot be copied

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 - what a task depends on, it is given
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        """Return where the result of these inputs and this code lies."""
        code = code_fingerprint(task_ctx.task.fn, self.modules)
        key = f"cache/{task_ctx.task.name}/{fingerprint([code, inputs])}"
        if not PREFECT_TASKS_REFRESH_CACHE.value():
            _warn_if_unreadable(key)
        return key


def cached(*modules: ModuleType, days: float = 7) -> dict[str, Any]:
    """Return options for `@task(...)` that skip it when inputs and code are those of an earlier run.

    Args:
        modules: The task's code beside its own function, with all that they import of this project;
            without any, all that the task's own module imports.
        days: How long a result may be used; after that it is computed anew.
    """
    return {
        "persist_result": True,
        "cache_policy": Unchanged(modules=modules),
        "cache_expiration": timedelta(days=days),
    }


@contextmanager
def refreshing(refresh: bool) -> Iterator[None]:
    """Compute every task within anew, if asked to, and keep the new results."""
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: refresh or PREFECT_TASKS_REFRESH_CACHE.value()}):
        yield


def _warn_if_unreadable(key: str) -> None:
    """Say so where an entry is there but broken; Prefect computes anew without a word."""
    storage: Any = get_result_store().result_storage
    try:
        content = storage.read_path(key, _sync=True)
    except Exception:  # noqa: BLE001 - each storage has its own way to say that there is nothing
        return
    try:
        ResultRecord.deserialize(content)
    except Exception as error:  # noqa: BLE001 - whatever unpickling meets
        reason = f"{type(error).__name__}: {error}"
        get_run_logger().warning("The cache entry %s cannot be read (%s): computing anew.", key, reason)
