"""Training on data that does not fit the memory of one machine: a Dask data frame, on the cluster of `trainyard.cluster`.

    with cluster():
        frame = dask.dataframe.read_parquet("s3://...").map_partitions(prepare)
        model = fit_in_parts(SGDClassifier(), frame, target="churned", classes=[0, 1])

The frame is never whole in one process: each worker holds partitions, and spills to its disk what exceeds its memory.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import dask.dataframe
    import xgboost

PARTS_AHEAD = 2
"""How many partitions the cluster prepares while one is learned from; with it they are what the run has in memory."""


class Incremental(Protocol):
    """An estimator of scikit-learn that learns in parts, such as SGDClassifier or MiniBatchKMeans."""

    def partial_fit(self, X: Any, y: Any, **options: Any) -> Any:
        """Learn from some rows."""


E = TypeVar("E", bound=Incremental)


def fit_in_parts(
    estimator: E,
    frame: "dask.dataframe.DataFrame",
    target: str,
    *,
    classes: Sequence[Any] | None = None,
    passes: int = 1,
) -> E:
    """Fit an estimator partition by partition, in their order; the result is the same with any number of workers.

    A partition whose worker dies is computed again by another one.

    Args:
        estimator: It has `partial_fit` (https://scikit-learn.org/stable/computing/scaling_strategies.html).
        frame: Of columns that the estimator takes, and the target.
        target: The column to predict.
        classes: All of the target's values, for a classifier: no single part has to have them all.
        passes: How many times it sees the data.

    Returns:
        The estimator.

    Raises:
        ValueError: There is no column `target`.
    """
    from distributed import default_client

    require_column(frame, target)
    client = default_client()
    options = {} if classes is None else {"classes": classes}
    for _ in range(passes):
        waiting = deque(frame.to_delayed())
        coming = deque(client.compute(waiting.popleft()) for _ in range(min(PARTS_AHEAD, len(waiting))))
        while coming:
            part = coming.popleft().result()
            if waiting:
                coming.append(client.compute(waiting.popleft()))
            if len(part):
                estimator.partial_fit(part.drop(columns=target), part[target], **options)
            del part
    return estimator


def boost(frame: "dask.dataframe.DataFrame", target: str, params: Mapping[str, Any], rounds: int) -> "xgboost.Booster":
    """Train gradient-boosted trees with XGBoost on all of the cluster's workers, each on the partitions that it holds.

    The frame has to fit the workers' memory together, in XGBoost's compressed form. A worker that dies ends the training with
    an error: give the task `retries`. XGBoost's workers speak to each other without TLS.

    Args:
        frame: Of numeric columns and the target.
        target: The column to predict.
        params: XGBoost's, such as {"objective": "binary:logistic"} (https://xgboost.readthedocs.io/en/stable/parameter.html).
        rounds: The number of trees.

    Raises:
        ValueError: There is no column `target`.
    """
    import xgboost.dask
    from distributed import default_client

    require_column(frame, target)
    client = default_client()
    data = xgboost.dask.DaskQuantileDMatrix(client, frame.drop(columns=target), frame[target])
    booster: xgboost.Booster = xgboost.dask.train(client, dict(params), data, num_boost_round=rounds)["booster"]
    return booster


def require_column(frame: "dask.dataframe.DataFrame", name: str) -> None:
    """Return if a frame has a column.

    Raises:
        ValueError: It has not.
    """
    if name not in frame.columns:
        raise ValueError(f"There is no column {name!r}; the frame has {', '.join(map(str, frame.columns))}.")
