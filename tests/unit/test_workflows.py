"""GitHub's workflows: what they may do, and which code they run with it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
WORKFLOWS = sorted((CHECKOUT / ".github/workflows").glob("*.yml"))


def jobs(file: Path) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield each job of a workflow and its permissions."""
    workflow = yaml.safe_load(file.read_text())
    for job in workflow["jobs"].values():
        yield job.get("permissions", workflow.get("permissions", {"everything": "write"})), job


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_to_commits(file: Path) -> None:
    used = re.findall(r"uses: (\S+)( # v[\d.]+$)?", file.read_text(), re.MULTILINE)

    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) and version for name, version in used), used


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_job_that_installs_packages_may_only_read(file: Path) -> None:
    for permissions, job in jobs(file):
        if re.search(r"\b(make|pip|uv|python|npm)\b", commands(job)):
            assert set(permissions.values()) <= {"read"}, job


def test_new_packages_are_a_week_old_and_leave_no_credentials_to_their_code() -> None:
    ((_, lock), (_, propose)) = jobs(CHECKOUT / ".github/workflows/update-locks.yml")

    (upgrade,) = [step for step in lock["steps"] if step.get("run") == "make lock UPGRADE=1"]
    assert upgrade["env"]["UV_EXCLUDE_NEWER"] == "7 days"
    assert lock["steps"][0]["with"]["persist-credentials"] is False
    assert propose["needs"] == "lock"


def test_of_the_proposed_change_only_the_locks_are_taken(tmp_path: Path) -> None:
    (_, (_, propose)) = jobs(CHECKOUT / ".github/workflows/update-locks.yml")
    (apply,) = re.findall(r"git apply.*", commands(propose))
    patch = tmp_path / "locks.patch"
    for name in ("requirements/worker.txt", "requirements/nested/worker.txt", "Makefile", "requirements/run.sh"):
        with patch.open("a") as file:
            file.write(
                f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+new\n"
            )
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(
        ["bash", "-c", apply], cwd=tmp_path, env={"RUNNER_TEMP": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True
    )

    changed = {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if ".git" not in path.parts and path.is_file()
    }
    assert changed <= {"locks.patch", "requirements/worker.txt", "requirements/nested/worker.txt"}
    assert "requirements/worker.txt" in changed
