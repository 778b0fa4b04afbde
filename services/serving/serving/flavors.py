"""Reads estimators from the files that MLflow's flavors write: scikit-learn's, XGBoost's and LightGBM's.

XGBoost and LightGBM are imported only when a model needs them.
"""

import importlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skops.io
from skops.io.exceptions import UntrustedTypesFoundException

from serving.errors import UnservableError
from serving.settings import Settings

SKLEARN, XGBOOST, LIGHTGBM = "sklearn", "xgboost", "lightgbm"
SKOPS = "skops"
BOOSTERS = {XGBOOST: "xgboost.core.Booster", LIGHTGBM: "lightgbm.basic.Booster"}
"""The classes of boosters that were trained without scikit-learn's interface, by flavor."""
XGBOOST_CLASSES = {
    f"xgboost.sklearn.{name}": name
    for name in ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor", "XGBRanker")
}
"""The classes that read XGBoost's own files, by the names that MLflow gives them."""


@dataclass(frozen=True)
class SavedEstimator:
    """The file of an estimator, as an MLmodel document describes it."""

    flavor: str
    file: str
    """Its path in the version's folder."""
    form: str
    """`skops`, the flavor's name for the library's own format, or a kind of pickle."""
    kind: str
    """The class, where the file does not tell it."""
    versions: Mapping[str, str]
    """The library's version at training, by its module."""


def parse_flavor(document: Mapping[str, Any]) -> SavedEstimator:
    """Return the estimator that an MLmodel document describes.

    Raises:
        UnservableError: It describes none of a known flavor.
    """
    flavors = document.get("flavors") or {}
    if described := flavors.get(SKLEARN):
        form, versions = str(described.get("serialization_format")), _versions(SKLEARN, described, "sklearn_version")
        return SavedEstimator(SKLEARN, str(described["pickled_model"]), form, "", versions)
    if described := flavors.get(XGBOOST):
        kind = str(described.get("model_class", BOOSTERS[XGBOOST]))
        versions = _versions(XGBOOST, described, "xgb_version")
        return SavedEstimator(XGBOOST, str(described["data"]), XGBOOST, kind, versions)
    if described := flavors.get(LIGHTGBM):
        kind = str(described.get("model_class", BOOSTERS[LIGHTGBM]))
        own = kind == BOOSTERS[LIGHTGBM]
        form = LIGHTGBM if own else str(described.get("serialization_format", "cloudpickle"))
        versions = _versions(LIGHTGBM, described, "lgb_version")
        return SavedEstimator(LIGHTGBM, str(described["data"]), form, kind, versions)
    raise UnservableError("it is no model of scikit-learn, XGBoost or LightGBM")


def _versions(module: str, described: Mapping[str, Any], key: str) -> dict[str, str]:
    return {module: str(described[key])} if described.get(key) else {}


def load_estimator(folder: Path, saved: SavedEstimator, settings: Settings) -> Any:
    """Return the estimator in a version's folder.

    Raises:
        UnservableError: The file holds types that are not trusted, or is a pickle and pickles are not allowed.
    """
    file = folder / saved.file
    try:
        estimator = _load(file, saved, settings)
    except (MemoryError, UnservableError):
        raise
    except Exception as error:
        raise UnservableError(f"its file cannot be read ({type(error).__name__}: {error})") from error
    use_one_thread(estimator)
    return estimator


def _load(file: Path, saved: SavedEstimator, settings: Settings) -> Any:
    if saved.form == SKOPS:
        return _load_skops(file, settings)
    if saved.form == XGBOOST:
        return _load_xgboost(file, saved.kind)
    if saved.form == LIGHTGBM:
        return _load_lightgbm(file)
    if not settings.serving_allow_pickle:
        raise UnservableError(
            f"it was saved by {saved.form}, which can run any code when it is loaded: "
            'log it with serialization_format="skops", or set SERVING_ALLOW_PICKLE=true'
        )
    with file.open("rb") as content:
        return pickle.load(content)  # noqa: S301 - the setting says so


def _load_skops(file: Path, settings: Settings) -> Any:
    try:
        return skops.io.load(file, trusted=sorted(settings.trusted_types))
    except UntrustedTypesFoundException as error:
        raise UnservableError(f"{error} Review them, and set SERVING_TRUSTED_TYPES") from error


def _load_xgboost(file: Path, kind: str) -> Any:
    if kind != BOOSTERS[XGBOOST] and kind not in XGBOOST_CLASSES:
        raise UnservableError(f"its class {kind} is none that reads a file of XGBoost")
    xgboost = importlib.import_module(XGBOOST)
    if kind in XGBOOST_CLASSES:
        estimator = getattr(xgboost, XGBOOST_CLASSES[kind])()
        estimator.load_model(file)
        return estimator
    booster = xgboost.Booster(model_file=file)
    return Booster(lambda rows: booster.predict(xgboost.DMatrix(rows)))


def _load_lightgbm(file: Path) -> Any:
    lightgbm = importlib.import_module(LIGHTGBM)
    booster = lightgbm.Booster(model_file=file)
    return Booster(lambda rows: booster.predict(rows, num_threads=1))


def use_one_thread(estimator: Any) -> None:
    """Let an estimator and those within it predict in one thread: requests run in parallel already.

    LightGBM starts a thread for each core whatever OMP_NUM_THREADS says, and for one row waits for them most of the time;
    a forest adds the trees' values in the order in which its threads end, which changes their last bits.
    """
    seen, left = set[int](), [estimator]
    while left:
        value = left.pop()
        if isinstance(value, list | tuple):
            left.extend(value)
        elif id(value) not in seen and type(value).__module__.partition(".")[0] in (SKLEARN, LIGHTGBM):
            seen.add(id(value))
            if hasattr(value, "n_jobs"):
                value.n_jobs = 1
            left.extend(getattr(value, "__dict__", {}).values())


class Booster:
    """A booster that was trained without scikit-learn's interface; it predicts what MLflow's pyfunc predicts of it.

    That is a number for each row: of a binary objective, the probability of the second class.
    """

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        self._predict = predict

    def predict(self, rows: Any) -> Any:
        """Return a number for each row of a frame or matrix."""
        return self._predict(rows)
