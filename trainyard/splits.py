"""Splits of a data set into a training set and a holdout, and of the training set into folds.

The choice decides what the holdout's score means, and whether later candidates can be compared with the champion:

- `TimeSplit`: the newest rows. For series, and for whatever is predicted ahead of time.
- `KeySplit`: rows chosen by a hash of a key. A row stays on its side when others are added, so that a model and its
  successors have holdout rows that none of them was fitted on.
- `GroupSplit`: as `KeySplit`, for keys that several rows share, such as a customer's. The rows of a group stay together.
- `RandomSplit`: rows drawn by a seed, for data that does not change: a champion of other rows cannot be compared.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
    train_test_split,
)

from trainyard.contract import Tag
from trainyard.errors import DataError
from trainyard.fingerprint import fingerprint

Mask = NDArray[np.bool_]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The positions of the rows to fit on, and of those to score."""
HASH_RANGE = 2**64


@dataclass(frozen=True)
class Split(ABC):
    """How the holdout is chosen."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the split needs, which are no features unless the problem lists them."""
        return ()

    @property
    def is_series(self) -> bool:
        """Whether neighbouring rows depend on each other."""
        return False

    def order(self, data: pd.DataFrame) -> pd.DataFrame:
        """Return the rows in the order in which they are split."""
        return data

    @abstractmethod
    def choose_holdout(self, data: pd.DataFrame, classes: pd.Series | None) -> Mask:
        """Return which rows are held out.

        Args:
            data: The rows, as `order` returns them.
            classes: The target of a classification, to keep the classes' shares where that is possible.
        """

    @abstractmethod
    def folds(self, train: pd.DataFrame, classes: pd.Series | None, count: int) -> Iterator[Fold]:
        """Yield the folds of a cross-validation that resembles the split.

        Raises:
            ValueError: There are too few rows or groups for so many folds.
        """

    def times(self, data: pd.DataFrame) -> pd.DatetimeIndex | None:  # noqa: ARG002
        """Return the moment that each row is about; None where rows have none."""
        return None

    def cluster(self, holdout: pd.DataFrame, losses: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Return losses that are independent of each other and have the same mean."""
        return losses

    def describe(self, train: pd.DataFrame) -> dict[str, str]:
        """Return the tags by which `find_unseen` tells which rows a model was fitted on."""
        return {Tag.SPLIT: repr(self), Tag.TRAIN_ROWS: fingerprint(train)[:16]}

    def find_unseen(self, holdout: pd.DataFrame, own: Mapping[str, str], champion: Mapping[str, str]) -> Mask | str:
        """Return which rows of a candidate's holdout the champion was not fitted on, or why that is not known.

        Args:
            holdout: The candidate's holdout.
            own: `describe` of the candidate.
            champion: `describe` of the champion, among other tags.
        """
        if champion.get(Tag.SPLIT) != own[Tag.SPLIT]:
            return f"it was split otherwise ({champion.get(Tag.SPLIT, 'not known')})"
        return np.ones(len(holdout), dtype=bool)


@dataclass(frozen=True)
class RandomSplit(Split):
    """Hold out a share of the rows, drawn by a seed; of a classification, the same share of each class."""

    share: float = 0.2
    seed: int = 0

    def choose_holdout(self, data: pd.DataFrame, classes: pd.Series | None) -> Mask:
        """Return which rows are held out."""
        rows = np.arange(len(data))
        _, held_out = train_test_split(rows, test_size=self.share, stratify=classes, random_state=self.seed)
        return np.isin(rows, held_out)

    def folds(self, train: pd.DataFrame, classes: pd.Series | None, count: int) -> Iterator[Fold]:
        """Yield shuffled folds, stratified by class."""
        return _shuffled_folds(train, classes, count, self.seed)

    def find_unseen(self, holdout: pd.DataFrame, own: Mapping[str, str], champion: Mapping[str, str]) -> Mask | str:
        """Return all rows for a champion of the same training set."""
        if champion.get(Tag.TRAIN_ROWS) != own[Tag.TRAIN_ROWS]:
            return "it was fitted on other rows, some of them perhaps in this holdout"
        return np.ones(len(holdout), dtype=bool)


@dataclass(frozen=True)
class KeySplit(Split):
    """Hold out the rows whose key has a low hash."""

    key: str
    """The column with the key, such as an order's number."""
    share: float = 0.2
    salt: str = ""
    """Another one chooses other rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The key."""
        return (self.key,)

    def choose_holdout(self, data: pd.DataFrame, classes: pd.Series | None) -> Mask:  # noqa: ARG002
        """Return which rows are held out."""
        if (missing := int(data[self.key].isna().sum())) > 0:
            raise DataError(f"{missing} of {len(data)} rows have no {self.key}, by which the holdout is chosen.")
        keys = data[self.key].drop_duplicates()
        chosen = keys[[self._hash(key) < self.share * HASH_RANGE for key in keys]]
        return data[self.key].isin(chosen).to_numpy()

    def _hash(self, key: Any) -> int:
        return int.from_bytes(blake2b(f"{self.salt}{key}".encode(), digest_size=8).digest())

    def folds(self, train: pd.DataFrame, classes: pd.Series | None, count: int) -> Iterator[Fold]:
        """Yield shuffled folds, stratified by class."""
        return _shuffled_folds(train, classes, count, seed=0)


@dataclass(frozen=True)
class GroupSplit(KeySplit):
    """Hold out the groups whose key has a low hash, each with all of its rows."""

    def folds(self, train: pd.DataFrame, classes: pd.Series | None, count: int) -> Iterator[Fold]:
        """Yield folds that keep groups together, and classes in about the same shares."""
        if classes is None:
            return iter(GroupKFold(count, shuffle=True, random_state=0).split(train, groups=train[self.key]))
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        return iter(folds.split(train, classes, groups=train[self.key]))

    def cluster(self, holdout: pd.DataFrame, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each group's sum of losses, divided by the mean size of a group: their mean is that of the rows."""
        sums = pd.Series(losses).groupby(holdout[self.key].to_numpy()).sum()
        clustered: NDArray[np.float64] = sums.to_numpy() * len(sums) / len(losses)
        return clustered


@dataclass(frozen=True)
class TimeSplit(Split):
    """Hold out the newest rows; rows of one moment stay together."""

    column: str | None = None
    """The column with the time; without it the frame's index."""
    share: float = 0.2

    @property
    def columns(self) -> tuple[str, ...]:
        """The column with the time, if it is one."""
        return () if self.column is None else (self.column,)

    @property
    def is_series(self) -> bool:
        """Rows of neighbouring times depend on each other."""
        return True

    def times(self, data: pd.DataFrame) -> pd.DatetimeIndex:
        """Return the time of each row.

        Raises:
            DataError: Some rows have no time.
        """
        values = data.index if self.column is None else data[self.column]
        try:
            times = pd.DatetimeIndex(pd.to_datetime(values))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.column or 'The index'} has no times, by which the holdout is chosen: {error}"
            ) from error
        if times.hasnans:
            raise DataError(f"{int(np.sum(times.isna()))} of {len(data)} rows have no {self.column or 'time'}.")
        return times

    def order(self, data: pd.DataFrame) -> pd.DataFrame:
        """Return the rows, oldest first."""
        times = self.times(data)
        return data if times.is_monotonic_increasing else data.iloc[np.argsort(times, kind="stable")]

    def choose_holdout(self, data: pd.DataFrame, classes: pd.Series | None) -> Mask:  # noqa: ARG002
        """Return which rows are held out."""
        times = self.times(data)
        newest = max(1, round(len(data) * self.share))
        return np.asarray(times > times[max(len(data) - newest - 1, 0)])

    def folds(self, train: pd.DataFrame, classes: pd.Series | None, count: int) -> Iterator[Fold]:  # noqa: ARG002
        """Yield folds that are each scored on rows after those that they are fitted on."""
        moments, order = np.unique(self.times(train), return_inverse=True)
        for before, after in TimeSeriesSplit(count).split(moments):
            yield np.flatnonzero(np.isin(order, before)), np.flatnonzero(np.isin(order, after))

    def describe(self, train: pd.DataFrame) -> dict[str, str]:
        """Return the tags of every split, and the newest time of the training set."""
        return {**super().describe(train), Tag.TRAIN_LAST_TIME: self.times(train).max().isoformat()}

    def find_unseen(self, holdout: pd.DataFrame, own: Mapping[str, str], champion: Mapping[str, str]) -> Mask | str:  # noqa: ARG002
        """Return the rows after the champion's training set."""
        newest = champion.get(Tag.TRAIN_LAST_TIME)
        if newest is None:
            return "the newest row that it was fitted on is not known"
        return np.asarray(self.times(holdout) > pd.Timestamp(newest))


def _shuffled_folds(train: pd.DataFrame, classes: pd.Series | None, count: int, seed: int) -> Iterator[Fold]:
    if classes is None:
        return iter(KFold(count, shuffle=True, random_state=seed).split(train))
    return iter(StratifiedKFold(count, shuffle=True, random_state=seed).split(train, classes))
