"""Forecasts: serving calls the hooks of projects, here two of the test's own, and predicts the rows that they make."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from os import pathsep
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from schemathesis import GenerationMode
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from infra.testing.postgres import postgres_server
from infra.testing.servers import CHECKOUT, SERVICES, serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import HEADERS, KEY, register, wait_for
from tests.support.fuzzing import fuzz
from trainyard.contract import PredictionHeader, record_about

random = np.random.default_rng(0)
SALES = pd.DataFrame({"price": random.normal(size=60), "day": random.choice(["fri", "sat", "sun"], 60)})
LIVE_ROWS = pd.DataFrame({"day": ["sat", "sun"], "price": [1.5, -0.5]})
TIMES = ["2026-11-28", "2026-11-29"]

DEMAND = {
    "trainyard.toml": """
        [[models]]
        name = "demand-*"
        live_features = "flows.demand.live:live_features"
        choose_model = "flows.demand.live:choose_model"

        [[models]]
        name = "broken"
        live_features = "flows.demand.broken:live_features"
    """,
    "broken.py": "import no_such_package",
    "live.py": """
        import os
        from pathlib import Path

        import pandas as pd

        from trainyard import errors
        from trainyard.hooks import LiveRows

        CALLS = Path(os.environ["TRAINYARD_HOME"], "calls")


        def choose_model(query):
            return f"demand-{query['shop']}" if "shop" in query else None


        def live_features(model, query):
            with CALLS.open("a") as calls:
                calls.write(query.get("id", "") + "\\n")
            number = CALLS.read_text().split().count(query.get("id", ""))
            rows = pd.DataFrame({"day": ["sat", "sun"], "price": [1.5, -0.5]})
            times, details = ["2026-11-28", "2026-11-29"], {"source": "the test", "tag": model.tags.get("town")}
            match query.get("fail"):
                case "twice" if number < 3:
                    raise errors.SourceUnreachableError("The till does not answer.")
                case "down":
                    raise errors.SourceUnreachableError("The till does not answer.")
                case "wait":
                    raise errors.WaitTooLongError("The till asks for a pause of 3600 s.")
                case "refused":
                    raise errors.RefusedError("The till refused the request.")
                case "data":
                    raise errors.DataError("The till sent a price below 0.")
                case "subject":
                    raise errors.UnknownSubjectError("There is no such shop.")
                case "query":
                    raise errors.QueryError("days", "is a number")
                case "hook":
                    raise errors.HookError("The version has no tag town.")
                case "bug":
                    return 1 / 0
                case "result":
                    return rows
                case "columns":
                    rows = rows.assign(weather="dry")
                case "missing":
                    rows = rows.assign(price=[1.0, None])
                case "times":
                    times = times[:1]
                case "details":
                    details = {"source": object()}
            return LiveRows(rows, "The shop in the north", times, details)
    """,
}
OTHER = {
    "trainyard.toml": """
        [[models]]
        name = "other"
        choose_model = "flows.other.live:choose_model"
    """,
    "live.py": """
        from trainyard.errors import QueryError


        def choose_model(query):
            if not query:
                raise QueryError("town", "is needed")
            return None
    """,
}


class Served(NamedTuple):
    """A running service, the projects' folder and what was fitted."""

    api: httpx.Client
    home: Path
    numbers: Any
    classes: Any

    def forecast(self, model: str = "demand-north", **query: str) -> httpx.Response:
        return self.api.get(f"/models/{model}/forecast", params=query)

    def calls(self, number: str) -> int:
        """Return how often the hook was called with a query's `id`."""
        return (self.home / "calls").read_text().split().count(number)


def pipeline(estimator: Any) -> Any:
    return make_pipeline(make_column_transformer((OneHotEncoder(), ["day"]), remainder="passthrough"), estimator)


