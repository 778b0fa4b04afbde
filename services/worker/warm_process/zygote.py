"""The warm process: imports once what flows import, then forks a child for each run.

The worker starts it with one end of a socket pair. It has one thread of its own and no connection, so a fork of it is
safe and contains nothing of another run. The socket is also its lifeline: when the worker ends, even by SIGKILL, the
socket closes, and the warm process stops the runs and exits.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import pkgutil
import selectors
import signal
import socket
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any, NoReturn

from warm_process import child, prefect_private
from warm_process.processes import signal_group
from warm_process.protocol import Decoder, Message, encode
from warm_process.settings import DEFAULT_PRELOAD, WarmProcessSettings
from warm_process.threads import find_libraries, follow_quota

_KILL_TIMEOUT = 5.0


@dataclass
class Child:
    """One fork."""

    key: str
    end_fd: int
    """Readable once the child's program has come to its end."""
    was_signalled: bool = False
    """Whether it was told to stop; then its whole process group is killed after it."""


class Zygote:
    """Forks on request and reports how each child ended."""

    def __init__(self, channel: socket.socket, settings: WarmProcessSettings) -> None:
        self._channel = channel
        self._settings = settings
        self._children: dict[int, Child] = {}
        self._decoder = Decoder()
        self._libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._is_stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> NoReturn:
        """Serve until the worker ends or sends SIGTERM, then stop the children."""
        self._prepare()
        self._selector.register(self._channel, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        while not self._is_stopping:
            ready = [key.fd for key, _ in self._selector.select()]
            self._reap()
            if self._channel.fileno() in ready and not self._receive():
                break
        self._stop_children()
        os._exit(0)

    def _prepare(self) -> None:
        """Preload, handle signals, and report to be ready."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker handles Ctrl-C
        began = time.monotonic()
        follow_quota()
        loaded, failed = preload(self._settings)
        prefect_private.retry_refused_connections()
        find_libraries()
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        seconds = round(time.monotonic() - began, 2)
        self._send({"event": "ready", "pid": os.getpid(), "preloaded": loaded, "failed": failed, "seconds": seconds})

    def _on_sigterm(self, *_: object) -> None:
        self._is_stopping = True

    def _receive(self) -> bool:
        """Handle the worker's messages; return False when the worker has ended."""
        try:
            data = self._channel.recv(1 << 20)
        except ConnectionError:
            return False
        for message in self._decoder.feed(data):
            if message["op"] == "start":
                self._start(message)
            else:
                self._signal(message["key"], message["signal"])
        return bool(data)

    def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the worker has ended, which the loop notices
            self._channel.sendall(encode(message))

    def _start(self, request: Message) -> None:
        """Fork a child for a request, and report its pid or why the system refused it."""
        read_end, write_end = os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(read_end)
            os.close(write_end)
            self._send({"event": "refused", "key": request["key"], "reason": f"the fork failed: {error}"})
            return
        if pid == 0:
            self._close_in_child(read_end)
            child.run(request, parent=parent, end_fd=write_end, libc=self._libc)
        os.close(write_end)
        # In parent and child, so that neither has to wait for the other; the second call has no effect.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._children[pid] = Child(request["key"], read_end)
        self._send({"event": "started", "key": request["key"], "pid": pid})

    def _close_in_child(self, own_read_end: int) -> None:
        self._selector.close()
        for fd in (self._wake_read, self._wake_write, own_read_end):
            os.close(fd)
        for other in self._children.values():
            os.close(other.end_fd)
        self._channel.close()

    def _signal(self, key: str, number: int) -> None:
        for pid, found in self._children.items():
            if found.key == key:
                found.was_signalled = True
                signal_group(pid, number)

    def _reap(self) -> None:
        """Collect the children that have ended, and report them."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        for pid in list(self._children):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped == 0:
                continue
            ended = self._children.pop(pid)
            ran_to_end = _has_run_to_end(ended)
            if ended.was_signalled or not ran_to_end:
                signal_group(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            self._send({"event": "ended", "key": ended.key, "code": code, "ran_to_end": ran_to_end})

    def _stop_children(self) -> None:
        """Stop every child; its engine reports the end of its run."""
        self._signal_all(signal.SIGTERM)
        self._wait_for_children(self._settings.stop_grace)
        self._signal_all(signal.SIGKILL)
        self._wait_for_children(_KILL_TIMEOUT)

    def _signal_all(self, number: int) -> None:
        for pid, found in self._children.items():
            found.was_signalled = True
            signal_group(pid, number)

    def _wait_for_children(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._reap()
        while self._children and time.monotonic() < deadline:
            time.sleep(0.02)
            self._reap()


def _has_run_to_end(ended: Child) -> bool:
    os.set_blocking(ended.end_fd, False)
    try:
        return os.read(ended.end_fd, 1) == child.END_MARK
    except BlockingIOError:  # a process that it started still has the other end open
        return False
    finally:
        os.close(ended.end_fd)


def preload(settings: WarmProcessSettings) -> tuple[list[str], dict[str, str]]:
    """Import Prefect's engine and the modules of the settings.

    Returns:
        The names of the imported modules, and by name why others could not be imported.
    """
    loaded: list[str] = []
    failed: dict[str, str] = {}
    is_default = settings.preload == DEFAULT_PRELOAD
    names = [*prefect_private.ENGINE_MODULES]
    for name in settings.preload:
        if is_default and not _is_installed(name):
            continue
        names += _expand(name)
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - a module may raise anything; the worker has to survive it
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            loaded.append(name)
    # Registers the blocks of installed integrations, such as result storage on S3.
    with contextlib.suppress(Exception):
        importlib.import_module("prefect.plugins").load_prefect_collections()
    with contextlib.suppress(Exception):
        prefect_private.end_without_heartbeat_thread()
    return loaded, failed


def _expand(name: str) -> list[str]:
    """Return the modules that a name stands for: `PACKAGE.*` for those of a package, without its subpackages."""
    package, wildcard, rest = name.partition(".*")
    if not wildcard or rest:
        return [name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(folders or []) if not module.ispkg] or [name]


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def main() -> NoReturn:
    """Run as `python -m warm_process.zygote FD`."""
    # `-m` puts the working directory first; a preload must not find flow code there.
    del sys.path[0]
    gc.disable()
    # Python 3.12 and later warn of the idle threads of OpenBLAS, which handles a fork itself.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    channel = socket.socket(fileno=int(sys.argv[1]))
    Zygote(channel, WarmProcessSettings()).run()


if __name__ == "__main__":
    main()
