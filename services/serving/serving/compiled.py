"""Faster functions for scikit-learn's most common estimators, which give bitwise the same numbers.

Most of the time of a prediction of one row is spent on scikit-learn's checks of its input, which `serving.payloads` has
made already, and on one call for each tree of a forest. These functions do the same floating-point operations in the
same order; `Estimator.warm_up` compares them with scikit-learn itself and uses one only where all numbers are the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.tree._tree import Tree

Matrix = NDArray[Any]
Function = Callable[[Matrix], Matrix]

FORESTS = (RandomForestClassifier, ExtraTreesClassifier, RandomForestRegressor, ExtraTreesRegressor)
TREES = (DecisionTreeClassifier, DecisionTreeRegressor)
LINEAR = (LinearRegression, Ridge, Lasso, ElasticNet)
MAX_CHUNK_ROWS = 16_384
"""Rows by trees that are in memory at once."""


def compile_estimator(fitted: Any) -> Function | None:
    """Return a function of a matrix of finite numbers, rows by columns, or None for other estimators.

    It returns a classifier's probabilities, rows by classes, or a regressor's values.
    """
    steps = [step for _, step in fitted.steps] if type(fitted) is Pipeline else [fitted]
    *transformers, last = [step for step in steps if step is not None and step != "passthrough"] or [None]
    if any(type(transformer) is not StandardScaler for transformer in transformers):
        return None
    predict = _compile_predictor(last)
    if predict is None:
        return None
    scales = [_compile_scaler(transformer) for transformer in transformers]

    def run(rows: Matrix) -> Matrix:
        for scale in scales:
            rows = scale(rows)
        return predict(rows)

    return run


def _compile_predictor(estimator: Any) -> Function | None:
    kind = type(estimator)
    if kind is LogisticRegression:
        return _compile_logistic_regression(estimator)
    if kind in LINEAR and estimator.coef_.ndim == 1:
        coefficients, intercept = estimator.coef_, estimator.intercept_
        return lambda rows: rows @ coefficients + intercept
    if (kind in FORESTS or kind in TREES) and estimator.n_outputs_ == 1:
        members = estimator.estimators_ if kind in FORESTS else [estimator]
        return _compile_trees([member.tree_ for member in members], hasattr(estimator, "classes_"))
    return None


def _compile_scaler(scaler: StandardScaler) -> Function:
    mean, scale = scaler.mean_ if scaler.with_mean else None, scaler.scale_ if scaler.with_std else None

    def run(rows: Matrix) -> Matrix:
        if mean is not None:
            rows = rows - mean.astype(rows.dtype)
        if scale is not None:
            rows = rows / scale.astype(rows.dtype)
        if not np.isfinite(rows).all():
            raise ValueError("a scaled number is infinite")
        return rows

    return run


def _compile_logistic_regression(estimator: LogisticRegression) -> Function | None:
    if estimator.coef_.shape[0] != 1:
        return None
    coefficients, intercept = estimator.coef_.T, estimator.intercept_

    def run(rows: Matrix) -> Matrix:
        probability = expit((rows @ coefficients + intercept).reshape(-1))
        return np.stack([1 - probability, probability], axis=1)

    return run


def _compile_trees(trees: Sequence[Tree], classifies: bool) -> Function:
    merged, number = merge_trees(trees), len(trees)
    tree_numbers = np.arange(number, dtype=np.float32)[:, None]
    chunk = max(1, MAX_CHUNK_ROWS // number)

    def of_chunk(rows: Matrix) -> Matrix:
        count, width = rows.shape
        repeated = np.empty((number, count, width + 1), np.float32)
        repeated[:, :, :width] = rows
        repeated[:, :, width] = tree_numbers
        leaves = merged.predict(repeated.reshape(number * count, width + 1)).reshape(number, count, -1)
        # Added one after the other, as scikit-learn does; a sum would add in pairs, and round otherwise.
        summed: Matrix = np.add.accumulate(leaves, axis=0)[-1]
        return summed / number

    def run(rows: Matrix) -> Matrix:
        parts = [of_chunk(rows[start : start + chunk]) for start in range(0, len(rows), chunk)]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values if classifies else values.reshape(-1)

    return run


def merge_trees(trees: Sequence[Tree]) -> Tree:
    """Return one tree in place of several: its first nodes choose one of them by the number in an additional feature.

    One call of scikit-learn's compiled code then walks all trees.
    """
    first = trees[0]
    states = [tree.__getstate__() for tree in trees]
    offsets = np.cumsum([len(trees) - 1, *(state["node_count"] for state in states)])
    nodes = np.zeros(offsets[-1], states[0]["nodes"].dtype)
    values = np.zeros((offsets[-1], *states[0]["values"].shape[1:]))
    used = 0

    def select(start: int, stop: int) -> int:
        """Add the nodes that choose one of the trees from `start` to `stop`; return the first one."""
        nonlocal used
        if stop - start == 1:
            return int(offsets[start])
        node, middle = used, (start + stop) // 2
        used += 1
        nodes[node]["feature"], nodes[node]["threshold"] = first.n_features, middle - 0.5
        nodes[node]["left_child"] = select(start, middle)
        nodes[node]["right_child"] = select(middle, stop)
        return node

    select(0, len(trees))
    for state, start, stop in zip(states, offsets, offsets[1:], strict=False):
        nodes[start:stop], values[start:stop] = state["nodes"], state["values"]
        for child in ("left_child", "right_child"):
            children = nodes[child][start:stop]
            children[children >= 0] += start
    depth = max(tree.max_depth for tree in trees) + len(trees).bit_length()
    merged = Tree(first.n_features + 1, np.array([first.max_n_classes], np.intp), first.n_outputs)
    merged.__setstate__({"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values})
    return merged
