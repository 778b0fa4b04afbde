"""Prefect's side of an installation: work pool, automations, results block, deployments and the first run."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydantic import SecretStr

import trainyard.flows
from infra.object_store import ObjectStore
from infra.provision.api import create_flow_run, find_deployments, prefect_api, retry_transient
from infra.provision.automations import (
    find_automations,
    lost_run_automations,
    mail_alerts,
    mail_run_events,
    save_automation,
)
from infra.provision.settings import Settings
from infra.provision.storage import RESULTS_USER
from trainyard.contract import Bucket, Resource, RunTag

LIBRARY = Path(str(files(trainyard)))
PLATFORM_FILE, PROJECT_FILE = LIBRARY / "flows" / "prefect.yaml", Path("prefect.yaml")
WORK_POOL, QUEUES = f"/work_pools/{Resource.WORK_POOL}", f"/work_pools/{Resource.WORK_POOL}/queues"
# Mail has a queue of its own, so that mails that wait for a slow server leave the worker's slots to runs.
MAX_CONCURRENT_MAILS = 2
POLL_SECONDS = 0.2
# From a first start that was interrupted to the next one.
MAX_FIRST_START = timedelta(days=7)
MISSING_PACKAGE = (
    "A package that the image lacks goes into your project's pyproject.toml; then `make lock` and `make up`."
)


class DeployError(Exception):
    """The deployments could not be registered; the message says why and what to do."""


def provision_platform(settings: Settings, wait_seconds: float = 0) -> None:
    """Create or update work pool, queues, results block and automations; do nothing if they are current.

    No flow is imported.

    Args:
        settings: Of the installation.
        wait_seconds: How long to wait for the deployment that sends mail, which may be in the making.

    Raises:
        DeployError: There is no such deployment.
        httpx.HTTPError: Prefect refused a request or did not answer.
    """
    with prefect_api(settings) as api:
        fingerprint = compute_platform_fingerprint(settings)
        if recorded_fingerprint(api, Resource.PROVISIONED) == fingerprint and is_platform_complete(api, settings):
            return
        ensure_work_pool(api)
        for automation in lost_run_automations():
            save_automation(api, automation)
        if settings.store:
            save_results_block(settings, settings.store)
        save_mail_automations(api, settings, wait_seconds)
        record_fingerprint(api, Resource.PROVISIONED, fingerprint)


def provision_deployments(settings: Settings, wait_seconds: float = 0) -> None:
    """Create or update the deployments of platform and project; do nothing if they are current.

    Of a further project only its own, which are put on the work queue of the settings. The flows' modules are executed.

    Args:
        settings: Of the installation.
        wait_seconds: How long to wait for the work pool, which may be in the making.

    Raises:
        DeployError: prefect.yaml or a flow is wrong, another project has a deployment of the same name, or there is no
            work pool.
        httpx.HTTPError: Prefect refused a request or did not answer.
    """
    queue = settings.work_queue
    files = [PROJECT_FILE] if queue else [PLATFORM_FILE, PROJECT_FILE]
    variable = f"{Resource.DEPLOYED}_{queue}" if queue else Resource.DEPLOYED
    with prefect_api(settings) as api:
        fingerprint = compute_deployments_fingerprint(settings)
        names = {entry["name"] for file in files for entry in read_entries(file)}
        existing = find_deployments(api, *names) if names else []
        if queue:
            refuse_others_deployments(existing, queue)
        if recorded_fingerprint(api, variable) == fingerprint and {each["name"] for each in existing} == names:
            return
        wait_for_work_pool(api, wait_seconds)
        for file in files:
            deploy(file, queue)
        record_fingerprint(api, variable, fingerprint)


def wait_for_work_pool(api: httpx.Client, seconds: float) -> None:
    """Return once the work pool is there, with the job template of this version.

    Raises:
        DeployError: It is not there in time.
        httpx.HTTPError: Prefect refused a request or did not answer.
    """
    deadline, fingerprint = time.monotonic() + seconds, compute_template_fingerprint()
    while recorded_fingerprint(api, Resource.POOL_TEMPLATE) != fingerprint or not api.get(WORK_POOL).is_success:
        if time.monotonic() >= deadline:
            raise DeployError(f"There is no work pool {Resource.WORK_POOL} of this version: `make up` creates it.")
        time.sleep(POLL_SECONDS)


def refuse_others_deployments(existing: Iterable[dict[str, Any]], queue: str) -> None:
    """Refuse to replace deployments that are on another work queue than a further project's.

    Raises:
        DeployError: One is; the message names it.
    """
    for deployment in existing:
        if deployment["work_queue_name"] != queue:
            raise DeployError(
                f"The deployment {deployment['full_name']} exists already, on the work queue"
                f" {deployment['work_queue_name']}: choose another name in {PROJECT_FILE}, or delete that one."
            )


def compute_platform_fingerprint(settings: Settings) -> str:
    """Return a digest of everything that decides what work pool, block and automations look like."""
    mail = [automation("", settings.mail_events) for automation in (mail_run_events, mail_alerts)]
    user, key = results_account(settings)
    decisive = f"{settings.store} {settings.s3_ca} {lost_run_automations()} {mail} {user} {key.get_secret_value()}"
    return compute_fingerprint(decisive, job_variables_files())


def compute_template_fingerprint() -> str:
    """Return a digest of what the work pool's job template is made of."""
    return compute_fingerprint("", job_variables_files())


