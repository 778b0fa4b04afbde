"""The wine problem: its data and candidates, and the errors for invalid data."""

import pandas as pd
import pytest

from flows.wine import model
from trainyard.candidates import Candidate
from trainyard.data import validate_frame
from trainyard.errors import DataError
from trainyard.fitting import fit
from trainyard.metrics import flatten_scores, scores_table
from trainyard.problem import divide


@pytest.fixture(scope="module")
def wines() -> pd.DataFrame:
    return model.read_wines()


PROBLEM = model.make_problem()


def test_the_split_keeps_every_wine_once_and_the_cultivars_frequencies(wines: pd.DataFrame) -> None:
    parts = divide(PROBLEM, wines)
    shares = pd.DataFrame(
        {
            name: part[model.TARGET].value_counts(normalize=True)
            for name, part in vars(parts).items()
            if name != "classes"
        }
    )

    assert (len(parts.train), len(parts.holdout)) == (133, 45)
    assert len(parts.all_rows.drop_duplicates()) == len(wines.drop_duplicates())
    assert (shares["train"] - shares["holdout"]).abs().max() < 0.02


@pytest.mark.parametrize("candidate", model.CANDIDATES, ids=lambda candidate: candidate.name)
def test_every_candidate_beats_the_baseline(wines: pd.DataFrame, candidate: Candidate) -> None:
    parts = divide(PROBLEM, wines)
    fitted = fit(PROBLEM, parts, candidate)

    assert fitted.metrics["model_log_loss"] < fitted.metrics["baseline_log_loss"] / 2
    assert fit(PROBLEM, parts, candidate).metrics == fitted.metrics


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
