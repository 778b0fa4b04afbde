"""Labels of served predictions, in a real Postgres: they arrive early, late, twice, and for predictions that are not there."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import psycopg2
import pytest
from schemathesis import GenerationMode
from serving.prediction_id import make_id, to_text
from serving.record_store import RecordStore
from sklearn.linear_model import LinearRegression, LogisticRegression

from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import DAY, KEY, client, predict, register, wait_for
from tests.support.fuzzing import fuzz
from tests.support.gate import Gate
from trainyard.contract import PredictionHeader

random = np.random.default_rng(0)
DAYS = pd.DataFrame(random.normal(size=(120, 2)), columns=["rain", "wind"])


@pytest.fixture(scope="module", autouse=True)
def _registry(mlflow_address: str) -> Iterator[None]:
    """Champions that classify by two and by three classes, and one that predicts a number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("labels")
        register("wet", LogisticRegression(), DAYS, DAYS["rain"] > 0)
        register(
            "sky", LogisticRegression(), DAYS, pd.cut(DAYS["rain"], 3, labels=["clear", "cloud", "rain"]).astype(str)
        )
        register("depth", LinearRegression(), DAYS, DAYS["rain"])
        yield


@pytest.fixture(scope="module")
def api(mlflow_address: str, database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that records."""
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database}
    folder = tmp_path_factory.mktemp("serving")
    with serving_server(folder, mlflow_address, **settings) as address, client(address) as api:
        for name in ("wet", "sky", "depth"):
            wait_for(api, name, 1)
        yield api


def post(api: httpx.Client, name: str, labels: Any) -> dict[str, Any]:
    answer = api.post(f"/models/{name}/labels", json=labels)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def labels_of(api: httpx.Client, name: str, identifier: str) -> Any:
    """Return the labels of a prediction, by row, once its record is written."""

    def find() -> list[Any] | None:
        listed = api.get(f"/models/{name}/predictions", params={"limit": 1000}).json()["predictions"]
        return [record["labels"] for record in listed if record["prediction_id"] == identifier] or None

    (labels,) = wait_until(find, 30, "the record")
    return labels


def stored(number: int = 0, unchanged: int = 0, not_recorded: int = 0) -> dict[str, int]:
    return {"stored": number, "unchanged": unchanged, "not_recorded": not_recorded}


def test_a_label_may_arrive_before_its_record_is_written(api: httpx.Client) -> None:
    answer = predict(api, "wet")

    assert answer["recorded"] is True
    assert post(api, "wet", {"id": answer["id"], "value": True}) == stored(1)
    assert labels_of(api, "wet", answer["id"]) == [True]


def test_rows_of_a_request_are_labeled_by_their_number(api: httpx.Client) -> None:
    identifier = predict(api, "sky", [DAY, DAY, DAY])["id"]

    post(api, "sky", [{"id": identifier, "row": 2, "value": "rain"}, {"id": identifier, "row": 0, "value": "clear"}])

    assert labels_of(api, "sky", identifier) == ["clear", None, "rain"]


def test_labels_are_idempotent_and_can_be_corrected(api: httpx.Client) -> None:
    identifier = predict(api, "depth")["id"]
    label = {"id": identifier, "value": 1.5}

    answers = [post(api, "depth", label), post(api, "depth", label), post(api, "depth", label | {"value": 2})]

    assert answers == [stored(1), stored(unchanged=1), stored(1)]
    assert labels_of(api, "depth", identifier) == [2]


def test_labels_are_sent_as_csv(api: httpx.Client) -> None:
    first, second = (predict(api, "wet", [DAY, DAY])["id"] for _ in range(2))
    lines = f"id,row,value\n{first},0,true\n{first},1,False\n{second},1,true\n"

    answer = api.post("/models/wet/labels", content=lines, headers={"Content-Type": "text/csv"})

    assert (answer.status_code, answer.json()) == (200, stored(3))
    assert labels_of(api, "wet", first) == [True, False]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/wet/predict", DAY),
        ("/models/wet/versions/1/predict", DAY),
        ("/models/wet/invocations", {"dataframe_records": [DAY]}),
        (
            "/v2/models/wet/infer",
            {"inputs": [{"name": n, "shape": [1], "datatype": "FP64", "data": [1.0]} for n in ("rain", "wind")]},
        ),
    ],
)
def test_answers_of_all_protocols_carry_the_id(api: httpx.Client, path: str, body: Any) -> None:
    answer = api.post(path, json=body)
    identifier = answer.headers[PredictionHeader.ID]

    assert (answer.status_code, answer.headers[PredictionHeader.RECORDED]) == (200, "true")
    assert answer.json().get("id", identifier) == identifier
    assert post(api, "wet", {"id": identifier, "value": False}) == stored(1)


@pytest.mark.parametrize(
    ("name", "label", "code", "field", "text"),
    [
        ("wet", {"id": to_text(make_id()), "value": True}, "unknown-prediction", "id", "no recorded prediction"),
        ("wet", {"id": to_text(make_id(9e9)), "value": True}, "unknown-prediction", "id", "no recorded prediction"),
        ("wet", {"id": "7", "value": True}, "invalid-labels", "id", "is not the id of a prediction"),
        ("wet", {"value": True}, "invalid-labels", "id", "is missing"),
        ("wet", {"id": ..., "value": None}, "invalid-labels", "value", "is missing"),
        ("wet", {"id": ..., "value": [1]}, "invalid-labels", "value", "is no number, boolean or text"),
        (
            "wet",
            {"id": ..., "value": "wet"},
            "invalid-labels",
            "value",
            "none of the model's classes, which are false, true",
        ),
        ("wet", {"id": ..., "value": 1}, "invalid-labels", "value", "none of the model's classes"),
        ("sky", {"id": ..., "value": "Rain"}, "invalid-labels", "value", '"clear", "cloud", "rain"'),
        ("depth", {"id": ..., "value": "deep"}, "invalid-labels", "value", "is not a finite number"),
        ("depth", {"id": ..., "value": True}, "invalid-labels", "value", "is not a finite number"),
        ("depth", {"id": ..., "value": 1, "row": 1}, "invalid-labels", "row", "the prediction has 1 rows"),
        ("depth", {"id": ..., "value": 1, "row": -1}, "invalid-labels", "row", "is not the number of a row"),
        ("depth", {"id": ..., "value": 1, "time": 1}, "invalid-labels", "time", "is unknown"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_with_one_sentence(
    api: httpx.Client, name: str, label: dict[str, Any], code: str, field: str, text: str
) -> None:
    identifier = predict(api, name)["id"]
    label = {key: identifier if value is ... else value for key, value in label.items()}
    good = {"id": identifier, "value": {"wet": True, "sky": "rain", "depth": 0.5}[name]}

    answer = api.post(f"/models/{name}/labels", json=[good, label])
    body = answer.json()

    assert (body["code"], body["problems"][0]["field"], body["problems"][0]["row"]) == (code, field, 1)
    assert answer.status_code == (404 if code == "unknown-prediction" else 422)
    assert text in body["message"]
    assert labels_of(api, name, identifier) is None, "no label of the request is stored"


def test_a_row_is_labeled_once_in_a_request_and_named_where_there_are_several(api: httpx.Client) -> None:
    one, two = predict(api, "depth")["id"], predict(api, "depth", [DAY, DAY])["id"]

    twice = api.post("/models/depth/labels", json=[{"id": one, "value": 1}, {"id": one, "row": 0, "value": 2}])
    unnamed = api.post("/models/depth/labels", json={"id": two, "value": 1})

    assert "another label of the request is about the same row" in twice.json()["message"]
    assert "the prediction has 2 rows" in unnamed.json()["message"]


def test_a_prediction_of_another_model_is_unknown(api: httpx.Client) -> None:
    answer = api.post("/models/wet/labels", json={"id": predict(api, "depth")["id"], "value": True})

    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-prediction")


def test_labels_need_the_key_a_registered_model_and_a_known_format(api: httpx.Client) -> None:
    label = {"id": to_text(make_id()), "value": True}

    def code(name: str = "wet", **arguments: Any) -> tuple[int, str]:
        answer = api.post(f"/models/{name}/labels", **arguments)
        return answer.status_code, answer.json()["code"]

    assert httpx.post(f"{api.base_url}/models/wet/labels", json=label).status_code == 401
    assert code("nobody", json=label) == (404, "unknown-model")
    assert code(content=b"<label/>", headers={"Content-Type": "text/xml"}) == (415, "content-type")
    assert code(content=b"{", headers={"Content-Type": "application/json"}) == (400, "malformed")
    assert code(content=b"id,time\n", headers={"Content-Type": "text/csv"}) == (400, "malformed")
    assert code(json=[]) == (400, "malformed")
    assert code(json=[label] * 10_001) == (413, "too-many-rows")


def test_requests_that_label_the_same_rows_at_once_do_not_hinder_each_other(api: httpx.Client) -> None:
    ids = [predict(api, "depth")["id"] for _ in range(30)]

    def label(value: int) -> int:
        order = ids if value % 2 else ids[::-1]
        return post(api, "depth", [{"id": each, "value": value} for each in order])["stored"]

    with ThreadPoolExecutor(4) as callers:
        counts = list(callers.map(label, range(8)))

    assert counts == [30] * 8
    assert len({labels_of(api, "depth", each)[0] for each in ids}) == 1, "one request's labels are the last"


def test_only_labeled_records_are_listed_where_they_are_asked_for(api: httpx.Client) -> None:
    since = datetime.now(UTC).isoformat()
    ids = [predict(api, "sky")["id"] for _ in range(4)]
    post(api, "sky", [{"id": each, "value": "rain"} for each in ids[:2]])
    labels_of(api, "sky", ids[-1])

    def listed(**query: Any) -> list[str]:
        page = api.get("/models/sky/predictions", params={"since": since, **query}).json()["predictions"]
        return [record["prediction_id"] for record in page]

    assert listed(labeled="true") == listed(labeled="true", sample="true") == ids[:2]
    assert listed(labeled="false") == ids[2:]
    assert listed() == ids


def test_a_record_says_what_its_labels_are_about(api: httpx.Client) -> None:
    ids = {name: predict(api, name)["id"] for name in ("sky", "depth")}
    for name, identifier in ids.items():
        labels_of(api, name, identifier)

    newest = {name: api.get(f"/models/{name}/predictions?limit=1000").json()["predictions"][-1] for name in ids}

    assert newest["sky"]["classes"] == ["clear", "cloud", "rain"]
    assert newest["depth"]["classes"] is None


@pytest.mark.filterwarnings("ignore:jsonschema.exceptions.RefResolutionError:DeprecationWarning")
def test_responses_to_any_labels_conform_to_the_documentation(api: httpx.Client) -> None:
    address = str(api.base_url).rstrip("/")

    fuzz(address, "/models/wet/labels", GenerationMode.POSITIVE, lambda status: status in (400, 404, 422))
    fuzz(address, "/models/wet/labels", GenerationMode.NEGATIVE, lambda status: 400 <= status < 500)


def test_a_request_that_is_not_recorded_says_so_and_its_labels_are_counted(
    mlflow_address: str, database: str, tmp_path: Path
) -> None:
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database, "SERVING_RECORDS_RATE": "0.5"}
    with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
        wait_for(api, "wet", 1)
        answers = [predict(api, "wet") for _ in range(40)]
        counts = post(api, "wet", [{"id": each["id"], "value": True} for each in answers])
        metrics = api.get("/metrics").text

    recorded = sum(answer["recorded"] for answer in answers)
    assert 5 < recorded < 35
    assert counts == stored(recorded, not_recorded=40 - recorded)
    assert f"serving_labels_total {recorded}.0" in metrics


def test_labels_wait_for_no_database_that_is_down(mlflow_address: str, database: str, tmp_path: Path) -> None:
    with Gate(database) as gate:
        url = gate.address.replace("http://", "postgresql://postgres@") + "/postgres"
        settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": url}
        with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
            wait_for(api, "wet", 1)
            label = {"id": predict(api, "wet")["id"], "value": True}
            down = api.post("/models/wet/labels", json=label)
            gate.open()
            up = post(api, "wet", label)
            gate.shut()
            gate.open()
            again = post(api, "wet", label)

    assert (down.status_code, down.json()["code"]) == (503, "records-down")
    assert (up, again) == (stored(1), stored(unchanged=1))


def test_labels_are_dropped_with_the_records_of_their_day(api: httpx.Client, database: str) -> None:
    old = datetime.now(UTC) - timedelta(days=9)
    identifier = to_text(make_id(old.timestamp()))
    with (
        closing(psycopg2.connect(database)) as connection,
        connection.cursor() as cursor,
        closing(RecordStore(database)) as store,
    ):
        connection.autocommit = True
        store.add_partitions([old.date()])
        cursor.execute(
            "INSERT INTO predictions (at, model, version, inputs, outputs, prediction_id, rows) "
            "VALUES (%s, 'depth', 1, '{}', '{}', %s, 1)",
            (old.replace(microsecond=old.microsecond // 1000 * 1000), identifier),
        )
        label = post(api, "depth", {"id": identifier, "value": 1})
        size = next(each.size for each in store.partitions() if each.until.date() == old.date() + timedelta(days=1))
        cursor.execute("SELECT pg_total_relation_size(%s)", (f"predictions_{old:%Y%m%d}",))
        records_size = cursor.fetchone()[0]
        store.prune(keep_days=5, max_bytes=2**40)
        cursor.execute("SELECT count(*) FROM labels WHERE prediction_id = %s", (identifier,))
        left = cursor.fetchone()[0]
        cursor.execute("SELECT to_regclass(%s)", (f"labels_{old:%Y%m%d}",))
        table = cursor.fetchone()[0]

    dropped = api.post("/models/depth/labels", json={"id": identifier, "value": 1})
    assert (label, left, table) == (stored(1), 0, None)
    assert size > records_size, "labels count in the budget"
    assert (dropped.status_code, dropped.json()["code"]) == (404, "unknown-prediction")
