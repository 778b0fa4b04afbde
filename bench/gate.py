"""Simulate the promotion gate: how often it promotes noise, and how soon a better recipe.

The weather is synthetic, with the autocorrelation and the seasons of a real one, so that the probability of rain is known
for each day. The models are scikit-learn's, fitted anew each day with another seed, and compared on the newest 365 days
of five years, as the weather pipeline does it. Run by hand: `python -m bench.gate` (twenty minutes on one core).
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from bench.report import save
from trainyard.gate import Decision, Reuse, Thresholds, decide, measure_improvement

YEAR, WINDOW, HOLDOUT, WEEK = 365, 5 * 365, 365, 7
FORMER_MIN_IMPROVEMENT = 0.001
"""The threshold on the difference of mean losses that this gate replaces, for comparison."""

Array = NDArray[np.float64]
Model = Callable[[int], ClassifierMixin]
"""Makes an estimator of a seed."""
MODELS: dict[str, Model] = {
    "logistic regression": lambda _: LogisticRegression(),
    "forest of 10 trees": lambda seed: RandomForestClassifier(10, min_samples_leaf=40, random_state=seed),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is made: the estimator, and how much noise its view of the weather holds."""

    name: str
    model: Model
    noise: float = 0.0


@dataclass(frozen=True)
class Weather:
    """A row for each day: features, the noise that a poor recipe adds, the probability of rain, and whether it rained."""

    features: Array
    noise: Array
    probability: Array
    rain: Array

    @classmethod
    def simulate(cls, days: int, seed: int) -> "Weather":
        """Return days on which rain depends on pressure, humidity, season and the rain of the day before."""
        rng = np.random.default_rng(seed)
        pressure, humidity = (_autoregression(rng.normal(size=days), coefficient) for coefficient in (0.8, 0.6))
        angle = 2 * np.pi * (np.arange(days) + rng.integers(YEAR)) / 365.25
        chances, rain, wet, probability = rng.random(days), np.empty(days), np.empty(days), np.empty(days)
        is_wet = 0.0
        for day in range(days):
            wet[day] = is_wet
            logit = -0.8 + 0.9 * pressure[day] + 0.5 * humidity[day] + 0.9 * is_wet + 0.6 * np.cos(angle[day])
            probability[day] = 1 / (1 + np.exp(-logit))
            is_wet = rain[day] = float(chances[day] < probability[day])
        features = np.column_stack([pressure, humidity, wet, np.sin(angle), np.cos(angle)])
        return cls(features, rng.normal(size=days), probability, rain)

    def seen_by(self, recipe: Recipe, days: slice) -> Array:
        """Return a recipe's features of some days."""
        seen = self.features[days].copy()
        seen[:, 0] += recipe.noise * self.noise[days]
        return seen


def _autoregression(noise: Array, coefficient: float) -> Array:
    """Return a series of variance 1 with the given correlation between neighbours."""
    series = np.empty_like(noise)
    series[0] = noise[0]
    for day in range(1, len(noise)):
        series[day] = coefficient * series[day - 1] + sqrt(1 - coefficient**2) * noise[day]
    return series


@dataclass
class Champion:
    """A promoted model, and the comparisons with it by recipe."""

    recipe: Recipe
    estimator: Any
    trained_until: int
    comparisons: Counter[str] = field(default_factory=Counter)

    def next_use(self, recipe: Recipe) -> Reuse:
        """Count a comparison with a recipe, as the registry does."""
        self.comparisons[recipe.name] += 1
        others = [name for name in self.comparisons if name != self.recipe.name]
        rank = others.index(recipe.name) + 1 if recipe.name in others else 1
        return Reuse(self.comparisons[recipe.name], rank, recipe.name == self.recipe.name)


def fit(weather: Weather, recipe: Recipe, today: int) -> tuple[Any, int]:
    """Return a recipe's model of the five years until today, fitted on all but the holdout, and where the holdout begins."""
    begin, end = today - WINDOW, today - HOLDOUT
    features = weather.seen_by(recipe, slice(begin, end))
    return recipe.model(today).fit(features, weather.rain[begin:end]), end


def losses(weather: Weather, recipe: Recipe, estimator: Any, days: slice) -> Array:
    """Return the Brier loss of each day."""
    forecast: Array = estimator.predict_proba(weather.seen_by(recipe, days))[:, 1]
    return (forecast - weather.rain[days]) ** 2


def compare(weather: Weather, recipe: Recipe, champion: Champion, today: int, gate: Thresholds) -> Decision:
    """Fit a candidate today, compare it with the champion, and replace the champion where it is promoted."""
    estimator, begin = fit(weather, recipe, today)
    days = slice(max(begin, champion.trained_until), today)
    candidate, reigning = (
        losses(weather, recipe, estimator, days),
        losses(weather, champion.recipe, champion.estimator, days),
    )
    baseline = (weather.rain[today - WINDOW : begin].mean() - weather.rain[days]) ** 2
    use = champion.next_use(recipe)
    decision = decide("brier", candidate, {"climatology": baseline}, reigning, gate, use, is_series=True)
    if decision.promote:
        champion.recipe, champion.estimator, champion.trained_until = recipe, estimator, begin
        champion.comparisons.clear()
    return decision


