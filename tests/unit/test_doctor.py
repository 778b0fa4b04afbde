"""`make doctor`: what it says of containers, images, clock, memory, disk and backups, from facts in the form of their sources."""

import json
import os
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from infra.diagnosis.__main__ import examine_host, guard, read_facts
from infra.diagnosis.backups import examine_backups
from infra.diagnosis.databases import parse_schema
from infra.diagnosis.host import (
    examine_clock,
    examine_code,
    examine_containers,
    examine_disk,
    examine_images,
    examine_memory,
    examine_secrets,
)

CHECKOUT = Path(__file__).parents[2]
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def container(
    service: str, *, restarts: bool = True, memory: int = 0, labels: dict[str, str] | None = None, **state: Any
) -> dict[str, Any]:
    """Return what `docker inspect` says of a container, as far as it counts."""
    return {
        "Image": "sha256:new",
        "Config": {"Image": service, "Labels": {"com.docker.compose.service": service, **(labels or {})}},
        "HostConfig": {"RestartPolicy": {"Name": "unless-stopped" if restarts else "no"}, "Memory": memory},
        "State": {"Status": "running", "ExitCode": 0, "OOMKilled": False, **state},
    }


HEALTHY = {"Status": "healthy", "Log": [{"Output": ""}]}
UNHEALTHY = {"Status": "unhealthy", "Log": [{"Output": "first"}, {"Output": "no\nconnection"}]}


def test_healthy_containers_and_ended_one_shots_are_fine() -> None:
    containers = [container("worker", Health=HEALTHY), container("deploy", restarts=False, Status="exited")]

    assert examine_containers(["worker", "deploy"], json.dumps(containers)) == []


@pytest.mark.parametrize(
    ("broken", "problem", "remedy"),
    [
        (container("serving", Health=UNHEALTHY), "serving is unhealthy: no connection.", "logs --tail 50 serving"),
        (
            container("mail", Status="exited", ExitCode=1),
            "mail is not running; it ended with exit code 1.",
            "up -d mail",
        ),
        (
            container("worker", Status="restarting", ExitCode=137, OOMKilled=True, memory=1 << 30),
            "worker ends and is started again, with exit code 137 for lack of memory; its limit is 1 GiB.",
            "logs --tail 50 worker",
        ),
        (
            container("worker", OOMKilled=True, memory=4 << 30),
            "A process of worker was killed for lack of memory; its limit is 4 GiB.",
            "raise WORKER_MEMORY in .env",
        ),
        (container("minio", Status="paused"), "minio is paused.", "docker compose unpause minio"),
        (container("minio", Status="created"), "minio is not running: it is created.", "up -d minio"),
        (
            container("deploy", restarts=False, Status="exited", ExitCode=1),
            "deploy failed with exit code 1.",
            "make up",
        ),
    ],
)
def test_a_container_that_is_not_well_is_named(broken: dict[str, Any], problem: str, remedy: str) -> None:
    service = broken["Config"]["Labels"]["com.docker.compose.service"]

    (finding,) = examine_containers([service], json.dumps([broken]))

    assert finding.problem == problem
    assert remedy in finding.remedy


def test_a_service_without_a_container_is_named_and_a_container_of_a_command_is_not() -> None:
    of_a_command = container("backup", labels={"com.docker.compose.oneoff": "True"}, Status="exited", ExitCode=1)

    (finding,) = examine_containers(["backup"], json.dumps([of_a_command]))

    assert finding.problem == "backup has no container."


def test_a_container_of_an_older_image_is_named() -> None:
    containers = json.dumps([container("worker"), container("mail")])

    assert examine_images(containers, "worker sha256:new\nmail sha256:new\n") == []
    (finding,) = examine_images(containers, "worker sha256:newer\nmail sha256:new\n")
    assert finding.problem == "worker runs an older image than the one that is there now."


def test_images_of_other_code_are_named() -> None:
    (finding,) = examine_code("worker\nmlflow\n")

    assert finding.problem.endswith("another version of the platform's code than the images of mlflow, worker.")
    assert examine_code("") == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, None), (4, None), (60, "60 s ahead of this one's"), (-90, "90 s behind this one's")]
)
def test_a_clock_that_is_wrong_is_named(seconds: int, words: str | None) -> None:
    there = (NOW + timedelta(seconds=seconds)).isoformat().replace("+00:00", ".123456789Z")

    findings = examine_clock(f"{NOW.timestamp():.0f} {there} {NOW.timestamp():.0f}")

    assert [words in finding.problem for finding in findings if words] == [True] * len(findings)
    assert bool(findings) == bool(words)


def test_a_slow_answer_of_docker_is_no_wrong_clock() -> None:
    assert examine_clock(f"{NOW.timestamp():.0f} {NOW.isoformat()} {NOW.timestamp() + 40:.0f}") == []


def test_memory_that_is_nearly_full_is_named() -> None:
    text = "MemTotal:        4026532 kB\nMemFree:   1 kB\nMemAvailable:     {} kB\n"

    assert examine_memory(text.format(1_000_000)) == []
    (finding,) = examine_memory(text.format(200_000))
    assert finding.problem == "Only 0.2 GiB of the machine's 3.8 GiB of memory are available."


