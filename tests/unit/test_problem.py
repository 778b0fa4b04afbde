"""Problems: how their data is split, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from trainyard.errors import DataError
from trainyard.problem import Problem, divide, grid
from trainyard.splits import GroupSplit, KeySplit, RandomSplit, Split, TimeSplit

ROWS = 400
RNG = np.random.default_rng(0)
DATA = pd.DataFrame(
    {
        "order": np.arange(1000, 1000 + ROWS),
        "customer": RNG.integers(0, 60, ROWS),
        "day": pd.date_range("2026-01-01", periods=ROWS // 2).repeat(2),
        "price": RNG.uniform(1, 9, ROWS),
        "returned": RNG.random(ROWS) < 0.3,
    }
)


def make_problem(split: Split | None = None, **changes: Any) -> Problem:
    fields: dict[str, Any] = {
        "features": ["price"],
        "split": split or RandomSplit(),
        "estimators": {"logistic": LogisticRegression()},
    }
    return Problem(**({"model": "returned", "target": "returned"} | fields | changes))


@pytest.mark.parametrize(
    "split",
    [RandomSplit(), KeySplit("order"), GroupSplit("customer"), TimeSplit("day")],
    ids=lambda each: type(each).__name__,
)
def test_every_row_is_on_one_side_and_about_the_asked_share_is_held_out(split: Split) -> None:
    parts = divide(make_problem(split), DATA)
    orders = pd.concat([parts.train["order"], parts.holdout["order"]])

    assert sorted(orders) == DATA["order"].tolist()
    assert 0.12 < len(parts.holdout) / ROWS < 0.28
    assert divide(make_problem(split), DATA).holdout.equals(parts.holdout)


@pytest.mark.parametrize("split", [KeySplit("order"), GroupSplit("customer")], ids=lambda each: type(each).__name__)
def test_a_row_stays_on_its_side_when_others_are_added_and_the_order_changes(split: Split) -> None:
    some = divide(make_problem(split), DATA.iloc[:300].sample(frac=1, random_state=1))
    every = divide(make_problem(split), DATA)

    assert set(some.holdout["order"]) <= set(every.holdout["order"])
    assert set(some.train["order"]) <= set(every.train["order"])


def test_the_rows_of_a_group_stay_together_in_holdout_and_folds() -> None:
    split = GroupSplit("customer")
    parts = divide(make_problem(split), DATA)

    assert not set(parts.train["customer"]) & set(parts.holdout["customer"])
    for before, after in split.folds(parts.train, parts.train["returned"], 4):
        assert not set(parts.train.iloc[before]["customer"]) & set(parts.train.iloc[after]["customer"])


def test_a_split_by_time_holds_out_the_newest_moments_whole_and_folds_look_ahead_only() -> None:
    split = TimeSplit("day")
    parts = divide(make_problem(split), DATA.sample(frac=1, random_state=2))

    assert parts.train["day"].max() < parts.holdout["day"].min()
    for before, after in split.folds(parts.train, None, 4):
        assert parts.train.iloc[before]["day"].max() < parts.train.iloc[after]["day"].min()


def test_a_random_split_keeps_the_shares_of_the_classes() -> None:
    parts = divide(make_problem(RandomSplit()), DATA)

    assert parts.train["returned"].mean() == pytest.approx(parts.holdout["returned"].mean(), abs=0.01)


def test_clustered_losses_are_one_for_each_group_and_have_the_mean_of_the_rows() -> None:
    losses = RNG.random(ROWS)
    clustered = GroupSplit("customer").cluster(DATA, losses)

    assert len(clustered) == DATA["customer"].nunique()
    assert clustered.mean() == pytest.approx(losses.mean())


class TestComparableRows:
    def test_those_after_the_champions_training_set_for_a_split_by_time(self) -> None:
        split = TimeSplit("day")
        parts = divide(make_problem(split), DATA)
        own = split.describe(parts.train)
        middle = parts.holdout["day"].iloc[len(parts.holdout) // 2]

        unseen = split.find_unseen(parts.holdout, own, own | {"train_last_time": middle.isoformat()})

        assert not isinstance(unseen, str)
        assert parts.holdout[unseen]["day"].min() > middle
        assert 0 < unseen.sum() < len(parts.holdout)

    @pytest.mark.parametrize(
        ("split", "champion", "reason"),
        [
            (KeySplit("order"), {"split": "KeySplit(key='customer', share=0.2, salt='')"}, "split otherwise"),
            (KeySplit("order"), {}, "split otherwise"),
            (RandomSplit(), {"train_rows": "others"}, "fitted on other rows"),
            (TimeSplit("day"), {}, "not known"),
        ],
    )
    def test_none_for_a_champion_of_which_that_is_not_known(
        self, split: Split, champion: dict[str, str], reason: str
    ) -> None:
        parts = divide(make_problem(split), DATA)

        assert reason in str(split.find_unseen(parts.holdout, split.describe(parts.train), champion))

    def test_all_for_a_champion_of_fewer_rows_that_was_split_by_the_same_key(self) -> None:
        split = KeySplit("order")
        former, parts = (divide(make_problem(split), rows) for rows in (DATA.iloc[:300], DATA))

        unseen = split.find_unseen(parts.holdout, split.describe(parts.train), split.describe(former.train))

        assert not isinstance(unseen, str)
        assert unseen.all()


@pytest.mark.parametrize(
    ("problem", "data", "message"),
    [
        (make_problem(features=["weight"]), DATA, "The data has no column weight; it has order, customer"),
        (make_problem(KeySplit("number")), DATA, "The data has no column number"),
        (make_problem(), DATA.drop(columns="returned"), "The data has no column returned"),
        (make_problem(), DATA.iloc[:0], "The data has no rows"),
        (make_problem(), DATA.assign(returned=True), "have the same returned, True: there is nothing to tell apart"),
        (make_problem(), DATA.assign(returned=DATA["returned"].where(DATA.index > 2)), "3 of 400 rows have no returned"),
        (make_problem(), DATA.iloc[:30], "The holdout has 6 of 30 rows, and 20 are needed"),
        (make_problem(RandomSplit(0.999)), DATA, "The data cannot be split by RandomSplit"),
        (make_problem(TimeSplit("day")), DATA.assign(returned=DATA.index > 390), "all of them with the returned False"),
        (make_problem(TimeSplit("day")), DATA.assign(day=DATA["day"].where(DATA.index > 2)), "3 of 400 rows have no day"),
        (make_problem(TimeSplit("day")), DATA.assign(day="soon"), "day has no times"),
        (make_problem(KeySplit("order")), DATA.assign(order=DATA["order"].where(DATA.index > 2)), "3 of 400 rows have no"),
        (make_problem(kind="regression"), DATA.assign(returned="x"), "no number, as a regression needs"),
        (make_problem(features=None), DATA[["returned"]], "There is no feature beside returned"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused_in_one_sentence(problem: Problem, data: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError) as refused:
        divide(problem, data)

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": grid("forest")}, "No estimator for forest; there are: logistic."),
        ({"estimators": {}}, "No estimator for returned"),
        ({"metric": "mse"}, "no metric 'mse' of a classification: choose log_loss, brier"),
        ({"kind": "regression", "metric": "brier"}, "no metric 'brier' of a regression"),
        ({"search_metric": "mae"}, "no metric 'mae' of a classification"),
        ({"baselines": {"model": lambda _, rows: rows}}, "A baseline cannot be called 'model'"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_problem(**changes)


def test_a_grid_has_every_combination_and_sets_the_parameters() -> None:
    candidates = grid("logistic", C=[0.1, 1.0], max_iter=[50, 100])

    assert [each.name for each in candidates] == [
        "logistic C=0.1 max_iter=50",
        "logistic C=0.1 max_iter=100",
        "logistic C=1 max_iter=50",
        "logistic C=1 max_iter=100",
    ]
    assert make_problem().make_estimator(candidates[0]).get_params()["C"] == 0.1


def test_an_estimator_of_a_problem_is_not_fitted_itself() -> None:
    problem = make_problem(kind="regression", estimators={"linear": LinearRegression()})
    problem.make_estimator(problem.list_candidates()[0]).fit([[1]], [1])

    assert not hasattr(problem.estimators["linear"], "coef_")
