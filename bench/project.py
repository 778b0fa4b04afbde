"""Measure a project beside the checkout: from `make new` to its champion, a build with one more package, and its runs' start.

The images of the platform are built before; the project is the template's, with one package that Trainyard does not have.

    python -m bench.project
"""

import re
import tempfile
import time
from pathlib import Path

from bench.report import save, summary
from bench.stack import run_once, wait_until_idle
from infra.provision.follow import find_deployment
from infra.testing.stack import CHECKOUT, Stack, copy_checkout

PACKAGE, ANOTHER = "holidays>=0.70", "python-slugify>=8"
RUNS = 20


def timed(stack: Stack, command: str) -> float:
    """Run a command line in the checkout; return how long it took in seconds."""
    start = time.monotonic()
    stack.shell(command, timeout=1800)
    return time.monotonic() - start


def add_package(project: Path, package: str) -> None:
    """Add a package to a project's dependencies."""
    file = project / "pyproject.toml"
    file.write_text(
        re.sub(r"^dependencies = \[(.*?)\]", rf'dependencies = [\g<1>"{package}", ]', file.read_text(), flags=re.M)
    )


def count_lines() -> int:
    """Return the lines of Python that the tutorial has its reader write."""
    page = (CHECKOUT / "docs/add-a-pipeline.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return sum(bool(line.strip()) for text in found for line in text.splitlines())


def main() -> None:
    """Measure and save."""
    with tempfile.TemporaryDirectory() as folder:
        home, project = Path(folder) / "trainyard", Path(folder) / "churn"
        copy_checkout(home)
        stack = Stack(home, COMPOSE_FILE="docker-compose.yml", TRAINYARD_VERSION="bench-project")
        try:
            stack.shell("docker compose build", timeout=1800)
            start = time.monotonic()
            steps = {"make new": timed(stack, "make new PROJECT=../churn && echo PROJECT=../churn >>.env")}
            add_package(project, PACKAGE)
            steps["make lock"] = timed(stack, "make lock")
            steps["make up"] = timed(stack, "make up")
            stack.wait_for_first_run("churn-pipeline")
            champion = time.monotonic() - start
            add_package(project, ANOTHER)
            stack.shell("make lock")
            build = timed(stack, "docker compose build worker")
            with stack.prefect() as api:
                deployment = find_deployment(api, "churn-pipeline")["id"]
                starts = []
                for _ in range(RUNS):
                    wait_until_idle(api)  # the mail of the run before
                    starts.append(run_once(api, deployment)[0])
        finally:
            stack.remove()
            stack.remove_images()
    save(
        "project",
        {
            "tutorial_lines": count_lines(),
            "steps_seconds": {name: round(seconds, 1) for name, seconds in steps.items()},
            "new_to_champion_seconds": round(champion, 1),
            "build_with_one_more_package_seconds": round(build, 1),
            "trigger_to_running_seconds": summary(starts),
        },
    )


if __name__ == "__main__":
    main()
