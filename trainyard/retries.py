"""Retry options for tasks that fetch data: `@task(**RETRIES)`."""

from typing import Any

from prefect.tasks import exponential_backoff

from trainyard.errors import TrainyardError


def is_transient(_task: Any, _task_run: Any, state: Any) -> bool:
    """Return whether a task run failed with a transient error: Prefect's `retry_condition_fn`."""
    return isinstance(state.data, TrainyardError) and state.data.transient


RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(0.3),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
"""Four retries of transient errors, after 0.3, 0.6, 1.2 and 2.4 s, with jitter."""
