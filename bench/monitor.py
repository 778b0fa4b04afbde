"""Simulate the monitor's daily checks on synthetic weather: false alarms, and days until a fault is found.

The weather has seasons and depends on the day before (`infra.testing.open_meteo_server`); the features, the estimators and
the assessment are the platform's own. A champion forecasts the next day once a day and place, is checked on each of 90
days by the forecasts of the last 30, and the ground truth is known four days later, as in Open-Meteo's archive.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from bench.report import save
from flows.weather.features import TARGET, build_features
from flows.weather.model import FAMILIES, climatology, make_problem
from flows.weather.places import SEATTLE
from infra.testing.open_meteo_server import synthetic_day
from trainyard.contract import Column, Record, Verdict
from trainyard.evaluation import holdout_table, training_sample
from trainyard.monitoring import (
    ALERT_PAUSE,
    AlertThresholds,
    Assessment,
    Reference,
    assess,
    new_alerts,
    rows_from_records,
)
from trainyard.skill import FALSE_ALARM_RATE

FIRST_DAY = pd.Timestamp("2018-01-01")
TRAINING_DAYS, HOLDOUT_DAYS = 4 * 365, 365
WINDOW_DAYS, LOOKS = 30, 90
TRUTH_LAG_DAYS = 4
VERSION = 1
MAX_DAYS_TO_FIND = {"skill": 30, "input": 7}


@dataclass(frozen=True)
class World:
    """A champion, and the days after its training."""

    reference: Reference
    estimator: Any
    inputs: pd.DataFrame
    """Live days in the order of time, a row for each place; the index is the day of the inputs."""
    wet: pd.Series
    """Whether the day after each was wet."""
    base: pd.Series
    """The probability of climatology."""
    places: int

    @classmethod
    def make(cls, seed: int, places: int = 1, live_days: int = WINDOW_DAYS + LOOKS + TRUTH_LAG_DAYS) -> "World":
        """Return a world with weather of its own."""
        days = TRAINING_DAYS + HOLDOUT_DAYS + live_days + 30
        frames = [make_examples(f"{seed} {place}", days) for place in range(places)]
        examples = pd.concat(frames).sort_index(kind="stable")
        first = examples.index[0]
        train = examples[: first + pd.Timedelta(days=TRAINING_DAYS - 1)]
        later = examples[first + pd.Timedelta(days=TRAINING_DAYS) :]
        holdout = later[: later.index[0] + pd.Timedelta(days=HOLDOUT_DAYS - 1)]
        live = later[later.index[0] + pd.Timedelta(days=HOLDOUT_DAYS) :]
        problem = make_problem(SEATTLE, families=[FAMILIES[seed % len(FAMILIES)]])
        estimator = problem.make_estimator(problem.list_candidates()[1])
        estimator.fit(train.drop(columns=TARGET), train[TARGET])
        tables = [
            training_sample(train.drop(columns=TARGET), predict(estimator, train), next_days(train)),
            holdout_table(
                holdout[TARGET].astype(int),
                {Column.MODEL: predict(estimator, holdout), "climatology": climatology(train, holdout)},
                next_days(holdout),
            ),
        ]
        base = pd.Series(climatology(train, live), index=live.index)
        return cls(Reference(*tables), estimator, live.drop(columns=TARGET), live[TARGET].astype(int), base, places)


def make_examples(seed: str, days: int) -> pd.DataFrame:
    """Return the features and the target of a place's days."""
    chance, wet, wind, values = random.Random(seed), False, 20.0, []
    for number in range(days):
        day = synthetic_day((FIRST_DAY + timedelta(days=number)).date(), 47.6, chance, wet, wind)
        wet, wind = day["precipitation_sum"] > 0, day["wind_speed_10m_max"]
        values.append(day)
    daily = pd.DataFrame(values, index=pd.date_range(FIRST_DAY, periods=days))
    weather = pd.DataFrame(
        {
            "precipitation_mm": daily["precipitation_sum"],
            "temp_max_c": daily["temperature_2m_max"],
            "temp_min_c": daily["temperature_2m_min"],
            "wind_ms": daily["wind_speed_10m_max"] / 3.6,
        }
    )
    target = (weather["precipitation_mm"] >= 1).shift(-1)
    return build_features(weather).assign(**{TARGET: target}).iloc[:-1].astype({TARGET: bool})


