"""Deployments that fetch their code with the step git_clone, from a repository on loopback."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testing.servers import free_port
from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, worker

FLOW = """
from pathlib import Path

from prefect import flow

from flows.greeting.words import WORD


@flow
def greet(path: str):
    Path(path).write_text(f"{WORD} {Path(__file__).parent}")
"""


class Repository:
    """A project's repository that is served on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"git://127.0.0.1:{port}/{folder.name}"
        (folder / "flows/greeting").mkdir(parents=True)
        for package in ("flows", "flows/greeting"):
            (folder / package / "__init__.py").touch()
        (folder / "flows/greeting/pipeline.py").write_text(FLOW)
        self._git("init", "--quiet", "--initial-branch", "main")

    def commit(self, word: str) -> str:
        """Commit a word that the flow imports; return the commit's digest."""
        (self.folder / "flows/greeting/words.py").write_text(f"WORD = {word!r}\n")
        self._git("add", "--all")
        self._git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", word)
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository behind Git's own server."""
    base, port = tmp_path_factory.mktemp("repositories"), free_port()
    found = Repository(base / "project", port)
    found.commit("first")
    options = ["--export-all", f"--base-path={base}", "--listen=127.0.0.1", f"--port={port}", "--reuseaddr"]
    # Not through `git daemon`, which would be a second process to stop.
    libexec = subprocess.run(["git", "--exec-path"], check=True, capture_output=True, text=True).stdout.strip()
    with subprocess.Popen([f"{libexec}/git-daemon", *options, str(base)]) as daemon:
        try:
            wait_until(
                lambda: not subprocess.run(["git", "ls-remote", found.url], capture_output=True).returncode,
                20,
                "the repository to be served",
            )
            yield found
        finally:
            daemon.terminate()


def clone(repository: str, **options: str) -> list[dict[str, object]]:
    return [{"prefect.deployments.steps.git_clone": {"repository": repository, **options}}]


def test_the_newest_commit_runs_and_imports_its_own_modules(
    orchestrator: Server, pool: str, repository: Repository, tmp_path: Path
) -> None:
    mounted = tmp_path / "mounted"  # the installation's own project has a package `flows` too
    (mounted / "flows").mkdir(parents=True)
    (mounted / "flows/__init__.py").touch()
    result = tmp_path / "result"
    entrypoint = "flows/greeting/pipeline.py"
    first = repository.commit("first again")
    newest = orchestrator.deploy(pool, "greet", file=entrypoint, pull_steps=clone(repository.url, branch="main"))
    pinned = orchestrator.deploy(pool, "greet", file=entrypoint, pull_steps=clone(repository.url, commit_sha=first))
    with worker(orchestrator, pool, tmp_path / "home", PYTHONPATH=str(mounted)):
        for word in ("second", "third"):
            repository.commit(word)
            orchestrator.expect(orchestrator.trigger(newest, path=str(result)), "Completed")

            assert result.read_text().split()[0] == word
        orchestrator.expect(orchestrator.trigger(pinned, path=str(result)), "Completed")

    word, _, folder = result.read_text().rpartition(" ")
    assert word == "first again"
    assert not Path(folder).exists(), "the clone is removed with the run"


def test_a_repository_that_cannot_be_reached_is_named(
    orchestrator: Server, shared_pool: str, repository: Repository
) -> None:
    deployment = orchestrator.deploy(shared_pool, "greet", pull_steps=clone(f"{repository.url}-absent"))

    run = orchestrator.trigger(deployment, path="")

    assert orchestrator.wait_for_end(run, 60) in ("Failed", "Crashed")
    assert f"{repository.url}-absent" in orchestrator.message(run) + "\n".join(orchestrator.logs(run))
