"""`make doctor` on the composed stack: each thing that is broken is a line, and the dashboard shows the same lines."""

import html
import re
from collections.abc import Iterator

import httpx
import pytest

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until

DAMAGE = """
import pathlib, random
packs = [file for file in pathlib.Path("/backups/data").rglob("*") if file.is_file()]
for pack in packs:
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    for place in random.sample(range(len(data)), min(50, len(data))):
        data[place] ^= 0xFF
    pack.write_bytes(data)
"""


BROKEN = [
    r"mail is not running; it ended with exit code \d+\.",
    r"No mail can be sent: the mail server mail:1025 does not answer: .*",
    r"The code of the deployment cat-facts does not import: ModuleNotFoundError: No module named 'no_such_package'\.",
    r"The checkout has another version of the platform's code than the images of dashboard, mlflow, prefect, serving, worker\.",
    r"The database prefect lacks the index ix_flow_run__start_time, so that queries read whole tables\.",
    r"The secrets of worker are not what the vault and \.env say: SMTP_PASSWORD\.",
    r"The newest backup cannot be restored: .*",
]
"""The lines of what `broken` breaks."""


def examine(stack: Stack) -> set[str]:
    """Return the problems that `make doctor` prints; each has a remedy in the next line, or in itself."""
    result = stack.shell("make doctor", check=False)
    lines = [line.removeprefix("✗ ") for line in result.stdout.splitlines() if line.startswith("✗ ")]
    assert bool(lines) == bool(result.returncode), result.stdout + result.stderr
    assert bool(lines) != ("Nothing is wrong." in result.stdout)
    assert "could not be examined" not in result.stdout
    return set(lines)


@pytest.fixture(scope="module")
def before(stack: Stack) -> set[str]:
    """What other tests have left behind; containers, databases, secrets, mail and versions are as they should be."""
    stack.wait_for_first_run()
    problems = examine(stack)
    assert not [
        line for line in problems if re.search("No mail|lacks|revision|secrets|checkout|not running|unhealthy", line)
    ]
    return problems


@pytest.fixture(scope="module")
def broken(stack: Stack, before: set[str]) -> Iterator[set[str]]:
    """What is said once several things are broken at once."""
    catalog, library = stack.home / "flows/cat_facts.py", stack.home / "trainyard/frames.py"
    texts = {file: file.read_text() for file in (catalog, library)}
    (index,) = stack.shell(
        "docker compose exec -T postgres psql -U postgres -d prefect -Atc"
        " \"SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_flow_run__start_time'\""
    ).stdout.splitlines()
    try:
        catalog.write_text("import no_such_package\n" + texts[catalog])
        library.write_text(texts[library] + "\n# edited\n")
        stack.shell(
            "docker compose exec -T postgres psql -U postgres -d prefect -c 'DROP INDEX ix_flow_run__start_time'"
        )
        stack.exec("backup", "python", "-m", "infra.backup", "now")
        stack.python("backup", DAMAGE)
        stack.shell("docker compose stop mail")
        stack.environment["SMTP_PASSWORD"] = "a-password-without-encryption"
        yield examine(stack) - before
    finally:
        stack.environment.pop("SMTP_PASSWORD", None)
        for file, text in texts.items():
            file.write_text(text)
        stack.shell(f'docker compose exec -T postgres psql -U postgres -d prefect -c "{index}"', check=False)
        stack.shell("docker compose exec -T backup bash -c 'rm -rf /backups/*'; docker compose up -d --wait mail")


@pytest.mark.parametrize("line", BROKEN)
def test_what_is_broken_is_a_line(broken: set[str], line: str) -> None:
    assert [problem for problem in broken if re.fullmatch(line, problem)], broken


def test_the_dashboard_shows_the_same_lines(stack: Stack, broken: set[str]) -> None:
    address, user, password = stack.dashboard()
    # What Prefect tells may be another a moment later: runs and mails go on.
    lines = {line for line in broken if any(re.fullmatch(pattern, line) for pattern in BROKEN)}
    with httpx.Client(base_url=address, headers={"Origin": address}, timeout=30) as client:
        client.post("/login", data={"user": user, "password": password})
        client.post("/refresh")

        def shows_all() -> bool:
            page = re.sub(r"\s+", " ", html.unescape(client.get("/").text))
            return all(line in page for line in lines)

        wait_until(shows_all, 60, f"the page to show {lines}", every=1)
