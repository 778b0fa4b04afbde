"""A real serving process under bodies that unpack to much: its memory stays bounded, and it answers on."""

from pathlib import Path

import httpx
import mlflow
import pytest

from bench.bodies import bombs
from bench.bombs import HEADERS, MODEL, bombed_service, flood, mutated, register_model

MIB = 2**20
MAX_BODY = MIB
MAX_GROWTH, MAX_DECODER = 96 * MIB, 224 * MIB
"""The decoding process has about 100 MiB to begin with, and may allocate 64 MiB more."""


def test_no_body_takes_much_memory_or_the_service_down(
    mlflow_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    mlflow.set_experiment("bombs")
    register_model()
    limits = {"SERVING_MAX_BODY_BYTES": str(MAX_BODY)}

    with bombed_service(tmp_path, mlflow_address, **limits) as (address, watch):
        statuses = flood(address, bombs(MAX_BODY), watch, callers=4)
        statuses += flood(address, mutated(200, seed=1), watch, callers=4)
        after = httpx.post(f"{address}/models/{MODEL}/predict", json={"a": 1}, headers=HEADERS)

    assert after.status_code == 200
    assert statuses[413] > 10
    assert watch.peak - watch.idle < MAX_GROWTH
    assert 0 < watch.decoder_peak < MAX_DECODER
