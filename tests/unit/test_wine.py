"""The wine model: what it learns from, and that a wrong wine is refused in words."""

import pandas as pd
import pytest

from flows.wine import model
from flows.wine.pipeline import train_wine, wine_pipeline
from trainyard import metrics
from trainyard.candidates import Candidate
from trainyard.data import check
from trainyard.errors import DataError


@pytest.fixture(scope="module")
def wines() -> pd.DataFrame:
    return model.read_wines()


def test_the_holdout_is_apart_and_the_same_each_time(wines: pd.DataFrame) -> None:
    data, again, columns = model.split(wines), model.split(wines), [str(name) for name in wines]
    assert (len(data.train), len(data.holdout)) == (133, 45)
    assert data.holdout.equals(again.holdout)
    assert data.train_rows == again.train_rows
    assert (
        pd.concat([data.train, data.holdout])
        .sort_values(columns)
        .reset_index(drop=True)
        .equals(wines.sort_values(columns).reset_index(drop=True))
    )
    shares = pd.DataFrame({name: part[model.TARGET].value_counts(normalize=True) for name, part in data})
    assert (shares["train"] - shares["holdout"]).abs().max() < 0.02


def test_other_wines_have_another_digest(wines: pd.DataFrame) -> None:
    assert model.split(wines.iloc[1:]).train_rows != model.split(wines).train_rows


@pytest.mark.parametrize("candidate", model.CANDIDATES, ids=lambda candidate: candidate.name)
def test_every_candidate_beats_the_baseline(wines: pd.DataFrame, candidate: Candidate) -> None:
    data = model.split(wines)
    training = model.fit(data, candidate)
    assert training.metrics["model_log_loss"] < training.metrics["baseline_log_loss"] / 2
    assert model.fit(data, candidate).metrics == training.metrics


def test_the_best_of_cross_validation_is_chosen(wines: pd.DataFrame) -> None:
    scores = [model.judge(model.split(wines).train, candidate, 3) for candidate in model.CANDIDATES[:3]]
    best = model.choose(scores)
    assert min(scores, key=lambda score: score.metrics["cv_log_loss"]).candidate == best


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("alcohol", 1423.0, "alcohol: in_range(5, 25) (row 0: 1423.0)"),
        ("magnesium", -1.0, "magnesium: in_range(0, 5000) (row 0: -1.0)"),
        ("hue", float("nan"), "hue: not_nullable (row 0: nan)"),
        ("cultivar", "merlot", "cultivar: isin("),
    ],
)
def test_a_wrong_wine_is_refused_in_words(wines: pd.DataFrame, column: str, value: float | str, message: str) -> None:
    wrong = wines.copy()
    wrong.loc[0, column] = value
    with pytest.raises(DataError) as refused:
        check(wrong, model.WINES)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_that_is_wrong_is_listed(wines: pd.DataFrame) -> None:
    wrong = wines.assign(alcohol=wines["alcohol"] * 100).drop(columns=model.TARGET)
    with pytest.raises(DataError, match=r"column_in_dataframe \(cultivar\).*alcohol.*and 177 more"):
        check(wrong, model.WINES)


def test_too_few_of_a_cultivar_are_refused(wines: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="fewer than 20 wines of a cultivar"):
        check(wines.iloc[:140], model.WINES)


def test_a_measurement_that_is_missing_is_refused(wines: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="not 13 measurements of each wine"):
        check(wines.drop(columns="hue"), model.WINES)


def test_a_form_can_be_drawn_for_every_parameter() -> None:
    for flow in (wine_pipeline, train_wine):
        for name, field in flow.parameters.properties.items():
            assert "default" in field, name
            assert field["description"], name
    folds = wine_pipeline.parameters.properties["folds"]
    assert (folds["minimum"], folds["maximum"]) == (2, 20)


def test_metrics_stand_beside_each_other_in_a_table() -> None:
    of_both = metrics.flatten_scores(
        {"model": {"log_loss": 0.25, "accuracy": 0.9}, "baseline": {"log_loss": 1, "accuracy": 0.4}}
    )
    assert of_both["baseline_accuracy"] == 0.4
    assert metrics.scores_table(of_both, ("model", "baseline")).splitlines() == [
        "| metric | model | baseline |",
        "|---|---|---|",
        "| log_loss | 0.2500 | 1.0000 |",
        "| accuracy | 0.9000 | 0.4000 |",
    ]