@pytest.fixture(scope="module")
def served(mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with the projects, which records its predictions."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("serving")
    for name, files in {"demand": DEMAND, "other": OTHER}.items():
        (home / "flows" / name).mkdir(parents=True)
        for file, text in files.items():
            (home / "flows" / name / file).write_text(dedent(text))
    (home / "flows" / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("serving")
        numbers, classes = pipeline(LinearRegression()), pipeline(LogisticRegression())
        register("demand-north", numbers, SALES, SALES["price"] * 3, tags={"town": "Bergen"})
        register("demand-south", classes, SALES, SALES["price"] > 0)
        register("broken", pipeline(LinearRegression()), SALES, SALES["price"])
        register("without-hook", pipeline(LinearRegression()), SALES, SALES["price"])
    path = pathsep.join(map(str, (home, SERVICES / "serving", CHECKOUT)))
    settings = {"SERVING_API_KEY": KEY, "TRAINYARD_HOME": str(home), "PYTHONPATH": path}
    with (
        postgres_server() as database,
        serving_server(folder, mlflow_address, SERVING_DATABASE_URL=database, **settings) as address,
        httpx.Client(base_url=address, headers=HEADERS, timeout=30) as api,
    ):
        for name in ("demand-north", "demand-south", "broken", "without-hook"):
            wait_for(api, name, 1)
        yield Served(api, home, numbers, classes)


def test_a_models_hook_makes_the_rows_that_it_predicts(served: Served) -> None:
    answer = served.forecast()

    expected = served.numbers.predict(LIVE_ROWS[["price", "day"]])
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model": "demand-north",
        "version": 1,
        "id": answer.headers[PredictionHeader.ID],
        "recorded": answer.headers[PredictionHeader.RECORDED] == "true",
        "subject": "The shop in the north",
        "details": {"source": "the test", "tag": "Bergen"},
        "predictions": [
            {"time": time, "value": pytest.approx(value)} for time, value in zip(TIMES, expected, strict=True)
        ],
    }


def test_a_project_chooses_the_model_for_a_query(served: Served) -> None:
    answer = served.api.get("/forecast", params={"shop": "south"})

    expected = served.classes.predict_proba(LIVE_ROWS[["price", "day"]])
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "demand-south"
    assert answer.json()["predictions"] == [
        {"time": time, "class": no < yes, "probabilities": pytest.approx({"false": no, "true": yes})}
        for time, (no, yes) in zip(TIMES, expected, strict=True)
    ]


@pytest.mark.parametrize(
    ("query", "status", "code", "message"),
    [
        ({"street": "x"}, 404, "no-forecast", "No project chooses a model"),
        ({}, 422, "invalid-query", "'town' is needed"),
        ({"shop": "east"}, 404, "unknown-model", "demand-east"),
    ],
)
def test_a_query_without_a_model_is_refused(
    served: Served, query: dict[str, str], status: int, code: str, message: str
) -> None:
    answer = served.api.get("/forecast", params=query)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert message in answer.json()["message"]


@pytest.mark.parametrize(
    ("fail", "status", "code", "message"),
    [
        ("down", 503, "source-down", "The till does not answer."),
        ("wait", 503, "source-down", "3600 s"),
        ("refused", 502, "source-data", "The till refused"),
        ("data", 502, "source-data", "below 0"),
        ("subject", 404, "unknown-subject", "no such shop"),
        ("query", 422, "invalid-query", "'days' is a number"),
        ("hook", 503, "features-unfit", "no tag town"),
        ("bug", 503, "features-unfit", "ZeroDivisionError"),
        ("result", 503, "features-unfit", "not LiveRows"),
        ("columns", 503, "features-unfit", "'weather': is not in the signature"),
        ("missing", 503, "features-unfit", "Row 1, field 'price': is missing"),
        ("times", 503, "features-unfit", "2 rows have 1 times"),
        ("details", 503, "features-unfit", "not JSON serializable"),
    ],
)
def test_a_hook_that_fails_is_answered_with_its_reason(
    served: Served, fail: str, status: int, code: str, message: str
) -> None:
    answer = served.forecast(fail=fail)

    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert message in answer.json()["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("model", "status", "code"), [("without-hook", 404, "no-forecast"), ("nobody", 404, "unknown-model")]
)
def test_a_model_without_a_hook_has_no_forecast(served: Served, model: str, status: int, code: str) -> None:
    answer = served.forecast(model)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_hook_that_cannot_be_imported_leaves_predictions_alone(served: Served) -> None:
    forecast = served.forecast("broken")
    prediction = served.api.post("/models/broken/predict", json={"price": 1.0, "day": "sat"})

    assert (forecast.status_code, forecast.json()["code"]) == (503, "features-unfit")
    assert "no_such_package" in forecast.json()["message"]
    assert prediction.status_code == 200


def test_concurrent_and_repeated_requests_call_the_hook_once(served: Served) -> None:
    number = uuid4().hex

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: served.forecast(id=number), range(16)))
    again = served.forecast(id=number)

    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json()["predictions"] for answer in answers] == [again.json()["predictions"]] * 16
    assert len({answer.json()["id"] for answer in answers}) == 16
    assert served.calls(number) == 1