def first_champion(weather: Weather, recipe: Recipe, today: int) -> Champion:
    """Return the champion that a recipe makes where there was none."""
    return Champion(recipe, *fit(weather, recipe, today))


def promotions_in_a_year(recipe: Recipe, seed: int, gate: Thresholds, every: int = 1) -> int:
    """Return how often one unchanged recipe, fitted again on each day of a year, replaces itself."""
    weather = Weather.simulate(WINDOW + YEAR, seed)
    champion = first_champion(weather, recipe, WINDOW)
    days = range(WINDOW + every, WINDOW + YEAR, every)
    return sum(compare(weather, recipe, champion, today, gate).promote for today in days)


def former_promotions_in_a_year(recipe: Recipe, seed: int) -> int:
    """Return how often it does so where a fixed threshold decides."""
    weather = Weather.simulate(WINDOW + YEAR, seed)
    champion, promotions = first_champion(weather, recipe, WINDOW), 0
    for today in range(WINDOW + 1, WINDOW + YEAR):
        estimator, begin = fit(weather, recipe, today)
        days = slice(max(begin, champion.trained_until), today)
        difference = losses(weather, recipe, champion.estimator, days) - losses(weather, recipe, estimator, days)
        if difference.mean() >= FORMER_MIN_IMPROVEMENT:
            champion, promotions = Champion(recipe, estimator, begin), promotions + 1
    return promotions


def days_to_promotion(old: Recipe, new: Recipe, seed: int, gate: Thresholds, days: int = WEEK) -> int | None:
    """Return on which day a new recipe replaces the champion of another one, or None where it does not in time."""
    weather = Weather.simulate(WINDOW + days, seed)
    champion = first_champion(weather, old, WINDOW)
    for day in range(1, days + 1):
        if compare(weather, new, champion, WINDOW + day, gate).promote:
            return day
    return None


def advantage(old: Recipe, new: Recipe, seeds: range) -> float:
    """Return a recipe's true advantage, in standard errors of the paired difference on a holdout.

    The true loss of a forecast p of a day with the probability q of rain is (p - q)^2 + q (1 - q).
    """
    means, errors = [], []
    for seed in seeds:
        weather = Weather.simulate(WINDOW, seed)
        days = slice(WINDOW - HOLDOUT, WINDOW)
        forecasts, observed = {}, {}
        for recipe in (old, new):
            estimator, _ = fit(weather, recipe, WINDOW)
            forecasts[recipe.name] = estimator.predict_proba(weather.seen_by(recipe, days))[:, 1]
            observed[recipe.name] = losses(weather, recipe, estimator, days)
        true = {name: (forecast - weather.probability[days]) ** 2 for name, forecast in forecasts.items()}
        means.append(float((true[old.name] - true[new.name]).mean()))
        errors.append(measure_improvement(observed[new.name], observed[old.name], is_series=True).standard_error)
    return float(np.mean(means) / np.mean(errors))


def find_noise(model: Model, standard_errors: float, seeds: range) -> float:
    """Return the noise with which a recipe is worse than the same without by a number of standard errors."""
    low, high = 0.0, 2.0
    for _ in range(8):
        middle = (low + high) / 2
        found = advantage(Recipe("old", model, middle), Recipe("new", model), seeds)
        low, high = (middle, high) if found < standard_errors else (low, middle)
    return (low + high) / 2


def measure(name: str, model: Model, years: int, trials: int) -> dict[str, Any]:
    """Return the figures of a model's recipes."""
    gate, recipe = Thresholds(), Recipe("unchanged", model)
    unchanged = Counter(promotions_in_a_year(recipe, seed, gate) for seed in range(years))
    former = Counter(former_promotions_in_a_year(recipe, seed) for seed in range(max(years // 10, 1)))
    print(name, dict(unchanged), dict(former), flush=True)
    noise = find_noise(model, 2, range(10_000, 10_030))
    old, new, equal = Recipe("old", model, noise), Recipe("new", model), Recipe("equal", model)
    better = [days_to_promotion(old, new, seed, gate) for seed in range(20_000, 20_000 + trials)]
    same = [days_to_promotion(new, equal, seed, gate) for seed in range(30_000, 30_000 + trials)]
    worse = [days_to_promotion(new, old, seed, gate) for seed in range(40_000, 40_000 + trials)]
    return {
        "promotions_of_an_unchanged_recipe_in_a_year": {str(n): unchanged[n] for n in sorted(unchanged)},
        "promotions_by_the_former_threshold_in_a_year": {str(n): former[n] for n in sorted(former)},
        "advantage_in_standard_errors": round(advantage(old, new, range(20_000, 20_000 + min(trials, 100))), 2),
        "trials": trials,
        "promoted_within_a_week": {
            "better": sum(map(bool, better)),
            "equal": sum(map(bool, same)),
            "worse": sum(map(bool, worse)),
        },
    }


def main() -> None:
    """Run the simulations and save their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=100, help="simulated years of each model")
    parser.add_argument("--trials", type=int, default=400, help="new recipes of each kind and model")
    options = parser.parse_args()
    results: dict[str, Any] = {"thresholds": Thresholds().model_dump(), "models": {}}
    for name, model in MODELS.items():
        results["models"][name] = measure(name, model, options.years, options.trials)
        save("gate", results)


if __name__ == "__main__":
    main()
