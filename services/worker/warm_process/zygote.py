"""The warm process: imports once what flows import, then forks a child for each run.

Started by the worker with one end of a socket pair. It holds one thread and no connection, so a fork
of it is safe and finds nothing of another run. The socket is also its lifeline: when the worker is
gone, however it went, the socket closes, and the warm process stops the runs, gives each a truthful
end and leaves.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any, NoReturn

from warm_process import child, prefect_private
from warm_process.settings import DEFAULT_PRELOAD, WarmProcessSettings
from warm_process.wire import Decoder, Message, encode

SETTLE = "warm_process.settle"


@dataclass
class Child:
    """One fork."""

    key: str
    module: str
    env: dict[str, str] = field(repr=False)
    clean_fd: int
    condemned: bool = False  # was told to stop, so nothing of its process group may stay


class Zygote:
    """Forks on request and reports how each child ended."""

    def __init__(self, channel: socket.socket, settings: WarmProcessSettings) -> None:
        self._channel = channel
        self._settings = settings
        self._children: dict[int, Child] = {}
        self._decoder = Decoder()
        self._libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._told_to_stop = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> NoReturn:
        """Serve until the worker goes away or asks to stop."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's business
        began = time.monotonic()
        loaded, failed = preload(self._settings)
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._send(
            {
                "event": "ready",
                "pid": os.getpid(),
                "preloaded": loaded,
                "failed": failed,
                "seconds": round(time.monotonic() - began, 2),
            }
        )
        self._selector.register(self._channel, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        while not self._told_to_stop:
            ready = [key.fd for key, _ in self._selector.select()]
            self._reap()
            if self._channel.fileno() in ready and not self._receive():
                break
        self._leave()

    def _on_sigterm(self, *_: object) -> None:
        self._told_to_stop = True

    def _receive(self) -> bool:
        """Handle what the worker sent; False when the worker is gone."""
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
        with contextlib.suppress(OSError):  # the worker is gone, which the loop sees by itself
            self._channel.sendall(encode(message))

    def _start(self, request: Message) -> int | None:
        """Fork a child for a request; the pid, or None when the system refuses."""
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
            return None
        if pid == 0:
            self._close_in_child(read_end)
            child.run(request, parent=parent, clean_fd=write_end, libc=self._libc)
        os.close(write_end)
        # In parent and child, so that neither has to wait for the other; the second call changes nothing.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._children[pid] = Child(request["key"], request["module"], request["env"], read_end)
        self._send({"event": "started", "key": request["key"], "pid": pid})
        return pid

    def _close_in_child(self, own_read_end: int) -> None:
        self._selector.close()
        for fd in (self._wake_read, self._wake_write, own_read_end):
            os.close(fd)
        for other in self._children.values():
            os.close(other.clean_fd)
        self._channel.close()

    def _signal(self, key: str, number: int) -> None:
        for pid, found in self._children.items():
            if found.key == key:
                found.condemned = True
                _signal_group(pid, number)

    def _reap(self) -> list[tuple[Child, int, bool]]:
        """Collect the children that have ended, and report them."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        ended = []
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done == 0:
                continue
            gone = self._children.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            os.set_blocking(gone.clean_fd, False)
            try:
                clean = os.read(gone.clean_fd, 1) == b"."
            except BlockingIOError:  # a grandchild still holds the other end
                clean = False
            os.close(gone.clean_fd)
            if gone.condemned or not clean:
                _signal_group(pid, signal.SIGKILL)
            self._send({"event": "ended", "key": gone.key, "code": code, "clean": clean})
            ended.append((gone, code, clean))
        return ended

    def _leave(self) -> NoReturn:
        """Stop every child, and settle for a worker that cannot do it any more."""
        worker_is_gone = not self._told_to_stop
        ended = self._stop_children(self._settings.stop_grace)
        if worker_is_gone:
            endings = [
                {
                    "flow_run_id": gone.key,
                    "exit_code": code,
                    "clean": clean,
                    "cause": "the worker that ran it was killed",
                    "mlflow_env": {k: v for k, v in gone.env.items() if k.startswith("MLFLOW_TRACKING_")},
                }
                for gone, code, clean in ended
                if gone.module == "prefect.engine"
            ]
            if endings:
                request = {
                    "key": "settle",
                    "module": SETTLE,
                    "argv": [json.dumps(endings)],
                    "env": dict(os.environ),
                    "cwd": "/",
                    "quiet": False,
                }
                self._start(request)
                self._wait_for_children(30.0)
        os._exit(0)

    def _stop_children(self, grace: float) -> list[tuple[Child, int, bool]]:
        for pid, found in self._children.items():
            found.condemned = True
            _signal_group(pid, signal.SIGTERM)
        ended = self._wait_for_children(grace)
        for pid in self._children:
            _signal_group(pid, signal.SIGKILL)
        return ended + self._wait_for_children(5.0)

    def _wait_for_children(self, seconds: float) -> list[tuple[Child, int, bool]]:
        deadline = time.monotonic() + seconds
        ended = self._reap()
        while self._children and time.monotonic() < deadline:
            time.sleep(0.02)
            ended += self._reap()
        return ended


def preload(settings: WarmProcessSettings) -> tuple[list[str], dict[str, str]]:
    """Import Prefect's engine and what the settings name; the names imported, and why others were not."""
    loaded: list[str] = []
    failed: dict[str, str] = {}
    for name in (*prefect_private.ENGINE_MODULES, *settings.preload):
        if name in DEFAULT_PRELOAD and settings.preload == DEFAULT_PRELOAD and not _installed(name):
            continue
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - a module may raise anything, and the worker must live
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            loaded.append(name)
    # Blocks from installed integrations, such as result storage on S3, are looked up among these.
    with contextlib.suppress(Exception):
        importlib.import_module("prefect.plugins").load_prefect_collections()
    with contextlib.suppress(Exception):
        prefect_private.stop_heartbeat_at_once()
    return loaded, failed


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def main() -> NoReturn:
    """Run as `python -m warm_process.zygote FD`."""
    # `-m` puts the working directory first; flow code must not be found by a preload.
    del sys.path[0]
    gc.disable()
    # Python 3.12 and newer see the idle threads of OpenBLAS, which stops them itself around a fork.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    channel = socket.socket(fileno=int(sys.argv[1]))
    Zygote(channel, WarmProcessSettings()).run()


if __name__ == "__main__":
    main()
