"""The compose files, read without Docker: what is mounted where, and under which addresses services are reached."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.secrets import vault
from trainyard.contract import Resource

CHECKOUT = Path(__file__).parents[2]
METRICS = CHECKOUT / "infra/metrics"  # settings of Prometheus
KUBERNETES = CHECKOUT / "infra/kubernetes"
OVERRIDES = [file for file in sorted((CHECKOUT / "infra").rglob("*.yml")) if file.parent not in (METRICS, KUBERNETES)]
FILES = [CHECKOUT / "docker-compose.yml", *OVERRIDES, CHECKOUT / "bench/compose.yml"]


class Loader(yaml.SafeLoader):
    """YAML with the tags by which a compose file replaces or removes what another one has."""


def without_tag(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """Return the value as it is without the tag."""
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


Loader.add_constructor("!override", without_tag)
Loader.add_constructor("!reset", without_tag)


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
        "deploy": "deploy",
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


def test_with_tls_nothing_but_the_proxy_is_published() -> None:
    stack, with_tls = services(CHECKOUT / "docker-compose.yml"), services(CHECKOUT / "infra/compose/tls.yml")
    published = {name for name, service in stack.items() if "ports" in service}

    assert {name for name, service in with_tls.items() if service.get("ports") == []} == published
    assert [name for name, service in with_tls.items() if service.get("ports")] == ["proxy"]
    tags = (
        (CHECKOUT / "infra/compose/tls.yml").read_text().count("ports: !reset []")
    )  # without it Compose adds an empty list
    assert tags == len(published)


def test_with_tls_every_service_that_knows_a_public_address_knows_that_of_the_proxy() -> None:
    stack, with_tls = services(CHECKOUT / "docker-compose.yml"), services(CHECKOUT / "infra/compose/tls.yml")
    known = {
        (name, variable): re.match(r"\$\{([A-Z]+)_PUBLIC_URL:-", str(address))
        for name, service in stack.items()
        for variable, address in service.get("environment", {}).items()
    }

    expected = {
        place: f"{found[0]}https://{found[1].lower()}.${{PUBLIC_HOST:-localhost}}${{HTTPS_PORT:+:${{HTTPS_PORT:-}}}}}}"
        for place, found in known.items()
        if found
    }
    assert len(expected) > 20
    assert {(name, variable): with_tls[name]["environment"].get(variable) for name, variable in expected} == expected


def test_the_proxy_has_the_limits_of_the_others() -> None:
    base = yaml.load((CHECKOUT / "docker-compose.yml").read_text(), Loader)["x-service"]
    proxy = services(CHECKOUT / "infra/compose/tls.yml")["proxy"]

    assert {name: proxy[name] for name in base if name != "tmpfs"} == {k: v for k, v in base.items() if k != "tmpfs"}


def test_the_proxy_s_certificates_have_an_issuer_that_the_vault_knows() -> None:
    text = (CHECKOUT / "infra/proxy/Caddyfile").read_text()

    assert tuple(re.findall(r"^\(certificates-(\w+)\) \{$", text, re.MULTILINE)) == vault.TLS_ISSUERS
    assert (
        text.count("import certificates-{$TLS_ISSUER}")
        == len(re.findall(r"^\{\$\w+_UI_URL\} \{$", text, re.MULTILINE))
        == 5
    )


def test_a_worker_on_another_host_is_the_stack_s_on_one_work_queue() -> None:
    file = CHECKOUT / "infra/compose/worker.yml"
    here, there = services(CHECKOUT / "docker-compose.yml")["worker"], services(file)["worker"]
    of_the_host = {
        "scale",
        "build",
        "image",
        "command",
        "env_file",
        "environment",
        "volumes",
        "networks",
        "depends_on",
        "secrets",
    }
    command = there["command"]

    assert {k: v for k, v in here.items() if k not in of_the_host} == {
        k: v for k, v in there.items() if k not in of_the_host
    }
    assert there["environment"].items() <= here["environment"].items()
    assert {name for name in here["environment"] if name.startswith("PREFECT_")} - there["environment"].keys() == {
        "PREFECT_UI_URL"  # the token has it
    }
    assert [each for each in command if each not in here["command"]] == [
        "--name", "${WORKER_NAME:-}", "--work-queue", "${WORKER_QUEUE:-default}",
    ]  # fmt: skip
    assert not {secret for secret in vault.TOKEN if secret.startswith(("SMTP", "SERVING", "POSTGRES", "MINIO"))}


def test_the_gateway_has_the_limits_of_the_proxy() -> None:
    gateway = services(CHECKOUT / "infra/compose/worker.yml")["gateway"]
    proxy = services(CHECKOUT / "infra/compose/tls.yml")["proxy"]

    for name in (
        "image",
        "restart",
        "init",
        "read_only",
        "cap_drop",
        "security_opt",
        "oom_score_adj",
        "pids_limit",
        "logging",
        "mem_limit",
    ):
        assert gateway[name] == proxy[name], name


def test_a_worker_that_polls_chosen_queues_takes_all_of_the_platform() -> None:
    command = services(CHECKOUT / "infra/compose/second-project.yml")["worker"]["command"]
    polled = {queue for option, queue in pairwise(command) if option == "--work-queue"}

    assert polled == {"default", Resource.MAIL_QUEUE, Resource.PLATFORM_QUEUE}