def compute_deployments_fingerprint(settings: Settings) -> str:
    """Return a digest of everything that decides what the deployments look like."""
    decisive = f"{settings.work_queue} {settings.schedules_active}"
    return compute_fingerprint(decisive, [PROJECT_FILE, *sorted(Path("flows").rglob("*.py"))])


def compute_fingerprint(decisive: str, decisive_files: Iterable[Path]) -> str:
    """Return a digest of some text, of some files, of the library and of Prefect's version."""
    digest = hashlib.sha256(importlib.metadata.version("prefect").encode())
    digest.update(decisive.encode())
    library = [file for suffix in ("py", "yaml") for file in LIBRARY.rglob(f"*.{suffix}")]
    for file in [*decisive_files, *sorted(library)]:
        digest.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def job_variables_files() -> list[Path]:
    """Return the file of the worker type that decides the work pool's job template, which takes seconds to make."""
    worker = importlib.util.find_spec("warm_process")
    return [Path(folder, "job.py") for folder in (worker.submodule_search_locations or [])] if worker else []


def recorded_fingerprint(api: httpx.Client, variable: str) -> str | None:
    """Return the fingerprint in a variable of Prefect, or None."""
    answer = api.get(f"/variables/name/{variable}")
    return None if answer.status_code == httpx.codes.NOT_FOUND else answer.raise_for_status().json()["value"]


@retry_transient
def record_fingerprint(api: httpx.Client, variable: str, fingerprint: str) -> None:
    """Store the fingerprint in a variable of Prefect."""
    body = {"name": variable, "value": fingerprint, "tags": [RunTag.PLATFORM]}
    answer = api.patch(f"/variables/name/{variable}", json=body)
    if answer.status_code == httpx.codes.NOT_FOUND:
        answer = api.post("/variables/", json=body)
    answer.raise_for_status()


def is_platform_complete(api: httpx.Client, settings: Settings) -> bool:
    """Return whether everything that was created for the platform still exists."""
    paths = [WORK_POOL, *(f"{QUEUES}/{queue}" for queue in (Resource.MAIL_QUEUE, Resource.PLATFORM_QUEUE))]
    if settings.store:
        block = f"{Resource.RESULTS_BLOCK_TYPE}/block_documents/name/{Resource.RESULTS_BLOCK}"
        paths.append(f"/block_types/slug/{block}")
    send_mail = {deployment["id"] for deployment in find_deployments(api, Resource.SEND_MAIL)}
    mailing = [find_automations(api, name) for name in (Resource.MAIL_RUN_EVENTS, Resource.MAIL_ALERTS)]
    return (
        all(find_automations(api, automation["name"]) for automation in lost_run_automations())
        # A deployment that was deleted and registered again has another id.
        and all(found and found[0]["actions"][0]["deployment_id"] in send_mail for found in mailing)
        and all(api.get(path).is_success for path in paths)
    )


