"""Types that models' files may hold: those that skops does not trust by itself, reviewed, with the reason for each.

A file in the format of skops names the types of its objects. On loading, each is made with `__new__` and gets its state;
a function is looked up by its name. Loading is safe where neither runs what the file says, and predicting is safe where no
method calls a function that the file names and that is not listed either: a `FunctionTransformer` may be given any type or
function of this list. So this list has no type that compiles or imports what its state names:

- `scipy.stats` distributions, which a `RandomizedSearchCV` keeps, execute a text of their state: log `best_estimator_`.
- `PyFuncDistance64`, the metric of neighbours that is a Python function, calls what its state holds.

Damaged arrays in some of them can crash the process that predicts: whoever may register a model can. A model's own list of
trusted types is written by its author; only this one counts. Training (`trainyard.tracking`) and serving share it; it
imports the standard library only.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

_BY_REASON: Final[Mapping[str, tuple[str, ...]]] = {
    "a type or container of the standard library or numpy without code of the file": (
        "collections.OrderedDict",
        "numpy.dtype",
        "numpy.number",
        "sklearn.utils._bunch.Bunch",
    ),
    "calls its function, which must be listed too": ("functools.partial",),
    "nodes and values of a tree, as arrays": (
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.tree._tree.Tree",
    ),
    "formulas of a loss or link, with numbers as parameters": (
        "sklearn._loss._loss.CyHalfBinomialLoss",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
    ),
    "fitted estimators and their parameters, in a class that is not public": (
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.calibration._TemperatureScaling",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.impute._iterative._ImputerTriplet",
        "sklearn.multiclass._ConstantPredictor",
    ),
    "points, and the boxes or balls around them, as arrays": (
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
    ),
    "a compiled formula of a distance": tuple(
        f"sklearn.metrics._dist_metrics.{name}Distance64"
        for name in (
            *("BrayCurtis", "Canberra", "Chebyshev", "Euclidean", "Hamming", "Haversine", "Jaccard"),
            *("Manhattan", "Minkowski"),
        )
    ),
    "a formula of a covariance, with numbers as parameters": tuple(
        f"sklearn.gaussian_process.kernels.{name}"
        for name in (
            *("CompoundKernel", "ConstantKernel", "DotProduct", "ExpSineSquared", "Exponentiation", "Matern"),
            *("Product", "RBF", "RationalQuadratic", "Sum", "WhiteKernel"),
        )
    ),
    "knots and coefficients, as arrays; and numpy's `asarray`, which it keeps": (
        "scipy._lib.array_api_compat.numpy._aliases.asarray",
        "scipy.interpolate._bsplines.BSpline",
    ),
    "the state of a fit that has ended, as arrays": (
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    ),
    "selects columns by type or name when it is fitted": ("sklearn.compose._column_transformer.make_column_selector",),
    "a function that checks or scores arrays, without effects": (
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._mutual_info.mutual_info_regression",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.utils.validation.check_array",
        *(
            f"sklearn.metrics._classification.{name}"
            for name in (
                *("accuracy_score", "balanced_accuracy_score", "brier_score_loss", "f1_score", "log_loss"),
                *("precision_score", "recall_score"),
            )
        ),
        *(f"sklearn.metrics._ranking.{name}" for name in ("average_precision_score", "roc_auc_score")),
        *(
            f"sklearn.metrics._regression.{name}"
            for name in (
                *("mean_absolute_error", "mean_poisson_deviance", "mean_squared_error", "r2_score"),
                *("root_mean_squared_error",),
            )
        ),
    ),
    "how a search has split and scored, for another fit": (
        *(f"sklearn.metrics._scorer.{name}" for name in ("_CurveScorer", "_PassthroughScorer", "_Scorer")),
        *(
            f"sklearn.model_selection._split.{name}"
            for name in (
                *("GroupKFold", "KFold", "RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit"),
                *("StratifiedGroupKFold", "StratifiedKFold", "StratifiedShuffleSplit", "TimeSeriesSplit"),
            )
        ),
        "sklearn.utils._metadata_requests.MetadataRequest",
        "sklearn.utils._metadata_requests.MethodMetadataRequest",
    ),
    "a booster, which XGBoost reads from UBJSON: numbers, names and parameters": ("xgboost.core.Booster",),
    "a booster, which LightGBM reads from text: numbers, names and parameters": ("lightgbm.basic.Booster",),
    "parameters, and a booster": (
        *(
            f"xgboost.sklearn.{name}"
            for name in ("XGBClassifier", "XGBRFClassifier", "XGBRFRegressor", "XGBRanker", "XGBRegressor")
        ),
        *(f"lightgbm.sklearn.{name}" for name in ("LGBMClassifier", "LGBMRanker", "LGBMRegressor")),
    ),
}

REVIEWED_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {name: reason for reason, names in _BY_REASON.items() for name in names}
)
"""The reason for each type, by its full name; functions count as types."""

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "numpy": ("numpy",),
        "scipy": ("scipy",),
        "pandas": ("pandas",),
        "sklearn": ("scikit-learn",),
        "xgboost": ("xgboost", "xgboost-cpu"),
        "lightgbm": ("lightgbm",),
    }
)
"""Packages that predictions depend on: the distributions that bring each, by the name of the module."""


def modules_of(types: Iterable[str]) -> set[str]:
    """Return the top-level modules that bring some types."""
    return {name.partition(".")[0] for name in types}
