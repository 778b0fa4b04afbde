"""Records on disk which runs a worker has claimed, so that the next worker can settle them after a kill.

Each worker has a folder with a lock file and one file per run. The kernel releases the lock when the process
ends, however it ends: a folder that can be locked belongs to a dead worker. The folder of a live worker is never
touched.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

_LOCK, _FACTS, _RUN = "lock", "facts.json", ".run"


@dataclass(frozen=True)
class Claim:
    """A run that a worker has claimed."""

    flow_run_id: UUID
    state_id: UUID
    """The Pending state that the server accepted from the worker. Every claim of a run makes a new one, so the newest
    in the run's history tells whose it is."""
    worker: str
    """The worker's name."""
    pid: int | None = None
    """Its process; None before it was started."""
    max_reruns: int = 0
    """How often it is run again after a crash."""


class Ledger:
    """The claimed runs of one worker."""

    def __init__(self, root: Path, pool: str, api_url: str, worker: str) -> None:
        digest = sha256(f"{api_url}\n{pool}".encode()).hexdigest()[:16]
        self._siblings = root / digest
        self._folder = self._siblings / uuid4().hex
        self._facts: dict[str, Any] = {"worker": worker, "pool": pool, "pid": os.getpid()}
        self._claims: dict[UUID, Claim] = {}
        self._claimed_at: dict[UUID, float] = {}
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

    def claim(self, flow_run_id: UUID, state_id: UUID) -> None:
        """Record a run that the server has given to this worker, with the Pending state that says so."""
        self._claimed_at[flow_run_id] = time.monotonic()
        self._record(Claim(flow_run_id, state_id, self._facts["worker"]))

    def record_start(self, claim: Claim, pid: int, max_reruns: int) -> Claim:
        """Record the process of a run; return the claim with it."""
        started = replace(claim, pid=pid, max_reruns=max_reruns)
        self._record(started)
        return started

    def get(self, flow_run_id: UUID) -> Claim | None:
        """Return the claim of a run; None if this worker has none."""
        return self._claims.get(flow_run_id)

    def all(self) -> list[Claim]:
        """List the claims."""
        return list(self._claims.values())

    def unstarted(self, seconds: float = 0.0) -> list[Claim]:
        """List the claims that are older than some seconds and whose run has no process yet."""
        before = time.monotonic() - seconds
        return [
            claim
            for claim in self._claims.values()
            if claim.pid is None and self._claimed_at.get(claim.flow_run_id, before) <= before
        ]

    def remove(self, claim: Claim) -> None:
        """Remove a run that was settled, unless it has been claimed again."""
        current = self._claims.get(claim.flow_run_id)
        if current and current.state_id == claim.state_id:
            del self._claims[claim.flow_run_id]
            self._claimed_at.pop(claim.flow_run_id, None)
            if self._lock:
                (self._folder / f"{claim.flow_run_id}{_RUN}").unlink(missing_ok=True)

    def adopt(self) -> list[Claim]:
        """Move the claims of dead workers of this pool into this ledger, and return them.

        Raises:
            OSError: A file of theirs cannot be moved.
        """
        adopted: list[Claim] = []
        for folder in self._siblings.iterdir() if self._lock else ():
            if folder.name.startswith(".") or folder == self._folder or not (lock := _try_lock(folder)):
                continue
            with lock:
                for claim, path in _read_claims(folder):
                    path.rename(self._folder / path.name)
                    self._claims[claim.flow_run_id] = claim
                    adopted.append(claim)
                shutil.rmtree(folder, ignore_errors=True)
        return adopted

    def _record(self, claim: Claim) -> None:
        self._claims[claim.flow_run_id] = claim
        self._write(f"{claim.flow_run_id}{_RUN}", json.dumps(asdict(claim), default=str))

    def _write(self, name: str, text: str) -> None:
        if self._lock:
            with suppress(OSError):  # a full disk must not prevent a run from starting
                (self._folder / name).write_text(text)


def live_workers(root: Path) -> list[dict[str, Any]]:
    """Read the facts of every live worker below a folder, with the pids of its runs by their ids."""
    workers = []
    for facts in root.glob(f"*/*/{_FACTS}"):
        if lock := _try_lock(facts.parent):
            lock.close()
            continue
        worker: dict[str, Any] = json.loads(facts.read_text())
        worker["runs"] = {str(run.flow_run_id): run.pid for run, _ in _read_claims(facts.parent) if run.pid is not None}
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


def _read_claims(folder: Path) -> Iterator[tuple[Claim, Path]]:
    for path in folder.glob(f"*{_RUN}"):
        with suppress(OSError, ValueError, TypeError):  # it was removed just now, or a full disk cut it off
            read = json.loads(path.read_text())
            yield Claim(**{**read, "flow_run_id": UUID(read["flow_run_id"]), "state_id": UUID(read["state_id"])}), path
