"""Serving by the protocols of other servers: MLflow's scoring formats, and the Open Inference Protocol V2."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from mlflow import MlflowClient
from mlflow.pyfunc import scoring_server
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from infra.testing.postgres import postgres_server
from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import HEADERS, KEY, register, wait_for
from trainyard.contract import Alias

pytestmark = pytest.mark.filterwarnings("ignore:.*Inferred schema contains integer column:UserWarning")

random = np.random.default_rng(0)
NUMBERS = pd.DataFrame(random.normal(size=(100, 3)), columns=["a", "b", "c"])
PLACES = pd.DataFrame({"place": ["Oslo", "Rome"] * 50, "rain": random.random(100), "stations": range(100)})
COUNTS = pd.DataFrame({"n": range(100), "m": range(100, 200)})


@pytest.fixture(scope="module")
def api(mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the service, which has a champion of numbers and one with a column of texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("protocols")
        encode = make_column_transformer((OneHotEncoder(), ["place"]), remainder="passthrough")
        register("numbers", LogisticRegression(), NUMBERS, np.where(NUMBERS["a"] > 0, "wet", "dry"))
        register("places", make_pipeline(encode, LinearRegression()), PLACES, PLACES["rain"] * 2)
        register("counts", LogisticRegression(), COUNTS, COUNTS["n"] > 50)
        settings = {"SERVING_API_KEY": KEY}
        with (
            serving_server(tmp_path_factory.mktemp("serving"), mlflow_address, **settings) as address,
            httpx.Client(base_url=address, headers=HEADERS, timeout=30) as client,
        ):
            for name in ("numbers", "places", "counts"):
                wait_for(client, name, 1)
            yield client


@pytest.fixture(scope="module")
def client(api: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    """A client of the Open Inference Protocol; it writes into the headers that it is given."""
    with triton.InferenceServerClient(api.base_url.netloc.decode()) as client:
        yield client


def mlflow_answer(model: str, body: str, content_type: str) -> Any:
    """Return what MLflow's own scoring server answers."""
    loaded = mlflow.pyfunc.load_model(f"models:/{model}/1")
    schema = loaded.metadata.get_input_schema()
    answer: Any = scoring_server.invocations
    return json.loads(answer(body, content_type, loaded, schema).response)


def bodies(frame: pd.DataFrame) -> dict[str, str]:
    """Return a frame in each of MLflow's formats of JSON."""
    records = frame.to_dict("records")
    shuffled = frame[frame.columns[::-1]].assign(unknown=1)
    return {
        "split": json.dumps({"dataframe_split": frame.to_dict("split")}),
        "split, another order and a column more": json.dumps({"dataframe_split": shuffled.to_dict("split")}),
        "records": json.dumps({"dataframe_records": records}),
        "instances": json.dumps({"instances": records}),
        "inputs": json.dumps({"inputs": frame.to_dict("list")}),
        "inputs, records": json.dumps({"inputs": records}),
    }


@pytest.mark.parametrize("form", bodies(NUMBERS))
@pytest.mark.parametrize(("model", "frame"), [("numbers", NUMBERS), ("places", PLACES), ("counts", COUNTS)])
def test_mlflows_formats_are_answered_as_by_mlflow(
    api: httpx.Client, model: str, frame: pd.DataFrame, form: str
) -> None:
    body = bodies(frame.head(7))[form]

    answer = api.post(f"/models/{model}/invocations", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 200, answer.text
    assert answer.json() == mlflow_answer(model, body, "application/json")


@pytest.mark.parametrize(("model", "frame"), [("numbers", NUMBERS), ("places", PLACES)])
def test_a_csv_is_answered_as_by_mlflow(api: httpx.Client, model: str, frame: pd.DataFrame) -> None:
    body = frame.head(7).to_csv(index=False)

    answer = api.post(f"/models/{model}/invocations", content=body, headers={"Content-Type": "text/csv"})

    assert answer.json() == mlflow_answer(model, body, "text/csv")


@pytest.mark.parametrize(
    "body",
    [
        "no JSON",
        "[]",
        {},
        {"instances": [], "inputs": []},
        {"instances": [[1, 2, 3]]},
        {"dataframe_records": {"a": 1}},
        {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}},
        {"inputs": {"a": [1], "b": [1, 2], "c": [1]}},
        {"dataframe_records": [{"a": 1, "b": 2}]},
        {"dataframe_records": [{"a": 1, "b": 2, "c": "much"}]},
    ],
    ids=str,
)
def test_what_is_none_of_mlflows_formats_is_refused_with_its_kind_of_error(api: httpx.Client, body: Any) -> None:
    content = body if isinstance(body, str) else json.dumps(body)

    refused = api.post("/models/numbers/invocations", content=content, headers={"Content-Type": "application/json"})

    assert refused.status_code in (400, 422), refused.text
    assert refused.json()["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")
    assert refused.json()["message"]


