"""Tasks on a Dask cluster, with the project's code as it is in the run that submits them."""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import distributed.protocol.pickle as protocol
from prefect_dask.task_runners import DaskTaskRunner


class ProjectTaskRunner(DaskTaskRunner):
    """Submits tasks together with the code of the project's modules."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        """Submit a task; takes and returns what Prefect's task runner does."""
        with project_by_value():
            return super().submit(*arguments, **options)


@contextmanager
def project_by_value() -> Iterator[None]:
    """Let what is sent to Dask meanwhile contain the functions and classes of the project's modules that are loaded by now.

    Otherwise they are sent by name. A worker may lack the module, where the run has fetched its code, and imports it only once:
    it would go on with the code of before an edit. Results that the run stores have names, as without Dask.
    """
    sent, plain = cloudpickle.list_registry_pickle_by_value(), protocol.pickle  # type: ignore[attr-defined]
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name not in sent and is_of_project(name, getattr(module, "__file__", None))
    ]
    names = {name: getattr(pickle, name) for name in ("dumps", "loads", "Pickler", "HIGHEST_PROTOCOL")}
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    # Dask would try plain pickle first.
    protocol.pickle = SimpleNamespace(**names | {"dumps": cloudpickle.dumps})  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        protocol.pickle = plain  # type: ignore[attr-defined]
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def is_of_project(name: str, file: str | None) -> bool:
    """Return whether a module lies in the run's folder or the project's, and is none of the platform or of a package."""
    if not file or name.partition(".")[0] in ("__main__", "trainyard") or "site-packages" in Path(file).parts:
        return False
    folders = (Path.cwd(), Path(os.environ.get("TRAINYARD_HOME", ".")).resolve())
    return any(folder in Path(file).resolve().parents for folder in folders)
