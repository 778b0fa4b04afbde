"""Nothing is lost: over a second `up`, `down` and `up`, and a restart of each service."""

from typing import Any

import pytest

from infra.testing.stack import ONE_SHOTS, Stack
from infra.testing.waiting import wait_until


def installation(stack: Stack) -> dict[str, Any]:
    """Return the records and accounts that must survive."""
    with stack.prefect() as api:
        deployments = api.post("/deployments/filter", json={}).raise_for_status().json()
    return {
        "runs": {run["id"]: run["state"]["type"] for run in stack.flow_runs("weather-pipeline")},
        "models": {(version["version"], version["source"]) for version in stack.model_versions()},
        "deployments": {deployment["id"] for deployment in deployments},
        "secrets": stack.variables(),
    }


def trains_again(stack: Stack) -> bool:
    """Train again, and load the first version."""
    program = "import mlflow; mlflow.sklearn.load_model('models:/rain-tomorrow/1')"
    stack.python("worker", program)
    return "Completed" in stack.shell("make run DEPLOYMENT=weather-pipeline").stdout


def running_containers(stack: Stack) -> dict[str, tuple[str, str]]:
    """Return the container of each long-running service and when it was started."""
    return {
        service: (container["Id"], container["State"]["StartedAt"])
        for service, container in stack.containers().items()
        if service not in ONE_SHOTS
    }


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    stack.wait_for_first_run()
    before, containers = installation(stack), running_containers(stack)
    stack.up()

    assert installation(stack) == before
    assert running_containers(stack) == containers


@pytest.mark.parametrize("services", ["postgres", "minio", "prefect", "mlflow", "worker serving dashboard mail"])
def test_a_restart_of_services_loses_nothing(stack: Stack, services: str) -> None:
    before = installation(stack)
    stack.shell(f"docker compose restart {services}")

    def is_unchanged() -> bool:
        try:
            return installation(stack) == before
        except Exception:  # the servers are reconnecting to their database
            return False

    stack.wait_until_healthy(services=services.split())
    wait_until(is_unchanged, 60, f"the same installation after a restart of {services}", every=1)


REVISIONS = {
    "prefect": "from prefect_server.schema import known_revisions; print(*known_revisions())",
    "mlflow": "from mlflow_server.schema import accounts_database; print(*accounts_database().known_revisions())",
}


@pytest.mark.parametrize(
    ("service", "database", "table"),
    [
        ("prefect", "prefect", "alembic_version"),
        pytest.param("mlflow", "mlflow_accounts", "alembic_version_auth", marks=pytest.mark.slow),
    ],
)
def test_a_server_waits_for_its_schema_and_refuses_a_later_one(
    stack: Stack, service: str, database: str, table: str
) -> None:
    def psql(statement: str) -> str:
        return stack.exec("postgres", "psql", "-qAtX", "-d", database, "-c", statement).stdout.strip()

    def says(text: str) -> bool:
        return text in stack.shell(f"docker compose logs --no-log-prefix {service} 2>&1").stdout

    revision = psql(f"SELECT version_num FROM {table}")
    former = min({*stack.python(service, REVISIONS[service]).stdout.split()} - {revision})
    stack.shell(f"docker compose stop {service}")
    psql(f"UPDATE {table} SET version_num = '{former}'")
    stack.shell(f"docker compose start {service}")
    wait_until(lambda: says(f"revision {former}, not {revision}"), 60, "the server to say what it waits for")
    waiting = stack.containers()[service]["State"]["Health"]["Status"]
    stack.shell(f"docker compose stop {service}")
    psql(f"UPDATE {table} SET version_num = 'later'")
    migration = stack.shell(f"docker compose run --rm --no-deps -T {service}-migrate", check=False)
    stack.shell(f"docker compose start {service}")
    wait_until(lambda: says("which has the revision later: start the version"), 60, "the server to refuse")
    psql(f"UPDATE {table} SET version_num = '{revision}'")
    stack.wait_until_healthy(120, [service])

    assert waiting == "starting"
    assert migration.returncode != 0
    assert "is older than its database" in migration.stderr.splitlines()[-1]


def test_the_stack_trains_after_all_those_restarts(stack: Stack) -> None:
    assert trains_again(stack)


@pytest.mark.slow
def test_down_and_up_keeps_everything(stack: Stack) -> None:
    before = installation(stack)
    stack.shell("make down")

    assert not stack.shell("docker compose ps --all --quiet").stdout
    stack.up()
    assert installation(stack) == before
    assert trains_again(stack)


def test_a_password_changed_in_env_takes_effect(stack: Stack) -> None:
    before = installation(stack)
    chosen = {
        name: f"chosen-by-a-person-for-{name.lower()}"
        for name in ("POSTGRES_PASSWORD", "PREFECT_PASSWORD", "MLFLOW_PASSWORD", "MINIO_ROOT_PASSWORD", "MAIL_PASSWORD")
    }
    (stack.home / ".env").write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
    stack.shell("make down")
    stack.up()
    after = installation(stack)

    assert after["secrets"]["MLFLOW_TRACKING_PASSWORD"] == chosen["MLFLOW_PASSWORD"]
    assert after["secrets"]["PREFECT_API_AUTH_STRING"] == f"admin:{chosen['PREFECT_PASSWORD']}"
    assert {**after, "secrets": None} == {**before, "secrets": None}
    assert trains_again(stack)
