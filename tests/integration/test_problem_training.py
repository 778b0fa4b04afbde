"""`trainyard.training.train` against real Prefect and MLflow servers: the tutorial's pipeline, and a series."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.distributions import FloatDistribution
from prefect import Flow, flow, task
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from infra.testing.stack import CHECKOUT
from trainyard import fitting
from trainyard.cache import cached
from trainyard.candidates import Candidate, Space
from trainyard.contract import Alias, Artifact, ImportanceColumn, Tag
from trainyard.errors import DataError, RegistryError, ReproductionError
from trainyard.evaluation import from_table
from trainyard.fitting import Evaluation
from trainyard.problem import Parts, Problem, grid
from trainyard.reproduction import reproduce
from trainyard.splits import RandomSplit, TimeSplit
from trainyard.training import Details, Outcome, Steps, train

PAGE = (CHECKOUT / "docs/add-a-pipeline.md").read_text()
MODELS = ["parcel-hours", "sales"]

pytestmark = pytest.mark.usefixtures("prefect", "tracking", "own_cache_and_registry")


@pytest.fixture
def own_cache_and_registry(tracking: MlflowClient, tmp_path: Path) -> Iterator[None]:
    """Begin with an empty cache and no champion."""
    for model in MODELS:
        with suppress(MlflowException):
            tracking.delete_registered_model(model)
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield


def block(opening: str, closing: str) -> str:
    """Return the text of the page between two lines."""
    found = re.search(f"^{re.escape(opening)}\n(.*?)^{re.escape(closing)}$", PAGE, re.MULTILINE | re.DOTALL)
    assert found, opening
    return found[1]


@pytest.fixture
def parcels(tmp_path: Path) -> Path:
    """The tutorial's CSV."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block(".venv/bin/python >../parcels/flows/parcels/parcels.csv <<'END'", "END"), {})
    file = tmp_path / "parcels.csv"
    file.write_text(printed.getvalue())
    return file


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Flow[..., Outcome]]:
    """Load the tutorial's flow with a replaced text, as a worker does."""

    def load_with(old: str = "", new: str = "") -> Flow[..., Outcome]:
        file = tmp_path / "pipeline.py"
        file.write_text(block("```python", "```").replace(old, new) if old else block("```python", "```"))
        return load_flow_from_entrypoint(f"{file}:pipeline")

    return load_with


def test_the_tutorials_pipeline_trains_a_champion_and_its_second_run_is_taken_from_the_cache(
    tracking: MlflowClient, parcels: Path, load: Callable[..., Flow[..., Outcome]]
) -> None:
    first = load()(str(parcels))
    second = load()(str(parcels))
    uri = f"models:/parcel-hours@{Alias.CHAMPION}"
    logged = tracking.get_run(first.registered.run_id)
    tables = {name: from_table(mlflow.artifacts.load_dict(f"{logged.info.artifact_uri}/{name}"))
              for name in (Artifact.HOLDOUT, Artifact.TRAINING_SAMPLE)}  # fmt: skip

    assert first.is_champion
    assert first.metrics["model_mse"] < first.metrics["baseline_mse"] / 4
    assert second.reused
    assert second.registered == first.registered
    assert mlflow.sklearn.load_model(uri).predict(mlflow.models.Model.load(uri).load_input_example(uri)).dtype == float
    assert logged.data.params["holdout_rows"] == str(len(tables[Artifact.HOLDOUT]))
    assert list(tables[Artifact.TRAINING_SAMPLE])[:4] == ["depot", "kilometres", "weight", "holiday"]


