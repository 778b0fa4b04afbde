"""The catalog: which models are in memory, and what becomes of those that do not fit, fail or are deleted."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from serving.catalog import Catalog
from serving.loading import Loader
from serving.memory import memory_limit
from serving.problems import RequestError
from serving.registry import Registry
from serving.settings import Settings
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor

from infra.testing.registry_server import RegistryServer, registry_server

random = np.random.default_rng(0)
FRAME = pd.DataFrame(random.normal(size=(40, 2)), columns=["a", "b"])


def save(folder: Path, estimator: BaseEstimator, inputs: pd.DataFrame, target: Any) -> None:
    """Save a fitted estimator as MLflow does."""
    mlflow.sklearn.save_model(
        estimator.fit(inputs, target),
        folder,
        signature=infer_signature(inputs, estimator.predict(inputs)),
        input_example=inputs.head(2),
        serialization_format="skops",
        skops_trusted_types=["numpy.dtype"],
        pip_requirements=["scikit-learn"],
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a small model and one of two mebibytes."""
    root = tmp_path_factory.mktemp("models")
    save(root / "small", LogisticRegression(), FRAME, FRAME["a"] > 0)
    wide = pd.DataFrame(random.normal(size=(65_536, 4)), columns=list("abcd"))
    save(root / "large", KNeighborsRegressor(algorithm="brute"), wide, wide["a"])
    return root


@pytest.fixture
def server(saved: Path) -> Iterator[RegistryServer]:
    """A registry of the saved models."""
    with registry_server(saved) as server:
        yield server


@pytest.fixture
def catalog_of(server: RegistryServer) -> Iterator[Callable[[int], tuple[Catalog, Registry]]]:
    """Makes a catalog with a limit of memory in mebibytes, and a client of the registry."""
    with Registry(server.url, None) as registry:

        def make(mebibytes: int) -> tuple[Catalog, Registry]:
            size = mebibytes * 2**20
            settings = Settings(mlflow_tracking_uri=server.url, serving_require_key=False, serving_model_bytes=size)
            return Catalog(settings, Loader(settings)), registry

        yield make


def refusal(catalog: Catalog, name: str) -> tuple[str, str]:
    with pytest.raises(RequestError) as refused:
        catalog.model(name)
    return refused.value.code, refused.value.message


def test_the_least_recently_used_models_make_room_and_come_back_at_their_next_request(
    server: RegistryServer, catalog_of: Any
) -> None:
    server.champions = dict.fromkeys(("one", "two", "three", "four"), (1, "large"))
    catalog, registry = catalog_of(20)

    catalog.refresh(registry)
    at_first = set(catalog.state.models)
    downloads = len(server.downloads)
    catalog.refresh(registry)
    idle = len(server.downloads)
    out = min(catalog.state.unloaded)
    code, _ = refusal(catalog, out)
    for name in sorted(at_first)[1:]:
        catalog.model(name)

    async def ask() -> None:
        waiting = asyncio.create_task(catalog.wait_for(out))
        await asyncio.sleep(0)
        await asyncio.to_thread(catalog.refresh, registry)
        await waiting

    asyncio.run(ask())

    assert 2 <= len(at_first) < 4
    assert idle - downloads <= 2 * len(catalog.state.registered)  # a model without room is not fetched again
    assert code == "loading"
    assert catalog.model(out).champion.model == out
    assert sorted(at_first)[0] in catalog.state.unloaded
    assert catalog.state.unservable == {}
    memory = sum(model.memory for model in catalog.state.models.values())
    assert memory <= 20 * 2**20


def test_a_model_that_does_not_fit_is_refused_with_its_size_and_the_limit_before_it_is_read(
    server: RegistryServer, catalog_of: Any
) -> None:
    server.champions = {"large": (1, "large"), "small": (1, "small")}
    catalog, registry = catalog_of(4)

    catalog.refresh(registry)

    assert set(catalog.state.models) == {"small"}
    assert "MiB of memory to load, and models may take 4.0 MiB" in catalog.state.unservable["large"]
    assert not [path for path in server.downloads if path.startswith("large/model")]
    assert refusal(catalog, "large")[0] == "no-champion"


def test_a_model_that_cannot_be_fetched_or_loaded_is_tried_again(
    server: RegistryServer, catalog_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.champions = {"small": (1, "small")}
    catalog, registry = catalog_of(64)

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("serving.catalog.FIRST_RETRY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("serving.loading.load_estimator", fail)
        catalog.refresh(registry)
        reason = catalog.state.unservable["small"]
    server.failures = 1
    catalog.refresh(registry)
    unreachable = catalog.state.unservable["small"]
    catalog.refresh(registry)

    assert "MemoryError" in reason
    assert "tried again" in reason
    assert "500" in unreachable
    assert set(catalog.state.models) == {"small"}
    assert catalog.state.unservable == {}


def test_a_deleted_model_is_not_listed_as_unservable(server: RegistryServer, catalog_of: Any) -> None:
    server.champions = {"large": (1, "large")}
    catalog, registry = catalog_of(4)
    catalog.refresh(registry)
    before = set(catalog.state.unservable)

    server.champions = {}
    catalog.refresh(registry)

    assert before == {"large"}
    assert catalog.state.unservable == {}
    assert refusal(catalog, "large")[0] == "unknown-model"


def test_a_caller_of_a_model_that_is_still_loading_is_told_to_come_back(
    server: RegistryServer, catalog_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.champions = {"a": (1, "small"), "b": (1, "small"), "c": None}
    catalog, registry = catalog_of(64)
    seen = []

    def look(*_: Any) -> None:
        seen.append((catalog.state.is_settled, refusal(catalog, "b")[0], refusal(catalog, "c")[1]))
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("serving.loading.load_estimator", look)
        catalog.refresh(registry)

    assert seen[0][:2] == (False, "loading")
    assert "give a version the alias" in seen[0][2]
    assert catalog.state.is_settled


def test_the_limit_of_memory_is_the_containers(tmp_path: Path) -> None:
    limited, unlimited = tmp_path / "limited", tmp_path / "unlimited"
    limited.write_text("1073741824\n")
    unlimited.write_text("max\n")

    assert memory_limit((limited, tmp_path / "none")) == 2**30
    assert memory_limit((unlimited,)) > 2**30
