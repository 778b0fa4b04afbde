"""Where tasks run in parallel, by one setting: on the cores of the run, or on a Dask cluster (infra/compose/dask.yml)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from joblib import cpu_count
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from distributed import Client


class ClusterSettings(BaseSettings):
    """Where tasks run."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    dask_scheduler_address: str | None = None
    """A Dask scheduler such as tls://scheduler:8786; without it tasks run on the cores of the run (job variable `threads`)."""


def task_runner() -> TaskRunner[Any]:
    """Return a task runner of the Dask cluster where one is set, else one with a thread for each core that the run may use.

    For the search, and for flows of your own: `@flow(task_runner=task_runner())`, then `task.map(...)` or `task.submit(...)`.
    """
    if address := ClusterSettings().dask_scheduler_address:
        from trainyard.dask_tasks import ProjectTaskRunner  # imports Dask

        return ProjectTaskRunner(address=address)
    return ThreadPoolTaskRunner(max_workers=cpu_count())


@contextmanager
def cluster() -> Iterator["Client"]:
    """Yield a client of the Dask cluster, or of one in this process where none is set; Dask's own functions use it meanwhile.

    For data frames that do not fit one machine (`trainyard.large`).
    """
    from distributed import Client, LocalCluster

    from trainyard.dask_tasks import project_by_value

    if address := ClusterSettings().dask_scheduler_address:
        with project_by_value(), Client(address) as client:
            yield client
        return
    here = LocalCluster(n_workers=1, threads_per_worker=cpu_count(), processes=False, dashboard_address="127.0.0.1:0")
    with here, Client(here) as client:
        yield client
