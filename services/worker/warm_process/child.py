"""Turns a fork of the warm process into the process of one run, as if it had been started for that run alone."""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from prefect.exceptions import TerminationSignal

from warm_process import prefect_private
from warm_process.processes import offer_to_oom_killer
from warm_process.protocol import Message
from warm_process.threads import limit_threads

# The interpreter or a library reads these when it is loaded, which is too late in a fork.
_START_ONLY = (
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
    "DASK_",
    "GIT_PYTHON_",
    "JOBLIB_",
    "MLFLOW_CONFIGURE_LOGGING",
    "MLFLOW_LOGGING_LEVEL",
    "NPY_",
    "PANDERA_",
    "PYTHON",
    "SCIPY_",
    "SKLEARN_",
)
_APPLIED_BY_FORK = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}

PR_SET_PDEATHSIG = 1
END_MARK = b"."


def find_start_only_variables(env: Mapping[str, str], warm_env: Mapping[str, str]) -> list[str]:
    """List the variables that differ between a run and the warm process and that a fork cannot apply."""
    return sorted(
        name
        for name in env.keys() | warm_env.keys()
        if name.startswith(_START_ONLY) and name not in _APPLIED_BY_FORK and env.get(name) != warm_env.get(name)
    )


def run(request: Message, *, parent: int, end_fd: int, libc: Any) -> NoReturn:
    """Run the module of a request and exit.

    Args:
        request: A "start" message of the protocol.
        parent: The pid of the warm process.
        end_fd: Gets `END_MARK` when the program has come to its end, which distinguishes it from one that was cut off.
        libc: The C library; None outside Linux.
    """
    code = 1
    try:
        _detach(parent, libc)
        _set_stdio(quiet=request["quiet"])
        _apply_environment(_take_environment(Path(request["env_file"])), request["cwd"])
        if threads := request["threads"]:
            limit_threads(threads)
        _reset_inherited_state()
        code = _run_module(request["module"], request["argv"])
    except BaseException:  # noqa: BLE001 - nothing may escape into the warm process's loop
        traceback.print_exc()
    finally:
        _finish()
        os.write(end_fd, END_MARK)
        os._exit(code)


def _detach(parent: int, libc: Any) -> None:
    """Lead a new process group, reset signal handling, and get SIGTERM when the parent dies."""
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
        offer_to_oom_killer(os.getpid())


def _set_stdio(*, quiet: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if quiet:
        os.dup2(null, 1)
        os.dup2(null, 2)
    os.close(null)


def _take_environment(file: Path) -> dict[str, str]:
    env: dict[str, str] = json.loads(file.read_text())
    file.unlink()
    return env


def _apply_environment(env: dict[str, str], cwd: str) -> None:
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

    if _prefect_settings(before) != _prefect_settings(env) or _has_settings_file(Path.cwd()):
        prefect_private.refresh_settings()


def _split_path(value: str | None) -> list[str]:
    return [str(Path(entry).absolute()) for entry in (value or "").split(os.pathsep) if entry]


def _prefect_settings(env: dict[str, str]) -> dict[str, str]:
    """Select the variables behind Prefect's settings; those with a double underscore are about one run."""
    return {
        name: value
        for name, value in env.items()
        if name == "HOME" or (name.startswith("PREFECT_") and not name.startswith("PREFECT__"))
    }


def _has_settings_file(folder: Path) -> bool:
    return any((folder / name).exists() for name in (".env", "prefect.toml", "pyproject.toml"))


def _reset_inherited_state() -> None:
    """Seed the random generators, of which every fork has a copy, and collect garbage again."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    gc.enable()


def _run_module(module: str, argv: list[str]) -> int:
    """Run a module as `python -m` does and return its exit code."""
    sys.modules.pop(module, None)  # so that it exists as __main__ only, as in a new interpreter
    sys.argv = [module, *argv]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.__context__, TerminationSignal):  # the run was cancelled, or stopped with its worker
            _end_mlflow_runs("KILLED")
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
        return 1
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        if isinstance(error, TerminationSignal):
            _end_mlflow_runs("FAILED")
        traceback.print_exc()
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end_mlflow_runs(status: str) -> None:
    """End the MLflow runs that a stopped run has open; MLflow's exit function would end them as FINISHED."""
    mlflow = sys.modules.get("mlflow")
    while mlflow and mlflow.active_run():
        mlflow.end_run(status)


def _finish() -> None:
    """Do what the interpreter does at exit, except to tear down modules."""
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:  # noqa: BLE001 - an exit function that fails must not prevent the next one
            traceback.print_exc()
