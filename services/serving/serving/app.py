"""The service's pages: predictions, health, metrics and documentation."""

import asyncio
import hmac
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from swagger_ui_bundle import swagger_ui_path

from serving.catalog import Catalog
from serving.documentation import describe
from serving.forecast import Forecaster, find_champion, parse_days, parse_query
from serving.forecast import render as render_forecast
from serving.metrics import Metrics
from serving.model import Answer, Model, label
from serving.problems import RequestError
from serving.records import Record, Recorder, RecordsDownError, parse_page
from serving.settings import Settings
from serving.tables import Table

if TYPE_CHECKING:
    from flows.weather.outlook import Outlook

log = logging.getLogger("serving")
PAGE = {"Cache-Control": "no-store"}


def create_app(settings: Settings) -> FastAPI:
    """Return the service; it follows the registry while it runs."""
    catalog = Catalog(settings)
    recorder = Recorder(settings)
    metrics = Metrics(catalog, recorder)
    forecaster = Forecaster(settings)
    threads = ThreadPoolExecutor(2, thread_name_prefix="predict")
    key = settings.serving_api_key.get_secret_value().encode() if settings.serving_api_key else b""

    @asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
        catalog.start()
        recorder.start()
        yield
        catalog.stop()
        forecaster.stop()
        threads.shutdown(wait=True)
        recorder.stop()

    app = FastAPI(title="Trainyard serving", lifespan=run, openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/docs/files", StaticFiles(directory=str(swagger_ui_path)), name="docs-files")

    def want_key(request: Request) -> None:
        if not settings.serving_require_key:
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), key):
            raise RequestError("no-key", "Send the key as Authorization: Bearer ..., or as X-API-Key.")

    async def ask(model: Model, table: Table, about: dict[str, Any] | None = None) -> Answer:
        answer = await model.predict(table, threads)
        count_classes(metrics, model, answer)
        champion = model.champion
        names, columns = model.schema.names, table.columns
        recorder.put(Record(time.time(), champion.model, champion.version, names, columns, answer, about))
        return answer

    async def predict(request: Request) -> Response:
        with metrics.watch() as watched:
            want_key(request)
            name = request.path_params["name"]
            if name in catalog.state.registered:
                watched.model = name
            model = catalog.model(name)
            body = await read_body(request, settings.serving_max_body_bytes)
            if request.headers.get("content-encoding", "identity") != "identity":
                raise RequestError("content-type", "Send the body as it is, without Content-Encoding.")
            table = model.reader.read(body, request.headers.get("content-type", ""))
            answer = await ask(model, table)
            version = {"X-Model-Name": name.encode("ascii", "backslashreplace").decode()}
            version["X-Model-Version"] = str(model.champion.version)
            return Response(render(model, answer), media_type="application/json", headers=version)

    # Starlette's own route: FastAPI's would solve dependencies that there are not, at each request.
    app.add_route("/models/{name}/predict", predict, methods=["POST"])

    async def answer_forecast(model: Model, outlook: "Outlook", days: int) -> Response:
        rows = await forecaster.rows(model, outlook, days)
        return _json(render_forecast(model, rows, await ask(model, rows.table, rows.about())))

    @app.get("/forecast")
    async def forecast(request: Request) -> Response:
        with metrics.watch() as watched:
            want_key(request)
            query = parse_query(request.query_params)
            outlook = await forecaster.outlook(query.place)
            model = find_champion(catalog, outlook)
            watched.model = model.champion.model
            return await answer_forecast(model, outlook, query.days)

    @app.get("/models/{name}/forecast")
    async def forecast_of(name: str, request: Request) -> Response:
        with metrics.watch() as watched:
            want_key(request)
            days = parse_days(request.query_params)
            if name in catalog.state.registered:
                watched.model = name
            model = catalog.model(name)
            return await answer_forecast(model, await forecaster.outlook_of(model), days)

    @app.get("/models/{name}/predictions")
    async def predictions(name: str, request: Request) -> Response:
        want_key(request)
        if not recorder.enabled:
            raise RequestError("not-recorded", "Set SERVING_DATABASE_URL, and SERVING_KEEP_DAYS to more than 0.")
        page = parse_page(request.query_params)
        state = catalog.state
        if state.answered is not None and name not in state.registered:
            raise RequestError("unknown-model", f"No model {name!r} is registered.")
        try:
            found, more = await asyncio.to_thread(recorder.page, name, page)
        except RecordsDownError as error:
            raise RequestError("records-down", f"The database does not answer: {error}") from error
        return _json({"predictions": found, "next": more})

    @app.get("/models")
    async def models(request: Request) -> Response:
        want_key(request)
        state = catalog.state
        return _json(
            {
                "models": {name: about(model) for name, model in sorted(state.models.items())},
                "unservable": dict(sorted(state.unservable.items())),
                "without_champion": sorted(state.registered - state.models.keys() - state.unservable.keys()),
            }
        )

    @app.get("/health/live")
    async def live() -> Response:
        return _json({"status": "alive"})

    @app.get("/health/ready")
    async def ready() -> Response:
        state = catalog.state
        if state.models:
            versions = {name: model.champion.version for name, model in sorted(state.models.items())}
            return _json({"status": "ready", "versions": versions, "registry_answers": state.error is None})
        if state.answered is None:
            reason = state.error or "MLflow has not answered yet."
        else:
            reason = "; ".join(state.unservable.values()) or "No registered model has the alias `champion` yet."
        return _json({"status": "not ready", "reason": reason}, 503)

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return _json(describe(catalog.state, settings.serving_max_rows, settings.serving_require_key))

    @app.get("/docs")
    def docs() -> Response:
        files = "docs/files/swagger-ui"
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Trainyard serving",
            swagger_js_url=f"{files}-bundle.js",
            swagger_css_url=f"{files}.css",
            swagger_favicon_url="docs/files/favicon-32x32.png",
        )

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return _json(error.as_json(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def refuse_path(_: Request, error: HTTPException) -> Response:
        body = {"code": "no-such-page", "message": f"{error.detail}. The pages stand at /docs."}
        return _json(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        log.error("A request failed", exc_info=error)
        return _json({"code": "internal", "message": "The service failed; its log says why."}, 500)

    return app


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: It is larger than it may be; it is then read no further.
    """
    too_large = RequestError("body-too-large", f"A body may have {most_bytes} bytes: send several.")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise too_large
    return bytes(body)


def render(model: Model, answer: Answer) -> bytes:
    """Return an answer as JSON."""
    if model.labels is None:
        predictions: list[dict[str, Any]] = [{"value": value} for value in answer.said]
    elif answer.probabilities is None:
        predictions = [{"class": said} for said in answer.said]
    else:
        predictions = [
            {"class": said, "probabilities": dict(zip(model.labels, shares, strict=True))}
            for said, shares in zip(answer.said, answer.probabilities, strict=True)
        ]
    champion = model.champion
    return orjson.dumps({"model": champion.model, "version": champion.version, "predictions": predictions})


def count_classes(metrics: Metrics, model: Model, answer: Answer) -> None:
    """Count predictions by class; a value that is no class counts as `value`."""
    name = model.champion.model
    if model.classes is None:
        metrics.predictions.labels(name, "value").inc(len(answer.said))
        return
    for said, number in Counter(answer.said).items():
        metrics.predictions.labels(name, label(said)).inc(number)


def about(model: Model) -> dict[str, Any]:
    """Return what is known of a model, for people."""
    return {
        "version": model.champion.version,
        "registered_at": model.created,
        "fields": list(model.schema.names),
        "classes": model.classes,
        "example": model.example,
    }


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(content, default=str), status, media_type="application/json", headers={**PAGE, **(headers or {})}
    )
