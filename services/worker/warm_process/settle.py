"""Settles a run whose process ended without reporting it: as Cancelled, or as Crashed with the reason."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from warm_process.mlflow_runs import end_open_runs

HookKind = Literal["cancellation", "crashed"]
RunHooks = Callable[[HookKind, str], Awaitable[None]]

_RETRY_DELAYS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class EndedRun:
    """A run whose process has ended."""

    flow_run_id: UUID
    reason: str
    """Why it ended, as the second half of "The flow run crashed: REASON."."""
    is_cancelled: bool = False
    """Whether the worker stopped it because the run was cancelled."""
    pid: int | None = None
    """Its process; a run that has been taken up by another process since is left alone."""
    mlflow_env: Mapping[str, str | None] = field(default_factory=dict)
    """Variables that hold the address of the run's MLflow server and its credentials."""


async def settle(
    client: PrefectClient,
    ended: EndedRun,
    *,
    run_hooks: RunHooks | None = None,
    logger: logging.Logger | logging.LoggerAdapter[Any],
) -> State[Any] | None:
    """Settle a run and its subflow runs on the server, and end the MLflow runs that they left open.

    Args:
        client: A client of the Prefect server.
        ended: The run.
        run_hooks: Runs the flow's hooks of a kind with a state's message.
        logger: Where retries and ended MLflow runs are logged.

    Returns:
        The state of the run now; None if the run was deleted or belongs to another process.

    Raises:
        httpx.HTTPError: The server was out of reach for half a minute.
    """
    for delay in _RETRY_DELAYS:
        try:
            return await _settle_once(client, ended, run_hooks, logger)
        except httpx.HTTPError as error:
            logger.warning("The run could not be settled, retrying in %d s: %s", delay, error)
            await asyncio.sleep(delay)
    return await _settle_once(client, ended, run_hooks, logger)


async def _settle_once(
    client: PrefectClient,
    ended: EndedRun,
    run_hooks: RunHooks | None,
    logger: logging.Logger | logging.LoggerAdapter[Any],
) -> State[Any] | None:
    try:
        flow_run = await client.read_flow_run(ended.flow_run_id)
    except ObjectNotFound:
        return None
    if ended.pid is not None and flow_run.infrastructure_pid not in (None, "", str(ended.pid)):
        return None
    is_cancelled = ended.is_cancelled or (flow_run.state is not None and flow_run.state.is_cancelling())
    state = await _set_final_state(client, flow_run, ended.reason, is_cancelled, run_hooks)
    if not state or not (state.is_crashed() or state.is_cancelled()):
        return state
    subflow_runs = await _read_subflow_runs(client, flow_run.id)
    for subflow_run in subflow_runs:
        await _set_final_state(client, subflow_run, f"its parent run ended: {ended.reason}", is_cancelled, None)
    flow_run_ids = [run.id for run in (flow_run, *subflow_runs)]
    try:
        mlflow_run_ids = await end_open_runs(flow_run_ids, "KILLED" if is_cancelled else "FAILED", ended.mlflow_env)
    except (httpx.HTTPError, ValueError) as error:
        logger.warning("MLflow may still show runs of this flow run as running: %s", error)
    else:
        for run_id in mlflow_run_ids:
            logger.info("Ended the MLflow run %s that this flow run left open.", run_id)
    return state


async def _set_final_state(
    client: PrefectClient, flow_run: FlowRun, reason: str, is_cancelled: bool, run_hooks: RunHooks | None
) -> State[Any] | None:
    state = flow_run.state
    if state is None or state.is_final() or state.is_scheduled():
        return state
    if state.is_paused() and state.name == "Suspended":
        return state  # needs no process until it is resumed
    if is_cancelled:
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


async def _read_subflow_runs(client: PrefectClient, flow_run_id: UUID) -> list[FlowRun]:
    """Read the runs below a flow run in its process; runs of other deployments have processes of their own."""
    children = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]),
            deployment_id=FlowRunFilterDeploymentId(is_null_=True),
        )
    )
    return [run for child in children for run in (child, *await _read_subflow_runs(client, child.id))]
