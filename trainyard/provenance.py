"""What a model was trained from: its data and its problem, kept under their digests, the commit and the installed packages.

Data and problem lie in the result storage, once for all trainings that share them, and signed like cache entries, because a
problem has code.
"""

import hashlib
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions
from typing import Any

import pandas as pd
from prefect import task

from trainyard.cache import cached, keep, recall
from trainyard.cache_storage import entry_path
from trainyard.contract import Tag
from trainyard.errors import ReproductionError
from trainyard.fingerprint import fingerprint
from trainyard.problem import Parts, Problem

KEPT_DAYS = 3650.0
"""`trainyard.retention` deletes those earlier that no version was trained from."""
STORED_AGAIN_DAYS = 1.0
"""After these the same data is stored again: what is as old as the retention allows has not been used for long."""
DATA, PROBLEM = "data", "problem"
COMMIT_VARIABLE = "CODE_COMMIT"
GIT_SECONDS = 10


@task(name="keep-data", **cached(days=STORED_AGAIN_DAYS))
def keep_data(parts: Parts) -> str:
    """Keep training set and holdout; return their digest. The same data is not stored again on the same day."""
    frames = parts.train, parts.holdout
    keep(DATA, digest := fingerprint(frames), frames, KEPT_DAYS)
    return digest


@task(name="keep-problem", **cached(days=STORED_AGAIN_DAYS))
def keep_problem(problem: Problem) -> str:
    """Keep a problem; return its digest."""
    keep(PROBLEM, digest := fingerprint(problem), problem, KEPT_DAYS)
    return digest


def snapshot_paths(digest: str) -> set[str]:
    """Return where a digest's data or problem is in the result storage."""
    return {entry_path(KEPT_DAYS, kind, fingerprint(digest)) for kind in (DATA, PROBLEM)}


def is_snapshot(path: str) -> bool:
    """Return whether a path in the result storage is of data or a problem."""
    return path.startswith(tuple(entry_path(KEPT_DAYS, kind, "") for kind in (DATA, PROBLEM)))


def recall_data(digest: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training set and the holdout that `keep_data` kept.

    Raises:
        ReproductionError: They are not there.
    """
    found: tuple[pd.DataFrame, pd.DataFrame] = _recall(DATA, digest)
    return found


def recall_problem(digest: str) -> Problem:
    """Return the problem that `keep_problem` kept.

    Raises:
        ReproductionError: It is not there.
    """
    found: Problem = _recall(PROBLEM, digest)
    return found


def _recall(kind: str, digest: str) -> Any:
    if not digest:
        raise ReproductionError(f"The run does not name its {kind}: it was not trained by trainyard.training.train.")
    if (found := recall(kind, digest, KEPT_DAYS)) is None:
        raise ReproductionError(f"The {kind} {digest[:16]} is not in the result storage (any more).")
    return found


def describe_code() -> dict[str, str]:
    """Return the tags that say which code runs: the commit, whether files differ from it, and the installed packages.

    Outside of a Git checkout the commit is that of the variable CODE_COMMIT, if it is set.
    """
    tags = {Tag.CODE_LOCK: digest_packages()}
    if commit := _git("rev-parse", "HEAD"):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return {**tags, Tag.CODE_COMMIT: commit, Tag.CODE_DIRTY: str(bool(changed)).lower()}
    return tags | ({Tag.CODE_COMMIT: os.environ[COMMIT_VARIABLE]} if os.environ.get(COMMIT_VARIABLE) else {})


def _git(*arguments: str) -> str | None:
    """Return what Git prints in the working directory; None where there is no Git or no checkout."""
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def digest_packages() -> str:
    """Return a digest of the names and versions of all installed packages, and of Python's version."""
    names = sorted({f"{each.metadata['Name']}=={each.version}".lower() for each in distributions()})
    return hashlib.sha256("\n".join([sys.version, *names]).encode()).hexdigest()[:16]
