"""Other model servers, each installed into a virtual environment of its own, with a model as their guides show it.

Each loads the same fitted estimator from a file and answers one row with its probabilities, by one process.
"""

import json
import subprocess
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import mlflow
import pandas as pd

from infra.testing.servers import CHECKOUT, free_port, server

ENVIRONMENTS = CHECKOUT / ".peers"
"""Kept between runs."""
Served = tuple[str, dict[str, Any]]
"""An address and the arguments of a request."""
START_SECONDS = 120.0


class InstallationError(Exception):
    """A server that cannot be installed; the message is the last line of pip's."""


def install(name: str, packages: list[str]) -> Path:
    """Return the folder of a server's programs.

    Raises:
        InstallationError: pip failed.
    """
    home = ENVIRONMENTS / name
    done = home / "installed"
    if not done.exists():
        venv.create(home, with_pip=True, clear=True)
        # What a pickled estimator depends on has this environment's version.
        pins = [f"{package}=={version(package)}" for package in ("scikit-learn", "numpy", "scipy", "joblib")]
        for wanted in ([*packages, *pins], [*packages, pins[0]]):
            command = ["nice", "-n", "19", str(home / "bin/pip"), "install", "--quiet", *wanted]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                break
        else:
            raise InstallationError((result.stderr.strip().splitlines() or ["pip failed"])[-1])
        frozen = subprocess.run([str(home / "bin/pip"), "freeze"], capture_output=True, text=True, check=True).stdout
        done.write_text(frozen)
    return home / "bin"


def installed_version(name: str, package: str) -> str:
    """Return the version of a package in a server's environment."""
    lines = (ENVIRONMENTS / name / "installed").read_text().splitlines()
    return next((line.partition("==")[2] for line in lines if line.lower().startswith(f"{package}==")), "unknown")


def save_estimator(folder: Path, registry: str, model: str) -> Path:
    """Write the estimator of a registered model to a file, and return it."""
    mlflow.set_tracking_uri(registry)
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(mlflow.sklearn.load_model(f"models:/{model}@champion"), folder / "model.joblib")
    return folder / "model.joblib"


@contextmanager
def mlserver(folder: Path, registry: str, model: str, row: pd.DataFrame) -> Iterator[Served]:
    """Run MLServer with its scikit-learn runtime, in its own process as `parallel_workers` 0 has it."""
    programs = install("mlserver", ["mlserver", "mlserver-sklearn"])
    save_estimator(folder, registry, model)
    port = free_port()
    settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0}
    (folder / "settings.json").write_text(json.dumps(settings | {"host": "127.0.0.1", "debug": False}))
    described = {"name": model, "implementation": "mlserver_sklearn.SKLearnModel"}
    (folder / "model-settings.json").write_text(json.dumps(described | {"parameters": {"uri": "./model.joblib"}}))
    address = f"http://127.0.0.1:{port}/v2"
    tensor = {"name": "predict", "shape": list(row.shape), "datatype": "FP64", "data": row.to_numpy().ravel().tolist()}
    body = {"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}
    with server([str(programs / "mlserver"), "start", "."], f"{address}/health/ready", folder, {}, START_SECONDS):
        yield f"{address}/models/{model}/infer", {"json": body}


LITSERVE = """
import joblib
import litserve
import numpy

class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = joblib.load("model.joblib")
    def decode_request(self, request):
        return numpy.array(request["rows"])
    def predict(self, rows):
        return self.model.predict_proba(rows)
    def encode_response(self, output):
        return {"probabilities": output.tolist()}

if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
"""


@contextmanager
def litserve(folder: Path, registry: str, model: str, row: pd.DataFrame) -> Iterator[Served]:
    """Run LitServe."""
    programs, port = install("litserve", ["litserve"]), free_port()
    save_estimator(folder, registry, model)
    (folder / "api.py").write_text(LITSERVE.replace("PORT", str(port)))
    address = f"http://127.0.0.1:{port}"
    command = [str(programs / "python"), "api.py"]
    with server(command, f"{address}/health", folder, {}, START_SECONDS):
        yield f"{address}/predict", {"json": {"rows": row.to_numpy().tolist()}}


BENTOML = """
import bentoml
import joblib
import numpy

@bentoml.service(workers=1, traffic={"timeout": 60})
class Model:
    def __init__(self) -> None:
        self.model = joblib.load("model.joblib")
    @bentoml.api
    def predict(self, rows: numpy.ndarray) -> numpy.ndarray:
        return self.model.predict_proba(rows)
"""


@contextmanager
def bentoml(folder: Path, registry: str, model: str, row: pd.DataFrame) -> Iterator[Served]:
    """Run BentoML."""
    programs, port = install("bentoml", ["bentoml"]), free_port()
    save_estimator(folder, registry, model)
    (folder / "service.py").write_text(BENTOML)
    address = f"http://127.0.0.1:{port}"
    command = [str(programs / "bentoml"), "serve", "service:Model", "--host", "127.0.0.1", "--port", str(port)]
    environment = {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder / "home")}
    with server(command, f"{address}/readyz", folder, environment, START_SECONDS):
        yield f"{address}/predict", {"json": {"rows": row.to_numpy().tolist()}}


SERVERS: dict[str, tuple[str, Callable[[Path, str, str, pd.DataFrame], AbstractContextManager[Served]]]] = {
    "MLServer": ("mlserver", mlserver),
    "LitServe": ("litserve", litserve),
    "BentoML": ("bentoml", bentoml),
}
"""The package and the context of each."""
