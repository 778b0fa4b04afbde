"""Provision an installation, register its deployments, or run one of them.

platform                           accounts, buckets, work pool, block and automations, with the administrators' secrets and
                                   without any flow's code; changes nothing that is current
project                            the deployments of the platform and of prefect.yaml, and the first runs; with WORK_QUEUE
                                   only those of a further project, on that queue
deploy                             the deployments alone
run DEPLOYMENT [PARAMETERS]        start a run, print its log, exit by its outcome; PARAMETERS are a JSON object
"""

import argparse
import json
import sys

import httpx
from minio.error import MinioException
from pydantic import ValidationError
from urllib3.exceptions import HTTPError as StorageUnreachable

from infra.provision.accounts import provision_accounts
from infra.provision.api import prefect_api
from infra.provision.deployments import DeployError, provision_deployments, provision_platform, start_first_runs
from infra.provision.follow import RunError, follow, start_run
from infra.provision.settings import Settings
from infra.provision.storage import ObjectStoreError, provision_storage

MAX_WAIT_SECONDS = 120.0  # `platform` and `project` run side by side and wait for parts of each other's


def print_addresses(settings: Settings) -> None:
    """Print where the services are."""
    dashboard = f"  Dashboard  {settings.dashboard_ui_url}\n" if settings.dashboard_ui_url else ""
    serving = f"  Serving    {settings.serving_ui_url}/docs\n" if settings.serving_ui_url else ""
    print(
        f"Trainyard is ready.\n{dashboard}"
        f"  Prefect    {settings.prefect_ui_url}\n"
        f"  MLflow     {settings.mlflow_ui_url}\n"
        f"{serving}"
        "Accounts and passwords: docker compose run --rm secrets info"
    )


def parse_parameters(text: str) -> dict[str, object]:
    """Return the fields of a JSON object.

    Raises:
        argparse.ArgumentTypeError: The text is not a JSON object.
    """
    try:
        parameters = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"the parameters are not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise argparse.ArgumentTypeError('the parameters must be a JSON object, such as {"count": 3}')
    return parameters


def main() -> None:
    """Run the command; exit with one message on an error that a user can correct."""
    parser = argparse.ArgumentParser(prog="provision", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("platform", "project", "deploy"):
        commands.add_parser(command)
    run = commands.add_parser("run")
    run.add_argument("deployment")
    run.add_argument("parameters", nargs="?", default="{}", type=parse_parameters)
    arguments = parser.parse_args()

    try:
        settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    except ValidationError as error:
        found = {str(problem["loc"][0]).upper(): problem["msg"] for problem in error.errors()}
        sys.exit("".join(f"{name}: {text.removeprefix('Value error, ')}.\n" for name, text in found.items()).strip())
    try:
        match arguments.command:
            case "platform":
                if settings.store:
                    provision_storage(settings, settings.store)
                if settings.mlflow_tracking_username:
                    provision_accounts(settings)
                provision_platform(settings, MAX_WAIT_SECONDS)
            case "project":
                provision_deployments(settings, MAX_WAIT_SECONDS)
                start_first_runs(settings)
                if settings.work_queue is None:
                    print_addresses(settings)
            case "deploy":
                provision_deployments(settings)
                print("The deployments of prefect.yaml are registered. Start one with: make run DEPLOYMENT=...")
            case "run":
                with prefect_api(settings) as api:
                    run_id = start_run(api, arguments.deployment, arguments.parameters, settings.prefect_ui_url)
                    sys.exit(0 if follow(api, run_id) else 1)
    except (DeployError, RunError, ObjectStoreError) as error:
        sys.exit(str(error))
    except httpx.HTTPError as error:
        sys.exit(f"A request to a server failed: {error}. See `make logs`.")
    except (MinioException, StorageUnreachable) as error:
        sys.exit(f"A request to the object store failed: {error}. See `make logs`.")
    except KeyboardInterrupt:
        sys.exit("Stopped following; the run continues. You can cancel it in Prefect's UI.")


if __name__ == "__main__":
    main()
