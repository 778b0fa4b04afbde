"""Artifacts pass between host and worker through MLflow alone: no client has a key of the object store."""

import pytest

from infra.testing.stack import Stack

LOG = (
    "import mlflow; mlflow.set_experiment({experiment!r}); run = mlflow.start_run();"
    "mlflow.log_text({text!r}, 'notes/note.txt'); mlflow.end_run(); print(run.info.run_id)"
)
READ = "import mlflow; print(mlflow.artifacts.load_text('runs:/{run}/notes/note.txt'))"


def on_host(stack: Stack, program: str) -> str:
    """Run Python on the host with what `make env` prints and no key."""
    assert not any(name.startswith("AWS_") and "KEY" in name for name in stack.environment)
    return stack.shell(f'eval "$(make -s env)"; env | grep -c AWS_.*KEY; python -c "{program}"').stdout.splitlines()[-1]


@pytest.mark.parametrize("from_host", [True, False], ids=["host to worker", "worker to host"])
def test_an_artifact_is_read_on_the_other_side(stack: Stack, from_host: bool) -> None:
    log = LOG.format(experiment=f"artifacts-{from_host}", text="all aboard")
    run = on_host(stack, log) if from_host else stack.python("worker", log).stdout.splitlines()[-1]
    read = READ.format(run=run)
    text = stack.python("worker", read).stdout if from_host else on_host(stack, read)

    assert text.strip() == "all aboard"


def test_the_server_offers_no_address_that_a_client_cannot_reach(stack: Stack) -> None:
    with stack.mlflow() as api:
        offers = api.get(str(api.base_url.join("/api/3.0/mlflow/server-info"))).raise_for_status().json()

    assert [offer for offer in offers if "multipart" in offer], offers
    assert not any(value for offer, value in offers.items() if "multipart" in offer)


def test_the_host_loads_the_champion(stack: Stack) -> None:
    stack.wait_for_first_run()
    program = "import mlflow; print(type(mlflow.sklearn.load_model('models:/rain-tomorrow@champion')).__name__)"

    assert on_host(stack, program) == "Pipeline"
