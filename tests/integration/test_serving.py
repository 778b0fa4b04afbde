"""Serving against a real registry: formats, refusals, and changes of the champion while requests are in flight."""

import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature
from schemathesis import GenerationMode
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support import champions
from tests.support.champions import HEADERS, KEY, set_champion, wait_for
from tests.support.fuzzing import fuzz
from tests.support.gate import Gate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Inferred schema contains integer column:UserWarning"),
    pytest.mark.filterwarnings("ignore:jsonschema.exceptions.RefResolutionError:DeprecationWarning"),
]

MAX_ROWS, MAX_BYTES = 40, 16384
LIMITS = {"SERVING_MAX_ROWS": str(MAX_ROWS), "SERVING_MAX_BODY_BYTES": str(MAX_BYTES), "SERVING_API_KEY": KEY}
JSON, CSV = "application/json", "text/csv"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"

random = np.random.default_rng(0)
DAYS = pd.DataFrame(random.normal(size=(200, 3)), columns=["rain", "wind speed", "temp"]).assign(
    station=random.integers(0, 5, 200), frost=random.random(200) > 0.5
)
WET = (DAYS["rain"] + random.normal(size=200) > 0).map({True: "wet", False: "dry"})
DAY = {"rain": 1.0, "wind speed": 0.5, "temp": -1, "station": 3, "frost": True}
FOREST_TYPES = ["numpy.dtype", "sklearn.tree._tree.Tree"]


def register(
    name: str, estimator: BaseEstimator, *, inputs: pd.DataFrame = DAYS, target: Any = WET, **options: Any
) -> int:
    return champions.register(name, estimator, inputs, target, **options)


@pytest.fixture(scope="module", autouse=True)
def _registry(mlflow_address: str) -> Iterator[None]:
    """Let this module's helpers register with the session's MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("serving")
        yield


@pytest.fixture(scope="module")
def address(mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the service."""
    with serving_server(tmp_path_factory.mktemp("serving"), mlflow_address, **LIMITS) as address:
        yield address


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[httpx.Client]:
    """A client of the service, with the key."""
    with httpx.Client(base_url=address, headers=HEADERS, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def forest(api: httpx.Client) -> RandomForestClassifier:
    """The champion of `forest`, version 1."""
    estimator = RandomForestClassifier(20, random_state=0)
    version = register("forest", estimator, types=FOREST_TYPES)
    wait_for(api, "forest", version)
    return estimator


def wait_for_refusal(api: httpx.Client, name: str) -> str:
    def reason() -> str | None:
        return api.get("/models").json()["unservable"].get(name)

    return wait_until(reason, 30, f"a refusal of {name}")


def predict(api: httpx.Client, name: str, rows: Any, **arguments: Any) -> httpx.Response:
    return api.post(f"/models/{name}/predict", json=rows, **arguments)


def encoded(frame: pd.DataFrame, form: str, compression: str | None = None) -> bytes:
    """Return a frame in a format."""
    sink = io.BytesIO()
    if form == JSON:
        return frame.to_json(orient="records", double_precision=15).encode()
    if form == CSV:
        return frame.to_csv(index=False).encode()
    if form == PARQUET:
        frame.to_parquet(sink)
        return sink.getvalue()
    table = pa.Table.from_pandas(frame)
    make = pa.ipc.new_stream if form == STREAM else pa.ipc.new_file
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def classes_of(answer: httpx.Response) -> list[str]:
    return [prediction["class"] for prediction in answer.json()["predictions"]]


@pytest.mark.parametrize("form", [JSON, CSV, STREAM, FILE, PARQUET])
def test_a_batch_is_predicted_in_each_format(api: httpx.Client, forest: RandomForestClassifier, form: str) -> None:
    rows = DAYS.head(20)

    answer = api.post("/models/forest/predict", content=encoded(rows, form), headers={"Content-Type": form})

    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Model-Version"] == "1"
    body = answer.json()
    assert (body["model"], body["version"]) == ("forest", 1)
    assert classes_of(answer) == list(forest.predict(rows))
    probabilities = [[each["probabilities"][name] for name in forest.classes_] for each in body["predictions"]]
    assert np.allclose(probabilities, forest.predict_proba(rows))


@pytest.mark.parametrize("form", [JSON, CSV, PARQUET])
def test_columns_may_have_any_order(api: httpx.Client, forest: RandomForestClassifier, form: str) -> None:
    reversed_columns = DAYS.head(5)[DAYS.columns[::-1]]

    answer = api.post("/models/forest/predict", content=encoded(reversed_columns, form), headers={"Content-Type": form})

    assert classes_of(answer) == list(forest.predict(DAYS.head(5)))


def test_concurrent_requests_each_get_their_own_predictions(api: httpx.Client, forest: RandomForestClassifier) -> None:
    rows, expected = DAYS.head(40).to_dict("records"), forest.predict_proba(DAYS.head(40))

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda row: predict(api, "forest", row).json()["predictions"], rows))

    for (prediction,), probabilities in zip(answers, expected, strict=True):
        assert np.allclose([prediction["probabilities"][name] for name in forest.classes_], probabilities)


