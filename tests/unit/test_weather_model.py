"""Features, split, metrics and the errors that end a training before anything is logged."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from matplotlib.figure import Figure

from flows.weather import model, plots
from flows.weather.features import LONGEST_WINDOW, TARGET, WET_TODAY, build_examples, build_features
from flows.weather.model import Family, Training
from tests.unit.weather import make_frame, make_observations
from trainyard.candidates import Candidate, Score
from trainyard.errors import DataError

LOGISTIC = model.make_candidates(["logistic-regression"])[1]


@pytest.fixture
def examples() -> pd.DataFrame:
    return build_examples(make_observations()).frame


class TestFeatures:
    @pytest.mark.parametrize("day", [40, 123, 300])
    def test_nothing_from_the_future(self, day: int) -> None:
        past = make_frame()
        other_future = past.copy()
        other_future.iloc[day + 1 :] = make_frame(seed=1).iloc[day + 1 :].to_numpy() + 100
        until = past.index[day]
        pd.testing.assert_frame_equal(build_features(past).loc[:until], build_features(other_future).loc[:until])

    def test_the_day_itself_counts(self) -> None:
        frame = make_frame(days=60)
        changed = frame.copy()
        changed.iloc[-1] = [99.0, 30.0, -10.0, 20.0]
        assert (build_features(frame).iloc[-1] != build_features(changed).iloc[-1]).sum() >= 10

    def test_every_day_has_all_features_once_the_windows_are_full(self) -> None:
        features = build_features(make_frame(days=100))
        assert len(features) == 100 - LONGEST_WINDOW + 1
        assert np.isfinite(features.to_numpy()).all()
        assert (features.dtypes == "float64").all()

    def test_target_is_the_next_days_rain(self) -> None:
        frame = make_frame(days=400)
        examples = build_examples(make_observations(frame), wet_day_mm=2.0).frame
        wet = frame["precipitation_mm"] >= 2.0
        assert examples[TARGET].tolist() == wet.shift(-1).loc[examples.index].astype(bool).tolist()
        assert examples[WET_TODAY].tolist() == wet.loc[examples.index].astype(float).tolist()
        assert examples.index.max() == frame.index[-2]

    def test_season_is_that_of_the_day_to_forecast(self) -> None:
        frame = make_frame(days=366)  # ends on 2020-12-31
        last = build_features(frame).iloc[-1]
        assert last["season_sin"] == pytest.approx(np.sin(2 * np.pi / 365.25))

    def test_a_missing_day_is_named(self) -> None:
        frame = make_frame(days=100).drop(pd.Timestamp("2020-02-10"))
        with pytest.raises(DataError, match="2020-02-09 is followed by 2020-02-11"):
            build_features(frame)


class TestNothingToLearn:
    def test_too_few_observations(self) -> None:
        with pytest.raises(DataError, match="has 364 daily observations, fewer than the 365"):
            build_examples(make_observations(make_frame(days=364)))

    @pytest.mark.parametrize(("rain", "kind"), [(0.0, "dry"), (9.0, "wet")])
    def test_one_class(self, rain: float, kind: str) -> None:
        frame = make_frame().assign(precipitation_mm=rain)
        with pytest.raises(DataError, match=f"Every day of Testville is {kind}"):
            build_examples(make_observations(frame))

    def test_one_class_in_the_holdout(self, examples: pd.DataFrame) -> None:
        examples.loc[examples.index[-200:], TARGET] = False
        with pytest.raises(DataError, match="The holdout part"):
            model.split_by_time(examples, holdout_fraction=0.2)


def fitted(examples: pd.DataFrame, candidate: Candidate = LOGISTIC) -> Training:
    return model.fit_and_score(*model.split_by_time(examples, 0.2), candidate)


class TestSplit:
    def test_holdout_is_the_newest_part(self, examples: pd.DataFrame) -> None:
        train, holdout = model.split_by_time(examples, 0.25)
        assert len(holdout) == round(len(examples) * 0.25)
        assert train.index.max() < holdout.index.min()
        pd.testing.assert_frame_equal(pd.concat([train, holdout]), examples)

    def test_cross_validation_never_sees_a_later_day(self, examples: pd.DataFrame) -> None:
        """The first fold's judged days are the same whatever comes after them."""
        changed = examples.copy()
        changed.iloc[-100:, :-1] += 1000
        early = examples.iloc[:-100]
        assert model.cross_validate(early, LOGISTIC, 3) == model.cross_validate(changed.iloc[:-100], LOGISTIC, 3)
        assert model.cross_validate(changed, LOGISTIC, 3) != model.cross_validate(examples, LOGISTIC, 3)

    def test_folds_without_both_kinds_of_days_to_learn_from(self, examples: pd.DataFrame) -> None:
        examples[TARGET] = False
        examples.loc[examples.index[-1], TARGET] = True
        with pytest.raises(DataError, match="None of 5 folds"):
            model.cross_validate(examples, LOGISTIC, 5)


