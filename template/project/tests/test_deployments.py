"""The deployments, without a stack."""

from pathlib import Path

import yaml
from prefect.flows import load_flow_from_entrypoint


def test_every_deployment_names_a_flow() -> None:
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]

    assert [load_flow_from_entrypoint(each["entrypoint"]).name for each in deployments]
