"""A project from the template, as `make new` creates it: its own tests, and `make demo` with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
COPIER = Path(sys.executable).with_name("copier")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that is called late-orders, in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("beside") / "late-orders"
    data = ["--data", "name=late-orders", "--data", "trainyard=https://git.test/trainyard.git"]
    subprocess.run([COPIER, "copy", "--quiet", "--defaults", *data, CHECKOUT / "template", folder], check=True)
    return folder


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this Python's packages; return its output."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def changes() -> str:
    """Return what Git says has changed in the checkout."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=CHECKOUT, capture_output=True, text=True).stdout


def test_every_file_is_filled_in(project: Path) -> None:
    texts = {str(file.relative_to(project)): file.read_text() for file in project.rglob("*") if file.is_file()}

    assert texts.keys() >= {"README.md", "prefect.yaml", "pyproject.toml", "requirements.txt", ".gitignore"}
    assert "flows/late_orders/pipeline.py:pipeline" in texts["prefect.yaml"]
    assert 'directory: "{{ $TRAINYARD_HOME }}"' in texts["prefect.yaml"]
    assert "git clone --depth 1 https://git.test/trainyard.git" in texts[".github/workflows/test.yml"]
    assert [name for name, text in texts.items() if "{{ name" in text or "{{ package" in text or "jinja" in name] == []


def test_its_own_tests_pass_without_a_stack(project: Path) -> None:
    result = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout


def test_the_demo_trains_its_model_and_leaves_the_checkout_as_it_was(project: Path) -> None:
    before = changes()

    demo = run(CHECKOUT, "-m", "infra.embedded", "demo", PROJECT=str(project))

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "late-orders version 1 is the champion." in demo.stdout
    assert "rain-tomorrow" not in demo.stdout
    assert (project / ".demo" / "mlflow.db").is_file()
    assert changes() == before


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "Name a folder beside this one: make new PROJECT=../churn"),
        ("own", "own is within Trainyard's checkout, which stays as it is"),
        ("../Churn_1", "Churn_1 is not possible: lower-case letters, digits and hyphens, a letter first."),
        ("tests/..", "is within Trainyard's checkout"),
        ("{project}", "exists, and is not empty."),
    ],
)
def test_a_folder_that_cannot_be_a_project_is_refused(project: Path, folder: str, message: str) -> None:
    command = ["infra/dev/new", folder.format(project=project)]
    refused = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)

    assert refused.returncode == 1
    assert message in refused.stderr
