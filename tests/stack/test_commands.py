"""The README's commands, as a person types them."""

import re

import pytest

from infra.testing.stack import CHECKOUT, Stack

OWN_FLOW = """
from prefect import flow


@flow(log_prints=True)
def greet(name: str = "world"):
    print(f"Hello, {name}, from a flow of my own")
"""


def entry(name: str) -> str:
    return f"\n  - name: {name}\n    entrypoint: flows/greet.py:greet\n    work_pool: *training\n"


def test_a_users_own_flow_runs_on_the_worker(stack: Stack) -> None:
    (stack.home / "flows/greet.py").write_text(OWN_FLOW)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(entry("greet"))
    stack.shell("make deploy")

    output = stack.shell("""make run DEPLOYMENT=greet PARAMETERS="{\\"name\\": \\"O'Hara\\"}" """).stdout

    assert "Hello, O'Hara, from a flow of my own" in output
    assert "Completed" in output


def test_an_edit_takes_effect_on_the_next_run_without_a_deployment(stack: Stack) -> None:
    (stack.home / "flows/greet.py").write_text(OWN_FLOW.replace("Hello", "Good morning"))

    output = stack.shell("make run DEPLOYMENT=greet/greet").stdout

    assert "Good morning, world" in output


def test_prefect_deploy_on_the_host_works_against_the_pool(stack: Stack) -> None:
    (stack.home / "flows/greet.py").write_text(OWN_FLOW)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(entry("greet-from-host"))
    stack.shell('eval "$(make -s env)"; prefect --no-prompt deploy --name greet-from-host')

    assert "Hello, world" in stack.shell("make run DEPLOYMENT=greet-from-host").stdout


def test_cat_facts_is_retried_and_prints(stack: Stack) -> None:
    output = stack.shell(
        """make run DEPLOYMENT=cat-facts PARAMETERS='{"url": "http://upstream:8080/fact", "count": 2}'"""
    ).stdout

    assert output.count("Retry ") == 2, "two answers of 503"
    assert "Cat fact 2 of 2: " in output


def test_a_failed_run_fails_the_command(stack: Stack) -> None:
    versions = len(stack.model_versions())
    failed = stack.shell("""make run DEPLOYMENT=weather-pipeline PARAMETERS='{"places": ["Atlantis"]}'""", check=False)

    assert failed.returncode != 0
    assert "Atlantis" in failed.stdout.splitlines()[-1]
    assert len(stack.model_versions()) == versions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("DEPLOYMENT=unheard-of", "There is no deployment unheard-of. Known: "),
        ("", "make run DEPLOYMENT=cat-facts"),
        ("""DEPLOYMENT=cat-facts PARAMETERS='{"count": 0}'""", "Prefect refused the parameters of cat-facts"),
        ("DEPLOYMENT=cat-facts PARAMETERS=three", "the parameters are not JSON"),
    ],
)
def test_a_run_that_cannot_start_says_why(stack: Stack, arguments: str, message: str) -> None:
    refused = stack.shell(f"make run {arguments}", check=False)

    assert refused.returncode != 0
    assert message in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


def refused_deployment(stack: Stack, name: str) -> str:
    """Add an entry for flows/NAME.py to prefect.yaml for one `make deploy`, which is refused; return what it says."""
    project = stack.home / "prefect.yaml"
    before = project.read_text()
    project.write_text(before + entry(name).replace("greet.py", f"{name}.py"))
    refused = stack.shell("make deploy", check=False)
    project.write_text(before)

    assert refused.returncode != 0
    return refused.stderr


def test_a_flow_that_cannot_be_imported_says_why(stack: Stack) -> None:
    (stack.home / "flows/broken.py").write_text("import nonexistent_module\n")

    reason = refused_deployment(stack, "broken")

    assert "nonexistent_module" in reason
    assert "goes into your project's pyproject.toml; then `make lock` and `make up`." in reason
    assert "correct prefect.yaml or the flow" in reason


def test_a_flow_s_module_sees_no_other_secret_than_the_account_that_saves_deployments(stack: Stack) -> None:
    (stack.home / "flows/curious.py").write_text(
        "import os\nlogin = os.environ.get('PREFECT_API_AUTH_STRING', '').partition(':')[0]\n"
        "raise RuntimeError(' '.join(['account', login, 'sees', *os.environ]))\n"
    )

    reason = refused_deployment(stack, "curious")
    seen = set(reason.partition("sees ")[2].split())

    assert "account deploy sees" in reason
    secret = {name for name in seen if re.search("PASSWORD|AUTH|KEY|SECRET|MINIO", name)}
    assert secret - {"GPG_KEY"} == {"PREFECT_API_AUTH_STRING"}


def test_an_entry_whose_file_is_missing_is_named(stack: Stack) -> None:
    reason = refused_deployment(stack, "nowhere")

    assert (
        "The deployment nowhere of prefect.yaml names the file flows/nowhere.py, which does not exist:"
        " correct its entrypoint, or remove the entry."
    ) in reason.splitlines()


def test_info_shows_addresses_accounts_and_passwords(stack: Stack) -> None:
    shown, variables = stack.shell("make info").stdout, stack.variables()

    assert variables["MLFLOW_TRACKING_URI"] in shown
    assert variables["MLFLOW_TRACKING_PASSWORD"] in shown
    assert variables["PREFECT_API_AUTH_STRING"].split(":")[1] in shown


def test_every_command_of_the_readme_is_one(stack: Stack) -> None:
    listed = set(re.findall(r"make ([a-z]+) ", stack.shell("make help").stdout))
    named = set(re.findall(r"make (?:-s )?([a-z]+)", (CHECKOUT / "README.md").read_text()))

    assert named <= listed
    promised = {"up", "down", "info", "env", "deploy", "run", "logs", "demo", "ui", "test", "lint", "lock", "clean"}
    assert promised <= listed
