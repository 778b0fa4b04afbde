"""One stack for all its tests, or none where Docker does not answer."""

import os
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


@pytest.fixture
def mailbox(stack: Stack) -> Iterator[httpx.Client]:
    """Mailpit's API."""
    user, password = stack.exec("mail", "cat", "/run/secrets/login").stdout.strip().split(":", 1)
    address = f"http://localhost:{stack.ports['MAIL_PORT']}/api/v1"
    assert httpx.get(f"{address}/messages").status_code == 401
    with httpx.Client(base_url=address, auth=(user, password), timeout=10) as mailbox:
        yield mailbox
