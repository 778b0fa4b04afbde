"""Settles a run whose process ended without reporting it, or was never started: cancelled, crashed or run again."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from prefect.states import Cancelled, Crashed, Scheduled

from trainyard.contract import State as StateName
from warm_process.ledger import Claim
from warm_process.mlflow_runs import end_open_runs

HookKind = Literal["cancellation", "crashed"]
RunHooks = Callable[[HookKind, str], Awaitable[None]]

# Between attempts while the server is away; the last one repeats. Prefect's client retries each request for a minute.
_RETRY_DELAYS = (1, 2, 4, 8)
_MLFLOW_RETRY_DELAYS = (1, 2, 4, 8, 16, 32)
# How often the state of a run may change between reading and setting it.
_MAX_CONFLICTS = 5


@dataclass(frozen=True)
class EndedRun:
    """A claimed run that has no process any more, or never had one."""

    claim: Claim
    reason: str
    """Why it ended, as the second half of "The flow run crashed: REASON."."""
    is_cancelled: bool = False
    """Whether the worker stopped it because the run was cancelled."""
    is_given_back: bool = False
    """Whether the worker stopped it because the worker itself was stopped: it is run again, if it may be repeated."""
    may_rerun: bool = True
    """Whether it is run again as its claim says; not after it has exceeded a limit, which it would do again."""
    is_unstarted: bool = False
    """Whether it never had a process, so that it is run again whatever its claim says."""
    mlflow_env: Mapping[str, str | None] = field(default_factory=dict)
    """Variables that hold the address of the run's MLflow server and its credentials."""


class _StateChangedError(Exception):
    """The state of the run has changed since it was read."""


def owns(history: Sequence[State[Any]], claim: Claim) -> bool:
    """Tell whether a claim is the newest of its run; `history` holds the run's states in order."""
    claims = [state.id for state in history if state.is_pending() and state.name == "Pending"]
    return bool(claims) and claims[-1] == claim.state_id


def next_state(flow_run: FlowRun, history: Sequence[State[Any]], ended: EndedRun) -> State[Any] | None:
    """Return the state to set for a run that has no process any more; None to leave it as it is.

    Args:
        flow_run: The run with its current state.
        history: Its states in order.
        ended: How it ended.
    """
    state = flow_run.state
    if state is None or state.is_scheduled() or state.name == "Suspended":
        return None  # it needs no process until it is started or resumed
    if state.is_final() and not state.is_crashed():
        return None
    if ended.is_cancelled or state.is_cancelling():
        return Cancelled(message="The flow run was cancelled.")
    if ended.is_unstarted:
        return Scheduled(message=f"Returned to the queue: {ended.reason}.") if state.is_pending() else None
    max_reruns = ended.claim.max_reruns if flow_run.deployment_id and ended.may_rerun else 0
    if ended.is_given_back and max_reruns:
        return Scheduled(message=f"Returned to the queue: {ended.reason}.")
    crash = state.message if state.is_crashed() and state.message else f"The flow run crashed: {ended.reason}."
    reruns = sum(state.name == StateName.AWAITING_RERUN for state in history)
    if reruns < max_reruns:
        message = f"{crash.rstrip('.')}. It is run again ({reruns + 1} of {max_reruns})."
        return Scheduled(name=StateName.AWAITING_RERUN, message=message)
    return None if state.is_crashed() else Crashed(message=crash)


