"""The wine model: its data, candidates and evaluation, and the errors for invalid data."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from flows.wine import model
from flows.wine.pipeline import TRAIN_ROWS, make_comparison
from trainyard.candidates import Candidate
from trainyard.contract import Artifact
from trainyard.data import validate_frame
from trainyard.errors import DataError
from trainyard.gate import FIRST_USE, Thresholds
from trainyard.metrics import flatten_scores, scores_table
from trainyard.registry import Champion


@pytest.fixture(scope="module")
def wines() -> pd.DataFrame:
    return model.read_wines()


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(list(frame.columns)).reset_index(drop=True)


def test_the_split_keeps_every_wine_once_and_the_cultivars_frequencies(wines: pd.DataFrame) -> None:
    data = model.split(wines)
    shares = pd.DataFrame({name: part[model.TARGET].value_counts(normalize=True) for name, part in data})

    assert (len(data.train), len(data.holdout)) == (133, 45)
    assert in_order(pd.concat([data.train, data.holdout])).equals(in_order(wines))
    assert (shares["train"] - shares["holdout"]).abs().max() < 0.02


def test_the_split_is_deterministic_and_its_digest_changes_with_the_wines(wines: pd.DataFrame) -> None:
    data = model.split(wines)

    assert model.split(wines).holdout.equals(data.holdout)
    assert model.split(wines).train_rows == data.train_rows
    assert model.split(wines.iloc[1:]).train_rows != data.train_rows


@pytest.mark.parametrize("candidate", model.CANDIDATES, ids=lambda candidate: candidate.name)
def test_every_candidate_beats_the_baseline(wines: pd.DataFrame, candidate: Candidate) -> None:
    data = model.split(wines)
    fitted = model.fit(data, candidate)

    assert fitted.metrics["model_log_loss"] < fitted.metrics["baseline_log_loss"] / 2
    assert model.fit(data, candidate).metrics == fitted.metrics


def test_the_holdout_table_has_the_probability_of_each_wines_true_cultivar(wines: pd.DataFrame) -> None:
    data = model.split(wines)
    tables = model.evaluation_tables(data, model.fit(data, model.CANDIDATES[2]), model.refit(data, model.CANDIDATES[2]))
    holdout = tables[Artifact.HOLDOUT]

    assert holdout["observed"].tolist() == data.holdout[model.TARGET].tolist()
    assert (holdout["model"] > 0.5).mean() > 0.9
    assert holdout["baseline"].nunique() == len(model.CULTIVARS)
    assert len(tables[Artifact.TRAINING_SAMPLE]) == len(wines), "the served model is fitted on all wines"


def test_the_candidate_with_the_lowest_cross_validated_log_loss_is_chosen(wines: pd.DataFrame) -> None:
    train = model.split(wines).train
    scores = [model.cross_validate_candidate(train, candidate, 3) for candidate in model.CANDIDATES[:3]]
    best = model.choose_best(scores)

    assert [score.metrics["cv_log_loss"] for score in scores if score.candidate == best] == [
        min(score.metrics["cv_log_loss"] for score in scores)
    ]


@pytest.mark.parametrize(("candidate", "promoted"), [(model.CANDIDATES[2], True), (None, False)])
def test_a_champion_of_other_measurements_is_replaced_by_what_beats_the_baseline(
    wines: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, candidate: Candidate | None, promoted: bool
) -> None:
    data = model.split(wines)
    fitted = model.fit(data, candidate or model.CANDIDATES[2])
    if candidate is None:
        fitted = replace(fitted, holdout_probabilities=fitted.holdout_probabilities | {"model": np.full(45, 0.1)})
    fewer = data.train.drop(columns=[model.TARGET, "hue"])
    other = model.make_estimator(model.CANDIDATES[2]).fit(fewer, data.train[model.TARGET])
    monkeypatch.setattr(Champion, "load_estimator", lambda _: other)
    champion = Champion("wine-cultivar", 1, {TRAIN_ROWS: data.train_rows}, FIRST_USE)

    decision = make_comparison(data, fitted, Thresholds())(champion)

    assert decision.promote is promoted


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("alcohol", 1423.0, "alcohol: in_range(5, 25) (row 0: 1423.0)"),
        ("magnesium", -1.0, "magnesium: in_range(0, 5000) (row 0: -1.0)"),
        ("hue", float("nan"), "hue: not_nullable (row 0: nan)"),
        ("cultivar", "merlot", "cultivar: isin("),
    ],
)
def test_an_invalid_wine_is_named_with_its_column_rule_and_value(
    wines: pd.DataFrame, column: str, value: float | str, message: str
) -> None:
    invalid = wines.copy()
    invalid.loc[0, column] = value
    with pytest.raises(DataError) as raised:
        validate_frame(invalid, model.WINES)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_problem_is_listed(wines: pd.DataFrame) -> None:
    invalid = wines.assign(alcohol=wines["alcohol"] * 100).drop(columns=model.TARGET)

    with pytest.raises(DataError, match=r"column_in_dataframe \(cultivar\).*alcohol.*and 177 more"):
        validate_frame(invalid, model.WINES)


def test_too_few_wines_of_a_cultivar_are_refused(wines: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="fewer than 20 wines of a cultivar"):
        validate_frame(wines.iloc[:140], model.WINES)


def test_a_missing_measurement_is_refused(wines: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="not 13 measurements of each wine"):
        validate_frame(wines.drop(columns="hue"), model.WINES)


def test_the_scores_of_model_and_baseline_become_a_table() -> None:
    flat = flatten_scores({"model": {"log_loss": 0.25, "accuracy": 0.9}, "baseline": {"log_loss": 1, "accuracy": 0.4}})

    assert flat["baseline_accuracy"] == 0.4
    assert scores_table(flat, ("model", "baseline")).splitlines() == [
        "| metric | model | baseline |",
        "|---|---|---|",
        "| log_loss | 0.2500 | 1.0000 |",
        "| accuracy | 0.9000 | 0.4000 |",
    ]