def test_a_version_and_its_model_are_explained_in_mlflow(
    tracking: MlflowClient, parcels: Path, load: Callable[..., Flow[..., Outcome]]
) -> None:
    registered = load()(str(parcels)).registered
    version = tracking.get_model_version("parcel-hours", "1")
    run = tracking.get_run(registered.run_id)
    importance = from_table(mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{Artifact.IMPORTANCE}"))

    signature = mlflow.models.Model.load(f"models:/parcel-hours@{Alias.CHAMPION}").signature

    assert signature is not None
    assert [column.name for column in signature.inputs if not column.required] == ["weight"]
    assert importance[ImportanceColumn.FEATURE].iloc[0] == "kilometres"
    assert "importance.png" in [file.path for file in tracking.list_artifacts(registered.run_id)]
    assert f"| mse | {run.data.metrics['model_mse']:.4f} |" in str(version.description)
    assert "`weight`: " in str(version.description)
    assert tracking.get_registered_model("parcel-hours").description == "Predicts the value of `hours`."
    assert tracking.get_experiment(registered.experiment_id).tags[Tag.EXPERIMENT_KIND] == "custom_model_development"


def test_a_column_that_no_example_lacks_may_be_missing_where_another_row_lacks_it() -> None:
    frame = pd.DataFrame({"size": np.arange(200.0), "sold": np.arange(200.0)})
    frame.loc[100, "size"] = np.nan
    estimator = HistGradientBoostingRegressor(max_iter=5)
    problem = Problem("sales", "sold", {"boosting": estimator}, kind="regression", split=RandomSplit(seed=1))

    @flow(name="sales-with-gaps", persist_result=False, timeout_seconds=600)
    def train_with_gaps() -> Outcome:
        return train(problem, frame)

    train_with_gaps()
    signature = mlflow.models.Model.load(f"models:/sales@{Alias.CHAMPION}").signature

    assert signature is not None
    assert [column.required for column in signature.inputs] == [False]


def test_a_version_is_reproduced_from_what_is_kept_of_it(
    tracking: MlflowClient, parcels: Path, load: Callable[..., Flow[..., Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parcels.parent)  # no checkout of Git, which may have changes
    registered = load()(str(parcels)).registered
    parcels.unlink()
    same = reproduce("parcel-hours", 1)
    tracking.log_metric(registered.run_id, "model_mse", 0.125)
    monkeypatch.setattr(fitting, "DEFAULT_BASELINE", "mean")
    other = reproduce("parcel-hours", 1)

    assert same.is_equal
    assert same.metrics >= 8
    assert "code and packages are the same" in same.describe()
    assert other.differing["model_mse"][0] == 0.125
    assert "baseline_mse" in other.differing, "the metric has another name now"
    assert any("the code that makes the model" in change for change in other.changes)
    assert len(tracking.search_model_versions("name = 'parcel-hours'")) == 1


def test_a_version_whose_data_is_not_kept_is_not_reproduced(
    tracking: MlflowClient, parcels: Path, load: Callable[..., Flow[..., Outcome]], tmp_path: Path
) -> None:
    run_id = load()(str(parcels)).registered.run_id
    with (
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "emptied"}),
        pytest.raises(ReproductionError, match="is not in the result storage"),
    ):
        reproduce("parcel-hours", 1)
    tracking.delete_tag(run_id, Tag.DATA_DIGEST)

    with pytest.raises(ReproductionError, match="does not name its data"):
        reproduce("parcel-hours", 1)
    with pytest.raises(RegistryError, match="There is no parcel-hours version 9"):
        reproduce("parcel-hours", 9)


def test_an_edit_of_the_tutorials_pipeline_is_a_new_recipe_and_a_refresh_is_not(
    tracking: MlflowClient, parcels: Path, load: Callable[..., Flow[..., Outcome]]
) -> None:
    champion = load()(str(parcels))
    edited = load("[50, 100]", "[1]")(str(parcels))
    refreshed = load()(str(parcels), refresh=True)

    assert not edited.is_champion
    assert edited.registered.version == 2
    assert "it must be better by" in edited.decision.reason
    assert refreshed.registered == champion.registered
    assert len(tracking.search_model_versions("name = 'parcel-hours'")) == 2


def test_parcels_that_do_not_fit_fail_with_the_reason_and_register_nothing(
    tracking: MlflowClient, parcels: Path, load: Callable[..., Flow[..., Outcome]]
) -> None:
    lines = parcels.read_text().splitlines()
    parcels.write_text("\n".join([lines[0], "1,2025-01-02,Oslo,-1,2.5,9.0", *lines[2:]]))
    state: Any = load()(str(parcels), return_state=True)

    assert state.is_failed()
    assert "kilometres: in_range(0, 3000) (row 0: -1.0)" in state.message
    assert not tracking.search_model_versions("name = 'parcel-hours'")


def make_sales(days: int = 300) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(size=days)
    index = pd.date_range("2026-01-01", periods=days)
    visitors = 100 + 20 * np.sin(np.arange(days) / 7)
    return pd.DataFrame({"visitors": visitors, "weekend": index.day_of_week > 4, "sold": visitors / 5 + noise}, index)


def last_value(train_rows: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    return np.full(len(rows), train_rows["sold"].iloc[-1])


SALES = Problem(
    model="sales",
    target="sold",
    kind="regression",
    estimators={"ridge": Ridge()},
    candidates=grid("ridge", alpha=[0.1, 10.0]),
    split=TimeSplit(),
    metric="mae",
    baselines={"last": last_value},
)


@task(name="own-fit", **cached())
def own_fit(problem: Problem, parts: Parts, candidate: Candidate) -> Evaluation:
    print("fitted by the user's own task")
    return fitting.fit(problem, parts, candidate)


@flow(name="sales", persist_result=False, timeout_seconds=600)
def sales(
    data: dict[str, list[float]] | None = None, own: bool = False, as_of: date | None = None, problem: Any = None
) -> Outcome:
    frame = make_sales() if data is None else pd.DataFrame(data)
    steps = Steps(fit=own_fit) if own else Steps()
    return train(problem or SALES, frame, Details("made up"), as_of=as_of, steps=steps)


def test_a_regression_on_a_series_becomes_a_champion_beside_a_baseline_of_the_users(
    tracking: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, again = sales(), sales(own=True)
    run = tracking.get_run(outcome.registered.run_id)
    version = tracking.get_model_version("sales", "1")
    holdout = from_table(mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{Artifact.HOLDOUT}"))

    assert outcome.is_champion
    assert outcome.metrics["model_mae"] < outcome.metrics["last_mae"] / 2
    assert holdout["time"].tolist() == [f"{day:%F}" for day in make_sales().index[-60:]]
    assert version.tags[Tag.TRAIN_LAST_TIME] == make_sales().index[-61].isoformat()
    assert "fitted by the user's own task" in capsys.readouterr().out
    assert again.metrics == outcome.metrics


def test_a_search_in_a_space_is_logged_with_its_pruned_candidates(tracking: MlflowClient) -> None:
    space = Space({"ridge": {"alpha": FloatDistribution(1e-3, 1e5, log=True)}}, trials=12)
    outcome = sales(problem=replace(SALES, candidates=space))
    parent = f"tags.`{Tag.PARENT_RUN_ID}` = '{outcome.registered.run_id}'"
    trials = tracking.search_runs([outcome.registered.experiment_id], parent)

    assert outcome.is_champion
    assert len(trials) == space.trials
    assert {trial.info.status for trial in trials} == {"FINISHED", "KILLED"}


def test_a_backtest_knows_no_later_row_and_leaves_the_champion(tracking: MlflowClient) -> None:
    champion = sales().registered.version
    day = make_sales().index[199].date()
    outcome = sales(as_of=day)
    run = tracking.get_run(outcome.registered.run_id)

    assert not outcome.is_champion
    assert outcome.registered.version is None
    assert (run.data.params["training_rows"], run.data.params["holdout_rows"]) == ("160", "40")
    assert run.data.tags[Tag.AS_OF] == str(day)
    assert tracking.get_model_version_by_alias("sales", Alias.CHAMPION).version == str(champion)
    with pytest.raises(DataError, match="rows are after"):
        sales(as_of=date(2020, 1, 1))


def test_data_without_the_target_is_refused(tracking: MlflowClient) -> None:
    with pytest.raises(DataError, match="The data has no column sold; it has visitors"):
        sales({"visitors": [1.0, 2.0]})

    assert not tracking.search_model_versions("name = 'sales'")
