"""What a fork of the warm process does to look like a process started for its run alone."""

import atexit
import contextlib
import gc
import importlib
import os
import random
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from prefect.exceptions import TerminationSignal

from warm_process import prefect_private
from warm_process.wire import Message

# Read by the interpreter or by a library when it is loaded, so too late for a fork to take up.
_READ_AT_START = (
    "LD_",
    "DYLD_",
    "MALLOC_",
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "KMP_",
    "BLIS_",
    "NUMEXPR_",
    "VECLIB_",
    "LC_",
    "LANG",
    "MPLBACKEND",
    "MPLCONFIGDIR",
    "MATPLOTLIBRC",
    "PYTHON",
)
_TAKEN_UP_BY_A_FORK = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}

PR_SET_PDEATHSIG = 1


def needs_new_interpreter(env: dict[str, str], warm_env: dict[str, str]) -> list[str]:
    """Name the variables by which a run differs from the warm process in what a fork cannot change."""
    return sorted(
        name
        for name in env.keys() | warm_env.keys()
        if name.startswith(_READ_AT_START) and name not in _TAKEN_UP_BY_A_FORK and env.get(name) != warm_env.get(name)
    )


def run(request: Message, *, parent: int, clean_fd: int, libc: Any) -> NoReturn:
    """Become the process of one run; never returns.

    The byte written to `clean_fd` tells a program that came to its end from one that was cut off.
    """
    code = 1
    try:
        _leave_parent(parent, libc)
        _set_stdio(quiet=request["quiet"])
        _take_environment(request["env"], request["cwd"])
        _forget_the_past()
        code = _run_module(request["module"], request["argv"])
    except BaseException:  # noqa: BLE001 - nothing may get past this line into the warm process's loop
        traceback.print_exc()
    finally:
        _finish()
        os.write(clean_fd, b".")
        os._exit(code)


def _leave_parent(parent: int, libc: Any) -> None:
    """Lead a process group of one's own, handle signals as a new process does, and die with the parent."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        # Out of memory, the kernel shall take the run and not the worker, the server or the database.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")


def _set_stdio(*, quiet: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if quiet:
        os.dup2(null, 1)
        os.dup2(null, 2)
    os.close(null)


def _take_environment(env: dict[str, str], cwd: str) -> None:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if before.get("TZ") != env.get("TZ"):
        time.tzset()
    tempfile.tempdir = None
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))

    inherited = _split_path(before.get("PYTHONPATH"))
    rest = [entry for entry in sys.path if entry not in inherited]
    # The order of `python -m`: the working directory, PYTHONPATH, then the interpreter's own.
    sys.path[:] = [os.getcwd(), *_split_path(env.get("PYTHONPATH")), *rest]  # noqa: PTH109 - sys.path holds strings
    importlib.invalidate_caches()

    if _prefect_settings(before) != _prefect_settings(env) or _settings_files(Path.cwd()):
        prefect_private.refresh_settings()


def _split_path(value: str | None) -> list[str]:
    return [str(Path(entry).absolute()) for entry in (value or "").split(os.pathsep) if entry]


def _prefect_settings(env: dict[str, str]) -> dict[str, str]:
    """Pick what Prefect's settings are made of; with two underscores begins what concerns one run."""
    return {
        name: value
        for name, value in env.items()
        if name == "HOME" or (name.startswith("PREFECT_") and not name.startswith("PREFECT__"))
    }


def _settings_files(folder: Path) -> bool:
    return any((folder / name).exists() for name in (".env", "prefect.toml", "pyproject.toml"))


def _forget_the_past() -> None:
    """Draw fresh random numbers; every fork has a copy of the warm process's generators."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    gc.enable()


def _run_module(module: str, argv: list[str]) -> int:
    """Run a module as `python -m` does and return its exit code."""
    sys.modules.pop(module, None)  # so that it runs as __main__ alone, as in a new interpreter
    sys.argv = [module, *argv]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.__context__, TerminationSignal):  # it was told why: the run was cancelled
            _end_mlflow_runs("KILLED")
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)  # noqa: T201 - what the interpreter does with it
        return 1
    except BaseException as error:  # noqa: BLE001 - likewise
        if isinstance(error, TerminationSignal):
            _end_mlflow_runs("FAILED")
        traceback.print_exc()
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end_mlflow_runs(status: str) -> None:
    """End what a run that was stopped left open in MLflow, whose own exit function would call it FINISHED."""
    mlflow = sys.modules.get("mlflow")
    while mlflow and mlflow.active_run():
        mlflow.end_run(status)


def _finish() -> None:
    """Do what the interpreter does at its end, except to take every module apart."""
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:  # noqa: BLE001 - a failing exit function must not keep the others from running
            traceback.print_exc()
