"""Runs a flow's on_cancellation or on_crashed hooks after its process has ended.

`python -m warm_process.hooks KIND MESSAGE`, in the environment of the run: hooks are user code, so they get a process
of their own, as the run did.
"""

import asyncio
import inspect
import os
import sys
from typing import Any
from uuid import UUID

from prefect import State, get_client
from prefect.flows import load_flow_from_flow_run
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelling, Crashed

from warm_process.prefect_private import FLOW_RUN_ID


async def run_hooks(kind: str, message: str) -> None:
    """Run the hooks of the flow run that the environment names; a hook that fails does not prevent the next one.

    Args:
        kind: "cancellation" or "crashed".
        message: The message of the state that the hooks get.
    """
    async with get_client() as client:
        flow_run = await client.read_flow_run(UUID(os.environ[FLOW_RUN_ID]))
    flow: Any = await load_flow_from_flow_run(flow_run, use_placeholder_flow=False)
    state: State[Any]
    if kind == "cancellation":
        hooks, state = flow.on_cancellation_hooks, Cancelling(message=message)
    else:
        hooks, state = flow.on_crashed_hooks, Crashed(message=message)
    logger = flow_run_logger(flow_run, flow)
    for hook in hooks or []:
        name = getattr(hook, "__name__", repr(hook))
        logger.info("Running hook %r in response to entering state %r", name, state.name)
        try:
            result: Any = hook(flow, flow_run, state)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("An error was encountered while running hook %r", name)
        else:
            logger.info("Hook %r finished running successfully", name)


if __name__ == "__main__":
    asyncio.run(run_hooks(*sys.argv[1:3]))
