"""Run the platform without Docker.

demo    run the deployments with the tag `first-run` through the worker, print the models' scores, and end
ui      serve Prefect's and MLflow's UIs over the same data, with a worker, until Ctrl-C
"""

import os
import signal
import sys
import time
import webbrowser
from pathlib import Path

import httpx

from infra.embedded.scores import print_scores
from infra.embedded.servers import ServerError, Servers
from infra.provision.api import prefect_api
from infra.provision.deployments import (
    DeployError,
    ensure_work_pool,
    find_first_runs,
    provision_deployments,
    provision_platform,
)
from infra.provision.follow import RunError, follow, start_run
from infra.provision.settings import Settings
from trainyard.contract import RunTag

CHECKOUT = Path(__file__).resolve().parents[2]
HOME = (CHECKOUT / os.environ.get("PROJECT", "")).resolve()  # the project's folder, or the checkout with its examples
STATE = HOME / ".demo"


def provisioning_settings(servers: Servers) -> Settings:
    """Return the settings of an installation without accounts, object store and mail."""
    return Settings(
        prefect_api_url=f"{servers.prefect_address}/api",
        prefect_ui_url=servers.prefect_address,
        mlflow_tracking_uri=servers.mlflow_address,
        mlflow_ui_url=servers.mlflow_address,
        mail_events=(),
    )


def start_worker_and_deploy(servers: Servers) -> Settings:
    """Start the worker on running servers and register the deployments; return the settings of provisioning."""
    settings = provisioning_settings(servers)
    os.environ.update({name: value for name, value in servers.environment.items() if name.startswith("PREFECT_")})
    os.environ["SCHEDULES_ACTIVE"] = "false"  # runs that come due while no worker is up would pile up
    with prefect_api(settings) as api:
        ensure_work_pool(api)
    servers.start_worker()  # starts up while the flows are deployed
    provision_deployments(settings)
    provision_platform(settings)
    return settings


def demo() -> bool:
    """Run the deployments with the tag `first-run` through the worker.

    Returns:
        Whether all of them completed.
    """
    start = time.monotonic()
    print("Starting Prefect and MLflow; the first start creates their databases ...", flush=True)
    with Servers(HOME, STATE, prefect_port=4200, mlflow_port=5001) as servers:
        print(
            f"Both are ready after {time.monotonic() - start:.0f} s. Deploying, and starting a worker ...", flush=True
        )
        settings = start_worker_and_deploy(servers)
        with prefect_api(settings) as api:
            deployments = find_first_runs(api, RunTag.FIRST_RUN)
            if not deployments:
                print(f"No deployment of prefect.yaml has the tag {RunTag.FIRST_RUN}: nothing was run.")
            for deployment in deployments:
                run_id = start_run(api, deployment["full_name"], {}, settings.prefect_ui_url)
                if not follow(api, run_id):
                    return False
                print_scores(servers.mlflow_address, run_id)
    print(f"\nDone after {time.monotonic() - start:.0f} s. Look around in both UIs: make ui")
    return True


def ui() -> None:
    """Serve both UIs until Ctrl-C."""
    print("Starting Prefect and MLflow ...", flush=True)
    with Servers(HOME, STATE, prefect_port=4200, mlflow_port=5001) as servers:
        start_worker_and_deploy(servers)
        print(f"Prefect  {servers.prefect_address}\nMLflow   {servers.mlflow_address}\nCtrl-C ends both.", flush=True)
        for address in (servers.prefect_address, servers.mlflow_address):
            webbrowser.open(address)
        servers.wait()


def main() -> None:
    """Run the command; exit with one message on an error that a user can correct."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the servers too
    os.chdir(HOME)
    sys.path.insert(0, str(HOME))  # before the checkout, which has flows/ too
    try:
        match sys.argv[1:]:
            case ["demo"]:
                sys.exit(0 if demo() else 1)
            case ["ui"]:
                ui()
            case _:
                sys.exit(__doc__)
    except (ServerError, DeployError, RunError) as error:
        sys.exit(str(error))
    except httpx.HTTPError as error:
        sys.exit(f"A request to a server failed: {error}. The logs: {STATE / 'logs'}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
