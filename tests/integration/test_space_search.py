"""The search in a space, as tasks of a real Prefect server: pruned, resumed after a kill, and on Dask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import distributed
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from prefect import flow, task
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from trainyard.cache import cached, refreshing
from trainyard.candidates import Candidate, Space
from trainyard.errors import SearchError
from trainyard.search import SearchResult
from trainyard.space_search import search_space

FOLDS = 3
SPACE = Space(
    {
        "bowl": {"x": FloatDistribution(-4, 4), "n": IntDistribution(1, 9)},
        "plane": {"slope": FloatDistribution(0.1, 10, log=True), "side": CategoricalDistribution(["left", "right"])},
    },
    trials=24,
)

pytestmark = pytest.mark.usefixtures("prefect", "own_cache")


@pytest.fixture
def own_cache(tmp_path: Path) -> Iterator[None]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield


class Killed(BaseException):
    """Stands for the signal that ends a process."""


def loss_of(candidate: Candidate, number: int) -> float:
    params: dict[str, Any] = dict(candidate.params)
    if candidate.family == "bowl":
        return (params["x"] - 1) ** 2 + abs(params["n"] - 4) / 10 + number / 100
    return 5 + params["slope"] + (params["side"] == "left")


@task(name="loss", **cached())
def score(log: Path, candidate: Candidate, folds: int, number: int) -> dict[str, float] | None:
    with log_of(log).open("a") as lines:
        lines.write(f"{candidate.name} {number}\n")
    return {"loss": loss_of(candidate, number)}


def log_of(folder: Path) -> Path:
    """Return the log beside an empty folder, whose content is what counts in the cache key."""
    return folder.with_suffix(".log")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    log_of(folder).touch()
    return folder


@flow(persist_result=False)
def run(log: Path, space: Any = None, refresh: bool = False) -> SearchResult:
    with refreshing(refresh):
        return search_space(score, space or SPACE, FOLDS, "cv_loss", log=log)


def test_it_finds_a_better_candidate_than_its_first_ones_and_gives_up_what_promises_little(log: Path) -> None:
    scores, trials = run(log)
    losses = [trial.metrics["cv_loss"] for trial in trials]

    assert len(trials) == SPACE.trials
    assert min(losses) < 0.3
    assert losses.index(min(losses)) >= SPACE.batch, "it learned from earlier ones"
    assert any(trial.is_pruned for trial in trials)
    assert len(scores) == sum(not trial.is_pruned for trial in trials)
    assert len(log_of(log).read_text().splitlines()) < SPACE.trials * FOLDS, "pruned candidates saved folds"


def test_without_pruning_every_fold_of_every_candidate_is_scored(log: Path) -> None:
    scores, _ = run(log, Space(SPACE.parameters, trials=8, prune=False))

    assert len(scores) == 8
    assert len(log_of(log).read_text().splitlines()) == 8 * FOLDS


def test_a_killed_search_goes_on_from_its_finished_trials(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainyard import space_search

    tell, told = space_search._tell, []

    def tell_and_die(*arguments: Any) -> None:
        tell(*arguments)
        told.append(arguments)
        if len(told) == 12:
            raise Killed

    monkeypatch.setattr(space_search, "_tell", tell_and_die)
    with pytest.raises(Killed):
        run(log)
    before = log_of(log).read_text().splitlines()
    monkeypatch.setattr(space_search, "_tell", tell)
    resumed = run(log)
    calls = log_of(log).read_text().splitlines()

    assert before
    assert len(calls) == len(set(calls)), "no fold was scored twice"
    assert resumed == run(log, refresh=True), "and the result is that of a search in one piece"


def test_a_failed_candidate_has_no_score_and_a_search_without_any_score_fails(log: Path) -> None:
    @task(name="fails-on-a-plane", **cached())
    def fail(candidate: Candidate, folds: int, number: int) -> dict[str, float]:
        if candidate.family == "plane":
            raise ValueError("no plane flies")
        return {"loss": loss_of(candidate, number)}

    @flow(persist_result=False)
    def run_failing(space: Any) -> SearchResult:
        return search_space(cast(Any, fail), space, FOLDS, "cv_loss")

    scores, trials = run_failing(SPACE)
    planes = Space({"plane": SPACE.parameters["plane"]}, trials=2)

    assert {each.candidate.family for each in scores} == {"bowl"}
    assert {trial.error for trial in trials if trial.params["family"] == "plane"} == {"no plane flies"}
    with pytest.raises(SearchError, match=r"All candidates failed\. The error of the first: no plane flies"):
        run_failing(planes)


def test_on_dask_the_same_candidates_are_found(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Space(SPACE.parameters, trials=8)
    here = run(log, few)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        there = run(log, few, refresh=True)

    assert there == here
