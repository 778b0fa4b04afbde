"""Gives a run whose process ended without reporting it the end it had: Cancelled or Crashed.

The worker calls `settle` when a process has ended; the warm process runs this module in a fork when
the worker itself is gone.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.states import Cancelled, Crashed

from warm_process.mlflow_runs import end_open_runs

HookKind = Literal["cancellation", "crashed"]
RunHooks = Callable[[HookKind, str], Awaitable[None]]

_RETRY_AFTER = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Ending:
    """What is known of the end of a run's process."""

    flow_run_id: UUID
    reason: str
    """Why it ended, in words that follow "The flow run crashed: "."""
    cancelled: bool = False
    """Whether the worker stopped it because the run was cancelled."""
    pid: int | None = None
    """The process; a run that another process has taken up since is left alone."""
    mlflow_env: Mapping[str, str | None] = field(default_factory=dict)
    """Where the run's MLflow server and credentials stand."""


async def settle(
    client: PrefectClient,
    ending: Ending,
    *,
    run_hooks: RunHooks | None = None,
    logger: logging.Logger | logging.LoggerAdapter[Any],
) -> State[Any] | None:
    """Settle a run and its subflow runs on the server, and end what they left open in MLflow.

    Returns:
        The state in which the run is now; None if it is gone or belongs to another process.

    Raises:
        httpx.HTTPError: the server could not be reached for half a minute.
    """
    for wait in _RETRY_AFTER:
        try:
            return await _settle(client, ending, run_hooks, logger)
        except httpx.HTTPError as error:
            logger.warning("The end of the run could not be settled, next try in %d s: %s", wait, error)
            await asyncio.sleep(wait)
    return await _settle(client, ending, run_hooks, logger)


async def _settle(
    client: PrefectClient,
    ending: Ending,
    run_hooks: RunHooks | None,
    logger: logging.Logger | logging.LoggerAdapter[Any],
) -> State[Any] | None:
    try:
        flow_run = await client.read_flow_run(ending.flow_run_id)
    except ObjectNotFound:
        return None
    if ending.pid is not None and flow_run.infrastructure_pid not in (None, "", str(ending.pid)):
        return None
    cancelled = ending.cancelled or (flow_run.state is not None and flow_run.state.is_cancelling())
    state = await _end_flow_run(client, flow_run, ending.reason, cancelled, run_hooks)
    if not state or not (state.is_crashed() or state.is_cancelled()):
        return state
    family = [flow_run, *await _subflow_runs(client, flow_run.id)]
    for subflow_run in family[1:]:
        await _end_flow_run(client, subflow_run, f"its parent run ended: {ending.reason}", cancelled, None)
    try:
        ended = await end_open_runs([run.id for run in family], "KILLED" if cancelled else "FAILED", ending.mlflow_env)
    except (httpx.HTTPError, ValueError) as error:
        logger.warning("MLflow runs of this flow run may still show as running: %s", error)
    else:
        for run_id in ended:
            logger.info("Ended the MLflow run %s that this flow run left open.", run_id)
    return state


async def _end_flow_run(
    client: PrefectClient, flow_run: FlowRun, reason: str, cancelled: bool, run_hooks: RunHooks | None
) -> State[Any] | None:
    state = flow_run.state
    if state is None or state.is_final() or state.is_scheduled():
        return state
    if state.is_paused() and state.name == "Suspended":
        return state  # needs no process until somebody resumes it
    if cancelled:
        message = "The flow run was cancelled."
        if run_hooks:
            await run_hooks("cancellation", message)
        result: OrchestrationResult[Any] = await client.set_flow_run_state(
            flow_run.id, Cancelled(message=message), force=True
        )
        return result.state or Cancelled(message=message)
    message = f"The flow run crashed: {reason}."
    result = await client.set_flow_run_state(flow_run.id, Crashed(message=message))
    if result.status == SetStateStatus.ACCEPT and run_hooks:
        await run_hooks("crashed", message)
    return result.state or state


async def _subflow_runs(client: PrefectClient, flow_run_id: UUID) -> list[FlowRun]:
    """Read the runs below a flow run in the same process; those of other deployments have their own."""
    below = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]),
            deployment_id=FlowRunFilterDeploymentId(is_null_=True),
        )
    )
    return [run for child in below for run in (child, *await _subflow_runs(client, child.id))]


async def _settle_all(endings: list[dict[str, Any]]) -> None:
    logger = get_logger("warm_process")
    async with get_client() as client:
        for ending in endings:
            state = await settle(
                client,
                Ending(UUID(ending["flow_run_id"]), ending["cause"], mlflow_env=ending["mlflow_env"]),
                logger=logger,
            )
            logger.warning("Flow run %s ended as %s: %s", ending["flow_run_id"], state and state.name, ending["cause"])


if __name__ == "__main__":
    asyncio.run(_settle_all(json.loads(sys.argv[1])))
