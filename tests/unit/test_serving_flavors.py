"""Models that were logged with MLflow's own calls: matrices without names, and the flavors of XGBoost and LightGBM."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
import yaml
from mlflow.models import infer_signature
from serving.api.mlflow_scoring import parse_rows
from serving.decoding import DecodingProcess
from serving.errors import UnservableError
from serving.model import Model
from serving.packages import compare_versions, parse_requirements
from serving.problems import RequestError
from serving.schema import parse_signature
from serving.tensors import Tensor, columns_of
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor, StackingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RandomizedSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from tests.support.parity import LIMITS, open_folder
from trainyard.errors import UnsafeModelError
from trainyard.reviewed_types import REVIEWED_TYPES
from trainyard.tracking import describe_model

random = np.random.default_rng(0)
MATRIX = random.normal(size=(60, 4))
FRAME = pd.DataFrame(MATRIX, columns=list("abcd"))
NUMBERED = pd.DataFrame(MATRIX)
CLASSES = (MATRIX[:, 0] > 0).astype(int) + (MATRIX[:, 1] > 0)
PINS = ["scikit-learn", "numpy"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore:Saving the model:UserWarning"),
]


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingProcess]:
    """The process that decodes Arrow and Parquet."""
    process = DecodingProcess(LIMITS)
    yield process
    process.stop()


def ask(model: Model, rows: Any) -> tuple[Any, Any]:
    """Return the predictions of rows, and their probabilities, as a caller of `/invocations` gets them."""
    body = json.dumps(
        {"inputs": rows.tolist()} if isinstance(rows, np.ndarray) else {"dataframe_split": rows.to_dict("split")}
    ).encode()
    table = model.reader.read_rows(parse_rows(body, model.schema, LIMITS))
    predictions = model.predict_now(table)
    return np.array(predictions.values), np.array(predictions.probabilities)


@pytest.mark.parametrize("rows", [MATRIX, NUMBERED, MATRIX.astype("float32")], ids=["matrix", "numbered", "single"])
@pytest.mark.parametrize(
    "make",
    [
        LogisticRegression,
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        lambda: RandomForestClassifier(5, random_state=0),
    ],
    ids=["regression", "scaled", "forest"],
)
def test_a_model_of_columns_without_names_is_served(
    make: Callable[[], BaseEstimator], rows: Any, tmp_path: Path, decoding: DecodingProcess
) -> None:
    estimator = make().fit(rows, CLASSES)
    mlflow.sklearn.save_model(
        estimator,
        tmp_path / "model",
        signature=infer_signature(rows, estimator.predict(rows)),
        input_example=rows[:2],
        pip_requirements=PINS,
        serialization_format="skops",
        skops_trusted_types=sorted(REVIEWED_TYPES),
    )
    model = open_folder(tmp_path / "model", decoding)

    predicted, probabilities = ask(model, rows)

    assert model.example == {str(at): float(value) for at, value in enumerate(np.asarray(rows)[0])}
    assert np.array_equal(predicted, estimator.predict(rows))
    assert np.array_equal(probabilities, estimator.predict_proba(rows))


def test_the_matrix_of_the_open_inference_protocol_fits_columns_without_names() -> None:
    schema = parse_signature({"signature": {"inputs": json.dumps([{"type": "tensor", "tensor-spec": spec([-1, 2])}])}})

    columns, rows = columns_of([Tensor("input-0", "FP64", [2, 2], [1.0, 2.0, 3.0, 4.0])], schema)

    assert (columns, rows) == ({"0": [1.0, 3.0], "1": [2.0, 4.0]}, 2)


def spec(shape: list[int], dtype: str = "float64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([{"type": "tensor", "tensor-spec": {}}], "one matrix"),
        ([{"type": "tensor", "tensor-spec": spec([-1])}], "one matrix"),
        ([{"type": "tensor", "tensor-spec": spec([-1, -1])}], "one matrix"),
        ([{"type": "tensor", "tensor-spec": spec([-1, 10**9])}], "one matrix"),
        ([{"type": "tensor", "name": "a", "tensor-spec": spec([-1])}] * 2, "one matrix"),
        ([{"type": "tensor", "tensor-spec": spec([-1, 2], "object")}], "type object"),
        ([{"type": "string"}, {"type": "double"}], "no numbers"),
        ([{"type": "double"}, {"type": "double", "name": "a"}], "with and without names"),
    ],
)
def test_other_signatures_without_names_are_refused_with_the_reason(inputs: list[Any], message: str) -> None:
    with pytest.raises(UnservableError, match=message):
        parse_signature({"signature": {"inputs": json.dumps(inputs)}})


def test_a_row_of_a_matrix_with_another_number_of_columns_is_refused() -> None:
    schema = parse_signature({"signature": {"inputs": json.dumps([{"type": "double"}, {"type": "double"}])}})

    with pytest.raises(RequestError, match="have 2 numbers"):
        parse_rows(b'{"instances": [[1, 2], [1]]}', schema, LIMITS)


def save_xgboost(estimator: Any, folder: Path, form: str = "ubj") -> None:
    mlflow.xgboost.save_model(
        estimator,
        folder,
        signature=infer_signature(FRAME),
        input_example=FRAME[:2],
        pip_requirements=PINS,
        model_format=form,
    )


def save_lightgbm(estimator: Any, folder: Path, form: str = "skops") -> None:
    mlflow.lightgbm.save_model(
        estimator,
        folder,
        signature=infer_signature(FRAME),
        input_example=FRAME[:2],
        pip_requirements=PINS,
        serialization_format=form,
    )


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize("kind", [xgboost.XGBClassifier, xgboost.XGBRFClassifier])
def test_a_classifier_of_mlflows_flavor_of_xgboost_is_served(
    kind: Any, form: str, tmp_path: Path, decoding: DecodingProcess
) -> None:
    estimator = kind(n_estimators=3).fit(FRAME, CLASSES)
    save_xgboost(estimator, tmp_path / "model", form)

    predicted, probabilities = ask(open_folder(tmp_path / "model", decoding), FRAME)

    assert np.array_equal(predicted, estimator.predict(FRAME))
    assert np.array_equal(probabilities, estimator.predict_proba(FRAME))


def test_a_classifier_of_mlflows_flavor_of_lightgbm_is_served(tmp_path: Path, decoding: DecodingProcess) -> None:
    names = np.array(["none", "one", "two"])[CLASSES]
    estimator = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(FRAME, names)
    save_lightgbm(estimator, tmp_path / "model")

    predicted, probabilities = ask(open_folder(tmp_path / "model", decoding), FRAME)

    assert np.array_equal(predicted, estimator.predict(FRAME))
    assert np.array_equal(probabilities, estimator.predict_proba(FRAME))


def test_boosters_without_scikit_learns_interface_are_served(tmp_path: Path, decoding: DecodingProcess) -> None:
    by_xgboost = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(FRAME, CLASSES > 0), 3)
    by_lightgbm = lightgbm.train({"verbose": -1}, lightgbm.Dataset(FRAME, CLASSES), 3)
    save_xgboost(by_xgboost, tmp_path / "xgboost")
    save_lightgbm(by_lightgbm, tmp_path / "lightgbm")

    xgboosts, _ = ask(open_folder(tmp_path / "xgboost", decoding), FRAME)
    lightgbms, _ = ask(open_folder(tmp_path / "lightgbm", decoding), FRAME)

    assert np.array_equal(xgboosts, by_xgboost.predict(xgboost.DMatrix(FRAME)))
    assert np.array_equal(lightgbms, by_lightgbm.predict(FRAME))


def test_a_ranker_of_xgboost_is_served_with_its_scores(tmp_path: Path, decoding: DecodingProcess) -> None:
    estimator = xgboost.XGBRanker(n_estimators=3).fit(FRAME, CLASSES, group=[30, 30])
    save_xgboost(estimator, tmp_path / "model")

    scores, _ = ask(open_folder(tmp_path / "model", decoding), FRAME)

    assert len(np.unique(scores)) > 2
    assert np.array_equal(scores, estimator.predict(FRAME))


def test_a_booster_of_several_classes_is_refused(tmp_path: Path, decoding: DecodingProcess) -> None:
    several = {"objective": "multi:softprob", "num_class": 3}
    save_xgboost(xgboost.train(several, xgboost.DMatrix(FRAME, CLASSES), 3), tmp_path / "model")

    with pytest.raises(ValueError, match="it predicts several targets at once"):
        open_folder(tmp_path / "model", decoding)


def test_a_pickled_model_and_a_class_that_is_not_xgboosts_are_refused(
    tmp_path: Path, decoding: DecodingProcess
) -> None:
    pickled, foreign = tmp_path / "pickled", tmp_path / "foreign"
    save_lightgbm(lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(FRAME, CLASSES), pickled, "cloudpickle")
    save_xgboost(xgboost.XGBRegressor(n_estimators=3).fit(FRAME, CLASSES), foreign)
    document = yaml.safe_load((foreign / "MLmodel").read_text())
    document["flavors"]["xgboost"]["model_class"] = "subprocess.Popen"
    (foreign / "MLmodel").write_text(yaml.safe_dump(document))

    with pytest.raises(UnservableError, match="saved by cloudpickle, which can run any code"):
        open_folder(pickled, decoding)
    with pytest.raises(UnservableError, match=r"class subprocess\.Popen is none that reads a file of XGBoost"):
        open_folder(foreign, decoding)


def test_a_damaged_file_of_a_booster_is_refused(tmp_path: Path, decoding: DecodingProcess) -> None:
    save_xgboost(xgboost.XGBRegressor(n_estimators=3).fit(FRAME, CLASSES), tmp_path / "model")
    file = tmp_path / "model/model.ubj"
    file.write_bytes(file.read_bytes()[:-200])

    with pytest.raises(UnservableError, match="its file cannot be read"):
        open_folder(tmp_path / "model", decoding)


def test_a_model_records_the_packages_that_it_needs_and_no_other() -> None:
    forest = describe_model(RandomForestRegressor(3).fit(FRAME, CLASSES), FRAME, FRAME)
    boosted = describe_model(
        make_pipeline(StandardScaler(), lightgbm.LGBMRegressor(n_estimators=3, verbose=-1)).fit(FRAME, CLASSES),
        FRAME,
        FRAME,
    )

    assert parse_requirements("\n".join(forest["pip_requirements"])).keys() == {"numpy", "pandas", "scipy", "sklearn"}
    assert f"lightgbm=={lightgbm.__version__}" in boosted["pip_requirements"]
    assert "xgboost" not in str(boosted["pip_requirements"])


@pytest.mark.parametrize(
    ("module", "trained", "warns"),
    [
        ("sklearn", "{own}.99", False),
        ("sklearn", "1.0.0", True),
        ("xgboost", "1.0.0", True),
        ("lightgbm", "1.0.0", True),
        ("torch", "1.0.0", False),
    ],
)
def test_a_model_of_another_minor_version_of_a_package_is_served_with_a_warning(
    module: str, trained: str, warns: bool
) -> None:
    own = ".".join(str(getattr(sys.modules.get(module), "__version__", "")).split(".")[:2])

    assert bool(compare_versions({module: trained.format(own=own)})) == warns


def test_versions_of_a_models_requirements_are_compared_when_it_is_loaded(
    tmp_path: Path, decoding: DecodingProcess
) -> None:
    save_xgboost(xgboost.XGBRegressor(n_estimators=3).fit(FRAME, CLASSES), tmp_path / "model")
    (tmp_path / "model/requirements.txt").write_text("mlflow\nxgboost-cpu==1.2.3\nscikit-learn==1.1.0 # by hand\n")

    warning = open_folder(tmp_path / "model", decoding).warning

    assert warning is not None
    assert "xgboost 1.2.3" in warning
    assert "scikit-learn 1.1.0" in warning


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(FunctionTransformer(lambda rows: rows * 2), LogisticRegression()),
        KNeighborsRegressor(metric=lambda a, b: float(np.abs(a - b).sum()), algorithm="ball_tree"),
        RandomizedSearchCV(LogisticRegression(), {"C": __import__("scipy.stats").stats.loguniform(0.1, 1)}, n_iter=2),
    ],
    ids=["function", "metric", "distribution"],
)
def test_a_model_that_could_run_code_on_loading_is_not_logged(estimator: BaseEstimator) -> None:
    fitted = estimator.fit(FRAME, CLASSES)

    with pytest.raises(UnsafeModelError, match=r"The model (holds types|cannot be saved)"):
        describe_model(fitted, FRAME, FRAME)


def test_every_reviewed_type_has_a_reason_and_none_calls_what_its_state_names() -> None:
    assert all(REVIEWED_TYPES.values())
    assert not [name for name in REVIEWED_TYPES if "PyFunc" in name or name.startswith("scipy.stats")]


def test_a_loaded_estimator_predicts_in_one_thread(tmp_path: Path, decoding: DecodingProcess) -> None:
    stacked = StackingRegressor(
        [("trees", RandomForestRegressor(3, n_jobs=2)), ("boosted", lightgbm.LGBMRegressor(n_estimators=3, verbose=-1))]
    ).fit(FRAME, CLASSES)
    mlflow.sklearn.save_model(stacked, tmp_path / "model", **describe_model(stacked, FRAME[:2], FRAME))

    fitted: Any = open_folder(tmp_path / "model", decoding)._estimator._fitted

    assert [member.n_jobs for member in fitted.estimators_] == [1, 1]


LOADING = """
import sys
from pathlib import Path
from serving.flavors import SavedEstimator, load_estimator
from serving.settings import Settings

settings = Settings(mlflow_tracking_uri="http://mlflow.test", serving_require_key=False)
for folder in sys.argv[1:]:
    load_estimator(Path(folder), SavedEstimator("sklearn", "model.skops", "skops", "", {}), settings)
    print(*sorted(sys.modules.keys() & {"xgboost", "lightgbm", "mlflow"}))
"""


def test_xgboost_and_lightgbm_are_imported_by_their_models_only(tmp_path: Path) -> None:
    estimators: list[Any] = [
        LogisticRegression(),
        xgboost.XGBRegressor(n_estimators=3),
        lightgbm.LGBMRegressor(n_estimators=3, verbose=-1),
    ]
    folders = [tmp_path / str(number) for number in range(len(estimators))]
    for estimator, folder in zip(estimators, folders, strict=True):
        folder.mkdir()
        skops.io.dump(estimator.fit(MATRIX, CLASSES), folder / "model.skops")

    command = [sys.executable, "-W", "ignore", "-c", LOADING, *map(str, folders)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert shown.splitlines() == ["", "xgboost", "lightgbm xgboost"]
