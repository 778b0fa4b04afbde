"""What only the host sees, as `infra/diagnose` collects it: containers, images, clock; and the machine's memory and disk."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from trainyard.diagnosis import Finding

GIB, GB = 1 << 30, 10**9
MAX_CLOCK_SECONDS = 5.0
MIN_AVAILABLE_SHARE, MIN_AVAILABLE_BYTES = 0.08, 300 << 20
MIN_FREE_SHARE, MIN_FREE_BYTES = 0.1, 5 * GB
LOGS = "docker compose logs --tail 50 {}"
SECRETS_OF = re.compile(r"The secrets of ([a-z-]+) are not what")
MEMORY_SETTINGS = ("postgres", "minio", "prefect", "mlflow", "worker", "serving", "dashboard", "backup")


def examine_containers(services: Iterable[str], inspected: str) -> list[Finding]:
    """Return what is wrong with the containers.

    Args:
        services: Those of the compose files.
        inspected: What `docker inspect` prints of the project's containers.
    """
    containers = {}
    for container in json.loads(inspected):
        labels = container["Config"]["Labels"]
        if labels.get("com.docker.compose.oneoff") != "True":
            containers[labels["com.docker.compose.service"]] = container
    missing = sorted(set(services) - containers.keys())
    findings = (
        [Finding(f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no container.", "make up")]
        if missing
        else []
    )
    for service, container in sorted(containers.items()):
        findings += examine_container(service, container)
    return findings


def examine_container(service: str, container: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with the container of a service."""
    state, code = container["State"], container["State"]["ExitCode"]
    logs, start = LOGS.format(service), f"docker compose up -d {service}"
    memory = describe_memory(container) if state.get("OOMKilled") else ""
    if container["HostConfig"]["RestartPolicy"]["Name"] in ("", "no"):
        if state["Status"] == "exited" and code:
            return [Finding(f"{service} failed with exit code {code}{memory}.", f"{logs}, then make up")]
        return []
    match state["Status"]:
        case "running":
            return examine_running(service, state, memory)
        case "restarting":
            return [Finding(f"{service} ends and is started again, with exit code {code}{memory}.", logs)]
        case "exited":
            return [Finding(f"{service} is not running; it ended with exit code {code}{memory}.", f"{start}; {logs}")]
        case "paused":
            return [Finding(f"{service} is paused.", f"docker compose unpause {service}")]
        case status:
            return [Finding(f"{service} is not running: it is {status}.", start)]


def examine_running(service: str, state: Mapping[str, Any], memory: str) -> list[Finding]:
    """Return what is wrong with a container that runs."""
    findings = []
    health = state.get("Health") or {}
    if health.get("Status") == "unhealthy":
        output = " ".join((health["Log"] or [{}])[-1].get("Output", "").split())[:200]
        findings.append(Finding(f"{service} is unhealthy{f': {output}' if output else ''}.", LOGS.format(service)))
    if memory:
        remedy = (
            f"raise {service.upper()}_MEMORY in .env, then make up"
            if service in MEMORY_SETTINGS
            else LOGS.format(service)
        )
        findings.append(Finding(f"A process of {service} was killed{memory}.", remedy))
    return findings


def describe_memory(container: Mapping[str, Any]) -> str:
    """Return for lack of which memory a process was killed."""
    limit = container["HostConfig"].get("Memory") or 0
    return f" for lack of memory; its limit is {limit / GIB:.3g} GiB" if limit else " for lack of memory"


def examine_images(inspected: str, images: str) -> list[Finding]:
    """Return which containers run another image than the one of that name now.

    Args:
        inspected: What `docker inspect` prints of the project's containers.
        images: Lines of an image's name and id.
    """
    ids = dict(line.split(" ", 1) for line in images.splitlines() if " " in line)
    outdated = sorted(
        container["Config"]["Labels"]["com.docker.compose.service"]
        for container in json.loads(inspected)
        if ids.get(container["Config"]["Image"], container["Image"]) != container["Image"]
        and container["State"]["Status"] == "running"
    )
    if not outdated:
        return []
    return [
        Finding(
            f"{', '.join(outdated)} {'runs' if len(outdated) == 1 else 'run'} an older image than the one that is there now.",
            "make up",
        )
    ]


def examine_code(services: str) -> list[Finding]:
    """Return which containers run other code of the platform than the checkout's, from the lines of their names."""
    if not (names := sorted(services.split())):
        return []
    problem = f"The checkout has another version of the platform's code than the {'image' if len(names) == 1 else 'images'} of {', '.join(names)}."
    return [Finding(problem, "make backup, then make up")]


def examine_clock(times: str) -> list[Finding]:
    """Return whether Docker's machine has another time than this one, as a virtual machine has after a sleep.

    Args:
        times: Seconds since the epoch here, the engine's time as `docker info` prints it, and the seconds here after that.
    """
    before, docker, after = times.split()
    # Python knows no nanoseconds.
    there = datetime.fromisoformat(re.sub(r"\.\d+", "", docker).replace("Z", "+00:00")).timestamp()
    ahead, behind = there - float(after), float(before) - there
    if max(ahead, behind) <= MAX_CLOCK_SECONDS:
        return []
    difference = f"{ahead:.0f} s ahead of" if ahead > behind else f"{behind:.0f} s behind"
    problem = f"The clock of Docker's machine is {difference} this one's, so that runs start at other times and sign-ins fail."
    return [Finding(problem, "set both by NTP, timedatectl set-ntp true; restart Docker Desktop")]


def examine_memory(meminfo: str) -> list[Finding]:
    """Return whether the machine's memory is nearly full, from the text of /proc/meminfo."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB$", meminfo, re.MULTILINE)}
    total, available = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    if available >= max(MIN_AVAILABLE_SHARE * total, MIN_AVAILABLE_BYTES):
        return []
    problem = f"Only {available / GIB:.1f} GiB of the machine's {total / GIB:.1f} GiB of memory are available."
    return [
        Finding(
            problem,
            "docker stats --no-stream shows who uses it; lower WORKER_MEMORY and WORKER_LIMIT in .env, then make up",
        )
    ]


def examine_disk(total: int, free: int) -> list[Finding]:
    """Return whether the disk of Docker's volumes is nearly full, from its bytes."""
    if free >= min(MIN_FREE_SHARE * total, MIN_FREE_BYTES):
        return []
    problem = f"Only {free / GB:.1f} GB of the {total / GB:.0f} GB of the disk with Docker's volumes are free."
    remedy = "make storage shows what uses it; docker builder prune and docker image prune free what Docker alone needs"
    return [Finding(problem, remedy)]


def examine_secrets(problems: str, services: Sequence[str]) -> list[Finding]:
    """Return what is wrong with the secrets.

    Args:
        problems: The vault's sentences, one a line.
        services: Those of the installation: the vault has folders for the services of every override.
    """
    remedies = {"refused": "correct it in .env, then make up", "are not what": "make down, then make up"}
    return [
        Finding(problem, next((remedy for words, remedy in remedies.items() if words in problem), "make up"))
        for problem in problems.splitlines()
        if problem and ((of := SECRETS_OF.match(problem)) is None or of[1] in services)
    ]
