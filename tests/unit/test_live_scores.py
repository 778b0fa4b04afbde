"""Scoring predictions with ground truth: by hook or label, of classifiers and regressors."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from trainyard.contract import OUTCOME_COLUMNS, Artifact, Column, Problem, Verdict, table_rows
from trainyard.evaluation import as_table, holdout_table, training_sample
from trainyard.live_scores import make_scorer
from trainyard.monitoring import SAMPLED, AlertThresholds, Assessment, Reference, assess, rows_from_records

RANDOM = np.random.default_rng(7)
VERSION, DAYS = 3, 30
SPECIES = ("adelie", "chinstrap", "gentoo")


def make_record(day: int, outputs: dict[str, list[Any]], **fields: Any) -> dict[str, Any]:
    """Return a record as serving lists it, of a request on a day of November."""
    rows = len(outputs["prediction"])
    return {
        "id": day,
        "at": f"2026-11-{day + 1:02}T12:00:00Z",
        "version": VERSION,
        "inputs": {"columns": ["a"], "data": RANDOM.normal(size=(rows, 1)).tolist()},
        "outputs": {
            "columns": list(outputs),
            "data": [list(cells) for cells in zip(*outputs.values(), strict=True)],
        },
        "about": None,
        "classes": None,
        "labels": None,
        **fields,
    }


def make_sample(predictions: Any) -> pd.DataFrame:
    return training_sample(pd.DataFrame({"a": RANDOM.normal(size=len(predictions))}), predictions)


def assess_records(holdout: pd.DataFrame, records: list[dict[str, Any]], **observed: Any) -> Assessment:
    is_text = not pd.api.types.is_numeric_dtype(holdout[Column.OBSERVED])
    reference = Reference(make_sample(holdout[Column.OBSERVED if is_text else Column.MODEL]), holdout)
    return assess(rows_from_records(records), reference, observed.get("observed", {}), AlertThresholds(), VERSION)


def make_numbers(rows: int, spread: float, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return values around 100, and predictions with errors of a spread and a bias."""
    observed = RANDOM.normal(100, 10, rows)
    return observed, observed + RANDOM.normal(bias, spread, rows)


def make_regression(bias: float = 0.0, spread: float = 3.0) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    observed, predicted = make_numbers(400, 3)
    records = []
    for day in range(DAYS):
        truth, prediction = make_numbers(5, spread, bias)
        records.append(make_record(day, {"prediction": prediction.tolist()}, labels=truth.tolist()))
    return holdout_table(pd.Series(observed), {"model": predicted}), records


