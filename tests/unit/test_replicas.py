"""What several Prefect servers share, and where Prometheus finds them."""

import json
from pathlib import Path

import pytest
from prefect_server.shared import share

from infra.secrets import vault
from tests.unit.test_vault import settings_file


def test_a_server_alone_shares_nothing() -> None:
    environment = {"REDIS_PASSWORD": "unused"}
    share(environment)

    assert environment == {"REDIS_PASSWORD": "unused"}


def test_several_servers_share_all_that_one_keeps_in_memory() -> None:
    environment = {"REDIS_HOST": "redis", "REDIS_PASSWORD": "p@ss/word"}
    share(environment)
    modules = {name: value for name, value in environment.items() if value.startswith("prefect_redis.")}

    assert environment["PREFECT_REDIS_MESSAGING_URL"] == "redis://:p%40ss%2Fword@redis:6379/0"
    assert environment["PREFECT_SERVER_DOCKET_URL"] == "redis://:p%40ss%2Fword@redis:6379/1"
    assert sorted(modules.values()) == [
        "prefect_redis.cleanup_queue",
        "prefect_redis.messaging",
        "prefect_redis.messaging",
        "prefect_redis.ordering",
    ]


@pytest.mark.parametrize("servers", [["prefect:4200"], ["prefect-api-1:4200", "prefect-api-2:4200"]])
def test_prometheus_has_every_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: list[str]) -> None:
    if len(servers) > 1:
        monkeypatch.setenv("PREFECT_SERVERS", " ".join(servers))
    volume = tmp_path / "volume"
    volume.mkdir()
    vault.make(volume, settings_file(tmp_path))

    assert json.loads((volume / "prometheus/prefect-targets.json").read_text()) == [{"targets": servers}]
