"""Prefect's side of an installation: work pool, automations, block for results, deployments and the first run."""

import contextlib
import hashlib
import importlib.metadata
import io
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from infra.provision.api import find_deployments, prefect_api
from infra.provision.automations import (
    CRASH_LOST_RUNS,
    MAIL_ALERTS,
    MAIL_RUN_EVENTS,
    find_automations,
    mail_alerts,
    mail_run_events,
    save_automation,
)
from infra.provision.settings import Settings
from infra.provision.storage import RESULTS_BUCKET, RESULTS_USER

WORK_POOL, WORK_POOL_TYPE = "training", "warm-process"
RESULTS_BLOCK = "results"
VARIABLE = "trainyard_provisioned"  # Prefect's own database remembers what was done to it
PROJECT_FILE = Path("prefect.yaml")
MAIL_DEPLOYMENT = "send-mail"
# Mails have a queue of their own, so that those that wait for a slow mail server leave the worker's places to runs.
MAIL_QUEUE, MAILS_AT_ONCE = "mail", 2


class DeployError(Exception):
    """The deployments could not be registered; the message holds what Prefect said."""


def provision_deployments(settings: Settings) -> None:
    """Make work pool, automations, results block and deployments, where they are not as the project's files say.

    Raises:
        DeployError: prefect.yaml or a flow is wrong.
        httpx.HTTPError: Prefect refused a step or did not answer.
    """
    with prefect_api(settings) as api:
        fingerprint = fingerprint_of_project(settings)
        if recorded_fingerprint(api) == fingerprint and is_complete(api, settings):
            return
        make_work_pool(api)
        save_automation(api, CRASH_LOST_RUNS)
        if settings.minio_address:
            save_results_block(settings)
        make_mail_queue(api)
        deploy()
        save_mail_automations(api, settings)
        record_fingerprint(api, fingerprint)


def fingerprint_of_project(settings: Settings) -> str:
    """Return a digest of everything that decides what the deployments and blocks look like."""
    digest = hashlib.sha256(importlib.metadata.version("prefect").encode())
    digest.update(f"{WORK_POOL_TYPE} {settings.minio_address} {settings.schedules_active} {CRASH_LOST_RUNS}".encode())
    digest.update(f"{[make('', settings.mail_events) for make in (mail_run_events, mail_alerts)]}".encode())
    digest.update(settings.prefect_s3_secret_key.get_secret_value().encode())
    for file in [PROJECT_FILE, *sorted(Path("flows").rglob("*.py"))]:
        digest.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def recorded_fingerprint(api: httpx.Client) -> str | None:
    """Return the digest of what was deployed last, or None."""
    answer = api.get(f"/variables/name/{VARIABLE}")
    return None if answer.status_code == httpx.codes.NOT_FOUND else answer.raise_for_status().json()["value"]


def record_fingerprint(api: httpx.Client, fingerprint: str) -> None:
    """Remember what was deployed."""
    variable = {"name": VARIABLE, "value": fingerprint, "tags": ["trainyard"]}
    changed = api.patch(f"/variables/name/{VARIABLE}", json=variable)
    if changed.status_code == httpx.codes.NOT_FOUND:
        changed = api.post("/variables/", json=variable)
    changed.raise_for_status()


def is_complete(api: httpx.Client, settings: Settings) -> bool:
    """Tell whether nobody has deleted what was made."""
    names = set(deployment_names())
    there = {deployment["name"] for deployment in find_deployments(api, *names)}
    needed = [f"/work_pools/{WORK_POOL}", f"/work_pools/{WORK_POOL}/queues/{MAIL_QUEUE}"]
    if settings.minio_address:
        needed.append(f"/block_types/slug/s3-bucket/block_documents/name/{RESULTS_BLOCK}")
    watched = all(find_automations(api, name) for name in (CRASH_LOST_RUNS["name"], MAIL_RUN_EVENTS, MAIL_ALERTS))
    return names == there and watched and all(api.get(path).is_success for path in needed)