@pytest.mark.usefixtures("forest")
@pytest.mark.parametrize(
    ("body", "form", "status", "code", "field"),
    [
        ('{"rain": 1', JSON, 400, "malformed", None),
        ("", JSON, 400, "malformed", None),
        ("3", JSON, 422, "invalid-rows", None),
        ("[]", JSON, 422, "invalid-rows", None),
        ("[[1, 2]]", JSON, 422, "invalid-rows", None),
        ([DAY, DAY | {"rain": "much"}], JSON, 422, "invalid-rows", "rain"),
        (DAY | {"rain": True}, JSON, 422, "invalid-rows", "rain"),
        (DAY | {"rain": None}, JSON, 422, "invalid-rows", "rain"),
        (DAY | {"rain": 1e300}, JSON, 422, "invalid-rows", "rain"),
        (DAY | {"station": 2**64}, JSON, 422, "invalid-rows", "station"),
        (DAY | {"station": 1.5}, JSON, 422, "invalid-rows", "station"),
        (DAY | {"frost": 1}, JSON, 422, "invalid-rows", "frost"),
        ({k: v for k, v in DAY.items() if k != "temp"}, JSON, 422, "invalid-rows", "temp"),
        (DAY | {"snow": 1}, JSON, 422, "invalid-rows", "snow"),
        (DAY | {"rain": float("nan")}, JSON, 422, "not-finite", "rain"),
        (DAY | {"wind speed": float("-inf")}, JSON, 422, "not-finite", "wind speed"),
        ([DAY] * (MAX_ROWS + 1), JSON, 413, "too-many-rows", None),
        (" " * (MAX_BYTES + 1), JSON, 413, "body-too-large", None),
        ("[" * 10_000, JSON, 400, "malformed", None),
        (b"\xff\xfe", JSON, 400, "malformed", None),
        ("rain,temp\n1,2\n", CSV, 422, "invalid-rows", "wind speed"),
        ("rain,wind speed,temp,station,frost\n1,2,3,4,true\n1,nan,3,4,true\n", CSV, 422, "not-finite", "wind speed"),
        ("rain,wind speed,temp,station,frost\n1,,3,4,true\n", CSV, 422, "invalid-rows", "wind speed"),
        ("rain,wind speed,temp,station,frost\n1,2\n", CSV, 400, "malformed", None),
        ("rain,rain\n1,2\n", CSV, 422, "invalid-rows", "rain"),
        ("rain,wind speed,temp,station,frost\n" + "1,2,3,4,true\n" * (MAX_ROWS + 1), CSV, 413, "too-many-rows", None),
        (b"\xff\xfe", CSV, 400, "malformed", None),
        ("", CSV, 400, "malformed", None),
        ("no arrow", STREAM, 400, "malformed", None),
        ("no arrow", FILE, 400, "malformed", None),
        ("PAR1 not PAR1", PARQUET, 400, "malformed", None),
        (encoded(pd.concat([DAYS.head(9)] * 5), PARQUET), PARQUET, 413, "too-many-rows", None),
        (encoded(DAYS.head(2).drop(columns="temp"), STREAM), STREAM, 422, "invalid-rows", "temp"),
        (encoded(DAYS.head(2).assign(rain="much"), PARQUET), PARQUET, 422, "invalid-rows", "rain"),
        (encoded(DAYS.head(2).assign(rain=np.inf), STREAM), STREAM, 422, "not-finite", "rain"),
        (encoded(DAYS.head(0), PARQUET), PARQUET, 422, "invalid-rows", None),
        (encoded(DAYS.head(9).assign(rain=pd.Categorical(["a"] * 9)), FILE, "lz4"), FILE, 422, "invalid-rows", "rain"),
        (DAY, "application/xml", 415, "content-type", None),
        (DAY, "application/json; charset=latin-1", 415, "content-type", None),
        (DAY, "", 415, "content-type", None),
    ],
)
def test_invalid_input_is_refused_and_its_field_named(
    api: httpx.Client, body: Any, form: str, status: int, code: str, field: str | None
) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)

    answer = api.post("/models/forest/predict", content=content, headers={"Content-Type": form})

    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert "Traceback" not in answer.text
    if field:
        assert field in [problem.get("field") for problem in answer.json()["problems"]]


