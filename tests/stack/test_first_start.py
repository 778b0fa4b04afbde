"""After `docker compose up -d --wait` alone: a model has been trained by the worker, registered and stored."""

import json

from infra.testing.stack import ONE_SHOTS, RUNNING, Stack


def test_everything_runs_and_every_one_shot_completed(stack: Stack) -> None:
    containers = stack.containers()

    assert containers.keys() == RUNNING | ONE_SHOTS
    for service in RUNNING:
        assert containers[service]["State"]["Health"]["Status"] == "healthy", service
    for service in ONE_SHOTS:
        assert containers[service]["State"] | {"Status": "exited", "ExitCode": 0} == containers[service]["State"], (
            service
        )


def test_the_pools_worker_has_trained(stack: Stack) -> None:
    run = stack.wait_for_first_run()

    assert run["state"]["name"] == "Completed"
    assert run["work_pool_name"] == "training"
    with stack.prefect() as api:
        workers = api.post("/work_pools/training/workers/filter", json={}).raise_for_status().json()
        submitted = api.post("/logs/filter", json={"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200})
    assert any(worker["name"] in log["message"] for worker in workers for log in submitted.json()), (
        "no worker of the pool logs that it submitted the run"
    )


def test_the_fetch_was_retried(stack: Stack) -> None:
    run = stack.wait_for_first_run()
    requests = json.loads(
        stack.python(
            "upstream",
            "import urllib.request as r; print(r.urlopen('http://localhost:8080/requests').read().decode())",
        ).stdout
    )

    assert requests["/v1/archive"] >= 3
    with stack.prefect() as api:
        tasks = api.post(
            "/task_runs/filter",
            json={"task_runs": {"name": {"like_": "fetch-archive"}}, "sort": "EXPECTED_START_TIME_ASC"},
        )
    first = tasks.raise_for_status().json()[0]
    assert first["state"]["type"] == "COMPLETED"
    assert first["run_count"] == 3, "two answers of 503, then one of 200"
    assert run["state"]["type"] == "COMPLETED"


def test_the_model_is_registered_and_stored_in_the_bucket(stack: Stack) -> None:
    run = stack.wait_for_first_run()
    version = stack.model_versions()[-1]
    with stack.mlflow() as api:
        model = api.get("/registered-models/get", params={"name": "rain-tomorrow"}).raise_for_status().json()
        logged = api.get("/runs/get", params={"run_id": version["run_id"]}).raise_for_status().json()["run"]

    assert "champion" in {alias["alias"] for alias in model["registered_model"]["aliases"]}

    tags = {tag["key"]: tag["value"] for tag in logged["data"]["tags"]}
    assert tags["prefect.flow_run_id"] == run["id"]
    assert tags["data_source"] == "open-meteo"
    metrics = {metric["key"]: metric["value"] for metric in logged["data"]["metrics"]}
    assert metrics["model_brier"] < metrics["climatology_brier"]

    objects = stack.provisioner(
        "from minio import Minio; from infra.provision.settings import Settings; s = Settings();"
        "store = Minio(endpoint='minio:9000', access_key=s.minio_root_user,"
        " secret_key=s.minio_root_password.get_secret_value(), secure=False);"
        "print(*(o.object_name for o in store.list_objects(bucket_name='mlflow', recursive=True)), sep='\\n')"
    ).splitlines()
    model_id = version["source"].removeprefix("models:/")
    assert any(f"models/{model_id}/artifacts/MLmodel" in name for name in objects), objects


def test_the_two_uis_link_to_each_other(stack: Stack) -> None:
    run = stack.wait_for_first_run()
    version = stack.model_versions()[-1]
    ui = stack.variables()["MLFLOW_TRACKING_URI"]
    with stack.prefect() as api:
        artifacts = api.post("/artifacts/filter", json={}).raise_for_status().json()

    assert any(
        f"{ui}/#/experiments/" in artifact["data"] and version["run_id"] in artifact["data"] for artifact in artifacts
    )
    with stack.mlflow() as api:
        logged = api.get("/runs/get", params={"run_id": version["run_id"]}).raise_for_status().json()["run"]
    tags = {tag["key"]: tag["value"] for tag in logged["data"]["tags"]}
    prefect = f"http://localhost:{stack.ports['PREFECT_PORT']}"
    assert tags["prefect.flow_run_url"] == f"{prefect}/runs/flow-run/{run['id']}"


def query(stack: Stack, text: str, database: str = "postgres") -> str:
    """Return what Postgres answers its superuser, who needs no password through the socket."""
    return stack.exec("postgres", "psql", "-U", "postgres", "-d", database, "-Atc", text).stdout.strip()


def test_no_image_can_change_the_order_of_text_and_damaged_pages_are_noticed(stack: Stack) -> None:
    locales = query(stack, "SELECT DISTINCT datlocprovider, datlocale FROM pg_database")

    assert locales == "b|C.UTF-8"
    assert query(stack, "SHOW data_checksums") == "on"
    assert not stack.shell("docker compose logs --no-log-prefix databases").stdout, "a new volume lacks nothing"


def test_who_may_connect_to_postgres_does_not_depend_on_the_volume(stack: Stack) -> None:
    assert query(stack, "SHOW hba_file") == "/trainyard/pg_hba.conf"
    assert query(stack, "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"
    rules = query(stack, "SELECT DISTINCT type, auth_method FROM pg_hba_file_rules ORDER BY 1")
    assert rules.splitlines() == ["host|scram-sha-256", "local|peer"]
    refused = stack.exec("postgres", "psql", "-U", "prefect", "-d", "prefect", "-c", "SELECT 1", check=False)
    assert "Peer authentication failed" in refused.stderr


def test_the_keys_of_encrypted_values_are_the_installations(stack: Stack) -> None:
    """Neither Prefect's, which it would keep beside them, nor MLflow's public one."""
    assert query(stack, "SELECT count(*) FROM configuration WHERE key = 'ENCRYPTION_KEY'", "prefect") == "0"
    assert int(query(stack, "SELECT count(*) FROM block_document", "prefect")) > 0
    with stack.mlflow() as api:
        address = f"{stack.variables()['MLFLOW_TRACKING_URI']}/ajax-api/3.0/mlflow/gateway/secrets/config"
        assert api.get(address).raise_for_status().json()["using_default_passphrase"] is False


def test_provisioning_prints_the_addresses(stack: Stack) -> None:
    lines = stack.shell("docker compose logs --no-log-prefix --no-color deploy").stdout.splitlines()[-5:]

    assert f"http://localhost:{stack.ports['PREFECT_PORT']}" in lines[1]
    assert f"http://localhost:{stack.ports['MLFLOW_PORT']}" in lines[2]
    assert f"http://localhost:{stack.ports['SERVING_PORT']}/docs" in lines[3]
    shown = stack.shell(lines[4].split(": ", 1)[1]).stdout
    assert stack.variables()["MLFLOW_TRACKING_PASSWORD"] in shown