def test_a_disk_that_is_nearly_full_is_named() -> None:
    assert examine_disk(20 * 10**9, 3 * 10**9) == []
    assert examine_disk(1000 * 10**9, 6 * 10**9) == []
    (finding,) = examine_disk(20 * 10**9, 10**9)
    assert finding.problem == "Only 1.0 GB of the 20 GB of the disk with Docker's volumes are free."


def test_what_is_wrong_with_secrets_is_named() -> None:
    setting, old, lost = examine_secrets(
        "A setting in .env is refused at the next start: X.\n"
        "The secrets of worker are not what the vault and .env say: SMTP_PASSWORD.\n"
        "The secrets of alertmanager are not what the vault and .env say: SMTP_PASSWORD.\n"
        "The volume secrets lacks MAIL_PASSWORD, or has an empty file.\n",
        ["worker", "mail"],
    )

    assert setting.remedy == "correct it in .env, then make up"
    assert old.remedy == "make down, then make up"
    assert lost.remedy == "make up"


def backups(**answer: Any) -> str:
    standard = {"every_hours": 24, "started": NOW.timestamp(), "newest": NOW.isoformat(), "problem": ""}
    return json.dumps(standard | answer)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (backups(), None),
        (backups(newest=None), None),
        (backups(newest=None, every_hours=0, started=0), None),
        (backups(newest=None, started=0), "There is no backup."),
        (
            backups(newest=(NOW - timedelta(hours=80)).isoformat()),
            "The newest backup is 80 hours old, and one is made every 24 hours.",
        ),
        (backups(problem="the backup is damaged."), "The newest backup cannot be restored: the backup is damaged."),
        (backups(wal=None), None),
        (backups(wal={"until": (NOW - timedelta(seconds=100)).isoformat(), "started": 0}), None),
        (backups(wal={"until": None, "started": NOW.timestamp() - 60}), None),
        (
            backups(wal={"until": None, "started": 0}),
            "No moment can be restored yet, though BACKUP_POINT_IN_TIME is true.",
        ),
        (
            backups(wal={"until": (NOW - timedelta(seconds=130)).isoformat(), "started": 0}),
            "The newest WAL in the repository is 130 s old, though BACKUP_POINT_IN_TIME is true.",
        ),
        ("Backup refused: wrong password", "The backups cannot be read: Backup refused: wrong password"),
    ],
)
def test_backups_that_are_missing_old_or_damaged_are_named(answer: str, problem: str | None) -> None:
    assert [finding.problem for finding in examine_backups(answer, NOW)] == [problem] * bool(problem)


def test_what_the_host_could_not_tell_is_left_out() -> None:
    assert examine_host({}) == []


def test_facts_are_read_from_a_tar() -> None:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("./clock"))
        member = tarfile.TarInfo("./host")
        member.size = 3
        archive.addfile(member, BytesIO(b"abc"))
    stream.seek(0)

    assert read_facts(stream) == {"clock": "", "host": "abc"}


def test_an_examination_that_fails_is_a_finding() -> None:
    (finding,) = guard("The machine", lambda: examine_containers([], "no JSON"))

    assert finding.problem.startswith("The machine could not be examined: JSONDecodeError")


def test_a_schema_s_indexes_and_revision_are_read_from_its_dump() -> None:
    schema = parse_schema(
        "INSERT INTO public.alembic_version_auth VALUES ('ab12');\n"
        "CREATE UNIQUE INDEX a ON public.t USING btree (x);\n"
        "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT b UNIQUE (y);\n"
        "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT c FOREIGN KEY (y) REFERENCES public.u(id);\n"
    )

    assert schema.revision == "ab12"
    assert schema.indexes == {
        "a": "CREATE UNIQUE INDEX a ON public.t USING btree (x);",
        "b": "ALTER TABLE ONLY public.t ADD CONSTRAINT b UNIQUE (y);",
    }


@pytest.mark.parametrize(
    ("check", "answer", "message"),
    [
        ("require-memory", "2147483648", "Docker's machine has 2048 MiB of memory, and Trainyard needs 4 GiB"),
        ("require-memory", "4294967296", ""),
        ("require-disk", "/nowhere", ""),
    ],
)
def test_a_machine_below_the_minimum_is_refused(tmp_path: Path, check: str, answer: str, message: str) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho {answer}\n")
    docker.chmod(0o755)

    result = subprocess.run(
        [CHECKOUT / "infra/checks" / check],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )

    assert result.returncode == bool(message)
    assert message in result.stderr
    assert bool(result.stderr) == bool(message)


@pytest.mark.parametrize(("volume", "code"), [("", 1), ("trainyard_postgres", 0)])
def test_a_disk_that_is_almost_full_is_refused_before_the_first_start_alone(
    tmp_path: Path, volume: str, code: int
) -> None:
    (tmp_path / "docker").write_text(
        f"#!/bin/sh\ncase $1 in info) echo {tmp_path} ;; volume) echo {volume} ;; esac\n"  # and no containers
    )
    (tmp_path / "df").write_text("#!/bin/sh\nprintf 'header\\n/dev/sda1 30000000 20000000 10000000 67%% /\\n'\n")
    for name in ("docker", "df"):
        (tmp_path / name).chmod(0o755)

    result = subprocess.run(
        [CHECKOUT / "infra/checks/require-disk"],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )

    assert result.returncode == code
    assert (f"has 10 GB left at {tmp_path}, and Trainyard needs 15 GB" in result.stderr) == bool(code)