def test_transient_errors_are_retried(served: Served) -> None:
    number = uuid4().hex

    answer = served.forecast(id=number, fail="twice")

    assert answer.status_code == 200
    assert served.calls(number) == 3


def test_a_source_that_is_down_is_not_asked_at_each_request_but_again_later(served: Served) -> None:
    number = uuid4().hex

    statuses = [served.forecast(id=number, fail="down").status_code for _ in range(5)]
    calls = served.calls(number)

    assert statuses == [503] * 5
    assert calls == 3
    wait_until(
        lambda: served.forecast(id=number, fail="down") and served.calls(number) > calls, 30, "the next try", every=1
    )


def test_forecasts_need_the_key_and_are_counted(served: Served) -> None:
    refused = httpx.get(f"{served.api.base_url}/forecast?shop=south")
    served.api.get("/forecast", params={"shop": "south"})
    metrics = served.api.get("/metrics").text

    assert refused.status_code == 401
    assert 'serving_requests_total{model="demand-south",status="200",version="1"}' in metrics
    assert 'serving_requests_total{model="(unknown)",status="401",version=""}' in metrics


def test_a_forecast_is_recorded_with_its_subject_and_times(served: Served) -> None:
    number = uuid4().hex
    (first, *_) = served.api.get("/models/demand-south/predictions", params={"limit": 1}).json()["predictions"] or [{}]
    answer = served.forecast("demand-south", id=number).json()

    def recorded() -> list[dict[str, Any]]:
        query = {"after": first.get("id", 0), "limit": 1000}
        found: list[dict[str, Any]] = served.api.get("/models/demand-south/predictions", params=query).json()[
            "predictions"
        ]
        return found

    record = wait_until(recorded, 30, "the record")[-1]
    assert record_about(record) == ("The shop in the north", TIMES)
    assert record["about"]["source"] == "the test"
    assert record["inputs"] == {"columns": ["price", "day"], "data": [[1.5, "sat"], [-0.5, "sun"]]}
    assert record["outputs"]["columns"] == ["prediction", "probability_0", "probability_1"]
    assert [row[2] for row in record["outputs"]["data"]] == [
        prediction["probabilities"]["true"] for prediction in answer["predictions"]
    ]


@pytest.mark.filterwarnings("ignore:jsonschema.exceptions.RefResolutionError:DeprecationWarning")
@pytest.mark.parametrize("path", ["/forecast", "/models/demand-north/forecast"])
def test_responses_to_any_query_conform_to_the_documentation(served: Served, path: str) -> None:
    address = str(served.api.base_url).rstrip("/")

    fuzz(address, path, GenerationMode.POSITIVE, lambda status: status in (200, 404, 422))
    fuzz(address, path, GenerationMode.NEGATIVE, lambda status: status < 500)
