"""The worker's side of the warm process: starts it, requests forks of it, and restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warm_process.background import BackgroundTasks
from warm_process.child import find_start_only_variables
from warm_process.processes import is_alive, signal_group
from warm_process.protocol import Decoder, Message, encode
from warm_process.reasons import ProcessExit
from warm_process.settings import WarmProcessSettings

if TYPE_CHECKING:
    import logging

    Log = logging.Logger | logging.LoggerAdapter[Any]

_MIN_BACKOFF, _MAX_BACKOFF = 0.5, 60.0


class CannotForkError(Exception):
    """The warm process cannot fork a process for this run; the message says why."""


@dataclass
class Fork:
    """A process forked for one run."""

    key: str
    pid: int = 0
    started: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[ProcessExit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Supervisor:
    """Keeps the warm process running, and forks processes from it."""

    def __init__(
        self,
        settings: WarmProcessSettings,
        environment: Mapping[str, str],
        logger: Log,
        *,
        on_ready: Callable[[Message], None],
    ) -> None:
        self._settings = settings
        self._environment = dict(environment)
        # Prefect changes the worker's own working directory when it loads a flow for the hooks of a cold start.
        self._cwd = Path.cwd()
        self._logger = logger
        self._on_ready = on_ready
        self._forks: dict[str, Fork] = {}
        self._ready = asyncio.Event()
        self._is_stopping = False
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._background = BackgroundTasks(logger)

    @property
    def pid(self) -> int | None:
        """The pid of the warm process; None while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        """Start the warm process in the background and keep it running."""
        self._background.keep_running(self._supervise)

    async def stop(self) -> None:
        """Stop the warm process and its forks."""
        self._is_stopping = True
        await self._background.cancel_all()
        if self._process and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), self._settings.stop_grace + 6.0)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._writer:
            self._writer.close()

    async def wait_until_ready(self, env: Mapping[str, str]) -> None:
        """Wait until a run with this environment can be forked.

        Raises:
            CannotForkError: The environment needs a new interpreter, or the warm process is not running.
        """
        if names := find_start_only_variables(env, self._environment):
            raise CannotForkError(f"{', '.join(names)} can only be set for a new interpreter")
        try:
            await asyncio.wait_for(self._ready.wait(), self._settings.start_timeout)
        except TimeoutError:
            raise CannotForkError("the warm process is not running") from None

    async def fork(
        self,
        key: str,
        module: str,
        *argv: str,
        env: Mapping[str, str],
        cwd: str | Path,
        quiet: bool = False,
        threads: int | None = None,
    ) -> Fork:
        """Run a module in a fork of the warm process.

        Args:
            key: Identifies the fork; unique among those that are alive.
            module: The module, which runs as `__main__`.
            *argv: Its arguments.
            env: Its whole environment.
            cwd: Its working directory.
            quiet: Whether its output is discarded.
            threads: How many threads its numerical libraries use; None for as many as those of the warm process.

        Raises:
            CannotForkError: The fork failed.
        """
        if not self._ready.is_set() or self._writer is None:
            raise CannotForkError("the warm process is not running")
        if key in self._forks:
            raise CannotForkError("the process of an earlier attempt has not ended yet")
        try:
            env_file = _write_environment(env)
        except OSError as error:
            raise CannotForkError(f"its environment cannot be written ({error})") from None
        fork = self._forks[key] = Fork(key)
        # The child removes it as soon as it has read it.
        fork.ended.add_done_callback(lambda _: env_file.unlink(missing_ok=True))
        request = {
            "op": "start",
            "key": key,
            "module": module,
            "argv": list(argv),
            "env_file": str(env_file),
            "cwd": str(cwd),
            "quiet": quiet,
            "threads": threads,
        }
        try:
            self._writer.write(encode(request))
            await self._writer.drain()
        except OSError as error:
            self._discard(fork)
            raise CannotForkError(f"the warm process does not respond ({error})") from None
        if not (await asyncio.wait([fork.started], timeout=self._settings.start_timeout))[0]:
            self._kill_stuck()
        fork.pid = await fork.started  # the end of a warm process resolves it too
        return fork

    def _kill_stuck(self) -> None:
        """Kill a warm process that does not respond; it is restarted, and its other forks end as if it had died."""
        if self._process and self._process.returncode is None:
            self._logger.error("The warm process (PID %s) does not respond and is killed.", self._process.pid)
            self._process.kill()

    def signal(self, fork: Fork, number: int) -> None:
        """Send a signal to the fork's process group."""
        if fork.ended.done():
            return
        if self._ready.is_set() and self._writer is not None:
            # The warm process knows whether the pid still belongs to this fork.
            self._writer.write(encode({"op": "signal", "key": fork.key, "signal": number}))
        else:
            signal_group(fork.pid, number)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = _MIN_BACKOFF
        if self._process:  # an error has ended the former supervision
            self._kill_stuck()
            await self._clean_up()
        while True:
            launched_at = loop.time()
            try:
                await self._receive(await self._launch())
            except OSError as error:
                self._logger.warning("The warm process could not be started: %s", error)
            await self._clean_up()
            if loop.time() - launched_at > _MAX_BACKOFF:
                backoff = _MIN_BACKOFF
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _MAX_BACKOFF)

    async def _launch(self) -> asyncio.StreamReader:
        own, other = socket.socketpair()
        with other:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "warm_process.zygote",
                str(other.fileno()),
                env=self._environment,
                cwd=self._cwd,
                pass_fds=(other.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=own)
        return reader

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        """Handle messages until the warm process closes the connection."""
        decoder = Decoder()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    if message["event"] == "ready":
                        self._handle_ready(message)
                    elif fork := self._forks.get(message["key"]):
                        self._handle(fork, message)

    def _handle_ready(self, message: Message) -> None:
        for name, error in message["failed"].items():
            self._logger.warning(
                "The warm process could not import %s (%s). Each run that needs it imports it itself, which takes"
                " longer; WARM_PROCESS_PRELOAD is the list.",
                name,
                error,
            )
        self._logger.info(
            "The warm process (PID %s) is ready after %s s with %d modules imported.",
            message["pid"],
            message["seconds"],
            len(message["preloaded"]),
        )
        self._ready.set()
        self._on_ready(message)

    def _handle(self, fork: Fork, message: Message) -> None:
        match message["event"]:
            case "started":
                fork.pid = message["pid"]
                _resolve(fork.started, fork.pid)
            case "refused":
                self._discard(fork)
                if not fork.started.done():
                    fork.started.set_exception(CannotForkError(message["reason"]))
            case "ended":
                del self._forks[fork.key]
                _resolve(fork.ended, ProcessExit(message["code"], message["ran_to_end"]))

    def _discard(self, fork: Fork) -> None:
        """Forget a fork that was not made."""
        self._forks.pop(fork.key, None)
        fork.ended.cancel()

    async def _clean_up(self) -> None:
        """Clean up after a warm process that died, and end the forks that it left behind."""
        self._ready.clear()
        if self._writer:
            self._writer.close()
            self._writer = None
        if self._process is None:
            return
        code = await self._process.wait()
        end = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if not self._is_stopping:
            self._logger.error("The warm process (PID %s) %s and is restarted.", self._process.pid, end)
        orphans, self._forks = list(self._forks.values()), {}
        for orphan in orphans:
            if orphan.started.done():
                cause = f"the warm process that it was forked from {end}"
                self._background.spawn(self._end_orphan(orphan, cause))
            else:
                orphan.ended.cancel()
                orphan.started.set_exception(CannotForkError(f"the warm process {end}"))

    async def _end_orphan(self, fork: Fork, cause: str) -> None:
        """Wait for the end of a fork whose parent is gone, and kill it when it takes too long."""
        # On Linux the kernel has sent SIGTERM already; a second one would interrupt the report of the first.
        if sys.platform != "linux":
            signal_group(fork.pid, signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + self._settings.stop_grace
        while is_alive(fork.pid) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        signal_group(fork.pid, signal.SIGKILL)
        _resolve(fork.ended, ProcessExit(None, ran_to_end=False, cause=cause))


def _write_environment(env: Mapping[str, str]) -> Path:
    """Write an environment into a file that only this user can read.

    It does not go through the warm process, because every later fork would have it in its memory.
    """
    descriptor, path = tempfile.mkstemp(prefix="warm-process-", suffix=".json")
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(env), file)
    return Path(path)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
