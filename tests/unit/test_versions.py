"""One version number for the library, the services, the images and the changelog; and tags that agree with them."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
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
    [
        "docker-compose.yml",
        *(f"infra/compose/{name}.yml" for name in ("baked-flows", "second-project", "tls")),
        "bench/compose.yml",
    ],
)
def test_the_images_have_the_version_of_the_library(file: str) -> None:
    versions = re.findall(r"\$\{TRAINYARD_VERSION:-([^}]+)\}", (CHECKOUT / file).read_text())

    assert versions
    assert set(versions) == {VERSION}


def test_the_changelog_begins_with_the_version() -> None:
    headings = re.findall(r"^## \[?([\d.]+)", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == VERSION


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout


def disagreements(repository: Path) -> Iterator[str]:
    """Yield a sentence for each tag of a version that its own commit or the changelog contradicts."""
    changelog = (repository / "CHANGELOG.md").read_text()
    for tag in git(repository, "tag", "--list", "v*").split():
        version = tomllib.loads(git(repository, "show", f"{tag}:pyproject.toml"))["project"]["version"]
        if tag != f"v{version}":
            yield f"{tag} is of a commit with the version {version}"
        if not re.search(rf"^## \[{re.escape(tag.removeprefix('v'))}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
            yield f"{tag} has no section in the changelog"


def test_tags_agree_with_versions_and_changelog() -> None:
    assert not list(disagreements(CHECKOUT))
    if release := os.environ.get("RELEASE"):  # the tag that is about to be published
        assert release == f"v{VERSION}"
        assert release in git(CHECKOUT, "tag", "--points-at", "HEAD").split()


def test_a_tag_that_disagrees_is_found(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.0.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.0.0] - 2026-11-25\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "Release")
    git(tmp_path, "tag", "v1.0.0")
    assert not list(disagreements(tmp_path))

    git(tmp_path, "tag", "v1.1.0")

    assert list(disagreements(tmp_path)) == [
        "v1.1.0 is of a commit with the version 1.0.0",
        "v1.1.0 has no section in the changelog",
    ]
