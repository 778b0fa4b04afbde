"""infra/kubernetes: what Prefect makes of the job template is a job for Kubernetes, and its gateway is that of other hosts."""

import asyncio
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.workers.base import BaseJobConfiguration

TEMPLATE = json.loads(Path("infra/kubernetes/job-template.json").read_text())
VALUES = {
    "address": "https://workers.ml.example.com",
    "image": "registry.example.com/trainyard-worker-baked:0.2.0",
    "memory": "8Gi",
}
VERSIONS = ["1.29", "1.32", "1.37"]  # the first whose init containers may run on beside the others, and newer ones


class Configuration(BaseJobConfiguration):
    """The part of Prefect's configuration of Kubernetes jobs that the template fills; the worker there adds to env and labels."""

    namespace: str
    job_manifest: dict[str, Any]


def render(values: dict[str, Any]) -> dict[str, Any]:
    client: Any = object()  # no block or variable is named, so no server is asked
    found: Any = asyncio.run(Configuration.from_template_and_values(TEMPLATE, values, client=client))
    (run,) = found.job_manifest["spec"]["template"]["spec"]["containers"]
    run["args"] = run["args"].split()  # as the worker there does
    return found.job_manifest


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rendered_job_is_one_of_kubernetes(version: str) -> None:
    manifest = render(VALUES)
    for unknown in ("parallelism", "completions"):  # Prefect wants them here; Kubernetes ignores them
        del manifest["spec"]["template"]["spec"][unknown]

    kubernetes_validate.validate(manifest, version, strict=True)


def test_values_reach_the_job_and_no_placeholder_is_left() -> None:
    manifest = render(VALUES)
    pod = manifest["spec"]["template"]["spec"]
    (run,), (gateway,) = pod["containers"], pod["initContainers"]

    assert "{{" not in json.dumps(manifest)
    assert run["image"] == VALUES["image"]
    assert run["resources"]["requests"]["memory"] == run["resources"]["limits"]["memory"] == "8Gi"
    assert {"name": "TRAINYARD_ADDRESS", "value": VALUES["address"]} in gateway["env"]
    assert manifest["metadata"]["namespace"] == "trainyard"


def test_a_job_that_is_broken_is_refused() -> None:
    manifest = render(VALUES)
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = "all"

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1])


def test_the_gateway_is_that_of_workers_on_other_hosts() -> None:
    gateway = yaml.safe_load(Path("infra/kubernetes/gateway.yml").read_text())
    other = yaml.safe_load(Path("infra/compose/worker.yml").read_text())["configs"]["gateway"]["content"]

    kubernetes_validate.validate(gateway, VERSIONS[-1], strict=True)
    assert gateway["data"]["Caddyfile"] == other.replace("$$", "$")


def test_the_variables_of_a_run_are_those_of_workers_on_other_hosts() -> None:
    other = yaml.safe_load(Path("infra/compose/worker.yml").read_text())["services"]["worker"]["environment"]
    (run,) = render(VALUES)["spec"]["template"]["spec"]["containers"]

    assert {each["name"]: each["value"] for each in run["env"]}.items() <= {k: str(v) for k, v in other.items()}.items()
