"""What is reachable, by whom, and where no secret may appear."""

import ipaddress
import json
import re
import shlex

import httpx
import pytest

from infra.testing.stack import CHECKOUT, ONE_SHOTS, Stack
from infra.testing.waiting import wait_until

OWN_IMAGES = {
    "prefect",
    "prefect-migrate",
    "mlflow",
    "mlflow-migrate",
    "provision",
    "deploy",
    "worker",
    "serving",
    "dashboard",
    "backup",
}


def secrets_of(stack: Stack) -> dict[str, str]:
    """Return every secret of the installation, read from the vault itself."""
    program = "import json, pathlib; print(json.dumps({f.name: f.read_text() for f in pathlib.Path('/secrets/vault').iterdir()}))"
    command = f'docker compose run --rm --no-deps -T --entrypoint python secrets -c "{program}"'
    # Compose may lose the output of a container that ends before it listens.
    output = wait_until(lambda: stack.shell(command).stdout, 60, "the vault's secrets")
    secrets: dict[str, str] = json.loads(output)
    return secrets


@pytest.mark.parametrize(
    ("service", "path"),
    [
        ("PREFECT_API_URL", "/admin/version"),
        ("MLFLOW_TRACKING_URI", "/api/2.0/mlflow/experiments/search?max_results=1"),
    ],
)
def test_an_api_requires_credentials(stack: Stack, service: str, path: str) -> None:
    variables = stack.variables()
    address = variables[service] + path

    assert httpx.get(address).status_code == 401
    assert httpx.get(address, auth=("admin", "minioadmin")).status_code == 401
    user, password = variables["PREFECT_API_AUTH_STRING"].split(":", 1)
    if service == "MLFLOW_TRACKING_URI":
        user, password = variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"]
    assert httpx.get(address, auth=(user, password)).status_code == 200


def test_the_mail_page_requires_credentials(stack: Stack) -> None:
    address = f"http://localhost:{stack.ports['MAIL_PORT']}/api/v1/messages"

    assert httpx.get(address).status_code == 401
    assert httpx.get(address, auth=("admin", secrets_of(stack)["MAIL_PASSWORD"])).status_code == 200


def test_nothing_listens_beyond_this_machine(stack: Stack) -> None:
    bindings = [
        (service, binding)
        for service, container in stack.containers().items()
        for published in (container["NetworkSettings"]["Ports"] or {}).values()
        for binding in published or []
    ]

    assert {service for service, _ in bindings} == {"prefect", "mlflow", "mail", "serving", "dashboard"}
    for service, binding in bindings:
        assert ipaddress.ip_address(binding["HostIp"]).is_loopback, service


def test_the_worker_cannot_reach_the_database(stack: Stack) -> None:
    connect = "import socket; socket.create_connection(({host!r}, {port}), timeout=3)"
    address = next(iter(stack.containers()["postgres"]["NetworkSettings"]["Networks"].values()))["IPAddress"]
    for host in ("postgres", address):
        refused = stack.python("worker", connect.format(host=host, port=5432), check=False)
        assert refused.returncode == 1, f"the worker reached {host}"
        assert "socket.create_connection" in refused.stderr

    assert stack.python("worker", connect.format(host="minio", port=9000)).returncode == 0
    assert stack.python("prefect", connect.format(host="postgres", port=5432)).returncode == 0


def test_a_database_role_reaches_its_own_database_alone(stack: Stack) -> None:
    connect = (
        "import os, psycopg2; from sqlalchemy.engine import make_url;"
        "u = make_url(os.environ['MLFLOW_BACKEND_STORE_URI']);"
        "psycopg2.connect(host=u.host, user=u.username, password=u.password, dbname={database!r})"
    )

    assert stack.python("mlflow", connect.format(database="mlflow")).returncode == 0
    refused = stack.python("mlflow", connect.format(database="prefect"), check=False)
    assert "permission denied for database" in refused.stderr


def test_mlflows_user_of_the_object_store_cannot_read_prefects_bucket(stack: Stack) -> None:
    listing = (
        "import boto3, os; s3 = boto3.client('s3', endpoint_url=os.environ['MLFLOW_S3_ENDPOINT_URL']);"
        "print(len(s3.list_objects_v2(Bucket={bucket!r}).get('Contents', [])))"
    )

    stack.wait_for_first_run()
    assert int(stack.python("mlflow", listing.format(bucket="mlflow")).stdout) > 0
    refused = stack.python("mlflow", listing.format(bucket="prefect-results"), check=False)
    assert "AccessDenied" in refused.stderr


def test_the_workers_account_is_no_admin(stack: Stack) -> None:
    program = (
        "import os, httpx; e = os.environ; login = (e['MLFLOW_TRACKING_USERNAME'], e['MLFLOW_TRACKING_PASSWORD']);"
        "u = e['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/users/create';"
        "print(httpx.post(u, auth=login, json={'username': 'intruder', 'password': 'x' * 20}).status_code)"
    )

    assert stack.python("worker", program).stdout.strip() == "403"


