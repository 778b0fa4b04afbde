"""The candidates of a model search and their cross-validation scores."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A configuration of an estimator: its family and hyperparameters."""

    family: str
    params: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """The display name, such as `random-forest min_samples_leaf=5`."""
        return f"{self.family} " + " ".join(f"{name}={value:g}" for name, value in self.params)


@dataclass(frozen=True)
class Score:
    """A candidate's cross-validation metrics, by name: means over the folds."""

    candidate: Candidate
    metrics: Mapping[str, float]
