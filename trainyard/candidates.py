"""The candidates of a model search, listed or in a space, and their cross-validation scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | str | bool | None
"""Of a hyperparameter."""


@dataclass(frozen=True)
class Candidate:
    """A configuration of an estimator: its family and hyperparameters."""

    family: str
    params: tuple[tuple[str, Value], ...]

    @property
    def name(self) -> str:
        """The display name, such as `random-forest min_samples_leaf=5`."""
        return " ".join([self.family, *(f"{name}={_show(value)}" for name, value in self.params)])


def _show(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Space:
    """The values that parameters may take, of which Optuna's TPE sampler suggests some.

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
    """

    parameters: "Mapping[str, Mapping[str, BaseDistribution]]"
    """By family and parameter, such as {"forest": {"max_depth": IntDistribution(2, 12)}} (`optuna.distributions`)."""
    trials: int = 40
    seed: int = 0
    batch: int = 4
    """Candidates that are suggested at a time: more are evaluated in parallel, fewer know more of the others' scores."""
    prune: bool = True
    """Whether to give up a candidate whose mean over some folds is worse than the median of the others."""

    def __post_init__(self) -> None:
        """Refuse a space without families, trials or batches.

        Raises:
            ValueError: One of them is missing.
        """
        if not self.parameters or self.trials < 1 or self.batch < 1:
            raise ValueError("A space needs a family, and at least one trial and one candidate in a batch.")


@dataclass(frozen=True)
class Score:
    """A candidate's cross-validation metrics, by name: means over the folds."""

    candidate: Candidate
    metrics: Mapping[str, float]
