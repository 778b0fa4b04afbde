"""What a search is about: candidates, and how each did."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """An estimator that is not fitted yet: its family and main parameters."""

    family: str
    params: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """The candidate as people read it."""
        return f"{self.family} " + " ".join(f"{name}={value:g}" for name, value in self.params)


@dataclass(frozen=True)
class Score:
    """How a candidate did in cross-validation: means over the folds, by name."""

    candidate: Candidate
    metrics: Mapping[str, float]
