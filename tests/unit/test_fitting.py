"""Candidates of a problem: cross-validated, fitted, and compared with a champion; of all kinds of problems."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from trainyard import fitting
from trainyard.comparison import make_comparison
from trainyard.contract import Artifact, Column, Tag
from trainyard.errors import DataError
from trainyard.fingerprint import fingerprint, key_fingerprint
from trainyard.gate import FIRST_USE, Decision, Thresholds
from trainyard.problem import Parts, Problem, divide, grid
from trainyard.registry import Champion
from trainyard.scoring import Metric, predict, score
from trainyard.splits import GroupSplit, KeySplit, Split, TimeSplit
from trainyard.training import STEPS, Details, describe_version

ROWS = 600
RNG = np.random.default_rng(0)
SIZE, NOISE = RNG.normal(size=ROWS), RNG.normal(size=ROWS)
DATA = pd.DataFrame(
    {
        "number": np.arange(ROWS),
        "customer": np.arange(ROWS) // 4,
        "day": pd.date_range("2026-01-01", periods=ROWS),
        "size": SIZE,
        "color": RNG.integers(0, 3, ROWS).astype(float),
        "binary": NOISE < SIZE,
        "name": np.where(SIZE + NOISE / 2 < -0.5, "small", np.where(SIZE + NOISE / 2 < 0.5, "middle", "tall")),
        "weight": 3 * SIZE + NOISE,
    }
)
FEATURES = ("size", "color")
BINARY = Problem(
    "m", "binary", {"logistic": LogisticRegression(), "tree": DecisionTreeClassifier(max_depth=2)}, features=FEATURES
)
CLASSES = replace(BINARY, target="name")
VALUES = replace(
    BINARY,
    target="weight",
    kind="regression",
    estimators={"linear": LinearRegression(), "tree": DecisionTreeRegressor(max_depth=2)},
)
PROBLEMS = {"binary": BINARY, "classes": CLASSES, "regression": VALUES}


def evaluate(problem: Problem, data: pd.DataFrame = DATA) -> tuple[Parts, fitting.Evaluation]:
    parts = divide(problem, data)
    return parts, fitting.fit(problem, parts, problem.list_candidates()[0])


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_model_beats_the_baseline_and_the_best_candidate_is_that_of_the_lowest_loss(problem: Problem) -> None:
    parts, evaluation = evaluate(problem)
    scores = [fitting.cross_validate(problem, parts.train, each, 3) for each in problem.list_candidates()]
    best = fitting.choose_best(problem, scores)
    name = problem.loss.name

    assert evaluation.metrics[f"model_{name}"] < 0.9 * evaluation.metrics[f"baseline_{name}"]
    assert min(scores, key=lambda each: each.metrics[f"cv_{name}"]).candidate == best
    assert fitting.fit(problem, parts, problem.list_candidates()[0]).metrics == evaluation.metrics


def test_the_scores_are_those_of_scikit_learn() -> None:
    parts, evaluation = evaluate(BINARY)
    probability = evaluation.estimator.predict_proba(parts.holdout[list(FEATURES)])
    several, of_several = evaluate(CLASSES)
    values, of_values = evaluate(VALUES)
    error = of_values.estimator.predict(values.holdout[list(FEATURES)]) - values.holdout["weight"]

    assert evaluation.metrics["model_log_loss"] == pytest.approx(log_loss(parts.holdout["binary"], probability))
    assert evaluation.metrics["model_brier"] == pytest.approx(
        brier_score_loss(parts.holdout["binary"], probability[:, 1])
    )
    assert of_several.metrics["model_log_loss"] == pytest.approx(
        log_loss(several.holdout["name"], of_several.estimator.predict_proba(several.holdout[list(FEATURES)]))
    )
    assert of_values.metrics["model_rmse"] == pytest.approx(float(np.sqrt((error**2).mean())))


def test_the_scores_of_a_binary_classification_computed_by_hand() -> None:
    probability = np.array([0.8, 0.2, 0.4, 0.6])

    scores = score(pd.Series([True, False, True, False]), pd.DataFrame({False: 1 - probability, True: probability}))

    assert scores == pytest.approx(
        {
            "log_loss": -(np.log([0.8, 0.8, 0.4, 0.4]).mean()),
            "brier": (0.2**2 + 0.2**2 + 0.6**2 + 0.6**2) / 4,
            "calibration_error": (0.2 + 0.2 + 0.6 + 0.6) / 4,
            "roc_auc": 0.75,
            "average_precision": 0.5 * 1 + 0.5 * 2 / 3,
            "accuracy": 0.5,
        }
    )


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_mean_of_the_losses_by_row_is_the_metric(problem: Problem) -> None:
    parts, evaluation = evaluate(problem)
    losses = fitting.losses_of(problem, parts, evaluation.predictions[Column.MODEL])

    assert len(losses) == len(parts.holdout)
    assert losses.mean() == pytest.approx(evaluation.metrics[f"model_{problem.loss.name}"])


def test_the_tables_have_what_dashboard_and_monitor_read_of_each_kind() -> None:
    tables = {}
    for name, problem in PROBLEMS.items():
        parts, evaluation = evaluate(problem)
        refitted = fitting.refit(problem, parts, evaluation.candidate)
        tables[name] = fitting.evaluation_tables(problem, parts, evaluation, refitted)
    binary, several, values = (tables[name][Artifact.HOLDOUT] for name in PROBLEMS)

    assert set(binary[Column.OBSERVED]) == {0, 1}
    assert binary[Column.MODEL].between(0, 1).all()
    assert set(several[Column.OBSERVED]) == {"small", "middle", "tall"}
    assert several[Column.MODEL].mean() > several["baseline"].mean()
    assert np.corrcoef(values[Column.OBSERVED], values[Column.MODEL])[0, 1] > 0.8
    for each in tables.values():
        assert list(each[Artifact.TRAINING_SAMPLE]) == [*FEATURES, Column.TIME, Column.PREDICTION]
        assert len(each[Artifact.TRAINING_SAMPLE]) == ROWS, "the served model is fitted on all rows"


def test_a_row_of_a_series_has_its_time_in_the_tables() -> None:
    problem = replace(BINARY, split=TimeSplit("day"))
    parts, evaluation = evaluate(problem)
    tables = fitting.evaluation_tables(problem, parts, evaluation, evaluation.estimator)

    assert tables[Artifact.HOLDOUT][Column.TIME].tolist() == [f"{day:%F}" for day in parts.holdout["day"]]


def test_the_search_may_choose_by_another_metric_than_models_are_compared_by() -> None:
    squared_size = Metric("squared_size", lambda _, predicted: np.square(predicted))
    problem = replace(VALUES, search_metric=squared_size)
    parts, evaluation = evaluate(problem)
    scores = [fitting.cross_validate(problem, parts.train, each, 3) for each in problem.list_candidates()]
    best = fitting.choose_best(problem, scores)

    assert min(scores, key=lambda each: each.metrics["cv_squared_size"]).candidate == best
    assert min(scores, key=lambda each: each.metrics["cv_mse"]).candidate != best
    losses = fitting.losses_of(problem, parts, evaluation.predictions[Column.MODEL])
    assert losses.mean() == pytest.approx(evaluation.metrics["model_mse"])


def test_baselines_scores_and_the_metric_can_be_functions_of_the_users() -> None:
    problem = replace(
        VALUES,
        baselines={"last": lambda train, rows: np.full(len(rows), train["weight"].iloc[-1])},
        scores={"worst": lambda observed, predicted: (observed - predicted).abs().max()},
    )
    parts, evaluation = evaluate(problem)

    assert evaluation.owners == [Column.MODEL, "last"]
    assert evaluation.metrics["last_worst"] > evaluation.metrics["model_worst"]
    assert (evaluation.predictions["last"] == parts.train["weight"].iloc[-1]).all()


def test_a_binary_baseline_predicts_the_probability_of_the_second_class() -> None:
    problem = replace(BINARY, baselines={"size": lambda _, rows: (rows["size"] > 0).to_numpy(dtype=float)})
    parts, evaluation = evaluate(problem)

    assert (evaluation.predictions["size"][True] == (parts.holdout["size"] > 0)).all()


def test_an_estimator_without_probabilities_is_refused_with_advice() -> None:
    with pytest.raises(DataError, match=r"LinearSVC predicts no probabilities: wrap it in sklearn\.calibration"):
        evaluate(replace(BINARY, estimators={"svc": LinearSVC()}))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (replace(BINARY, split=GroupSplit("customer")), "cannot be divided into 200 folds"),
        (replace(BINARY, split=TimeSplit("day")), "cannot be divided into 1 folds"),
    ],
)
def test_folds_that_the_rows_do_not_suffice_for_are_refused(problem: Problem, message: str) -> None:
    parts = divide(problem, DATA)
    folds = 200 if problem.split == GroupSplit("customer") else 1

    with pytest.raises(DataError, match=message):
        fitting.cross_validate(problem, parts.train, problem.list_candidates()[0], folds)


def test_folds_without_two_classes_to_fit_on_are_skipped() -> None:
    problem = replace(BINARY, split=TimeSplit("day"))
    late = DATA.assign(binary=DATA["binary"] & (DATA.index > 200))
    parts = divide(problem, late)
    score = fitting.cross_validate(problem, parts.train, problem.list_candidates()[0], 5)

    assert fitting.score_fold(problem, parts.train, problem.list_candidates()[0], 5, 0) is None
    assert np.isfinite(score.metrics["cv_log_loss"])


def test_a_fold_with_rows_of_one_class_has_no_areas_and_those_of_the_others_count() -> None:
    problem = replace(BINARY, split=TimeSplit("day"))
    parts = divide(problem, DATA.assign(binary=DATA["binary"] & ~DATA.index.isin(range(400, 480))))
    candidate = problem.list_candidates()[0]
    last = fitting.score_fold(problem, parts.train, candidate, 5, 4)
    score = fitting.cross_validate(problem, parts.train, candidate, 5)

    assert last is not None
    assert np.isnan(last["roc_auc"])
    assert 0.5 < score.metrics["cv_roc_auc"] <= 1


def test_a_class_that_an_estimator_does_not_know_has_the_probability_zero() -> None:
    parts = divide(replace(CLASSES, split=TimeSplit("day")), DATA)
    known = parts.train[parts.train["name"] != "middle"]
    estimator = LogisticRegression().fit(known[list(FEATURES)], known["name"])
    predicted = predict(estimator, parts.holdout[list(FEATURES)], parts.classes)

    assert isinstance(predicted, pd.DataFrame)
    assert list(predicted) == ["middle", "small", "tall"]
    assert (predicted["middle"] == 0).all()
    assert (predicted.sum(axis="columns") - 1).abs().max() < 1e-9


class TestComparison:
    """`make_comparison` of a candidate with a champion that is given as an estimator and tags."""

    @pytest.fixture
    def compare(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def compare_with(
            problem: Problem, champion: Any, data: pd.DataFrame = DATA, predictions: Any = None, **changed: str
        ) -> Decision:
            parts, evaluation = evaluate(problem, data)
            if predictions is not None:
                evaluation = replace(
                    evaluation, predictions={**evaluation.predictions, Column.MODEL: predictions(parts)}
                )
            monkeypatch.setattr(Champion, "load_estimator", lambda _: champion)
            tags = problem.split.describe(parts.train)
            known = Champion("m", 1, tags | changed, FIRST_USE) if champion else None
            return make_comparison(problem, parts, evaluation, tags, Thresholds())(known)

        return compare_with

    @pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
    def test_a_first_model_is_promoted_and_wins_against_a_worse_champion_and_not_against_itself(
        self, compare: Any, problem: Problem
    ) -> None:
        parts, evaluation = evaluate(problem)
        worse = replace(problem, features=("color",))
        bad = fitting.fit(worse, parts, worse.list_candidates()[0]).estimator
        on_color = type("OnColor", (), {"__init__": lambda self: None})()
        on_color.predict = lambda rows: bad.predict(rows[["color"]])
        on_color.predict_proba = lambda rows: bad.predict_proba(rows[["color"]])
        on_color.classes_ = getattr(bad, "classes_", None)

        assert compare(problem, None).promote
        assert compare(problem, on_color).promote
        assert not compare(problem, evaluation.estimator).promote

    def test_a_champion_of_other_features_is_replaced_by_what_beats_the_baseline(self, compare: Any) -> None:
        other = DummyClassifier().fit(DATA[["size"]], DATA["binary"])
        logistic = LogisticRegression().fit(DATA[["size"]], DATA["binary"])

        assert "does not know these features" in compare(BINARY, logistic).reason
        assert compare(BINARY, logistic).promote
        assert not compare(
            BINARY, other, predictions=lambda parts: predict(DummyClassifier(strategy="uniform").fit(parts.train[["size"]], parts.train["binary"]), parts.holdout[["size"]], parts.classes)
        ).promote  # fmt: skip

    @pytest.mark.parametrize(
        ("split", "changed"), [(KeySplit("number"), {"split": "x"}), (BINARY.split, {"train_rows": "x"})]
    )
    def test_a_champion_whose_rows_are_not_known_stays(
        self, compare: Any, split: Split, changed: dict[str, str]
    ) -> None:
        problem = replace(BINARY, split=split)
        decision = compare(problem, evaluate(problem)[1].estimator, **changed)

        assert not decision.promote
        assert "cannot be compared" in decision.reason

    def test_only_rows_after_the_champions_training_set_count(self, compare: Any) -> None:
        problem = replace(BINARY, split=TimeSplit("day"))
        parts, evaluation = evaluate(problem)
        newest = parts.holdout["day"].iloc[-10].isoformat()

        decision = compare(problem, evaluation.estimator, **{Tag.TRAIN_LAST_TIME: newest})

        assert not decision.promote
        assert "was not fitted on 9 rows of the holdout, which are too few" in decision.reason


class TestKeys:
    """The cache keys of tasks that take a problem."""

    def test_the_users_functions_count_with_what_they_refer_to(self) -> None:
        def make(depth: int) -> Problem:
            return replace(BINARY, estimators={"tree": lambda: DecisionTreeClassifier(max_depth=depth)})

        keys = [key_fingerprint([fitting.fit], make(depth).for_fitting("tree")) for depth in (2, 2, 3)]

        assert keys[0] == keys[1] != keys[2]

    def test_another_parameter_of_the_data_is_another_recipe_and_no_other_code(self) -> None:
        parts, evaluation = evaluate(BINARY)
        first, same, other = (
            describe_version(replace(BINARY, data_params=params), parts, evaluation, Details(), STEPS)
            for params in ({"threshold": 1}, {"threshold": 1}, {"threshold": 2})
        )

        assert first == same
        assert {name for name in first if first[name] != other[name]} == {Tag.RECIPE}

    def test_what_does_not_change_a_fit_does_not_count_and_what_does_counts(self) -> None:
        part = fingerprint(BINARY.for_fitting("logistic"))
        same: list[dict[str, Any]] = [
            {"model": "n"}, {"folds": 3}, {"candidates": grid("tree", max_depth=[1])}, {"experiment": "e"},
            {"data_params": {"threshold": 1}},
        ]  # fmt: skip
        other: list[dict[str, Any]] = [
            {"target": "name"}, {"features": ("size",)}, {"metric": "brier"}, {"split": TimeSplit("day")},
            {"estimators": {"logistic": LogisticRegression(C=2)}}, {"baselines": {"b": lambda train, rows: len(rows)}},
        ]  # fmt: skip

        assert {fingerprint(replace(BINARY, **changes).for_fitting("logistic")) for changes in same} == {part}
        assert len({fingerprint(replace(BINARY, **changes).for_fitting("logistic")) for changes in other} | {part}) == 7