def draw_species(rows: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities of the species, and the true ones."""
    weights = np.exp(sharpness * RANDOM.normal(size=(rows, 3)))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    true = np.array([RANDOM.choice(3, p=row) for row in probabilities])
    return probabilities, true


def make_species(*, is_lost: bool = False) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    probabilities, true = draw_species(400, 3)
    holdout = holdout_table(pd.Series(np.take(SPECIES, true)), {"model": probabilities[np.arange(400), true]})
    records = []
    for day in range(DAYS):
        probabilities, true = draw_species(5, 3)
        true = RANDOM.integers(0, 3, 5) if is_lost else true
        outputs = {"prediction": np.take(SPECIES, probabilities.argmax(axis=1)).tolist()}
        outputs |= {f"probability_{number}": probabilities[:, number].tolist() for number in range(3)}
        labels = np.take(SPECIES, true).tolist()
        records.append(make_record(day, outputs, labels=labels, classes=list(SPECIES)))
    return holdout, records


def test_a_regression_that_is_as_good_as_on_its_holdout_is_ok() -> None:
    assessment = assess_records(*make_regression())

    assert (assessment.verdict, assessment.problem) == (Verdict.OK, Problem.REGRESSION)
    assert "Predictions are not worse than on the holdout beyond chance." in assessment.summary
    assert assessment.metrics["scored"] == 150
    assert assessment.metrics["live_rmse"] == pytest.approx(3, rel=0.3)
    assert assessment.metrics["holdout_rmse"] == pytest.approx(3, rel=0.2)
    assert assessment.metrics["live_skill"] == pytest.approx(0.91, abs=0.05)
    assert abs(assessment.metrics["live_bias"]) < 1


def test_a_regression_whose_errors_have_doubled_is_an_alert() -> None:
    assessment = assess_records(*make_regression(spread=6))

    assert assessment.verdict == Verdict.ALERT
    assert assessment.metrics["live_skill"] > 0.4, "long before all skill is lost"


def test_a_regression_that_is_off_on_average_is_an_alert() -> None:
    assessment = assess_records(*make_regression(bias=8))

    assert assessment.verdict == Verdict.ALERT
    assert "The skill of 150 predictions against the seasonal mean is 0." in assessment.summary
    assert assessment.metrics["live_bias"] == pytest.approx(8, abs=1)


def test_the_unit_of_the_target_changes_no_verdict() -> None:
    holdout, records = make_regression(bias=8)
    metres = assess_records(holdout, records)
    holdout[[Column.OBSERVED, Column.MODEL]] *= 1000
    for record in records:
        record["outputs"]["data"] = [[1000 * value] for (value,) in record["outputs"]["data"]]
        record["labels"] = [1000 * value for value in record["labels"]]
    millimetres = assess_records(holdout, records)

    assert metres.metrics["loss_sum"] == pytest.approx(millimetres.metrics["loss_sum"])
    assert millimetres.metrics["live_rmse"] == pytest.approx(1000 * metres.metrics["live_rmse"])


def test_probabilities_of_three_classes_are_scored_against_their_shares() -> None:
    assessment = assess_records(*make_species())

    assert (assessment.verdict, assessment.problem) == (Verdict.OK, Problem.MULTICLASS)
    assert assessment.metrics["live_log_loss"] == pytest.approx(assessment.metrics["holdout_log_loss"], abs=0.15)
    assert assessment.metrics["live_accuracy"] > 0.7
    assert assessment.metrics["live_skill"] > 0.3


def test_probabilities_of_three_classes_that_tell_nothing_any_more_are_an_alert() -> None:
    assessment = assess_records(*make_species(is_lost=True))

    assert assessment.verdict == Verdict.ALERT
    assert "against the classes' shares is -" in assessment.summary


@pytest.mark.parametrize(("errors", "verdict"), [(0.1, Verdict.OK), (0.6, Verdict.ALERT)])
def test_classes_without_probabilities_are_scored_by_their_errors(errors: float, verdict: str) -> None:
    def predict(true: np.ndarray, share: float) -> np.ndarray:
        return np.where(RANDOM.random(len(true)) < share, (true + 1) % 3, true)

    true = RANDOM.integers(0, 3, 400)
    holdout = holdout_table(pd.Series(np.take(SPECIES, true)), {"model": np.take(SPECIES, predict(true, 0.1))})
    records = []
    for day in range(DAYS):
        true = RANDOM.integers(0, 3, 5)
        outputs = {"prediction": np.take(SPECIES, predict(true, errors)).tolist()}
        records.append(make_record(day, outputs, labels=np.take(SPECIES, true).tolist(), classes=list(SPECIES)))
    assessment = assess_records(holdout, records)

    assert (assessment.verdict, assessment.problem) == (verdict, Problem.CLASSES)
    assert assessment.metrics["live_accuracy"] == pytest.approx(1 - errors, abs=0.12)


@pytest.mark.parametrize("classes", [[False, True], [0, 1], ["no", "yes"]])
def test_labels_of_two_classes_are_scored_as_outcomes_of_0_and_1(classes: list[Any]) -> None:
    probability = RANDOM.random(400)
    holdout = holdout_table(pd.Series((RANDOM.random(400) < probability).astype(int)), {"model": probability})
    records = []
    for day in range(DAYS):
        p = RANDOM.random(5)
        labels = [classes[int(is_true)] for is_true in RANDOM.random(5) < p]
        outputs = {"prediction": [classes[int(each > 0.5)] for each in p]}
        outputs |= {"probability_0": (1 - p).tolist(), "probability_1": p.tolist()}
        records.append(make_record(day, outputs, labels=labels, classes=classes))
    assessment = assess_records(holdout, records)

    assert (assessment.verdict, assessment.problem) == (Verdict.OK, Problem.BINARY)
    assert assessment.metrics["scored"] == 150
    assert assessment.metrics["live_brier"] == pytest.approx(1 / 6, abs=0.06)
    assert assessment.forecasts.empty


def test_a_label_corrects_what_the_hook_observed() -> None:
    about = {"subject": "Depot", "times": ["2026-11-20", "2026-11-21"]}
    holdout, _ = make_regression()
    one = make_record(17, {"prediction": [100.0, 100.0]}, about=about, labels=[90.0, None])
    observed = {("Depot", "2026-11-20"): 1.0, ("Depot", "2026-11-21"): 105.0}
    assessment = assess_records(holdout, [one], observed=observed)

    assert assessment.forecasts[Column.OBSERVED].tolist() == [90.0, 105.0]
    assert assessment.metrics["scored"] == 2


def test_outcomes_are_listed_with_their_losses_under_the_names_of_the_contract() -> None:
    holdout, records = make_species()
    records[0]["labels"] = [None, "gentoo", None, None, None]
    outcomes = table_rows(as_table(assess_records(holdout, records[:1]).outcomes), Artifact.OUTCOMES)

    (row,) = outcomes
    assert tuple(row) == OUTCOME_COLUMNS
    assert (row[Column.OBSERVED], row[Column.VERSION]) == ("gentoo", VERSION)
    assert row[Column.PREDICTION] in SPECIES
    assert row[Column.LOSS] == pytest.approx(-np.log(max(row[Column.TRUE_PROBABILITY], 0.01)))
    assert row[Column.BASELINE_LOSS] == pytest.approx(-np.log((holdout[Column.OBSERVED] == "gentoo").mean()))


def test_a_class_that_the_model_does_not_know_is_a_certain_error() -> None:
    holdout, records = make_species()
    records[0]["labels"] = ["rockhopper"] * 5

    assert (assess_records(holdout, records[:1]).outcomes[Column.TRUE_PROBABILITY] == 0).all()


def test_a_baseline_without_errors_leaves_the_skill_finite() -> None:
    holdout = holdout_table(pd.Series(["a"] * 30 + ["b"]), {"model": ["a"] * 31})
    records = [make_record(day, {"prediction": ["a", "b"]}, labels=["a", "a"], classes=["a", "b"]) for day in range(9)]

    metrics = assess_records(holdout, records).metrics

    assert np.isfinite([metrics["live_skill"], metrics["skill_low"], metrics["skill_high"]]).all()
    assert metrics["live_accuracy"] == 0.5


def test_records_that_do_not_tell_their_classes_are_not_scored_by_them() -> None:
    holdout, records = make_species()
    former = [record | {"classes": None} for record in records]
    assessment = assess_records(holdout, former)

    assert assessment.metrics["scored"] == 0
    assert "None of 150 observed values can be scored" in assessment.summary


def test_labeled_records_beyond_the_sample_do_not_count_for_drift() -> None:
    holdout, records = make_regression()
    shifted = [record | {SAMPLED: False, "inputs": {"columns": ["a"], "data": [[99.0]] * 5}} for record in records]
    unlabeled = [record | {"labels": None} for record in records]
    assessment = assess_records(holdout, [*unlabeled, *shifted])

    assert assessment.verdict == Verdict.OK
    assert assessment.metrics["scored"] == 150


@pytest.mark.parametrize(
    ("observed", "predicted", "classes", "has_probabilities", "problem"),
    [
        ([0, 1], [0.2, 0.7], None, True, Problem.BINARY),
        ([0, 1], [0.2, 0.7], (False, True), True, Problem.BINARY),
        (["no", "yes"], [0.2, 0.7], ("no", "yes"), True, Problem.MULTICLASS),
        ([0, 1, 2], [0.2, 0.7, 0.9], (0, 1, 2), True, Problem.MULTICLASS),
        ([0, 1, 2], [0, 1, 1], (0, 1, 2), False, Problem.CLASSES),
        ([0, 1, 2], [0.2, 0.7, 0.9], None, False, Problem.REGRESSION),
        ([0.25, 0.5], [0.2, 0.7], None, False, Problem.REGRESSION),
        ([5.0, 5.0], [4.0, 6.0], None, False, None),
        (["a", "b"], ["a", "b"], ("a", "b"), True, None),
        ([], [], None, False, None),
    ],
)
def test_the_records_and_the_holdout_tell_what_kind_of_problem_it_is(
    observed: list[Any], predicted: list[Any], classes: Any, has_probabilities: bool, problem: str | None
) -> None:
    scorer = make_scorer(holdout_table(pd.Series(observed), {"model": predicted}), classes, has_probabilities)

    assert (scorer and scorer.problem) == problem