@pytest.mark.usefixtures("forest")
@pytest.mark.parametrize("size", [4096, 4 * MAX_BYTES + 1])
def test_a_chunked_body_is_limited_too(api: httpx.Client, size: int) -> None:
    chunks = (b" " * size for _ in range(100))

    answer = api.post("/models/forest/predict", content=chunks, headers={"Content-Type": JSON})

    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")


@pytest.mark.usefixtures("forest")
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"X-API-Key": ""}, {"X-API-Key": "ü"}],
)
def test_a_prediction_without_the_key_is_refused(address: str, headers: dict[str, str]) -> None:
    encoded_headers = {name.encode(): value.encode() for name, value in headers.items()}

    refused = httpx.post(f"{address}/models/forest/predict", json=DAY, headers=encoded_headers)

    assert (refused.status_code, refused.json()["code"]) == (401, "no-key")


@pytest.mark.usefixtures("forest")
def test_the_key_is_taken_in_either_header(address: str) -> None:
    url = f"{address}/models/forest/predict"

    answers = [httpx.post(url, json=DAY, headers=headers) for headers in (HEADERS, {"X-API-Key": KEY})]

    assert [answer.status_code for answer in answers] == [200, 200]


def test_the_list_of_models_needs_the_key_and_health_metrics_and_documentation_do_not(address: str) -> None:
    public = ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json")

    statuses = {path: httpx.get(address + path).status_code for path in ("/models", *public)}

    assert statuses == {"/models": 401, **dict.fromkeys(public, 200)}


def test_an_unknown_model_is_not_found(api: httpx.Client) -> None:
    unknown = predict(api, "nobody", DAY)

    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-model")


def test_a_model_is_served_while_it_has_a_champion(api: httpx.Client) -> None:
    name = "without-champion"
    register(name, LogisticRegression(), champion=False)
    wait_until(lambda: name in api.get("/models").json()["without_champion"], 30, "the model")

    before = predict(api, name, DAY)
    set_champion(name, 1)
    wait_for(api, name, 1)
    served = predict(api, name, DAY)
    MlflowClient().delete_registered_model_alias(name, "champion")

    assert (before.status_code, before.json()["code"]) == (503, "no-champion")
    assert served.status_code == 200
    wait_until(lambda: predict(api, name, DAY).status_code == 503, 30, "the end of the champion")


def test_no_request_fails_while_the_champion_changes(api: httpx.Client) -> None:
    name = "changing"
    # Each version predicts its own number, so that an answer of a half-swapped model would show.
    versions = [register(name, DummyClassifier(strategy="prior"), target=[n] * 200) for n in (1, 2)]
    versions += [register(name, RandomForestClassifier(20), target=[3] * 200, types=FOREST_TYPES)]
    wait_for(api, name, 3)
    done, seen = Event(), []

    def call() -> int:
        calls = 0
        with httpx.Client(base_url=api.base_url, headers=HEADERS, timeout=30) as caller:
            while not done.is_set():
                answer = predict(caller, name, DAY)
                assert answer.status_code == 200, answer.text
                body = answer.json()
                assert str(body["version"]) == answer.headers["X-Model-Version"]
                assert body["predictions"][0]["class"] == body["version"]
                seen.append(body["version"])
                calls += 1
        return calls

    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(call) for _ in range(4)]
        try:
            for version in versions * 3:
                set_champion(name, version)
                wait_for(api, name, version)
        finally:
            done.set()
        number = sum(future.result() for future in calls)

    assert number > 50
    assert set(seen) == set(versions)


