"""One stack for all its tests, or none where Docker does not answer."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from infra.testing.browser import chromium
from infra.testing.stack import Stack, copy_checkout
from infra.testing.waiting import wait_until
from tests.support.backups import Backup, make_backup


def docker_answers() -> bool:
    """Tell whether there is a Docker Engine to test with."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests, and say why, where there is no Docker; CI counts that as a failure."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if not here or docker_answers():
        return
    if os.environ.get("TRAINYARD_REQUIRE_DOCKER"):
        raise pytest.UsageError("Docker does not answer, and TRAINYARD_REQUIRE_DOCKER wants the stack tested.")
    for item in here:
        item.add_marker(pytest.mark.skip(reason="no Docker Engine answers, so the composed stack is not tested"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a module's tests."""
    with chromium() as browser:
        yield browser


OWN_PROJECT = Path(__file__).parent / "shop_project"
OWN_FLOW = "shop-pipeline"
# Backups on a disk that can be filled.
SMALL_DISK = """\
volumes:
  backups: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=32m,mode=1777"}}
"""

Boot = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture(scope="session")
def boot(request: pytest.FixtureRequest) -> Boot:
    """Start a stack for a block, by a function or as the README says; print its logs if a test fails meanwhile, and remove
    in any case what it made.
    """

    @contextmanager
    def booted(stack: Stack, start: Callable[[Stack], object] = Stack.up) -> Iterator[Stack]:
        failed_before, has_failed = request.session.testsfailed, True
        try:
            start(stack)
            yield stack
            has_failed = request.session.testsfailed > failed_before
        finally:
            if has_failed:
                print(stack.logs("60"))
            stack.remove()

    return booted


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Iterator[Stack]:
    """The stack that tests share, from a copy of the checkout."""
    home = tmp_path_factory.mktemp("checkout")
    copy_checkout(home)
    # Little memory, so that a run can be driven out of it, and little time for runs when the worker stops.
    with boot(Stack(home, WORKER_MEMORY="1g", WARM_PROCESS_DRAIN_SECONDS="6")) as stack:
        yield stack


@pytest.fixture(scope="session")
def served(stack: Stack) -> Iterator[httpx.Client]:
    """A client of the serving API with the key of `make env`, once the first run's champion is served."""
    stack.wait_for_first_run()
    variables = stack.variables()
    headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
    with httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30) as client:
        wait_until(lambda: client.get("/models").json()["models"], 30, "the champion")
        yield client


@pytest.fixture(scope="session")
def backup(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    """A backup of the shared stack."""
    return make_backup(stack, tmp_path_factory.mktemp("backups") / "repository")


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Iterator[Stack]:
    """A running installation of a project that lies beside its checkout, with metrics, after the project's first run."""
    folder = tmp_path_factory.mktemp("own-project")
    home, project = folder / "trainyard", folder / "shop"
    copy_checkout(home)
    hasten_alerts(home)
    (home / "small-disk.yml").write_text(SMALL_DISK)
    shutil.copytree(OWN_PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    # Tags of its own for the images: they hold the project's packages, and the shared stack runs on the others.
    files = "docker-compose.yml:infra/compose/metrics.yml:small-disk.yml"
    stack = Stack(home, COMPOSE_FILE=files, TRAINYARD_VERSION="own-project", PROJECT="../shop")
    try:
        with boot(stack):
            run = stack.wait_for_first_run(OWN_FLOW)
            assert run["state"]["name"] == "Completed", run["state"]
            yield stack
    finally:
        stack.remove_images()


def hasten_alerts(home: Path) -> None:
    """Let Prometheus look every two seconds, and let alerts fire and be mailed at once: their times have tests of their own."""
    for name, pattern, text in (
        ("infra/metrics/prometheus.yml", r"(_interval:) 15s", r"\1 2s"),
        ("infra/metrics/alerts.yml", r" for: \d+[mh]", " for: 0s"),
        ("infra/metrics/alerts.yml", r"keep_firing_for: 2m", "keep_firing_for: 10s"),
        ("infra/compose/metrics.yml", r"(group_wait|group_interval): \d+[sm]", r"\1: 1s"),
    ):
        file = home / name
        changed, number = re.subn(pattern, text, file.read_text())
        assert number >= 2, name
        file.write_text(changed)


@pytest.fixture
def mailbox(stack: Stack) -> Iterator[httpx.Client]:
    """Mailpit's API."""
    with stack.mailbox() as mailbox:
        yield mailbox