def deployment_names() -> Iterator[str]:
    """Yield the names that prefect.yaml gives.

    Raises:
        DeployError: It is not YAML, or an entry has no name.
    """
    try:
        project = yaml.safe_load(PROJECT_FILE.read_text())
        yield from [deployment["name"] for deployment in project["deployments"]]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DeployError(f"{PROJECT_FILE} is not as it should be: each deployment needs a name ({error}).") from error


def make_work_pool(api: httpx.Client) -> None:
    """Make the pool with its type's default job template, or bring it back to that.

    Limits and the pause of a pool that is there stay as they are.
    """
    from prefect.workers.base import BaseWorker

    worker_type = BaseWorker.get_worker_class_from_type(WORK_POOL_TYPE)
    assert worker_type is not None
    pool = {
        "description": "Where this installation's workers look for runs.",
        "base_job_template": worker_type.get_default_base_job_template(),
    }
    there = api.get(f"/work_pools/{WORK_POOL}")
    if there.status_code == httpx.codes.NOT_FOUND:
        api.post("/work_pools/", json={"name": WORK_POOL, "type": WORK_POOL_TYPE, **pool}).raise_for_status()
    else:
        there.raise_for_status()
        api.patch(f"/work_pools/{WORK_POOL}", json=pool).raise_for_status()


def make_mail_queue(api: httpx.Client) -> None:
    """Make the queue of the flow that sends mail; a limit that somebody gave it stays."""
    queues = f"/work_pools/{WORK_POOL}/queues"
    there = api.get(f"{queues}/{MAIL_QUEUE}")
    if there.status_code == httpx.codes.NOT_FOUND:
        queue = {"name": MAIL_QUEUE, "description": "Mail about runs.", "concurrency_limit": MAILS_AT_ONCE}
        there = api.post(queues, json=queue)
    there.raise_for_status()


def save_mail_automations(api: httpx.Client, settings: Settings) -> None:
    """Save the automations that have mail sent about runs.

    Raises:
        DeployError: prefect.yaml has not the deployment that sends it.
    """
    found = find_deployments(api, MAIL_DEPLOYMENT)
    if not found:
        raise DeployError(f"{PROJECT_FILE} needs the deployment {MAIL_DEPLOYMENT}, which sends the mail about runs.")
    for make in (mail_run_events, mail_alerts):
        save_automation(api, make(found[0]["id"], settings.mail_events))


def save_results_block(settings: Settings) -> None:
    """Save the block `s3-bucket/results`, through which runs keep their results in the object store."""
    from prefect_aws import AwsClientParameters, MinIOCredentials, S3Bucket

    credentials = MinIOCredentials(
        minio_root_user=RESULTS_USER,
        minio_root_password=settings.prefect_s3_secret_key,
        aws_client_parameters=AwsClientParameters(
            endpoint_url=settings.minio_address, config={"s3": {"addressing_style": "path"}}
        ),
    )
    S3Bucket(bucket_name=RESULTS_BUCKET, credentials=credentials).save(RESULTS_BLOCK, overwrite=True)


def deploy() -> None:
    """Register every deployment of prefect.yaml: what `prefect deploy --all` does, in this process.

    Raises:
        DeployError: prefect.yaml or a flow is wrong; entries before it are registered.
    """
    names = list(deployment_names())
    arguments, output = sys.argv, io.StringIO()
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_module("prefect", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise DeployError(f"{output.getvalue()}\nNot deployed: mend {PROJECT_FILE} or the flow.") from end
    finally:
        sys.argv = arguments
    print(f"Deployed {', '.join(names)} on the work pool {WORK_POOL}.")


def start_first_run(settings: Settings) -> str | None:
    """Schedule the installation's first run; its idempotency key makes Prefect do so only once.

    Returns:
        The run's id, or None where the settings name none.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    if not settings.first_run:
        return None
    body: dict[str, Any] = {
        "idempotency_key": "first-run",
        "state": {"type": "SCHEDULED", "message": "The installation's first run"},
    }
    with prefect_api(settings) as api:
        deployment = api.get(f"/deployments/name/{settings.first_run}").raise_for_status().json()
        run = api.post(f"/deployments/{deployment['id']}/create_flow_run", json=body)
        return str(run.raise_for_status().json()["id"])
