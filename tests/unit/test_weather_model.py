"""The weather problem: its split, candidates, baselines, metrics and plots."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import skops.io
from matplotlib.figure import Figure
from prefect.serializers import PickleSerializer

from flows.weather import model
from flows.weather.features import TARGET, WET_TODAY, build_examples
from flows.weather.model import Family
from flows.weather.observations import DAY
from flows.weather.places import SEATTLE
from tests.unit.weather import PLACE, make_observations
from trainyard import fitting
from trainyard.candidates import Candidate, Score
from trainyard.contract import Artifact, Column
from trainyard.errors import DataError
from trainyard.fingerprint import fingerprint
from trainyard.fitting import Evaluation
from trainyard.metrics import scores_table
from trainyard.problem import Parts, Problem, divide
from trainyard.reviewed_types import REVIEWED_TYPES

PROBLEM = model.make_problem(PLACE)
LOGISTIC = model.CANDIDATES[1]
METRICS = ("log_loss", "brier", "calibration_error", "roc_auc", "average_precision", "accuracy")
OWNERS = ("model", "persistence", "climatology")


@pytest.fixture
def examples() -> pd.DataFrame:
    return build_examples(make_observations()).frame


def fit(examples: pd.DataFrame, candidate: Candidate = LOGISTIC) -> tuple[Parts, Evaluation]:
    parts = divide(PROBLEM, examples)
    return parts, fitting.fit(PROBLEM, parts, candidate)


def test_each_place_has_a_model_of_its_own() -> None:
    assert PROBLEM.model == "rain-tomorrow-47.60n-122.30w"
    assert model.make_problem(SEATTLE).model == "rain-tomorrow"


def test_the_problem_that_is_kept_with_a_version_is_the_same_when_it_is_read() -> None:
    kept, storage = PROBLEM.for_training(), PickleSerializer[Problem]()

    assert fingerprint(storage.loads(storage.dumps(kept))) == fingerprint(kept)


class TestSplit:
    def test_the_holdout_is_the_newest_part(self, examples: pd.DataFrame) -> None:
        parts = divide(model.make_problem(PLACE, holdout_fraction=0.25), examples)

        assert len(parts.holdout) == round(len(examples) * 0.25)
        assert parts.train.index.max() < parts.holdout.index.min()
        pd.testing.assert_frame_equal(parts.all_rows, examples)

    def test_a_single_class_in_the_holdout_is_refused(self, examples: pd.DataFrame) -> None:
        examples.loc[examples.index[-200:], TARGET] = False

        with pytest.raises(DataError, match="The holdout has 154 of 770 rows, all of them with the wet_tomorrow False"):
            divide(PROBLEM, examples)


class Recorder:
    """Notes the newest day that it was fitted on, and the oldest that it was asked about."""

    def __init__(self, folds: list[tuple[pd.Timestamp, pd.Timestamp]]) -> None:
        self.folds = folds

    def fit(self, features: pd.DataFrame, _target: pd.Series) -> "Recorder":
        self.newest, self.classes_ = features.index.max(), np.array([False, True])
        return self

    def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
        self.folds.append((self.newest, features.index.min()))
        return np.full((len(features), 2), 0.5)


class TestCrossValidation:
    def test_no_fold_is_fitted_on_later_days_than_it_is_validated_on(self, examples: pd.DataFrame) -> None:
        folds: list[tuple[pd.Timestamp, pd.Timestamp]] = []
        problem = replace(PROBLEM, estimators={"recorder": lambda: Recorder(folds)}, candidates=())

        fitting.cross_validate(problem, examples, Candidate("recorder", ()), 3)

        assert len(folds) == 3
        assert all(newest_fitted < oldest_validated for newest_fitted, oldest_validated in folds)

    def test_folds_with_a_single_class_are_refused(self, examples: pd.DataFrame) -> None:
        examples[TARGET] = False
        examples.loc[examples.index[-1], TARGET] = True

        with pytest.raises(DataError, match="No fold has rows of two classes"):
            fitting.cross_validate(PROBLEM, examples, LOGISTIC, 5)


def of_family(family: Family) -> Problem:
    return model.make_problem(PLACE, families=[family])


class TestCandidates:
    def test_their_names_are_distinct(self) -> None:
        names = [candidate.name for candidate in PROBLEM.list_candidates()]

        assert len(set(names)) == len(names) == 9
        assert names[0] == "logistic-regression C=0.01"
        assert names[-1] == "hist-gradient-boosting learning_rate=0.1 max_leaf_nodes=7"

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_a_family_has_three(self, family: Family) -> None:
        assert [each.family for each in of_family(family).list_candidates()] == [family] * 3

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_the_same_data_gives_the_same_model(self, examples: pd.DataFrame, family: Family) -> None:
        candidate = of_family(family).list_candidates()[0]

        (_, first), (_, second) = fit(examples, candidate), fit(examples, candidate)

        assert first.metrics == second.metrics
        for owner, probability in first.positive_probabilities.items():
            np.testing.assert_array_equal(probability, second.positive_probabilities[owner])
        scores = [fitting.cross_validate(PROBLEM, examples, candidate, 3) for _ in range(2)]
        assert scores[0] == scores[1]

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_their_files_hold_reviewed_types_only(self, examples: pd.DataFrame, family: Family) -> None:
        _, evaluation = fit(examples, of_family(family).list_candidates()[0])

        untrusted = skops.io.get_untrusted_types(data=skops.io.dumps(evaluation.estimator))

        assert set(untrusted) <= REVIEWED_TYPES.keys()

    def test_the_lowest_log_loss_wins(self) -> None:
        candidates = model.CANDIDATES[:3]
        scores = [
            Score(each, {"cv_log_loss": loss, "cv_brier": -loss})
            for each, loss in zip(candidates, (3, 1, 2), strict=True)
        ]

        assert fitting.choose_best(PROBLEM, scores) == candidates[1]


class TestBaselines:
    def test_persistence_is_the_frequency_after_wet_and_after_dry_days(self) -> None:
        train = pd.DataFrame({WET_TODAY: [1.0, 1.0, 1.0, 0.0], TARGET: [True, True, False, False]})
        holdout = pd.DataFrame({WET_TODAY: [0.0, 1.0]})

        expected = [(0 + 1) / (1 + 2), (2 + 1) / (3 + 2)]
        assert model.persistence(train, holdout).tolist() == pytest.approx(expected)

    def test_climatology_is_the_frequency_in_the_month_of_the_predicted_day(self) -> None:
        days = pd.to_datetime(["2020-01-30", "2020-01-31", "2020-02-01", "2020-02-02"])
        train = pd.DataFrame({TARGET: [True, False, False, True]}, index=days)
        holdout = pd.DataFrame(index=pd.to_datetime(["2020-12-31", "2021-01-31", "2021-05-05"]))

        expected = [(1 + 1) / (1 + 2), (1 + 1) / (3 + 2), 0.5]
        assert model.climatology(train, holdout).tolist() == pytest.approx(expected)


class TestEvaluation:
    def test_model_and_baselines_have_the_same_metrics(self, examples: pd.DataFrame) -> None:
        _, evaluation = fit(examples)
        metrics = evaluation.metrics

        row = " | ".join(["brier", *(f"{metrics[f'{owner}_brier']:.4f}" for owner in OWNERS)])
        assert set(metrics) == {f"{owner}_{name}" for owner in OWNERS for name in METRICS}
        assert metrics["model_roc_auc"] > 0.6
        assert f"| {row} |" in scores_table(metrics, evaluation.owners)

    def test_a_row_of_the_tables_is_about_the_day_after_its_example(self, examples: pd.DataFrame) -> None:
        parts, evaluation = fit(examples)

        refitted = fitting.refit(PROBLEM, parts, evaluation.candidate)
        tables = fitting.evaluation_tables(PROBLEM, parts, evaluation, refitted)

        holdout, sample = tables[Artifact.HOLDOUT], tables[Artifact.TRAINING_SAMPLE]
        days = pd.DatetimeIndex(parts.holdout.index) + DAY
        assert holdout[Column.TIME].tolist() == [f"{day:%F}" for day in days]
        assert holdout[Column.OBSERVED].tolist() == parts.holdout[TARGET].astype(int).tolist()
        assert list(holdout)[2:] == list(OWNERS)
        for owner, probability in evaluation.positive_probabilities.items():
            assert holdout[owner].tolist() == probability.tolist()
        assert sample[Column.TIME].iloc[0] == f"{parts.train.index[0] + DAY:%F}"
        assert len(sample) == len(examples), "the served model is fitted on all days"
        probability = refitted.predict_proba(examples.drop(columns=TARGET))[:, 1]
        assert sample[Column.PREDICTION].tolist() == probability.tolist()
        assert set(sample.columns) == {*examples.columns, Column.TIME, Column.PREDICTION} - {TARGET}


def test_plots_have_a_title_and_labels(examples: pd.DataFrame) -> None:
    parts, evaluation = fit(examples)
    assert PROBLEM.figures is not None

    figures = PROBLEM.figures(evaluation, parts)

    assert set(figures) == {"roc.png", "precision_recall.png", "calibration.png", "forecast.png"}
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        (axes,) = figure.axes
        assert axes.get_title()
        assert axes.get_xlabel() or name == "forecast.png"  # an axis of dates needs none
        assert axes.get_ylabel()