def read_entries(file: Path) -> list[dict[str, Any]]:
    """Return the deployments of a file in Prefect's format.

    Raises:
        DeployError: It is not YAML, an entry has no name, or the file of an entry's flow does not exist.
    """
    try:
        entries: list[dict[str, Any]] = yaml.safe_load(file.read_text())["deployments"] or []
        locations = {entry["name"]: str(entry.get("entrypoint", "")) for entry in entries}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(f"{file} needs a list `deployments`, each with a name ({error!r}).") from error
    for name, entrypoint in locations.items():
        path, is_path, _ = entrypoint.rpartition(":")
        if is_path and not Path(path).is_file():
            raise DeployError(
                f"The deployment {name} of {file} names the file {path}, which does not exist:"
                " correct its entrypoint, or remove the entry."
            )
    return entries


@retry_transient
def ensure_work_pool(api: httpx.Client) -> None:
    """Create the work pool and the platform's queues, or reset the job template to the worker type's default.

    The limits of an existing pool or queue stay as they are, and so does a pause. Deployments wait for the digest that is
    recorded last.
    """
    from prefect.workers.base import BaseWorker

    worker_type = BaseWorker.get_worker_class_from_type(Resource.WORK_POOL_TYPE)
    assert worker_type is not None
    pool = {
        "description": "Where this installation's workers look for runs.",
        "base_job_template": worker_type.get_default_base_job_template(),
    }
    answer = api.get(WORK_POOL)
    if answer.status_code == httpx.codes.NOT_FOUND:
        pool |= {"name": Resource.WORK_POOL, "type": Resource.WORK_POOL_TYPE}
        api.post("/work_pools/", json=pool).raise_for_status()
    else:
        answer.raise_for_status()
        api.patch(WORK_POOL, json=pool).raise_for_status()
    ensure_queue(api, Resource.MAIL_QUEUE, "Mail about runs.", MAX_CONCURRENT_MAILS)
    ensure_queue(api, Resource.PLATFORM_QUEUE, "What only workers on the installation's own host can do.")
    record_fingerprint(api, Resource.POOL_TEMPLATE, compute_template_fingerprint())


@retry_transient
def ensure_queue(api: httpx.Client, name: str, description: str, limit: int | None = None) -> None:
    """Create a work queue; an existing one keeps its limit."""
    answer = api.get(f"{QUEUES}/{name}")
    if answer.status_code == httpx.codes.NOT_FOUND:
        answer = api.post(QUEUES, json={"name": name, "description": description, "concurrency_limit": limit})
    answer.raise_for_status()


def save_mail_automations(api: httpx.Client, settings: Settings, wait_seconds: float) -> None:
    """Create or update the automations that send mail about runs, once there is a deployment that does.

    Raises:
        DeployError: There is none in time.
        httpx.HTTPError: Prefect refused a request or did not answer.
    """
    deadline = time.monotonic() + wait_seconds
    while not (found := find_deployments(api, Resource.SEND_MAIL)):
        if time.monotonic() >= deadline:
            raise DeployError(f"There is no deployment {Resource.SEND_MAIL}: see `docker compose logs deploy`.")
        time.sleep(POLL_SECONDS)
    for automation in (mail_run_events, mail_alerts):
        save_automation(api, automation(found[0]["id"], settings.mail_events))


def results_account(settings: Settings) -> tuple[str, SecretStr]:
    """Return the account by which runs keep their results, and its key."""
    if settings.results_user:  # of an external S3
        return settings.results_user, settings.results_password
    return RESULTS_USER, settings.prefect_s3_secret_key


def save_results_block(settings: Settings, store: ObjectStore) -> None:
    """Save the block through which runs keep their results in the object store."""
    from prefect_aws import AwsClientParameters, MinIOCredentials, S3Bucket

    user, key = results_account(settings)
    bucket, folder = store.locate(Bucket.RESULTS)
    # As infra/secrets/external.py has it for MLflow.
    names = ("request_checksum_calculation", "response_checksum_validation") if store.is_external else ()
    checksums = dict.fromkeys(names, "when_required")
    client = AwsClientParameters(
        endpoint_url=store.endpoint,
        verify=True,  # without it a block that was loaded forgets the next line
        verify_cert_path=settings.s3_ca,
        config={"s3": {"addressing_style": "path" if store.has_paths else "virtual"}, **checksums},
    )
    credentials = MinIOCredentials(
        minio_root_user=user,
        minio_root_password=key,
        region_name=store.region or None,
        aws_client_parameters=client,
    )
    block = S3Bucket(bucket_name=bucket, bucket_folder=folder.rstrip("/"), credentials=credentials)
    block.save(Resource.RESULTS_BLOCK, overwrite=True)


