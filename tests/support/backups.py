"""A backup of a stack that has something of every kind, and what a restored installation is compared by."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from tests.support.installation import predict, read_installation, recorded_predictions

DIARY = """
import mlflow
from prefect import flow


@flow(timeout_seconds=300)
def diary():
    mlflow.set_experiment("diary")
    page = 0
    with mlflow.start_run() as run:
        while "done" not in mlflow.get_run(run.info.run_id).data.tags:
            page += 1
            mlflow.log_text(str(page), f"pages/{page}.txt")
            mlflow.log_metric("page", page)
"""
ENTRY = "\n  - name: diary\n    entrypoint: flows/diary.py:diary\n    work_pool: *training\n"
CONNECT = """
from infra.provision.settings import Settings
settings = Settings()
if settings.store.is_external:
    user, key = settings.minio_user, settings.minio_password
else:
    user, key = settings.minio_root_user, settings.minio_root_password
store = settings.store.connect(user, key.get_secret_value())
"""
HASHES = f"""
import hashlib, json
{CONNECT}found = {{}}
for bucket in ("mlflow", "prefect-results"):
    actual, folder = settings.store.locate(bucket)
    for entry in store.list_objects(bucket_name=actual, prefix=folder, recursive=True):
        response = store.get_object(bucket_name=actual, object_name=entry.object_name)
        about = hashlib.sha256(response.data).hexdigest() + " " + response.headers["Content-Type"]
        found[f"{{bucket}}/{{entry.object_name.removeprefix(folder)}}"] = about
print(json.dumps(found))
"""
LARGE_OBJECT = f"""
import io, random
{CONNECT}data = random.Random(1).randbytes({{megabytes}} * 1_000_000)
store.put_object(bucket_name="mlflow", object_name={{name!r}}, data=io.BytesIO(data), length=len(data), part_size=8 << 20)
"""
REMOVE_LARGE_OBJECT = (
    LARGE_OBJECT.partition("data = ")[0] + 'store.remove_object(bucket_name="mlflow", object_name="large-object")'
)
SAVE_BLOCK = 'from prefect.blocks.system import Secret; Secret(value="open sesame").save("kept", overwrite=True)'
READ_BLOCK = 'from prefect.blocks.system import Secret; print(Secret.load("kept").get())'
COLLEAGUE = ("colleague", "an account of a person")


def hashes(stack: Stack) -> dict[str, str]:
    """Return hash and type of every object."""
    found: dict[str, str] = json.loads(stack.provisioner(HASHES).splitlines()[-1])
    return found


def colleagues_status(stack: Stack) -> int:
    """Return what MLflow answers to the account of a person."""
    with stack.mlflow() as api:
        return api.get("/experiments/search", params={"max_results": 1}, auth=COLLEAGUE).status_code


def pages(stack: Stack) -> tuple[str, int] | None:
    """Return the run that writes a diary and its number of pages, or None before the first one."""
    with stack.mlflow() as api:
        found = api.get("/experiments/get-by-name", params={"experiment_name": "diary"})
        if found.status_code == 404:
            return None
        ids = [found.raise_for_status().json()["experiment"]["experiment_id"]]
        runs = api.post("/runs/search", json={"experiment_ids": ids}).raise_for_status().json().get("runs", [])
    written = [(run["info"]["run_id"], metric) for run in runs for metric in run["data"].get("metrics", [])]
    return next(((run, int(metric["value"])) for run, metric in written if metric["key"] == "page"), None)


@dataclass
class Backup:
    """A backup that was made while a run wrote its diary."""

    source: Stack
    folder: Path
    password: str
    output: str
    before: dict[str, Any]
    objects: dict[str, str]
    prediction: dict[str, Any]

    def restore(
        self, target: Stack, folder: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `make restore` in another installation."""
        return target.shell(f"BACKUP_PASSWORD={self.password} make restore FROM={folder or self.folder}", check)


def make_backup(stack: Stack, folder: Path) -> Backup:
    """Make a backup of a stack, with something of every kind in it, while a run goes on."""
    stack.wait_for_first_run()
    prediction = wait_until(lambda: predict(stack), 60, "the champion to be served", every=1)
    wait_until(lambda: recorded_predictions(stack), 30, "the recorded prediction", every=0.5)
    stack.provisioner(SAVE_BLOCK)
    with stack.mlflow() as api:
        user, password = COLLEAGUE
        api.post("/users/create", json={"username": user, "password": password}).raise_for_status()
    stack.provisioner(LARGE_OBJECT.format(megabytes=20, name="large-object"))
    (stack.home / "flows/diary.py").write_text(DIARY)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(ENTRY)
    stack.shell("make deploy")
    objects, before = hashes(stack), read_installation(stack)

    command = ["make", "run", "DEPLOYMENT=diary"]
    with subprocess.Popen(command, cwd=stack.home, env=stack.environment, stdout=subprocess.PIPE) as run:
        begun, _ = wait_until(lambda: pages(stack), 60, "the diary's first page")
        output = stack.shell(f"make backup TO={folder}").stdout
        diary, written = wait_until(lambda: pages(stack), 10, "the diary")
        with stack.mlflow() as api:
            api.post("/runs/set-tag", json={"run_id": diary, "key": "done", "value": "yes"}).raise_for_status()
        run.communicate()
    stack.provisioner(REMOVE_LARGE_OBJECT)  # of which MLflow knows nothing
    assert begun == diary
    assert written > 1
    assert run.returncode == 0
    password = stack.exec("backup", "printenv", "BACKUP_PASSWORD").stdout.strip()
    return Backup(stack, folder, password, output, before, objects, prediction)
