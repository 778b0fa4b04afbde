"""Artifacts pass between host and worker through MLflow alone: no client has a key of the object store."""

import base64
import json
import socket
from urllib.parse import urlsplit

import pytest

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until

LOG = (
    "import mlflow; mlflow.set_experiment({experiment!r}); run = mlflow.start_run();"
    "mlflow.log_text({text!r}, 'notes/note.txt'); mlflow.end_run(); print(run.info.run_id)"
)
READ = "import mlflow; print(mlflow.artifacts.load_text('runs:/{run}/notes/note.txt'))"


LARGE = """
import hashlib, json, random
from pathlib import Path
import mlflow
from mlflow.artifacts import download_artifacts
mlflow.set_experiment("large")
content = random.Random(1).randbytes(20_000_000)
digests = set()
with mlflow.start_run() as run:
    for name, size in (("large.json", len(content)), ("part.bin", 8 << 20), ("small.txt", 5), ("empty.bin", 0)):
        Path("/tmp", name).write_bytes(content[:size])
        mlflow.log_artifact(f"/tmp/{name}", "folder")
        back = Path(download_artifacts(artifact_uri=f"{run.info.artifact_uri}/folder/{name}"))
        assert back.read_bytes() == content[:size], name
print(run.info.artifact_uri.removeprefix("mlflow-artifacts:/"))
"""
STORED = """
import json
from minio import Minio
from infra.provision.settings import Settings
settings = Settings()
store = settings.store.connect(settings.minio_root_user, settings.minio_root_password.get_secret_value())
found = {{}}
for entry in store.list_objects(bucket_name="mlflow", prefix={prefix!r}, recursive=True):
    about = store.stat_object(bucket_name="mlflow", object_name=entry.object_name)
    found[entry.object_name.removeprefix({prefix!r})] = [about.size, about.etag, about.content_type]
uploads = store._list_multipart_uploads("mlflow", prefix={upload!r}).uploads
print(json.dumps([found, [upload.object_name for upload in uploads]]))
"""


def stored(stack: Stack, prefix: str, upload: str = "") -> tuple[dict[str, list[object]], list[str]]:
    """Return size, ETag and type of MLflow's objects beneath a prefix, and the uploads of one object that did not end."""
    objects, uploads = json.loads(stack.provisioner(STORED.format(prefix=prefix, upload=upload)).splitlines()[-1])
    return objects, uploads


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


def test_files_of_any_size_are_stored_byte_for_byte_with_their_type(stack: Stack) -> None:
    prefix = stack.python("worker", LARGE).stdout.splitlines()[-1] + "/folder/"
    objects, _ = stored(stack, prefix)

    assert {name: about[0] for name, about in objects.items()} == {
        "large.json": 20_000_000,
        "part.bin": 8 << 20,
        "small.txt": 5,
        "empty.bin": 0,
    }
    assert [str(objects[name][1])[-2:] for name in ("large.json", "part.bin")] == ["-3", "-1"], "they are sent in parts"
    assert objects["large.json"][2] == "application/json"
    assert objects["small.txt"][2] == "text/plain"


@pytest.mark.parametrize("sent", [1000, 20_000_000])
def test_an_upload_that_ends_early_leaves_nothing(stack: Stack, sent: int) -> None:
    variables = stack.variables()
    login = f"{variables['MLFLOW_TRACKING_USERNAME']}:{variables['MLFLOW_TRACKING_PASSWORD']}"
    address = urlsplit(variables["MLFLOW_TRACKING_URI"])
    name = f"0/interrupted/{sent}.bin"
    request = (
        f"PUT /api/2.0/mlflow-artifacts/artifacts/{name} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\nContent-Length: 50000000\r\n\r\n"
    )
    with socket.create_connection((str(address.hostname), int(address.port or 80))) as connection:
        connection.sendall(request.encode() + bytes(sent))

    def line_in_log() -> bool:
        return "ClientDisconnect" in stack.shell("docker compose logs --since 60s mlflow").stdout

    wait_until(line_in_log, 30, "the server to see that the client went away", every=1)
    assert stored(stack, "0/interrupted/", name) == ({}, [])