class TestCandidates:
    def test_each_has_a_name_of_its_own(self) -> None:
        names = [candidate.name for candidate in model.make_candidates()]
        assert len(set(names)) == len(names) == 9
        assert names[0] == "logistic-regression C=0.01"

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_same_data_same_model(self, examples: pd.DataFrame, family: Family) -> None:
        candidate = model.make_candidates([family])[0]
        first, second = fitted(examples, candidate), fitted(examples, candidate)
        assert first.metrics == second.metrics
        np.testing.assert_array_equal(first.forecasts["model"], second.forecasts["model"])
        assert model.cross_validate(examples, candidate, 3) == model.cross_validate(examples, candidate, 3)

    @pytest.mark.parametrize("family", model.FAMILIES)
    def test_the_file_of_each_holds_reviewed_types_only(self, examples: pd.DataFrame, family: Family) -> None:
        estimator = fitted(examples, model.make_candidates([family])[0]).estimator
        unknown = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
        assert set(unknown) <= set(model.TRUSTED_TYPES)

    def test_the_lowest_log_loss_wins(self) -> None:
        scores = [
            Score(each, {"cv_log_loss": loss})
            for each, loss in zip(model.make_candidates()[:3], (3, 1, 2), strict=True)
        ]
        assert model.choose(scores).candidate.name == "logistic-regression C=0.1"


class TestBaselines:
    def test_persistence_counts_what_followed(self) -> None:
        columns = {WET_TODAY: [1.0, 1.0, 1.0, 0.0], TARGET: [True, True, False, False]}
        holdout = pd.DataFrame({WET_TODAY: [0.0, 1.0]})
        expected = [(0 + 1) / (1 + 2), (2 + 1) / (3 + 2)]
        assert model.persistence(pd.DataFrame(columns), holdout).tolist() == pytest.approx(expected)

    def test_climatology_counts_by_the_month_of_the_day_to_forecast(self) -> None:
        days = pd.to_datetime(["2020-01-30", "2020-01-31", "2020-02-01", "2020-02-02"])
        train = pd.DataFrame({TARGET: [True, False, False, True]}, index=days)
        holdout = pd.DataFrame(index=pd.to_datetime(["2020-12-31", "2021-01-31", "2021-05-05"]))
        expected = [(1 + 1) / (1 + 2), (1 + 1) / (3 + 2), 0.5]
        assert model.climatology(train, holdout).tolist() == pytest.approx(expected)


class TestMetrics:
    def test_of_a_forecast_known_by_hand(self) -> None:
        wet = pd.Series([True, False, True, False])
        metrics = model.score(wet, np.array([0.8, 0.2, 0.4, 0.6]))
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

    def test_model_and_baselines_are_judged_alike(self, examples: pd.DataFrame) -> None:
        metrics = fitted(examples).metrics
        names = {"log_loss", "brier", "calibration_error", "roc_auc", "average_precision", "accuracy"}
        who = ("model", "persistence", "climatology")
        assert set(metrics) == {f"{each}_{name}" for each in who for name in names}
        assert metrics["model_roc_auc"] > 0.6
        row = " | ".join(["brier", *(f"{metrics[f'{each}_brier']:.4f}" for each in who)])
        assert f"| {row} |" in model.compare(metrics)


def test_plots_say_what_they_show(examples: pd.DataFrame) -> None:
    drawn = plots.draw(fitted(examples))
    assert set(drawn) == {"roc.png", "precision_recall.png", "calibration.png", "importance.png", "forecast.png"}
    for name, figure in drawn.items():
        assert isinstance(figure, Figure)
        (axes,) = figure.axes
        assert axes.get_title()
        assert axes.get_xlabel() or name == "forecast.png"  # its dates speak for themselves
        assert axes.get_ylabel() or name == "importance.png"  # its features do
