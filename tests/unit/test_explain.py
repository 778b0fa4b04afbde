"""Permutation importance, and the model card of a version."""

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from trainyard import fitting
from trainyard.candidates import Candidate
from trainyard.contract import ImportanceColumn
from trainyard.explain import MAX_CARD_LENGTH, MAX_SHOWN, draw_importance, measure_importance, write_card
from trainyard.problem import Parts, Problem, divide
from trainyard.splits import TimeSplit

RANDOM = np.random.default_rng(0)
ROWS = 400


def make_flats() -> pd.DataFrame:
    area, storey = RANDOM.uniform(20, 120, ROWS), RANDOM.integers(0, 9, ROWS)
    days = pd.date_range("2026-01-01", periods=ROWS)
    flats = pd.DataFrame({"area": area, "storey": storey, "noise": RANDOM.normal(size=ROWS)}, index=days)
    flats.loc[flats.index[::4], "storey"] = np.nan
    return flats.assign(rent=10 * area + RANDOM.normal(size=ROWS))


RENTS = Problem(
    model="rent",
    target="rent",
    kind="regression",
    estimators={"boosting": HistGradientBoostingRegressor(max_iter=30, random_state=0)},
    split=TimeSplit(),
    question="How much is the rent of a flat?",
)


def explain(problem: Problem, data: pd.DataFrame, remarks: str = "") -> tuple[pd.DataFrame, str]:
    parts = divide(problem, data)
    evaluation = fitting.fit(problem, parts, Candidate(next(iter(problem.estimators)), ()))
    importance = measure_importance(problem, parts, evaluation)
    return importance, write_card(problem, parts, evaluation, importance, "flats.csv", remarks)


def test_the_feature_that_decides_comes_first_and_noise_matters_little() -> None:
    importance, _ = explain(RENTS, make_flats())

    assert importance[ImportanceColumn.FEATURE].iloc[0] == "area"
    means = importance.set_index(ImportanceColumn.FEATURE)[ImportanceColumn.MEAN]
    assert abs(means["noise"]) < means["area"] / 100


def test_importance_is_in_units_of_the_metric() -> None:
    data = make_flats()[["area", "rent"]]
    problem = Problem("rent", "rent", {"ridge": Ridge()}, kind="regression", metric="mae", split=TimeSplit())
    parts = divide(problem, data)
    importance, _ = explain(problem, data)

    # Shuffled, a prediction of 10 for each square metre is wrong by 10 times the mean distance of two areas.
    area = parts.holdout["area"].to_numpy()
    distance = np.abs(area[:, None] - area[None, :]).mean()
    assert importance[ImportanceColumn.MEAN].iloc[0] == pytest.approx(10 * distance, rel=0.15)


def test_the_card_says_what_is_asked_from_which_data_how_well_and_within_which_limits() -> None:
    data = make_flats()
    _, card = explain(RENTS, data, "The rents are those of one town.")

    assert card.startswith("How much is the rent of a flat?")
    assert "400 rows from flats.csv, from 2026-01-01 to 2027-02-04, of which 80 are held out by `TimeSplit(" in card
    assert "| rmse | " in card
    assert "| area | " in card
    assert f"`area`: {data['area'].min():.4g} to {data['area'].max():.4g}; `storey`: 0 to 8, 25% missing" in card
    assert card.endswith("## Remarks\n\nThe rents are those of one town.")


def test_classes_and_categories_are_named_and_the_question_follows_from_the_target() -> None:
    data = pd.DataFrame({"size": RANDOM.normal(size=200), "plan": pd.Categorical(RANDOM.choice(list("abcdefg"), 200))})
    data["left"] = np.where(data["size"] > 0, "yes", "no")
    problem = Problem("churn", "left", {"boosting": HistGradientBoostingClassifier(max_iter=10, random_state=0)})
    _, card = explain(problem, data)

    assert card.startswith("Predicts the class of `left`.")
    assert "Classes: no, yes." in card
    assert " and 2 more" in card


def test_a_card_of_many_features_fits_into_mlflow() -> None:
    wide = pd.DataFrame(
        RANDOM.normal(size=(100, 300)), columns=[f"a rather long name of a feature {n}" for n in range(300)]
    )
    problem = Problem("wide", "y", {"ridge": Ridge()}, kind="regression")
    importance, card = explain(problem, wide.assign(y=wide.iloc[:, 0]), "x" * 5000)

    assert len(card) <= MAX_CARD_LENGTH + 4
    assert f"Of {300 - MAX_SHOWN} more see the training sample." in card
    assert len(draw_importance(importance, "mse").axes[0].patches) == MAX_SHOWN


def test_at_most_some_rows_are_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_flats()
    parts: Parts = divide(RENTS, data)
    evaluation = fitting.fit(RENTS, parts, Candidate("boosting", ()))
    sizes, predict = list[int](), HistGradientBoostingRegressor.predict

    def count_rows(estimator: HistGradientBoostingRegressor, rows: pd.DataFrame) -> np.ndarray:
        sizes.append(len(rows))
        return np.asarray(predict(estimator, rows))

    monkeypatch.setattr("trainyard.explain.MAX_ROWS", 30)
    monkeypatch.setattr(HistGradientBoostingRegressor, "predict", count_rows)

    measure_importance(RENTS, parts, evaluation)

    assert set(sizes) == {30}
