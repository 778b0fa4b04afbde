"""Run the platform without Docker.

demo    train the weather model through the worker, print how good it is, and end
ui      serve Prefect's and MLflow's UIs over the same data, with a worker, until Ctrl-C
"""

import os
import signal
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

import httpx

from infra.embedded.servers import ServerError, Servers
from infra.provision.api import prefect_api
from infra.provision.deployments import DeployError, make_work_pool, provision_deployments
from infra.provision.follow import RunError, follow, start_run
from infra.provision.settings import Settings

HOME = Path(__file__).resolve().parents[2]
STATE = HOME / ".demo"
DEPLOYMENT = "weather-pipeline"
TABLE = (("log loss", "log_loss"), ("Brier score", "brier"), ("ROC AUC", "roc_auc"), ("accuracy", "accuracy"))


def settings_of(servers: Servers) -> Settings:
    """Return what provisioning must know of these servers: no accounts, object store, mail server or first run."""
    return Settings(
        prefect_api_url=f"{servers.prefect_address}/api",
        prefect_ui_url=servers.prefect_address,
        mlflow_tracking_uri=servers.mlflow_address,
        mlflow_ui_url=servers.mlflow_address,
        mail_events=(),
    )


def started(servers: Servers) -> Settings:
    """Start the worker on running servers and deploy."""
    settings = settings_of(servers)
    os.environ.update({name: value for name, value in servers.environment.items() if name.startswith("PREFECT_")})
    os.environ["SCHEDULES_ACTIVE"] = "false"  # what is due while no worker is there would pile up
    with prefect_api(settings) as api:
        make_work_pool(api)
    servers.start_worker()  # it comes up while the flows are deployed
    provision_deployments(settings)
    return settings


def demo() -> bool:
    """Train through the worker.

    Returns:
        Whether the run completed.
    """
    start = time.monotonic()
    print("Starting Prefect and MLflow; the first start makes their databases ...", flush=True)
    with Servers(HOME, STATE, prefect_port=4200, mlflow_port=5001) as servers:
        print(f"Both answer after {time.monotonic() - start:.0f} s. Deploying, and starting a worker ...", flush=True)
        settings = started(servers)
        with prefect_api(settings) as api:
            run_id = start_run(api, DEPLOYMENT, {}, settings.prefect_ui_url)
            if not follow(api, run_id):
                return False
        print_scores(servers.mlflow_address, run_id)
    print(f"\nDone after {time.monotonic() - start:.0f} s. Look around in both UIs: make ui")
    return True


def print_scores(mlflow: str, flow_run_id: str) -> None:
    """Print the metrics that a flow run came to, the model's beside the baselines'."""
    api = f"{mlflow}/api/2.0/mlflow"
    experiment = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": "weather"}).raise_for_status()
    search: dict[str, Any] = {
        "experiment_ids": [experiment.json()["experiment"]["experiment_id"]],
        "filter": f"tags.`prefect.last_flow_run_id` = '{flow_run_id}'",
        "max_results": 1,
    }
    (run,) = httpx.post(f"{api}/runs/search", json=search).raise_for_status().json()["runs"]
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    print(f"\nWill it rain tomorrow? {tags['place']}, data from {tags['data_source']}\n")
    print(f"{'':17} {'model':>8} {'persistence':>12} {'climatology':>12}")
    for title, name in TABLE:
        model, *baselines = (metrics[f"{who}_{name}"] for who in ("model", "persistence", "climatology"))
        print(f"{title:17} {model:8.3f} {baselines[0]:12.3f} {baselines[1]:12.3f}")


def ui() -> None:
    """Serve both UIs until Ctrl-C."""
    print("Starting Prefect and MLflow ...", flush=True)
    with Servers(HOME, STATE, prefect_port=4200, mlflow_port=5001) as servers:
        started(servers)
        print(f"Prefect  {servers.prefect_address}\nMLflow   {servers.mlflow_address}\nCtrl-C ends both.", flush=True)
        for address in (servers.prefect_address, servers.mlflow_address):
            webbrowser.open(address)
        servers.wait()


def main() -> None:
    """Do what the command line says; end with one message where it cannot be done."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the servers too
    os.chdir(HOME)
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
        sys.exit(f"A server did not answer as it should: {error}. The logs: {STATE / 'logs'}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
