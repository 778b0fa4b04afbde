"""Mistakes in the set-up: one message each that says what to do, and nothing is started."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testing.stack import Stack


@pytest.fixture
def unstarted(stack: Stack) -> Iterator[Stack]:
    """A stack under another project name that has not been started."""
    other = Stack(stack.home)
    yield other
    other.remove()


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("POSTGRES_PASSWORD", "hunter2", "has 7 characters and needs at least 12"),
        ("MINIO_ROOT_PASSWORD", "minioadmin123", "is a known default"),
        ("MLFLOW_PASSWORD", "password1234", "is a known default"),
        ("PREFECT_PASSWORD", "correct horse battery", "has a space"),
    ],
)
@pytest.mark.parametrize("command", ["make up", "docker compose up --detach --wait"])
def test_an_unsafe_password_is_refused_before_anything_starts(
    unstarted: Stack, command: str, setting: str, value: str, problem: str
) -> None:
    (unstarted.home / ".env").write_text(f"{setting}={value}\n")
    try:
        refused = unstarted.shell(command, check=False)
        output = refused.stdout + refused.stderr
        if command.startswith("docker"):
            output += unstarted.shell("docker compose logs secrets").stdout
    finally:
        (unstarted.home / ".env").unlink()
    assert refused.returncode != 0
    assert f"{setting} {problem}" in output
    assert value not in output
    started = {
        service for service, container in unstarted.containers().items() if container["State"]["StartedAt"] > "1"
    }
    assert started <= {"secrets", "upstream"}


def test_a_port_in_use_is_named_with_its_setting(unstarted: Stack) -> None:
    with socket.create_server(("127.0.0.1", unstarted.ports["MLFLOW_PORT"])):
        refused = unstarted.shell("make up", check=False)

    assert refused.returncode != 0
    assert f"Port {unstarted.ports['MLFLOW_PORT']} is in use by another program" in refused.stderr
    assert "MLFLOW_PORT in .env" in refused.stderr


@pytest.mark.parametrize(
    ("engine", "compose", "message"),
    [
        ("25.0.3", "2.30.0", "this engine is 25.0.3"),
        ("27.1.1", "2.25.0", "this Compose is 2.25.0"),
        ("", "2.30.0", "its engine does not respond"),
    ],
)
def test_an_old_docker_is_named(unstarted: Stack, tmp_path: Path, engine: str, compose: str, message: str) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/bash\n[[ $1 == compose ]] && {{ echo "{compose}"; exit; }}\n[[ -n "{engine}" ]] && echo "{engine}"\n'
    )
    docker.chmod(0o755)
    unstarted.environment["PATH"] = os.pathsep.join([str(tmp_path), unstarted.environment["PATH"]])
    refused = unstarted.shell("make up", check=False)
    unstarted.environment["PATH"] = unstarted.environment["PATH"].partition(os.pathsep)[2]

    assert refused.returncode != 0
    assert "Docker Engine 26 and Docker Compose 2.26" in refused.stderr
    assert message in refused.stderr


def test_info_before_the_first_start_says_so(unstarted: Stack) -> None:
    refused = unstarted.shell("make info", check=False)

    assert refused.returncode != 0
    assert "start the stack first" in refused.stderr