def test_the_administrators_secrets_are_mounted_without_a_project_s_code(stack: Stack) -> None:
    mounts = stack.containers()["provision"]["Mounts"]

    assert [mount["Destination"] for mount in mounts] == ["/run/secrets"]
    assert stack.provisioner("import os; print(*os.listdir('/trainyard'))").split() == ["infra"]


def test_no_secret_appears_where_it_can_be_read(stack: Stack) -> None:
    secrets = secrets_of(stack)

    assert len(set(secrets.values())) == len(secrets), "no two secrets are equal"
    assert min(map(len, secrets.values())) >= 32
    places = {f"inspect {service}": json.dumps(container) for service, container in stack.containers().items()}
    images = {container["Image"] for container in stack.containers().values()}
    places |= {f"history {image}": stack.shell(f"docker history --no-trunc {image}").stdout for image in images}
    places["logs"] = stack.logs()
    for place, text in places.items():
        for name, secret in secrets.items():
            assert secret not in text, f"{name} appears in {place}"


def test_no_known_default_opens_anything(stack: Stack) -> None:
    secrets = secrets_of(stack)
    known = {"minioadmin", "postgres", "prefect", "mlflow", "admin", "password", "password1234"}

    assert not known & set(secrets.values())
    login = (
        "import psycopg2; psycopg2.connect(host='postgres', user={user!r}, password={password!r}, dbname='postgres')"
    )
    for user in ("postgres", "prefect", "mlflow"):
        refused = stack.python("mlflow", login.format(user=user, password=user), check=False)
        assert "password authentication failed" in refused.stderr


def test_containers_are_confined(stack: Stack) -> None:
    for service, container in stack.containers().items():
        if service == "upstream":
            continue
        host = container["HostConfig"]
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0, service
        assert host["PidsLimit"] > 0, service
        assert host["OomScoreAdj"] == (0 if service == "postgres" else 200), service
        assert host["LogConfig"]["Config"]["max-size"] == "10m", service
        assert host["ReadonlyRootfs"] == (service != "secrets"), service
        assert host["RestartPolicy"]["Name"] == ("no" if service in ONE_SHOTS else "unless-stopped"), service
        assert not any("docker.sock" in mount["Source"] for mount in container["Mounts"]), service
    for service in OWN_IMAGES:
        assert stack.containers()[service]["Config"]["User"] == "trainyard", service


