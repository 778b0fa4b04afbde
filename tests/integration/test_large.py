"""Data frames that are larger than a machine: the same results as with the frame in memory, on a cluster of processes."""

from collections.abc import Iterator

import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.linear_model import SGDClassifier

from trainyard.cluster import cluster
from trainyard.large import boost, fit_in_parts

PARTS, ROWS = 6, 500


def part(number: int) -> pd.DataFrame:
    """Make one part of the data."""
    random = np.random.default_rng(number)
    frame = pd.DataFrame(random.normal(size=(ROWS, 3)), columns=["a", "b", "c"])
    return frame.assign(label=(frame["a"] + frame["b"] > 0).astype(int))


def scale(frame: pd.DataFrame) -> pd.DataFrame:
    """Preprocess a part."""
    return frame.assign(a=frame["a"] * FACTOR)


FACTOR = 2.0


def large() -> dd.DataFrame:
    return dd.from_map(part, range(PARTS)).map_partitions(scale)


def whole() -> pd.DataFrame:
    return pd.concat(scale(part(number)) for number in range(PARTS))


@pytest.fixture(scope="module")
def workers() -> Iterator[str]:
    """The scheduler's address of two processes."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as local:
        yield local.scheduler_address


@pytest.fixture(params=["here", "cluster"])
def where(request: pytest.FixtureRequest, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both places; the module is not what its file says, so that functions have to arrive by value."""
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    if request.param == "cluster":
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", workers)


@pytest.mark.usefixtures("where")
def test_parts_are_learned_in_their_order() -> None:
    expected = SGDClassifier(random_state=0)
    for number in [*range(PARTS), *range(PARTS)]:
        prepared = scale(part(number))
        expected.partial_fit(prepared.drop(columns="label"), prepared["label"], classes=[0, 1])
    with cluster():
        found = fit_in_parts(SGDClassifier(random_state=0), large(), "label", classes=[0, 1], passes=2)

    np.testing.assert_array_equal(found.coef_, expected.coef_)


@pytest.mark.usefixtures("where")
def test_trees_are_boosted_on_all_parts() -> None:
    with cluster():
        booster = boost(large(), "label", {"objective": "binary:logistic", "max_depth": 3}, rounds=20)
    data = whole()
    predicted = booster.predict(xgboost.DMatrix(data.drop(columns="label"))) > 0.5

    assert (predicted == data["label"]).mean() > 0.95


def test_a_column_that_is_missing_is_named() -> None:
    with cluster(), pytest.raises(ValueError, match="There is no column 'price'; the frame has a, b, c, label"):
        fit_in_parts(SGDClassifier(), large(), "price")
