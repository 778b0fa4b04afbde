"""The threads that numerical libraries use: as many as the cores that a run has."""

import contextlib
import os
from functools import cache
from typing import Any

from warm_process.cgroup import read_core_quota

# Libraries read these when they are loaded.
_LIBRARIES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
CORES = "LOKY_MAX_CPU_COUNT"
"""The cores that joblib counts; scikit-learn asks it how many threads OpenMP may use."""


def follow_quota() -> None:
    """Have the libraries that this process loads use no more cores than its control group has; they see the machine's."""
    if cores := read_core_quota():
        _set_for_libraries(cores)


@cache
def find_libraries() -> Any:
    """Find the loaded libraries that have threads: in the warm process, since it takes 12 ms, so that forks know them.

    Returns:
        A controller of theirs; None without threadpoolctl, which scikit-learn brings.
    """
    with contextlib.suppress(ImportError):
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController()
    return None


def limit_threads(threads: int) -> None:
    """Have the libraries of this process use some threads, those that are loaded and those to come."""
    for name in _LIBRARIES:
        if name in os.environ:  # for all runs of the worker: a run that sets one itself is a cold start
            os.environ[name] = str(threads)
    _set_for_libraries(threads)
    if libraries := find_libraries():
        libraries.limit(limits=threads)


def set_for_fork(env: dict[str, str], threads: int | None) -> None:
    """Add what a fork's Python code reads of a run's threads; what the run sets itself stays."""
    if threads and env.get(CORES) == os.environ.get(CORES):
        env[CORES] = str(threads)


def set_for_cold_start(env: dict[str, str | None], threads: int | None) -> None:
    """Add the variables of a run's threads; what the run sets itself stays.

    Args:
        env: The run's environment, which contains the worker's.
        threads: Its job variable; without it, the cores that the worker has where a quota makes them fewer.
    """
    number = threads or read_core_quota()
    if number is None:
        return
    for name in (*_LIBRARIES, CORES):
        is_own = env.get(name) != os.environ.get(name)
        if env.get(name) is None or (threads and not is_own):
            env[name] = str(number)


def _set_for_libraries(threads: int) -> None:
    # Not in os.environ: joblib divides the cores among its worker processes, unless it sees such a variable there.
    for name in _LIBRARIES:
        if name not in os.environ:
            os.putenv(name, str(threads))
