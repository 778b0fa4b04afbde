"""One version number for the library, the services, the images and the changelog."""

import re
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(
    "project", sorted(CHECKOUT.glob("services/*/pyproject.toml")), ids=lambda file: file.parent.name
)
def test_every_service_has_the_version_of_the_library(project: Path) -> None:
    assert tomllib.loads(project.read_text())["project"]["version"] == VERSION


@pytest.mark.parametrize(
    "file",
    ["docker-compose.yml", "infra/compose/baked-flows.yml", "infra/compose/second-project.yml", "bench/compose.yml"],
)
def test_the_images_have_the_version_of_the_library(file: str) -> None:
    versions = re.findall(r"\$\{TRAINYARD_VERSION:-([^}]+)\}", (CHECKOUT / file).read_text())

    assert versions
    assert set(versions) == {VERSION}


def test_the_changelog_begins_with_the_version() -> None:
    headings = re.findall(r"^## \[?([\d.]+)", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == VERSION
