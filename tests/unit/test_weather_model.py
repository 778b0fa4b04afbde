"""Split, candidates, baselines, metrics and plots of the weather model."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from matplotlib.figure import Figure

from flows.weather import model, plots
from flows.weather.features import TARGET, WET_TODAY, build_examples
from flows.weather.model import Family, FittedModel
from flows.weather.observations import DAY
from tests.unit.weather import make_observations
from trainyard.candidates import Candidate, Score
from trainyard.contract import Artifact, Column
from trainyard.errors import DataError
from trainyard.reviewed_types import REVIEWED_TYPES

LOGISTIC = model.make_candidates(["logistic-regression"])[1]
METRICS = ("log_loss", "brier", "calibration_error", "roc_auc", "average_precision", "accuracy")
OWNERS = ("model", "persistence", "climatology")


@pytest.fixture
def examples() -> pd.DataFrame:
    return build_examples(make_observations()).frame


def fit(examples: pd.DataFrame, candidate: Candidate = LOGISTIC) -> FittedModel:
    return model.fit_and_score(*model.split_by_time(examples, 0.2), candidate)


class TestSplit:
    def test_the_holdout_is_the_newest_part(self, examples: pd.DataFrame) -> None:
        train, holdout = model.split_by_time(examples, 0.25)

        assert len(holdout) == round(len(examples) * 0.25)
        assert train.index.max() < holdout.index.min()
        pd.testing.assert_frame_equal(pd.concat([train, holdout]), examples)

    def test_a_single_class_in_the_holdout_is_refused(self, examples: pd.DataFrame) -> None:
        examples.loc[examples.index[-200:], TARGET] = False

        with pytest.raises(DataError, match="The holdout part"):
            model.split_by_time(examples, holdout_fraction=0.2)


class TestCrossValidation:
    def test_no_fold_is_fitted_on_later_days_than_it_is_validated_on(
        self, examples: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folds: list[tuple[pd.Timestamp, pd.Timestamp]] = []

        class Recorder:
            def fit(self, features: pd.DataFrame, _target: pd.Series) -> "Recorder":
                self.newest = features.index.max()
                return self

            def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
                folds.append((self.newest, features.index.min()))
                return np.full((len(features), 2), 0.5)

        monkeypatch.setattr(model, "make_estimator", lambda _candidate: Recorder())

        model.cross_validate(examples, LOGISTIC, 3)

        assert len(folds) == 3
        assert all(newest_fitted < oldest_validated for newest_fitted, oldest_validated in folds)

    def test_folds_with_a_single_class_are_refused(self, examples: pd.DataFrame) -> None:
        examples[TARGET] = False
        examples.loc[examples.index[-1], TARGET] = True

        with pytest.raises(DataError, match="None of 5 folds"):
            model.cross_validate(examples, LOGISTIC, 5)


class TestCandidates:
    def test_their_names_are_distinct(self) -> None:
        names = [candidate.name for candidate in model.make_candidates()]

        assert len(set(names)) == len(names) == 9
        assert names[0] == "logistic-regression C=0.01"

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_the_same_data_gives_the_same_model(self, examples: pd.DataFrame, family: Family) -> None:
        candidate = model.make_candidates([family])[0]

        first, second = fit(examples, candidate), fit(examples, candidate)

        assert first.metrics == second.metrics
        np.testing.assert_array_equal(first.predictions["model"], second.predictions["model"])
        assert model.cross_validate(examples, candidate, 3) == model.cross_validate(examples, candidate, 3)

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_their_files_hold_reviewed_types_only(self, examples: pd.DataFrame, family: Family) -> None:
        estimator = fit(examples, model.make_candidates([family])[0]).estimator

        untrusted = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))

        assert set(untrusted) <= REVIEWED_TYPES.keys()

    def test_the_lowest_log_loss_wins(self) -> None:
        candidates = model.make_candidates()[:3]
        scores = [Score(each, {"cv_log_loss": loss}) for each, loss in zip(candidates, (3, 1, 2), strict=True)]

        assert model.choose_best(scores) == candidates[1]


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
    def test_metrics_computed_by_hand(self) -> None:
        metrics = model.score(pd.Series([True, False, True, False]), np.array([0.8, 0.2, 0.4, 0.6]))

        assert metrics == pytest.approx(
            {
                "log_loss": -(np.log([0.8, 0.8, 0.4, 0.4]).mean()),
                "brier": (0.2**2 + 0.2**2 + 0.6**2 + 0.6**2) / 4,
                "calibration_error": (0.2 + 0.2 + 0.6 + 0.6) / 4,
                "roc_auc": 0.75,
                "average_precision": 0.5 * 1 + 0.5 * 2 / 3,
                "accuracy": 0.5,
            }
        )

    def test_model_and_baselines_have_the_same_metrics(self, examples: pd.DataFrame) -> None:
        metrics = fit(examples).metrics

        row = " | ".join(["brier", *(f"{metrics[f'{owner}_brier']:.4f}" for owner in OWNERS)])
        assert set(metrics) == {f"{owner}_{name}" for owner in OWNERS for name in METRICS}
        assert metrics["model_roc_auc"] > 0.6
        assert f"| {row} |" in model.metrics_table(metrics)

    def test_a_row_of_the_tables_is_about_the_day_after_its_example(self, examples: pd.DataFrame) -> None:
        fitted = fit(examples)

        refitted = model.refit(fitted)
        tables = model.evaluation_tables(fitted, refitted)

        holdout, sample = tables[Artifact.HOLDOUT], tables[Artifact.TRAINING_SAMPLE]
        days = pd.DatetimeIndex(fitted.holdout.index) + DAY
        assert holdout[Column.TIME].tolist() == [f"{day:%F}" for day in days]
        assert holdout[Column.OBSERVED].tolist() == fitted.holdout[TARGET].astype(int).tolist()
        assert holdout[Column.MODEL].tolist() == fitted.predictions["model"].tolist()
        assert sample[Column.TIME].iloc[0] == f"{fitted.train.index[0] + DAY:%F}"
        assert len(sample) == len(examples), "the served model is fitted on all days"
        assert sample[Column.PREDICTION].tolist() == model.predict(refitted, examples).tolist()
        assert set(sample.columns) == {*examples.columns, Column.TIME, Column.PREDICTION} - {TARGET}


def test_plots_have_a_title_and_labels(examples: pd.DataFrame) -> None:
    figures = plots.draw(fit(examples))

    assert set(figures) == {"roc.png", "precision_recall.png", "calibration.png", "importance.png", "forecast.png"}
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        (axes,) = figure.axes
        assert axes.get_title()
        assert axes.get_xlabel() or name == "forecast.png"  # an axis of dates needs none
        assert axes.get_ylabel() or name == "importance.png"  # nor does one of features