def deploy(file: Path, queue: str | None = None) -> None:
    """Register every deployment of a file: `prefect deploy --all`, without starting another interpreter.

    Args:
        file: In Prefect's format.
        queue: The work queue of all of them; without it that which each names.

    Raises:
        DeployError: The file or a flow is wrong; the entries before it are registered.
    """
    from prefect.cli.deploy import deploy_app

    names, output = [entry["name"] for entry in read_entries(file)], io.StringIO()
    if not names:
        return
    try:
        with (
            contextlib.redirect_stdout(output),
            _on_queue(file, queue) as queued,
        ):  # Prefect's console then asks nothing
            deploy_app(["--all", "--prefect-file", str(queued)])
    except SystemExit as end:
        if end.code:
            reason = find_import_error(end) or output.getvalue()
            raise DeployError(f"{reason}\nNot deployed: correct {file} or the flow.") from end
    print(f"Deployed {', '.join(names)} on the work pool {Resource.WORK_POOL}.")


@contextlib.contextmanager
def _on_queue(file: Path, queue: str | None) -> Iterator[Path]:
    """Yield a copy of a file whose deployments are on a work queue, or without a queue the file itself."""
    if queue is None:
        yield file
        return
    document = yaml.safe_load(file.read_text())
    for entry in document["deployments"]:
        entry["work_pool"] = {"name": Resource.WORK_POOL, **(entry.get("work_pool") or {}), "work_queue_name": queue}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, file.name)
        copy.write_text(yaml.safe_dump(document, sort_keys=False))
        yield copy


def find_import_error(error: BaseException | None) -> str:
    """Return why a flow's module cannot be imported, or nothing; Prefect then looks for the flow in its source.

    Args:
        error: What Prefect ended with; the reason is among its causes.
    """
    from prefect.exceptions import ScriptError

    while error and not isinstance(error, ScriptError):
        error = error.__cause__ or error.__context__
    if not isinstance(error, ScriptError):
        return ""
    advice = f". {MISSING_PACKAGE}" if isinstance(error.user_exc, ModuleNotFoundError) else ""
    return f"{error}{advice}"


def find_first_runs(api: httpx.Client, first_run: str) -> list[dict[str, Any]]:
    """Return the deployments that the setting FIRST_RUN names: by their tag, or one by FLOW/DEPLOYMENT.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    if "/" not in first_run:
        return find_deployments(api, tag=first_run) if first_run else []
    named = find_deployments(api, first_run.rpartition("/")[2])
    return [deployment for deployment in named if deployment["full_name"] == first_run]


def start_first_runs(settings: Settings) -> None:
    """Schedule the installation's first runs; the idempotency key makes Prefect create each flow's only once.

    A variable holds the flows that had theirs, because Prefect deletes old runs. Before there was one, every deployment had
    its first run when it was made.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    with prefect_api(settings) as api:
        deployments = find_first_runs(api, settings.first_run)
        if "/" in settings.first_run and not deployments:
            print(f"There is no deployment {settings.first_run}, which FIRST_RUN names: no first run was started.")
        recorded = recorded_fingerprint(api, Resource.FIRST_RUNS)
        started = set((recorded or "").split())
        before = datetime.now(UTC) - MAX_FIRST_START
        for deployment in deployments:
            is_old = recorded is None and datetime.fromisoformat(deployment["created"]) < before
            if deployment["flow_id"] not in started and not is_old:
                state = {"type": "SCHEDULED", "message": "The installation's first run"}
                create_flow_run(api, deployment["id"], RunTag.FIRST_RUN, state=state).raise_for_status()
        if flows := {deployment["flow_id"] for deployment in deployments} - started:
            record_fingerprint(api, Resource.FIRST_RUNS, " ".join(sorted(started | flows)))
