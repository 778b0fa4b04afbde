"""Say what is wrong with the platform, and what mends it; keep the list for the dashboard.

Runs in a container of the worker's image. Standard input is a tar of what only the host can see (`infra/diagnose`): files
that may all be missing, as where a container does not run.
"""

import contextlib
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import httpx

from infra.diagnosis import backups, databases, host
from infra.diagnosis.imports import examine_code_of_deployments
from infra.diagnosis.mail import examine_mail
from trainyard.contract import Resource, RunTag
from trainyard.diagnosis import Examination, Finding, Report, examine_prefect

TIMEOUT_SECONDS = 15.0
FIRST_PROJECT_QUEUES = ("default", Resource.MAIL_QUEUE, Resource.PLATFORM_QUEUE)
"""Of an installation with a second project, whose deployments have another image."""

Facts = Mapping[str, str]


def read_facts(stream: IO[bytes]) -> dict[str, str]:
    """Return the text of each file of a tar, by its name."""
    facts = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if content := archive.extractfile(member):
                facts[Path(member.name).name] = content.read().decode(errors="replace")
    return facts


def examine_host(facts: Facts) -> list[Finding]:
    """Return what the facts of the host say."""
    findings = []
    if "inspected" in facts:
        findings += host.examine_containers(facts["services"].split(), facts["inspected"])
        findings += host.examine_images(facts["inspected"], facts.get("images", ""))
    findings += host.examine_code(facts.get("code", ""))
    findings += host.examine_secrets(facts.get("secrets", ""), facts.get("services", "").split())
    if "clock" in facts:
        findings += host.examine_clock(facts["clock"])
    return findings


def examine_machine() -> list[Finding]:
    """Return whether memory or disk of this container's machine are nearly full."""
    meminfo, volume = Path("/proc/meminfo"), os.environ.get("WARM_PROCESS_STATE_DIR", "/")
    usage = shutil.disk_usage(volume)
    return [
        *(host.examine_memory(meminfo.read_text()) if meminfo.exists() else []),
        *host.examine_disk(usage.total, usage.free),
    ]


def examine_databases(facts: Facts) -> list[Finding]:
    """Return what is wrong with the databases whose schema and indexes were read."""
    findings = []
    for fact, indexes in facts.items():
        kind, _, name = fact.partition("-")
        if kind == "indexes" and f"schema-{name}" in facts:
            revision = facts.get(f"revision-{name}", "").strip()
            findings += databases.examine_database(name, facts[f"schema-{name}"], indexes, revision)
    return findings


def prefect_client() -> httpx.Client:
    """Return a client of the installation's Prefect."""
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    auth = httpx.BasicAuth(user, password) if user else None
    return httpx.Client(base_url=os.environ["PREFECT_API_URL"], auth=auth, timeout=TIMEOUT_SECONDS)


def ask(examination: Examination, prefect: httpx.Client) -> list[Finding]:
    """Answer the questions of an examination.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    try:
        path, body = next(examination)
        while True:
            path, body = examination.send(prefect.post(path, json=body).raise_for_status().json())
    except StopIteration as end:
        found: list[Finding] = end.value
        return found


def read_deployments(prefect: httpx.Client, facts: Facts) -> list[dict[str, Any]]:
    """Return the deployments whose code is in this image.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    deployments: list[dict[str, Any]] = []
    while page := prefect.post("/deployments/filter", json={"offset": len(deployments)}).raise_for_status().json():
        deployments += page
    if "second-worker" in facts.get("services", "").split():
        return [each for each in deployments if each["work_queue_name"] in FIRST_PROJECT_QUEUES]
    return deployments


def guard(subject: str, examination: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what an examination finds, also where it fails: the others go on."""
    try:
        return examination()
    except Exception as error:  # noqa: BLE001 - what is not as expected is what this looks for
        problem = f"{subject} could not be examined: {type(error).__name__}: {error}."
        return [Finding(problem, "see the finding before this one; if there is none, report it as an issue")]


def examine(facts: Facts, prefect: httpx.Client) -> tuple[list[Finding], list[Finding]]:
    """Return what is wrong: what Prefect tells, which the dashboard asks itself, and everything else."""
    now = datetime.now(UTC)
    deployments: list[dict[str, Any]] = []
    try:
        asked = ask(examine_prefect(now), prefect)
        deployments = read_deployments(prefect, facts)
    except httpx.HTTPError as error:
        problem = f"Prefect does not answer, so runs and deployments were not examined: {error}."
        if isinstance(error, httpx.HTTPStatusError):
            problem = f"Prefect answers with {error.response.status_code}, so runs and deployments were not examined."
        asked = [Finding(problem, host.LOGS.format("prefect"))]
    return asked, [
        *guard("The containers", lambda: examine_host(facts)),
        *guard("The machine", examine_machine),
        *guard("The databases", lambda: examine_databases(facts)),
        *guard("Mail", examine_mail),
        *guard("The deployments' code", lambda: examine_code_of_deployments(deployments)),
        *guard("The backups", lambda: backups.examine_backups(facts["backups"], now) if "backups" in facts else []),
    ]


def keep(findings: Sequence[Finding], prefect: httpx.Client) -> None:
    """Keep the findings in a variable of Prefect, where the dashboard reads them."""
    body = {"name": Resource.DIAGNOSIS, "value": Report(time.time(), findings).to_json(), "tags": [RunTag.PLATFORM]}
    answer = prefect.patch(f"/variables/name/{Resource.DIAGNOSIS}", json=body)
    if answer.status_code == httpx.codes.NOT_FOUND:
        prefect.post("/variables/", json=body)


def main() -> None:
    """Print the findings; exit with 1 where there are some."""
    facts = read_facts(sys.stdin.buffer)
    with prefect_client() as prefect:
        asked, others = examine(facts, prefect)
        for finding in (findings := [*asked, *others]):
            print(f"✗ {finding.problem}\n  → {finding.remedy}", flush=True)
        # The checks of the host, which have been printed by then, have the remedy in their sentence.
        checks = [Finding(line, "") for line in facts.get("host", "").splitlines() if line]
        with contextlib.suppress(httpx.HTTPError):  # said above
            keep([*checks, *others], prefect)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
