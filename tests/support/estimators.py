"""The estimators of docs/models.md, each with columns that it is fitted on, as cases of `tests.support.parity`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_selector, make_column_transformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectFromModel, SelectKBest, f_regression
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    GammaRegressor,
    HuberRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    StratifiedKFold,
    TimeSeriesSplit,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    NearestCentroid,
    RadiusNeighborsRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR, NuSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeRegressor
from xgboost import XGBClassifier, XGBRegressor, XGBRFClassifier, XGBRFRegressor

from tests.support.parity import Case

NUMBERS = {"x": "double", "y": "float", "n": "long", "b": "boolean"}
MISSING = {"x": "double?", "n": "long?", "b": "boolean?"}
MIXED = {"text": "string?", "day": "datetime", "b": "boolean", "x": "double?", "n": "long"}
CATEGORIES = {"c": "category?", "k": "category of numbers?", "x": "double?"}

Make = Callable[[], BaseEstimator]


def _scaled(last: Any, *steps: Any) -> Make:
    return lambda: make_pipeline(StandardScaler(), *steps, last)


def _table(last: Any) -> Make:
    """Return a pipeline over texts, days, booleans and missing values."""
    return lambda: make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["text", "day"]),
            (make_pipeline(SimpleImputer(add_indicator=True), RobustScaler()), ["x", "n"]),
            remainder="passthrough",
        ),
        last,
    )


def _ordinal(last: Any) -> Make:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    return lambda: make_pipeline(make_column_transformer((encoder, ["text", "day"]), remainder="passthrough"), last)


def _cases(columns: Mapping[str, str], classes: int, made: Mapping[str, Make]) -> list[Case]:
    return [Case(name, dict(columns), make, classes > 0, classes) for name, make in made.items()]


FEW: dict[str, Any] = {"n_estimators": 3, "random_state": 0}
QUIET: dict[str, Any] = {"n_estimators": 5, "min_child_samples": 2, "verbose": -1}

CLASSIFIERS = {
    "LogisticRegression": _scaled(LogisticRegression()),
    "RidgeClassifier": _scaled(RidgeClassifier()),
    "SGDClassifier": _scaled(SGDClassifier(loss="log_loss", random_state=0)),
    "LinearDiscriminantAnalysis": _scaled(LinearDiscriminantAnalysis()),
    "QuadraticDiscriminantAnalysis": _scaled(QuadraticDiscriminantAnalysis(reg_param=0.1)),
    "GaussianNB": GaussianNB,
    "BernoulliNB": BernoulliNB,
    "DecisionTreeClassifier": lambda: DecisionTreeClassifier(random_state=0),
    "RandomForestClassifier": lambda: RandomForestClassifier(**FEW),
    "ExtraTreesClassifier": lambda: ExtraTreesClassifier(**FEW),
    "AdaBoostClassifier": lambda: AdaBoostClassifier(**FEW),
    "BaggingClassifier": lambda: BaggingClassifier(**FEW),
    "GradientBoostingClassifier": lambda: GradientBoostingClassifier(**FEW),
    "HistGradientBoostingClassifier": lambda: HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2),
    "SVC": _scaled(SVC()),
    "NuSVC": _scaled(NuSVC()),
    "LinearSVC": _scaled(LinearSVC()),
    "KNeighborsClassifier": _scaled(KNeighborsClassifier(metric="manhattan")),
    "NearestCentroid": _scaled(NearestCentroid()),
    "MLPClassifier": _scaled(MLPClassifier(hidden_layer_sizes=(4,), max_iter=3, random_state=0)),
    "GaussianProcessClassifier": _scaled(GaussianProcessClassifier(1.0 * RBF())),
    "CalibratedClassifierCV": _scaled(CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=2)),
    "CalibratedClassifierCV, temperature": _scaled(CalibratedClassifierCV(GaussianNB(), method="temperature", cv=2)),
    "StackingClassifier": lambda: StackingClassifier(
        [("forest", RandomForestClassifier(**FEW)), ("svc", _scaled(SVC())())], cv=2
    ),
    "VotingClassifier": lambda: VotingClassifier(
        [("tree", DecisionTreeClassifier()), ("bayes", GaussianNB())], voting="soft"
    ),
    "OneVsRestClassifier": _scaled(OneVsRestClassifier(LinearSVC())),
    "GridSearchCV": lambda: GridSearchCV(
        _scaled(LogisticRegression())(),
        {"logisticregression__C": [0.1, 1.0]},
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
        scoring="neg_log_loss",
    ),
    "DummyClassifier": lambda: DummyClassifier(strategy="prior"),
    "XGBClassifier": lambda: XGBClassifier(n_estimators=3),
    "XGBRFClassifier": lambda: XGBRFClassifier(n_estimators=3),
    "LGBMClassifier": lambda: LGBMClassifier(**QUIET),
}
BINARY = {
    "FixedThresholdClassifier": _scaled(FixedThresholdClassifier(LogisticRegression(), threshold=0.4)),
    "TunedThresholdClassifierCV": _scaled(TunedThresholdClassifierCV(LogisticRegression(), scoring="f1", cv=2)),
    "GradientBoostingClassifier, exponential": lambda: GradientBoostingClassifier(loss="exponential", **FEW),
    "HistGradientBoostingClassifier, binary": lambda: HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2),
    "XGBClassifier, binary": lambda: XGBClassifier(n_estimators=3),
    "LGBMClassifier, binary": lambda: LGBMClassifier(**QUIET),
}
REGRESSORS = {
    "LinearRegression": _scaled(LinearRegression()),
    "Ridge": _scaled(Ridge()),
    "Lasso": _scaled(Lasso(0.01)),
    "ElasticNet": _scaled(ElasticNet(0.01)),
    "BayesianRidge": _scaled(BayesianRidge()),
    "HuberRegressor": _scaled(HuberRegressor()),
    "SGDRegressor": _scaled(SGDRegressor(random_state=0)),
    "PoissonRegressor": _scaled(PoissonRegressor()),
    "GammaRegressor": _scaled(GammaRegressor()),
    "TweedieRegressor": _scaled(TweedieRegressor(power=1.5)),
    "TweedieRegressor, identity": _scaled(TweedieRegressor(power=0)),
    "DecisionTreeRegressor": lambda: DecisionTreeRegressor(random_state=0),
    "ExtraTreeRegressor": lambda: ExtraTreeRegressor(random_state=0),
    "RandomForestRegressor": lambda: RandomForestRegressor(**FEW),
    "ExtraTreesRegressor": lambda: ExtraTreesRegressor(**FEW),
    "AdaBoostRegressor": lambda: AdaBoostRegressor(**FEW),
    "BaggingRegressor": lambda: BaggingRegressor(**FEW),
    **{
        f"GradientBoostingRegressor, {loss}": lambda loss=loss: GradientBoostingRegressor(loss=loss, **FEW)
        for loss in ("squared_error", "absolute_error", "huber", "quantile")
    },
    **{
        f"HistGradientBoostingRegressor, {loss}": lambda loss=loss: HistGradientBoostingRegressor(
            loss=loss, quantile=0.5 if loss == "quantile" else None, max_iter=3, min_samples_leaf=2
        )
        for loss in ("squared_error", "absolute_error", "gamma", "poisson", "quantile")
    },
    "SVR": _scaled(SVR()),
    "LinearSVR": _scaled(LinearSVR()),
    **{
        f"KNeighborsRegressor, {metric}": _scaled(
            KNeighborsRegressor(metric=metric, algorithm="ball_tree", weights="distance")
        )
        for metric in ("euclidean", "chebyshev", "canberra", "braycurtis")
    },
    "KNeighborsRegressor, p=3": _scaled(KNeighborsRegressor(p=3)),
    "RadiusNeighborsRegressor": _scaled(RadiusNeighborsRegressor(1e9)),
    "MLPRegressor": _scaled(
        MLPRegressor(hidden_layer_sizes=(4,), max_iter=3, random_state=0, solver="sgd", learning_rate_init=1e-6)
    ),
    "GaussianProcessRegressor": _scaled(GaussianProcessRegressor(1.0 * RBF() + WhiteKernel())),
    "StackingRegressor": lambda: StackingRegressor(
        [("trees", ExtraTreesRegressor(**FEW)), ("ridge", _scaled(Ridge())())], cv=2
    ),
    "VotingRegressor": lambda: VotingRegressor([("tree", DecisionTreeRegressor()), ("line", LinearRegression())]),
    "TransformedTargetRegressor": lambda: TransformedTargetRegressor(
        RandomForestRegressor(**FEW), func=np.log, inverse_func=np.exp
    ),
    "GridSearchCV, regression": lambda: GridSearchCV(
        _scaled(Ridge())(), {"ridge__alpha": [0.1, 1.0]}, cv=TimeSeriesSplit(2), scoring="r2"
    ),
    "IsolationForest": lambda: IsolationForest(**FEW),
    "DummyRegressor": DummyRegressor,
    "XGBRegressor": lambda: XGBRegressor(n_estimators=3),
    "XGBRFRegressor": lambda: XGBRFRegressor(n_estimators=3),
    "LGBMRegressor": lambda: LGBMRegressor(**QUIET),
}
TRANSFORMERS = {
    "MinMaxScaler": lambda: make_pipeline(MinMaxScaler(), Ridge()),
    "QuantileTransformer": lambda: make_pipeline(QuantileTransformer(n_quantiles=5), Ridge()),
    "PowerTransformer": lambda: make_pipeline(MinMaxScaler(), PowerTransformer(), Ridge()),
    "PolynomialFeatures": _scaled(Ridge(), PolynomialFeatures()),
    "SplineTransformer": _scaled(Ridge(), SplineTransformer()),
    "KBinsDiscretizer": _scaled(Ridge(), KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf")),
    "PCA": _scaled(Ridge(), PCA(2)),
    "TruncatedSVD": _scaled(Ridge(), TruncatedSVD(2, random_state=0)),
    "FeatureUnion": _scaled(Ridge(), make_union(StandardScaler(), PCA(2))),
    "SelectKBest": _scaled(Ridge(), SelectKBest(f_regression, k=2)),
    "SelectFromModel": _scaled(Ridge(), SelectFromModel(ExtraTreesRegressor(**FEW))),
    "FunctionTransformer": lambda: make_pipeline(FunctionTransformer(np.tanh), Ridge()),
}
IMPUTED = {
    "SimpleImputer": lambda: make_pipeline(SimpleImputer(strategy="median"), Ridge()),
    "KNNImputer": lambda: make_pipeline(KNNImputer(), StandardScaler(), Ridge()),
    "HistGradientBoostingRegressor, missing": lambda: HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=2),
    "RandomForestRegressor, missing": lambda: RandomForestRegressor(**FEW),
    "XGBRegressor, missing": lambda: XGBRegressor(n_estimators=3),
    "LGBMRegressor, missing": lambda: LGBMRegressor(**QUIET),
}
PIPELINES = {
    "ColumnTransformer": _table(Ridge()),
    "ColumnTransformer, KNeighborsRegressor": _table(KNeighborsRegressor()),
    "ColumnTransformer, HistGradientBoostingRegressor": _ordinal(HistGradientBoostingRegressor(max_iter=3)),
    "ColumnTransformer, XGBRegressor": _ordinal(XGBRegressor(n_estimators=3)),
    "ColumnTransformer, LGBMRegressor": _ordinal(LGBMRegressor(**QUIET)),
    "ColumnTransformer, by type": lambda: make_pipeline(
        make_column_transformer(
            (SimpleImputer(), make_column_selector(dtype_include=np.number)),
            (OneHotEncoder(handle_unknown="ignore"), make_column_selector("text")),
        ),
        Ridge(),
    ),
}
TEXTS = {
    "TfidfVectorizer": lambda: make_pipeline(
        make_column_transformer((TfidfVectorizer(token_pattern=r".+"), "text"), remainder="passthrough"), Ridge()
    ),
    "TargetEncoder": lambda: make_pipeline(
        make_column_transformer((TargetEncoder(cv=2, shuffle=False), ["text"]), remainder="passthrough"), Ridge()
    ),
}
CATEGORICAL = {
    "HistGradientBoostingRegressor, categories": lambda: HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=2),
    "XGBRegressor, categories": lambda: XGBRegressor(n_estimators=3, enable_categorical=True),
    "LGBMRegressor, categories": lambda: LGBMRegressor(**QUIET),
}

ESTIMATORS = [
    *_cases(NUMBERS, 3, CLASSIFIERS),
    *_cases(NUMBERS, 2, BINARY),
    *_cases(NUMBERS, 0, REGRESSORS),
    *_cases(NUMBERS, 0, TRANSFORMERS),
    *_cases(MISSING, 0, IMPUTED),
    *_cases(MIXED, 0, PIPELINES),
    *_cases({"text": "string", "x": "double"}, 0, TEXTS),
    *_cases(CATEGORIES, 0, CATEGORICAL),
]