def predict(estimator: Any, examples: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return the probability of rain on the next day."""
    probability: np.ndarray[Any, Any] = estimator.predict_proba(examples.drop(columns=TARGET, errors="ignore"))[:, 1]
    return probability


def next_days(examples: pd.DataFrame) -> pd.DatetimeIndex:
    """Return the days that the examples predict."""
    return pd.DatetimeIndex(examples.index) + pd.Timedelta(days=1)


def make_rows(world: World, inputs: pd.DataFrame, probability: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Return what the monitor reads of forecasts that were recorded at noon of each day."""
    columns = ["prediction", "probability_0", "probability_1"]
    records = [
        {
            "at": f"{day:%F}T12:00:00Z",
            "version": VERSION,
            "inputs": {"columns": list(inputs.columns), "data": [list(row)]},
            "outputs": {"columns": columns, "data": [[p >= 0.5, 1 - p, p]]},
            "about": {
                Record.SUBJECT: f"place {number % world.places}",
                Record.TIMES: [f"{day + timedelta(days=1):%F}"],
            },
        }
        for number, (day, row, p) in enumerate(
            zip(pd.DatetimeIndex(inputs.index), inputs.itertuples(index=False), probability, strict=True)
        )
    ]
    return rows_from_records(records)


def look(world: World, rows: pd.DataFrame, wet: pd.Series, day: int) -> Assessment:
    """Return the assessment on a day of the live period by its number."""
    now = pd.Timestamp(world.inputs.index[0]) + pd.Timedelta(days=day)
    at = rows["at"].dt.tz_convert(None).dt.normalize()
    recent = rows[(at <= now) & (at > now - pd.Timedelta(days=WINDOW_DAYS))]
    known = {
        (f"place {number % world.places}", f"{about:%F}"): float(value)
        for number, (about, value) in enumerate(zip(next_days(world.inputs), wet, strict=True))
        if about <= now - pd.Timedelta(days=TRUTH_LAG_DAYS)
    }
    return assess(recent, world.reference, known, AlertThresholds(), VERSION)


def is_skill_alert(assessment: Assessment) -> bool:
    """Return whether the alert is about the scores."""
    return any("skill" in reason for reason in assessment.reasons) and assessment.verdict == Verdict.ALERT


def is_drift_alert(assessment: Assessment) -> bool:
    """Return whether the alert is about the inputs or the prediction."""
    return any("drifted" in reason for reason in assessment.reasons) and assessment.verdict == Verdict.ALERT


def count_false_alarms(world: World) -> dict[str, int]:
    """Return how many alerts an unchanged champion in an unchanged world raised in 90 days, and on how many days it had one.

    An alert about what one of the last days was about is not raised again, as in the flow `monitor`.
    """
    rows = make_rows(world, world.inputs, predict(world.estimator, world.inputs))
    looks = [look(world, rows, world.wet, WINDOW_DAYS + number) for number in range(LOOKS)]
    abouts = [each.alerts for each in looks]
    raised = [new_alerts(about, abouts[max(0, n - ALERT_PAUSE.days) : n]) for n, about in enumerate(abouts)]
    return {
        "alerts": sum(map(bool, raised)),
        "days": sum(each.verdict == Verdict.ALERT for each in looks),
        "drift": sum(map(is_drift_alert, looks)),
        "skill": sum(map(is_skill_alert, looks)),
    }


def days_until(world: World, rows: pd.DataFrame, wet: pd.Series, kind: str) -> int | None:
    """Return how many days after the fault, which begins on day `WINDOW_DAYS`, an alert was raised; None if too late."""
    for days in range(1, MAX_DAYS_TO_FIND[kind] + 1):
        found = look(world, rows, wet, WINDOW_DAYS + days - 1)
        if is_drift_alert(found) if kind == "input" else found.verdict == Verdict.ALERT:
            return days
    return None


def replaced_outcomes(world: World) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """Return the champion's and climatology's probabilities, and the share of outcomes that `lose_skill` replaces.

    It is so large that the champion's expected Brier score becomes climatology's.
    """
    probability, expected = predict(world.estimator, world.inputs), np.asarray(world.base)
    good = (probability * (1 - probability) ** 2 + (1 - probability) * probability**2).mean()
    bad = (expected * (1 - probability) ** 2 + (1 - expected) * probability**2).mean()
    return probability, expected, float((np.mean(expected * (1 - expected)) - good) / (bad - good))


def lose_skill(world: World, seed: int) -> int | None:
    """Return when a champion is found whose forecasts have become as bad as climatology's.

    From a day on, some outcomes are those of another year.
    """
    probability, expected, share = replaced_outcomes(world)
    chance = np.random.default_rng(seed)
    is_broken = np.asarray(world.inputs.index >= world.inputs.index[0] + pd.Timedelta(days=WINDOW_DAYS))
    is_replaced = is_broken & (chance.random(len(expected)) < share)
    wet = world.wet.where(~is_replaced, (chance.random(len(expected)) < expected).astype(int))
    return days_until(world, make_rows(world, world.inputs, probability), wet, "skill")


def bound_power(world: World, seed: int) -> float:
    """Return the probability with which the best test of its scores finds `lose_skill` after 30 days.

    It is the likelihood ratio of both (Neyman and Pearson, Philosophical Transactions A 231, 1933), in one look instead of a
    look a day, at the monitor's false alarm rate and for a calibrated champion.
    """
    probability, expected, share = replaced_outcomes(world)
    known = (MAX_DAYS_TO_FIND["skill"] - TRUTH_LAG_DAYS) * world.places
    good = np.clip(probability[:known], 0.01, 0.99)
    bad = (1 - share) * good + share * expected[:known]
    chance = np.random.default_rng(seed)

    def ratios(truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        is_wet = chance.random((2000, known)) < truth
        return np.asarray(np.where(is_wet, np.log(bad / good), np.log((1 - bad) / (1 - good))).sum(axis=1))

    return float((ratios(bad) > np.quantile(ratios(good), 1 - FALSE_ALARM_RATE)).mean())


def predict_climatology(world: World) -> int | None:
    """Return when a champion is found that predicts climatology from a day on."""
    is_broken = np.asarray(world.inputs.index >= world.inputs.index[0] + pd.Timedelta(days=WINDOW_DAYS))
    probability = np.where(is_broken, world.base, predict(world.estimator, world.inputs))
    return days_until(world, make_rows(world, world.inputs, probability), world.wet, "skill")


def change_input(world: World, column: str, fault: str) -> int | None:
    """Return when an input is found that shifts by one standard deviation of the training sample, or goes null."""
    is_broken = np.asarray(world.inputs.index >= world.inputs.index[0] + pd.Timedelta(days=WINDOW_DAYS))
    inputs, probability = world.inputs.copy(), predict(world.estimator, world.inputs)
    if fault == "null":
        inputs[column] = inputs[column].astype(object).where(~is_broken, None)
    else:
        inputs.loc[is_broken, column] += float(world.reference.sample[column].std())
        probability = predict(world.estimator, inputs)
    return days_until(world, make_rows(world, inputs, probability), world.wet, "input")


def summarize_days(found: Sequence[int | None]) -> dict[str, float | None]:
    """Return the share of the cases that were found in time, and the median of their days."""
    days = [each for each in found if each is not None]
    return {
        "cases": len(found),
        "found": round(len(days) / len(found), 3),
        "median_days": float(np.median(days)) if days else None,
    }


def simulate(worlds: int, column_worlds: int) -> dict[str, Any]:
    """Return the results of all simulations."""
    results: dict[str, Any] = {"no_change": {}, "skill": {}, "climatology": {}, "input": {}}
    for places in (1, 5):
        made = [World.make(seed, places) for seed in range(worlds)]
        counts = [count_false_alarms(world) for world in made]
        results["no_change"][places] = {
            "runs": len(counts),
            "alerts_mean": round(float(np.mean([each["alerts"] for each in counts])), 3),
            "days_with_an_alert_mean": round(float(np.mean([each["days"] for each in counts])), 3),
            "runs_with_an_alert": sum(each["alerts"] > 0 for each in counts),
            "runs_with_drift": sum(each["drift"] > 0 for each in counts),
            "runs_with_skill": sum(each["skill"] > 0 for each in counts),
            "runs_with_at_most_one": sum(each["alerts"] <= 1 for each in counts),
        }
        results["skill"][places] = summarize_days([lose_skill(world, seed) for seed, world in enumerate(made)]) | {
            "best_test": round(float(np.mean([bound_power(world, seed) for seed, world in enumerate(made)])), 3)
        }
        results["climatology"][places] = summarize_days([predict_climatology(world) for world in made])
        print(places, results, flush=True)
    for places in (1, 5):
        made = [World.make(1000 + seed, places) for seed in range(column_worlds)]
        results["input"][places] = {
            fault: {
                column: summarize_days([change_input(world, column, fault) for world in made])
                for column in made[0].inputs.columns
            }
            for fault in ("shift", "null")
        }
    return results


def main() -> None:
    """Run the simulations and save their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--column-worlds", type=int, default=10)
    options = parser.parse_args()
    save("monitor", simulate(options.worlds, options.column_worlds))


if __name__ == "__main__":
    main()