# Tries what SECURITY.md says that a run cannot do; prints by its sentence whether each attempt was refused.
ATTEMPTS = """
import json, os, socket
from pathlib import Path
import httpx, mlflow
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException
from prefect import flow, runtime
from prefect_aws import S3Bucket

LOGIN = tuple(os.environ["PREFECT_API_AUTH_STRING"].split(":", 1))
AUTOMATION = {"name": "own", "actions": [{"type": "do-nothing"}], "trigger": {
    "type": "event", "posture": "Reactive", "expect": ["test.never"], "threshold": 1, "within": 0}}
SECRET = "block_types/slug/secret/block_documents/name/of-the-admin?include_secrets=true"


def is_forbidden(method, path, body=None):
    address = f"{os.environ['PREFECT_API_URL']}/{path}"
    return httpx.request(method, address, json=body, auth=LOGIN, timeout=30).status_code == 403


def raises(error, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as refusal:
        return "AccessDenied" in str(refusal) if error is ClientError else True
    return False


def is_forbidden_by_mlflow(function, *arguments):
    try:
        function(*arguments)
    except MlflowException as refusal:
        return refusal.get_http_status_code() == 403
    return False


def can_connect(host, port):
    socket.create_connection((host, port), timeout=3)


@flow(log_prints=True)
def attempts(experiment: str, model: str, database: str, others: list[str]):
    run, deployment = runtime.flow_run.id, runtime.deployment.id
    client = mlflow.MlflowClient()
    users = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/create"
    account = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    stored = S3Bucket.load("results")
    s3 = stored.credentials.get_s3_client()
    files = [file for file in Path("/run/secrets").iterdir()]
    known = "".join([*os.environ.values(), *(file.read_text() for file in files)])
    refused = {
        "create, change or delete an automation of Prefect": [
            is_forbidden("POST", "automations/", AUTOMATION),
            is_forbidden("POST", "automations/filter", {}),
            is_forbidden("DELETE", f"automations/owned-by/prefect.deployment.{deployment}"),
        ],
        "read a block of Prefect that `WORKER_BLOCKS` does not name, or save one": [
            is_forbidden("GET", SECRET),
            is_forbidden("POST", "block_documents/filter", {"include_secrets": True}),
            is_forbidden("POST", "block_documents/", {}),
        ],
        "delete a run, a flow, a deployment or a variable": [
            is_forbidden("DELETE", f"flow_runs/{run}"),
            is_forbidden("DELETE", f"flows/{run}"),
            is_forbidden("DELETE", f"deployments/{deployment}"),
            is_forbidden("DELETE", "variables/name/trainyard_provisioned"),
        ],
        "save or change a deployment": [
            is_forbidden("POST", "deployments/", {"name": "own", "flow_id": run}),
            is_forbidden("PATCH", f"deployments/{deployment}", {"paused": True}),
        ],
        "change a work pool, a work queue or an existing concurrency limit, or pose as a worker of another pool": [
            is_forbidden("PATCH", "work_pools/training", {"is_paused": True}),
            is_forbidden("POST", "work_pools/", {"name": "own", "type": "process"}),
            is_forbidden("PATCH", "work_pools/training/queues/mail", {"is_paused": True}),
            is_forbidden("PATCH", "v2/concurrency_limits/own", {"limit": 0}),
            is_forbidden("POST", "work_pools/other/get_scheduled_flow_runs", {}),
            is_forbidden("POST", "work_pools/other/workers/heartbeat", {"name": "own"}),
        ],
        "read Prefect's settings, or clear its database": [
            is_forbidden("GET", "admin/settings"),
            is_forbidden("POST", "admin/database/clear", {"confirm": True}),
        ],
        "change an experiment or a model of another account in MLflow, or the accounts": [
            is_forbidden_by_mlflow(client.set_experiment_tag, experiment, "key", "value"),
            is_forbidden_by_mlflow(client.create_run, experiment),
            is_forbidden_by_mlflow(client.set_registered_model_tag, model, "key", "value"),
            is_forbidden_by_mlflow(client.delete_registered_model, model),
            httpx.post(users, auth=account, json={"username": "own", "password": "x" * 20}).status_code == 403,
        ],
        "use another bucket than that of cached results, or administer the object store": [
            raises(ClientError, s3.list_objects_v2, Bucket="mlflow"),
            raises(ClientError, s3.put_object, Bucket="mlflow", Key="own", Body=b""),
            raises(ClientError, s3.create_bucket, Bucket="own-bucket"),
            raises(ClientError, s3.delete_bucket, Bucket=stored.bucket_name),
        ],
        "reach a database": [raises(OSError, can_connect, host, 5432) for host in ("postgres", database)],
        "read a secret of another service": [
            *(other not in known for other in others),
            not Path("/secrets").exists(),
        ],
        "change flows, the platform's code or anything else in its image": [
            raises(OSError, Path(folder, "own.py").write_text, "")
            for folder in ("/trainyard/flows", "/opt/trainyard", "/opt/venv", "/run/secrets", "/usr/local/bin")
        ],
        "become root, or reach Docker": [
            raises(PermissionError, os.setuid, 0),
            not Path("/var/run/docker.sock").exists(),
        ],
    }
    print("REFUSED " + json.dumps(refused))
"""


def test_a_run_cannot_do_what_the_security_page_says_that_it_cannot(stack: Stack) -> None:
    (_, sentences) = (CHECKOUT / "SECURITY.md").read_text().split("A run cannot ")
    stated = set(re.findall(r"^- (.+?)[;.]$", sentences, re.MULTILINE))
    (stack.home / "flows/attempts.py").write_text(ATTEMPTS)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(
            "\n  - name: attempts\n    entrypoint: flows/attempts.py:attempts\n    work_pool: {name: training}\n"
        )
    stack.shell("make deploy")
    stack.provisioner(
        "from prefect.blocks.system import Secret; Secret(value='x').save('of-the-admin', overwrite=True)"
    )
    with stack.mlflow() as api:
        experiment = api.post("/experiments/create", json={"name": "of-the-admin"}).raise_for_status().json()
        api.post("/registered-models/create", json={"name": "of-the-admin"}).raise_for_status()
    workers = {"SERVING_API_KEY", "CACHE_SIGNING_KEY", "MLFLOW_WORKER_PASSWORD", "PREFECT_WORKER_PASSWORD"}
    parameters = {
        "experiment": experiment["experiment_id"],
        "model": "of-the-admin",
        "database": next(iter(stack.containers()["postgres"]["NetworkSettings"]["Networks"].values()))["IPAddress"],
        # Not whole: parameters are in the database.
        "others": [secret[:12] for name, secret in secrets_of(stack).items() if name not in workers],
    }
    output = stack.shell(f"make run DEPLOYMENT=attempts PARAMETERS={shlex.quote(json.dumps(parameters))}").stdout

    refused = json.loads(re.findall(r"REFUSED (.+)", output)[0])
    assert set(refused) == stated
    assert {what: attempts for what, attempts in refused.items() if not all(attempts)} == {}