def test_a_pickle_is_refused_and_the_previous_champion_stays_served(api: httpx.Client) -> None:
    register("pickled", LogisticRegression())
    wait_for(api, "pickled", 1)
    register("pickled", LogisticRegression(), form="cloudpickle")

    reason = wait_for_refusal(api, "pickled")
    answer = predict(api, "pickled", DAY)
    set_champion("pickled", 1)

    assert "cloudpickle" in reason
    assert answer.json()["version"] == 1
    wait_until(lambda: "pickled" not in api.get("/models").json()["unservable"], 30, "the end of the refusal")


def test_types_that_only_the_models_own_file_trusts_are_refused(api: httpx.Client) -> None:
    distance = "sklearn.metrics._dist_metrics.SEuclideanDistance64"
    nearest = KNeighborsClassifier(metric="seuclidean", metric_params={"V": np.ones(5)}, algorithm="ball_tree")
    register("nearest", nearest, types=["sklearn.neighbors._ball_tree.BallTree", distance])

    reason = wait_for_refusal(api, "nearest")
    refused = predict(api, "nearest", DAY)

    assert distance in reason
    assert refused.json()["code"] == "no-champion"


def test_a_model_of_a_matrix_that_mlflows_own_calls_registered_is_served(api: httpx.Client) -> None:
    flowers, kinds = load_iris(return_X_y=True)
    fitted = LogisticRegression(max_iter=1000).fit(flowers, kinds)
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            fitted,
            name="iris",
            signature=infer_signature(flowers, fitted.predict(flowers)),
            input_example=flowers[:2],
            registered_model_name="iris",
            pip_requirements=["scikit-learn==1.0.2"],
        )
    set_champion("iris", 1)
    wait_for(api, "iris", 1)

    answer = api.post("/models/iris/invocations", json={"inputs": flowers[:60:5].tolist()})
    row = predict(api, "iris", {str(at): value for at, value in enumerate(flowers[0])})

    assert answer.json() == {"predictions": fitted.predict(flowers[:60:5]).tolist()}
    assert row.json()["predictions"][0]["class"] == 0
    assert "scikit-learn 1.0.2" in api.get("/models").json()["models"]["iris"]["warning"]


def test_settings_can_allow_pickles_and_requests_without_a_key(mlflow_address: str, tmp_path: Path) -> None:
    register("allowed-pickle", LogisticRegression(), form="cloudpickle")
    allowed = {"SERVING_ALLOW_PICKLE": "true", "SERVING_REQUIRE_KEY": "false"}

    with serving_server(tmp_path, mlflow_address, **allowed) as address, httpx.Client(base_url=address) as client:
        wait_for(client, "allowed-pickle", 1)
        answer = predict(client, "allowed-pickle", DAY)
        document = client.get("/openapi.json").json()

    assert answer.status_code == 200
    assert document["paths"]["/models/allowed-pickle/predict"]["post"]["security"] == []
    assert "securitySchemes" not in document["components"]


@pytest.fixture(scope="module")
def places(api: httpx.Client) -> str:
    """The name of a regressor with a column of text and an optional number."""
    frame = pd.DataFrame({"place": ["Oslo", "Rome", "Oslo", "Bonn"], "rain": [1.0, 2.0, None, 4.0]})
    encode = make_column_transformer((OneHotEncoder(), ["place"]), remainder="drop")
    register("places", make_pipeline(encode, LinearRegression()), inputs=frame, target=[1.0, 2.0, 1.0, 3.0])
    wait_for(api, "places", 1)
    return "places"


