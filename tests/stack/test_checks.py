"""What `make` refuses before Compose touches anything: another checkout's project, and files that containers cannot read."""

import re
import shlex
from pathlib import Path

import pytest

from infra.testing.stack import Stack, copy_checkout


@pytest.fixture
def clone(stack: Stack, tmp_path: Path) -> Stack:
    """A second checkout with the settings of the stack, as two clones with default settings have."""
    copy_checkout(tmp_path / "clone")
    clone = Stack(tmp_path / "clone")
    clone.environment = dict(stack.environment)
    return clone


def container_ids(stack: Stack) -> dict[str, str]:
    return {service: container["Id"] for service, container in stack.containers().items()}


@pytest.mark.parametrize("command", ["make up", "make down", "make deploy", "yes yes | make clean"])
def test_a_second_checkout_does_not_touch_the_first_one_s_project(stack: Stack, clone: Stack, command: str) -> None:
    before = container_ids(stack)

    refused = clone.shell(command, check=False)

    assert refused.returncode != 0
    (message,) = [line for line in refused.stderr.splitlines() if not line.startswith("make")]
    assert f"The project {stack.project} was started from {stack.home}: set COMPOSE_PROJECT_NAME in .env" in message
    assert container_ids(stack) == before
    assert stack.containers()["postgres"]["State"]["Running"]


def test_a_checkout_is_known_by_another_path_too(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(stack.home)
    linked = Stack(tmp_path / "link")
    linked.environment = dict(stack.environment)

    assert not linked.shell("infra/checks/require-own-project").stderr


def test_a_second_checkout_has_images_of_its_own(stack: Stack, clone: Stack) -> None:
    images = stack.shell("docker compose config --images").stdout.split()
    others = clone.shell("COMPOSE_PROJECT_NAME=staging docker compose config --images").stdout.split()
    by_default = clone.shell("env --unset COMPOSE_PROJECT_NAME docker compose config --images").stdout.split()

    own = {image for image in images if image.startswith(f"{stack.project}-")}
    assert {image.removeprefix("staging-") for image in others if image.startswith("staging-")} == {
        image.removeprefix(f"{stack.project}-") for image in own
    }
    assert {image.removeprefix("trainyard-") for image in by_default if image.startswith("trainyard-")} == {
        image.removeprefix(f"{stack.project}-") for image in own
    }
    assert len(own) == 7


def test_images_whose_place_in_a_registry_is_set_are_pulled(stack: Stack) -> None:
    nowhere = "TRAINYARD_IMAGES=localhost:1/trainyard"
    images = dict(line.split() for line in stack.shell(f"{nowhere} infra/own-images").stdout.splitlines())
    refused = stack.shell(f"{nowhere} infra/get-images prefect", check=False)

    assert {service for service, image in images.items() if image.startswith("localhost:1/trainyard-")} == {
        "prefect", "mlflow", "provision", "dashboard", "backup",
    }  # fmt: skip
    assert images["worker"].startswith(f"{stack.project}-worker:"), "it has the packages of a project"
    assert refused.returncode != 0
    assert "localhost:1" in refused.stderr


READ = "import pathlib; pathlib.Path('/mounted/weather/pipeline.py').read_bytes()"


@pytest.mark.parametrize("umask", ["027", "077"])
def test_files_that_containers_cannot_read_are_named_with_the_command_that_mends_it(
    clone: Stack, tmp_path: Path, umask: str
) -> None:
    hardened = Stack(tmp_path / "hardened")
    hardened.environment = dict(clone.environment)
    clone.shell(f"umask {umask} && cp -R . {hardened.home}")
    user = [
        "docker",
        "run",
        "--rm",
        "--cap-drop",
        "ALL",
        "--user",
        "10001:10001",
        "--volume",
        f"{hardened.home}/flows:/mounted:ro",
    ]
    read = shlex.join([*user, "python:3.13-slim-trixie", "python", "-c", READ])

    refused = hardened.shell("infra/checks/require-readable", check=False)
    before = hardened.shell(read, check=False)
    (mend,) = re.findall(r"The containers' users cannot read all of .*: run `(chmod -R .*)`", refused.stderr)
    hardened.shell(mend)
    after = hardened.shell(read, check=False)

    assert refused.returncode != 0
    assert "PermissionError" in before.stderr
    assert {Path(path).name for path in mend.split()[3:]} == {"flows", "prefect.yaml", "secrets", "postgres", "testing"}
    assert after.returncode == 0, after.stderr
    assert not hardened.shell("infra/checks/require-readable").stderr
