"""The worker's end of the warm process: starts it, asks it for children, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warm_process.child import needs_new_interpreter
from warm_process.settings import WarmProcessSettings
from warm_process.wire import Decoder, Message, encode

if TYPE_CHECKING:
    import logging

    Log = logging.Logger | logging.LoggerAdapter[Any]

_FIRST_BACKOFF, _LAST_BACKOFF = 0.5, 60.0


class NotWarmError(Exception):
    """The warm process cannot start this run; the message says why."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Exit code, negative for a signal, None where nobody could see it."""
    clean: bool
    """Whether its program came to the end, whatever the code."""
    cause: str | None = None
    """What else happened that explains it."""


@dataclass
class WarmChild:
    """A process forked for one run."""

    key: str
    pid: int = 0
    started: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[Ended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WarmProcess:
    """A process that has imported what flows import, and forks a child for each run."""

    def __init__(
        self,
        settings: WarmProcessSettings,
        environment: Mapping[str, str],
        logger: Log,
        *,
        on_ready: Callable[[Message], None],
    ) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._environment = dict(environment)
        self._logger = logger
        self._children: dict[str, WarmChild] = {}
        self._ready = asyncio.Event()
        self._stopping = False
        self._channel: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it in the background and keep it running."""
        self._supervisor = asyncio.create_task(self._supervise(), name="warm-process-supervisor")

    async def stop(self) -> None:
        """Stop it and what still runs in it; it leaves when its lifeline closes."""
        self._stopping = True
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        if self._process and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), self._settings.stop_grace + 6.0)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._writer:
            self._writer.close()

    async def check(self, env: Mapping[str, str]) -> None:
        """Wait until a run with this environment can be started.

        Raises:
            NotWarmError: the variables cannot be taken up by a fork, or the warm process is not there.
        """
        if names := needs_new_interpreter(dict(env), self._environment):
            raise NotWarmError(f"{', '.join(names)} can only be set for a new interpreter")
        try:
            await asyncio.wait_for(self._ready.wait(), self._settings.start_timeout)
        except TimeoutError:
            raise NotWarmError("the warm process is not running") from None

    async def fork(
        self,
        key: str,
        module: str,
        *argv: str,
        env: Mapping[str, str],
        cwd: str | Path,
        quiet: bool = False,
    ) -> WarmChild:
        """Run a module in a fork of the warm process.

        Raises:
            NotWarmError: the fork could not be made.
        """
        if not self._ready.is_set() or self._writer is None:
            raise NotWarmError("the warm process is not running")
        if key in self._children:
            raise NotWarmError("an earlier attempt at this run has not ended yet")
        child = self._children[key] = WarmChild(key)
        request = {
            "op": "start",
            "key": key,
            "module": module,
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "quiet": quiet,
        }
        try:
            self._writer.write(encode(request))
            await self._writer.drain()
            child.pid = await child.started
        except OSError as error:
            self._children.pop(key, None)
            raise NotWarmError(f"the warm process does not answer ({error})") from None
        return child

    def signal(self, child: WarmChild, number: int) -> None:
        """Send a signal to the child and what it has started."""
        if child.ended.done():
            return
        if self._ready.is_set() and self._writer is not None:
            # The warm process knows whether the pid is still this child's.
            self._writer.write(encode({"op": "signal", "key": child.key, "signal": number}))
        else:
            _signal_group(child.pid, number)

    async def _supervise(self) -> None:
        backoff = _FIRST_BACKOFF
        while True:
            began = asyncio.get_running_loop().time()
            try:
                reader = await self._launch()
                await self._read(reader)
            except OSError as error:
                self._logger.warning("The warm process could not be started: %s", error)
            await self._bury()
            if asyncio.get_running_loop().time() - began > 60.0:
                backoff = _FIRST_BACKOFF
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF)

    async def _launch(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "warm_process.zygote",
                str(theirs.fileno()),
                env=self._environment,
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        return reader

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Handle what the warm process says until it is gone."""
        decoder = Decoder()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    self._handle(message)

    def _handle(self, message: Message) -> None:
        event = message["event"]
        if event == "ready":
            for name, why in message["failed"].items():
                self._logger.warning(
                    "The warm process could not import %s (%s). Runs that import it will do so themselves,"
                    " and slowly; WARM_PROCESS_PRELOAD is the list.",
                    name,
                    why,
                )
            self._logger.info(
                "The warm process (PID %s) is ready after %s s with %d modules imported.",
                self.pid,
                message["seconds"],
                len(message["preloaded"]),
            )
            self._ready.set()
            self._on_ready(message)
            return
        child = self._children.get(message["key"])
        if child is None:
            return
        if event == "started":
            child.pid = message["pid"]
            _set(child.started, message["pid"])
        elif event == "refused":
            del self._children[child.key]
            if not child.started.done():
                child.started.set_exception(NotWarmError(message["reason"]))
        else:
            del self._children[child.key]
            _set(child.ended, Ended(message["code"], message["clean"]))

    async def _bury(self) -> None:
        """Take leave of a warm process that died, and of the children it left behind."""
        self._ready.clear()
        if self._writer:
            self._writer.close()
            self._writer = None
        if self._process is None:
            return
        code = await self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if not self._stopping:
            self._logger.error("The warm process (PID %s) %s. It is started again.", self._process.pid, how)
        orphans, self._children = list(self._children.values()), {}
        for child in orphans:
            if not child.started.done():
                child.started.set_exception(NotWarmError(f"the warm process {how}"))
                continue
            task = asyncio.create_task(self._end_orphan(child, f"the warm process it was forked from {how}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _end_orphan(self, child: WarmChild, cause: str) -> None:
        """See a child to its end whose parent is gone, so that nobody can wait for it."""
        # On Linux the kernel has sent it SIGTERM already, and a second one would cut off its last report.
        if sys.platform != "linux":
            _signal_group(child.pid, signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + self._settings.stop_grace
        while _alive(child.pid) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        _signal_group(child.pid, signal.SIGKILL)
        _set(child.ended, Ended(None, clean=False, cause=cause))


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        # Orphans become children of PID 1, which the worker itself may be.
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _set(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