def column_inputs(frame: pd.DataFrame, binary: bool) -> list[triton.InferInput]:
    """Return a tensor for each column, as MLServer's pandas codec makes them."""
    inputs = []
    for name in frame.columns:
        values = frame[name].to_numpy()
        datatype = {"f": "FP64", "i": "INT64"}.get(values.dtype.kind, "BYTES")
        tensor = triton.InferInput(name, [len(frame), 1], datatype)
        tensor.set_data_from_numpy(values.astype(object if datatype == "BYTES" else values.dtype)[:, None], binary)
        inputs.append(tensor)
    return inputs


@pytest.mark.parametrize("binary", [False, True])
def test_a_client_of_the_open_inference_protocol_sends_a_tensor_for_each_column(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    rows = PLACES.head(5)
    output = triton.InferRequestedOutput("predict", binary_data=binary)

    result = client.infer(
        "places", column_inputs(rows, binary), request_id="seven", outputs=[output], headers=dict(HEADERS),
        parameters={"content_type": "pd"},
    )  # fmt: skip

    expected = mlflow.sklearn.load_model("models:/places/1").predict(rows)
    assert result.as_numpy("predict").tolist() == expected[:, None].tolist()
    assert result.get_response()["id"] == "seven"


@pytest.mark.parametrize("binary", [False, True])
def test_a_matrix_stands_for_all_columns_where_they_are_numbers(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    matrix = triton.InferInput("predict", [9, 3], "FP64")
    matrix.set_data_from_numpy(NUMBERS.head(9).to_numpy(), binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("predict", "predict_proba")]

    result = client.infer("numbers", [matrix], model_version="", outputs=outputs, headers=dict(HEADERS))

    estimator = mlflow.sklearn.load_model("models:/numbers/1")
    texts = [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("predict").ravel()]
    assert texts == estimator.predict(NUMBERS.head(9)).tolist()
    assert np.allclose(result.as_numpy("predict_proba"), estimator.predict_proba(NUMBERS.head(9)), rtol=0, atol=1e-12)


def test_a_matrix_of_floats_stands_for_columns_of_integers(client: triton.InferenceServerClient) -> None:
    matrix = triton.InferInput("input-0", [3, 2], "FP32")
    matrix.set_data_from_numpy(COUNTS.tail(3).to_numpy(dtype="float32"))

    result = client.infer("counts", [matrix], headers=dict(HEADERS))

    assert result.as_numpy("predict").tolist() == [[True]] * 3


def test_a_client_of_the_open_inference_protocol_finds_health_and_metadata(
    client: triton.InferenceServerClient,
) -> None:
    metadata = client.get_model_metadata("numbers", headers=dict(HEADERS))

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("numbers")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert metadata["versions"] == ["1"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in metadata["inputs"]] == [
        (name, "FP64", [-1]) for name in NUMBERS
    ]
    assert [(each["name"], each["datatype"], each["shape"]) for each in metadata["outputs"]] == [
        ("predict", "BYTES", [-1, 1]),
        ("predict_proba", "FP64", [-1, 2]),
    ]


def tensor(name: str = "a", datatype: str = "FP64", shape: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **({"data": [1.0]} | more)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("no JSON", "not JSON"),
        ([], "inputs are tensors"),
        ({"inputs": [3]}, "Input 0 has no name"),
        ({"inputs": [tensor(datatype="FP128")]}, "has the datatype 'FP128'"),
        ({"inputs": [tensor(shape=[-1])]}, "has no shape"),
        ({"inputs": [tensor(shape=[2])]}, "has 1 values and the shape [2]"),
        ({"inputs": [tensor(data="x")]}, "has no array of data"),
        ({"inputs": [tensor(data=[[1], 2], shape=[2])]}, "different depths"),
        ({"inputs": [tensor(parameters={"binary_data_size": 9})]}, "beyond the body"),
        ({"inputs": [tensor(), tensor("b", shape=[2], data=[1, 2])]}, "the same for all"),
        ({"inputs": [tensor(), tensor()]}, "the same name"),
        ({"inputs": [tensor("predict", shape=[1, 1])]}, "has 1 columns; the model has 3"),
        ({"inputs": [tensor("a"), tensor("b")]}, "'c': is missing"),
        ({"inputs": [tensor("a"), tensor("b"), tensor("c", "BYTES", data=["x"])]}, "'c'"),
        ({"inputs": [tensor("predict", shape=[0, 3], data=[])]}, "no rows"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, "no output 'logits'"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused_with_an_error(api: httpx.Client, body: Any, message: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)

    refused = api.post("/v2/models/numbers/infer", content=content)

    assert refused.status_code in (400, 422), refused.text
    assert message in refused.json()["error"]


def test_predictions_by_any_protocol_need_the_key(api: httpx.Client) -> None:
    paths = ("/v2/models/numbers/infer", "/models/numbers/invocations")

    statuses = [httpx.post(f"{api.base_url}{path}", json={}).status_code for path in paths]

    assert statuses == [401, 401]


def test_a_version_is_loaded_when_it_is_asked_for(api: httpx.Client, client: triton.InferenceServerClient) -> None:
    version = register("numbers", LogisticRegression(C=0.01), NUMBERS, NUMBERS["a"] < 0, champion=False)
    row = NUMBERS.head(1).to_dict("records")[0]
    matrix = triton.InferInput("predict", [1, 3], "FP64")
    matrix.set_data_from_numpy(NUMBERS.head(1).to_numpy())
    before = client.is_model_ready("numbers", str(version))

    first, second = (api.post(f"/models/numbers/versions/{number}/predict", json=row) for number in (1, version))
    tensors = client.infer("numbers", [matrix], model_version=str(version), headers=dict(HEADERS))
    statuses = {
        path: api.post(path, json=row).status_code
        for path in ("/models/numbers/versions/99/predict", "/models/nobody/versions/1/predict")
    }

    assert not before
    assert client.is_model_ready("numbers", str(version))
    assert [(answer.json()["version"], answer.headers["X-Model-Version"]) for answer in (first, second)] == [
        (1, "1"),
        (version, str(version)),
    ]
    assert first.json()["predictions"][0]["class"] in ("wet", "dry")
    assert second.json()["predictions"][0]["class"] == tensors.as_numpy("predict").item()
    assert list(statuses.values()) == [404, 404]


def test_the_challenger_predicts_in_the_shadow_and_only_the_records_show_it(
    mlflow_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    frame = NUMBERS.head(20)
    register("shadowed", LogisticRegression(), frame, frame["a"] > 0)
    challenger = register("shadowed", LogisticRegression(), frame[["c", "a"]], frame["c"] > 0, champion=False)
    MlflowClient().set_registered_model_alias("shadowed", Alias.CHALLENGER, str(challenger))
    row = frame.iloc[0].to_dict()

    with postgres_server() as database:
        settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database, "SERVING_SHADOW_FRACTION": "1"}
        with (
            serving_server(tmp_path, mlflow_address, **settings) as address,
            httpx.Client(base_url=address, headers=HEADERS, timeout=30) as api,
        ):
            wait_for(api, "shadowed", 1)

            def versions_recorded() -> set[int]:
                answer = api.post("/models/shadowed/predict", json=row).raise_for_status()
                assert answer.json()["version"] == 1
                found = [
                    api.get("/models/shadowed/predictions", params={"shadow": is_shadow}).json()["predictions"]
                    for is_shadow in (False, True)
                ]
                return {record["version"] for records in found for record in records}

            wait_until(lambda: versions_recorded() == {1, challenger}, 60, "a record of the challenger", every=0.5)
            records = api.get("/models/shadowed/predictions", params={"shadow": True}).json()["predictions"]
            compared = api.get("/models/shadowed/shadow").raise_for_status().json()
            before = api.get("/models/shadowed/shadow", params={"since": "2100-01-01"}).raise_for_status().json()

    assert (compared["champion"], compared["challenger"]) == (1, challenger)
    assert compared["compared"] == compared["rows"] > 0
    assert compared["agreement"] in (0, 1), "all rows are the same"
    assert 0 < compared["mean_absolute_difference"] < 1
    assert (before["challenger"], before["rows"], before["agreement"]) == (None, 0, None)
    inputs = [record["inputs"] for record in records if record["version"] == challenger]
    assert inputs[0] == {"columns": ["c", "a"], "data": [[row["c"], row["a"]]]}
