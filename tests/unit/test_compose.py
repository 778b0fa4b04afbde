"""The compose files, read without Docker: what is mounted where, and under which addresses services are reached."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
FILES = [CHECKOUT / "docker-compose.yml", *sorted((CHECKOUT / "infra").rglob("*.yml")), CHECKOUT / "bench/compose.yml"]


class Loader(yaml.SafeLoader):
    """YAML with the tag by which a compose file replaces what another one has."""


def without_tag(loader: yaml.SafeLoader, node: yaml.MappingNode | yaml.SequenceNode) -> Any:
    """Return the list or mapping as it is without the tag."""
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor("!override", without_tag)


def services(file: Path) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = yaml.load(file.read_text(), Loader)["services"]
    return loaded


def mounts(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a service's mounts in the long form; `options` are those of the short form."""
    for mount in service.get("volumes", []):
        if isinstance(mount, str):
            source, target, *options = mount.split(":")
            kind = "bind" if source.startswith((".", "/")) else "volume"
            mount = {"type": kind, "source": source, "target": target, "options": ",".join(options).split(",")}
        yield mount


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_what_is_mounted_from_the_host_is_labeled_for_selinux(file: Path) -> None:
    for name, service in services(file).items():
        for mount in mounts(service):
            if mount["type"] == "bind":
                assert "z" in mount.get("options", []) or mount.get("bind", {}).get("selinux") == "z", (name, mount)


def test_the_administrators_secrets_are_beside_no_code_of_a_project() -> None:
    stack = services(CHECKOUT / "docker-compose.yml")
    secrets = {
        name: mount["volume"]["subpath"]
        for name, service in stack.items()
        for mount in mounts(service)
        if mount["target"] == "/run/secrets"
    }
    with_flows = {
        name
        for name, service in stack.items()
        if any(mount["target"] == "/trainyard/flows" for mount in mounts(service))
    }

    assert [name for name, folder in secrets.items() if folder == "provision"] == ["provision"]
    assert {name: secrets[name] for name in with_flows} == {
        "deploy": "worker",
        "worker": "worker",
        "serving": "serving",
    }
    assert "project" not in stack["provision"]["build"].get("additional_contexts", {})
    assert stack["provision"]["image"] not in {stack[name]["image"] for name in with_flows}


@pytest.mark.parametrize("service", ["PREFECT", "MLFLOW", "SERVING", "DASHBOARD", "MAIL"])
def test_a_service_s_public_address_is_a_setting(service: str) -> None:
    address = services(CHECKOUT / "docker-compose.yml")["secrets"]["environment"][f"{service}_UI_URL"]
    example = (CHECKOUT / ".env.example").read_text()

    assert address.startswith(f"${{{service}_PUBLIC_URL:-http://${{PUBLIC_HOST:-localhost}}:${{{service}_PORT:-")
    assert f"#{service}_PUBLIC_URL=http://localhost:" in example