class Settlement:
    """Settles one run."""

    def __init__(
        self,
        client: PrefectClient,
        ended: EndedRun,
        *,
        run_hooks: RunHooks | None = None,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        """Create a settlement.

        Args:
            client: A client of the Prefect server.
            ended: The run.
            run_hooks: Runs the flow's hooks of a kind with a state's message.
            logger: Where retries and ended MLflow runs are logged.
        """
        self._client = client
        self._ended = ended
        self._run_hooks = run_hooks
        self._logger = logger

    async def settle(self) -> State[Any] | None:
        """Settle the run and its subflow runs on the server, and end the MLflow runs that they left open.

        Wait for the server as long as it is out of reach.

        Returns:
            The state of the run now; None if the run was deleted or has been claimed again.

        Raises:
            httpx.HTTPStatusError: The server refuses a request.
            RuntimeError: The server accepts no state.
        """
        delays = itertools.chain(_RETRY_DELAYS, itertools.repeat(_RETRY_DELAYS[-1]))
        conflicts = 0
        while True:
            try:
                return await self._settle_once()
            except ObjectNotFound:
                return None
            except _StateChangedError as error:
                conflicts += 1
                if conflicts > _MAX_CONFLICTS:
                    raise RuntimeError(f"flow run {self._ended.claim.flow_run_id} cannot be settled: {error}") from None
            except httpx.HTTPError as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error:
                    raise
                delay = next(delays)
                self._logger.warning("The run could not be settled, retrying in %d s: %s", delay, error)
                await asyncio.sleep(delay)

    async def _settle_once(self) -> State[Any] | None:
        flow_run_id = self._ended.claim.flow_run_id
        flow_run = await self._client.read_flow_run(flow_run_id)
        history = await self._client.read_flow_run_states(flow_run_id)
        if flow_run.state is None or not owns(history, self._ended.claim):
            return None
        state = next_state(flow_run, history, self._ended)
        if state is None:
            state = flow_run.state
        elif state.is_scheduled():
            if not self._ended.is_unstarted:  # before another attempt opens MLflow runs under the same id
                await self._end_what_is_left(flow_run_id, is_cancelled=False)
            return await self._set_state(flow_run_id, state)
        else:
            state = await self._set_state(flow_run_id, state)
        if state.is_final() and not state.is_completed():
            await self._end_what_is_left(flow_run_id, is_cancelled=state.is_cancelled())
        return state

    async def _set_state(self, flow_run_id: UUID, state: State[Any]) -> State[Any]:
        message = state.message or ""
        if state.is_cancelled():
            await self._run_hooks_once("cancellation", message)
        result: OrchestrationResult[Any] = await self._client.set_flow_run_state(
            flow_run_id, state, force=state.is_cancelled()
        )
        if result.status != SetStateStatus.ACCEPT:
            raise _StateChangedError(str(result.details))
        if state.is_crashed():
            await self._run_hooks_once("crashed", message)
        return state

    async def _run_hooks_once(self, kind: HookKind, message: str) -> None:
        run_hooks, self._run_hooks = self._run_hooks, None
        if run_hooks:
            await run_hooks(kind, message)

    async def _end_what_is_left(self, flow_run_id: UUID, *, is_cancelled: bool) -> None:
        """End the subflow runs in the run's process, and the MLflow runs of all of them."""
        subflow_runs = await self._read_subflow_runs(flow_run_id)
        for subflow_run in subflow_runs:
            if subflow_run.state and not subflow_run.state.is_final():
                state: State[Any] = Crashed(
                    message=f"The flow run crashed: its parent run ended: {self._ended.reason}."
                )
                if is_cancelled:
                    state = Cancelled(message="The flow run was cancelled.")
                await self._client.set_flow_run_state(subflow_run.id, state, force=True)
        await self._end_mlflow_runs([flow_run_id, *(run.id for run in subflow_runs)], is_cancelled)

    async def _read_subflow_runs(self, flow_run_id: UUID) -> list[FlowRun]:
        """Read the runs below a flow run in its process; runs of other deployments have processes of their own."""
        children = await self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]),
                deployment_id=FlowRunFilterDeploymentId(is_null_=True),
            )
        )
        return [run for child in children for run in (child, *await self._read_subflow_runs(child.id))]

    async def _end_mlflow_runs(self, flow_run_ids: list[UUID], is_cancelled: bool) -> None:
        status: Literal["FAILED", "KILLED"] = "KILLED" if is_cancelled else "FAILED"
        for delay in (*_MLFLOW_RETRY_DELAYS, None):
            try:
                ended = await end_open_runs(flow_run_ids, status, self._ended.mlflow_env)
            except (httpx.HTTPError, ValueError) as error:
                if delay is None:
                    self._logger.warning("MLflow may still show runs of this flow run as running: %s", error)
                else:
                    await asyncio.sleep(delay)
            else:
                for run_id in ended:
                    self._logger.info("Ended the MLflow run %s that this flow run left open.", run_id)
                return