@pytest.mark.parametrize(
    "row", [{"place": "Rome", "rain": 0.5}, {"place": "Rome", "rain": None}, {"place": "Rome"}], ids=str
)
def test_a_number_is_predicted_from_text_and_optional_values(api: httpx.Client, places: str, row: Any) -> None:
    answer = predict(api, places, row)

    assert answer.json()["predictions"] == [{"value": pytest.approx(2.0)}]


def test_rows_that_the_estimator_refuses_are_the_callers_fault(api: httpx.Client, places: str) -> None:
    refused = predict(api, places, {"place": "Atlantis"})

    assert (refused.status_code, refused.json()["code"]) == (422, "refused-by-model")


def test_without_mlflow_it_is_alive_and_not_ready(mlflow_address: str, tmp_path: Path) -> None:
    """And once models are loaded, they stay served while MLflow is down."""
    register("steady", make_pipeline(StandardScaler(), LogisticRegression()))
    with (
        Gate(mlflow_address) as gate,
        serving_server(tmp_path, gate.address, **LIMITS) as address,
        httpx.Client(base_url=address, headers=HEADERS) as client,
    ):
        wait_until(lambda: client.get("/health/ready").json().get("reason", "").startswith("MLflow"), 10, "a reason")
        live, ready, unknown = client.get("/health/live"), client.get("/health/ready"), predict(client, "steady", DAY)

        assert (live.status_code, ready.status_code) == (200, 503)
        assert (unknown.status_code, unknown.json()["code"]) == (503, "registry-unknown")

        gate.open()
        wait_for(client, "steady", 1)
        gate.shut()
        wait_until(lambda: not client.get("/health/ready").json()["registry_answers"], 30, "the outage of MLflow")
        ready, answer, metrics = client.get("/health/ready"), predict(client, "steady", DAY), client.get("/metrics")

        assert (ready.status_code, answer.status_code) == (200, 200)
        assert "serving_registry_up 0.0" in metrics.text

        gate.open()
        wait_until(lambda: client.get("/health/ready").json()["registry_answers"], 30, "MLflow's return")


@pytest.mark.usefixtures("forest")
def test_requests_and_predictions_are_counted(api: httpx.Client) -> None:
    predict(api, "forest", DAY)
    predict(api, "forest", 3)
    predict(api, "x" * 300, DAY)

    text = api.get("/metrics").text

    for pattern in (
        r'serving_requests_total\{model="forest",status="200",version="1"\} [1-9]',
        r'serving_requests_total\{model="forest",status="422",version="1"\} [1-9]',
        r'serving_predictions_total\{class="(wet|dry)",model="forest"\} [1-9]',
        r'serving_request_seconds_count\{model="forest",version="1"\} [1-9]',
        r'serving_model_version\{model="forest"\} 1.0',
        r'serving_in_flight\{model="forest"\} 0.0',
        r'serving_shed_total\{model="forest",reason="refused"\} 0.0',
        r'serving_model_age_seconds\{model="forest"\} [0-9]',
        r"serving_registry_up 1.0",
    ):
        assert re.search(pattern, text), pattern
    assert "xxx" not in text


@pytest.mark.usefixtures("forest")
def test_the_documentation_lists_each_model_with_its_fields(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    operation = paths["/models/forest/predict"]["post"]
    row = operation["requestBody"]["content"][JSON]["schema"]["oneOf"][0]

    assert list(row["properties"]) == list(DAYS.columns)
    assert row["properties"]["station"]["type"] == "integer"
    assert row["required"] == list(DAYS.columns)
    assert "dry, wet" in operation["description"]
    assert {"/models/forest/forecast", "/models/forest/predictions"} <= paths.keys()


def test_the_documentation_is_a_page_of_files_of_its_own(api: httpx.Client) -> None:
    page = api.get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert len(addresses) == 3
    assert [api.get(address).status_code for address in addresses] == [200, 200, 200]


@pytest.mark.usefixtures("forest")
def test_responses_to_any_request_conform_to_the_documentation(address: str) -> None:
    fuzz(address, "/models/forest/predict", GenerationMode.POSITIVE, lambda status: status == 200)
    fuzz(address, "/models/forest/predict", GenerationMode.NEGATIVE, lambda status: 400 <= status < 500)
