"""Records on disk which runs a worker has claimed, so that the next worker can settle them after a kill.

Each worker has a folder with a lock file and one file per run. The kernel releases the lock when the process
ends, however it ends: a folder that can be locked belongs to a dead worker. The folder of a live worker is never
touched.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

_LOCK, _FACTS, _RUN = "lock", "facts.json", ".run"
# A run that was claimed but not started within this time has gone to another worker.
_MAX_CLAIM_SECONDS = 60.0


@dataclass(frozen=True)
class ClaimedRun:
    """A run in the ledger of a worker."""

    flow_run_id: UUID
    pid: int | None
    """Its process; None before it was started."""
    worker: str
    """The name of the worker that claimed it."""


class Ledger:
    """The claimed runs of one worker."""

    def __init__(self, root: Path, pool: str, api_url: str, worker: str) -> None:
        digest = hashlib.sha256(f"{api_url}\n{pool}".encode()).hexdigest()[:16]
        self._siblings = root / digest
        self._folder = self._siblings / uuid4().hex
        self._facts: dict[str, Any] = {"worker": worker, "pool": pool, "pid": os.getpid()}
        self._claims: dict[UUID, float] = {}
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Create the worker's folder.

        Raises:
            OSError: The folder cannot be created or locked.
        """
        # Locked before it gets the name under which other workers look for it.
        hidden = self._folder.with_name(f".{self._folder.name}")
        hidden.mkdir(mode=0o700, parents=True)
        self._lock = (hidden / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(self._folder)
        self.record_facts()

    def close(self) -> None:
        """Delete the worker's folder, unless runs are left in it."""
        if self._lock:
            if not list(self._folder.glob(f"*{_RUN}")):
                shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def record_facts(self, **facts: Any) -> None:
        """Record facts for `python -m warm_process status`."""
        self._facts.update(facts)
        self._write(_FACTS, json.dumps(self._facts))

    def claim(self, flow_run_id: UUID) -> None:
        """Record a run that this worker is about to claim."""
        if flow_run_id not in self._claims:
            self._claims[flow_run_id] = time.monotonic()
            self._write(f"{flow_run_id}{_RUN}", "")
        for other, since in list(self._claims.items()):
            if time.monotonic() - since > _MAX_CLAIM_SECONDS:
                self.remove(other)

    def record_start(self, flow_run_id: UUID, pid: int) -> None:
        """Record the process of a run."""
        self._claims.pop(flow_run_id, None)
        self._write(f"{flow_run_id}{_RUN}", str(pid))

    def remove(self, flow_run_id: UUID) -> None:
        """Remove a run that has ended."""
        self._claims.pop(flow_run_id, None)
        if self._lock:
            (self._folder / f"{flow_run_id}{_RUN}").unlink(missing_ok=True)

    def claimed(self) -> list[UUID]:
        """List the runs that were claimed and have no process yet."""
        return list(self._claims)

    def _write(self, name: str, text: str) -> None:
        if self._lock:
            with suppress(OSError):  # a full disk must not prevent a run from starting
                (self._folder / name).write_text(text)

    @contextmanager
    def abandoned(self) -> Iterator[list[ClaimedRun]]:
        """Read the runs of dead workers; their folders are deleted when the block ends without an error."""
        found: list[tuple[Path, IO[str], list[ClaimedRun]]] = []
        try:
            for folder in self._siblings.iterdir() if self._siblings.is_dir() else ():
                if folder.name.startswith(".") or folder == self._folder:
                    continue
                if lock := _try_lock(folder):
                    found.append((folder, lock, _read_runs(folder)))
            yield [run for _, _, runs in found for run in runs]
            for folder, _, _ in found:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            for _, lock, _ in found:
                lock.close()


def live_workers(root: Path) -> list[dict[str, Any]]:
    """Read the facts of every live worker below a folder, with the pids of its runs by their ids."""
    workers = []
    for facts in root.glob(f"*/*/{_FACTS}"):
        if lock := _try_lock(facts.parent):
            lock.close()
            continue
        worker: dict[str, Any] = json.loads(facts.read_text())
        worker["runs"] = {str(run.flow_run_id): run.pid for run in _read_runs(facts.parent) if run.pid is not None}
        workers.append(worker)
    return workers


def _try_lock(folder: Path) -> IO[str] | None:
    """Lock a worker's folder; return None if its worker is alive."""
    try:
        lock = (folder / _LOCK).open("r+")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _read_runs(folder: Path) -> list[ClaimedRun]:
    worker = ""
    with suppress(OSError, ValueError):
        worker = json.loads((folder / _FACTS).read_text())["worker"]
    runs = []
    for path in folder.glob(f"*{_RUN}"):
        with suppress(OSError, ValueError):
            text = path.read_text()
            runs.append(ClaimedRun(UUID(path.name.removesuffix(_RUN)), int(text) if text else None, worker))
    return runs
