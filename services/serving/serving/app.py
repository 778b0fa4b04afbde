"""The application: its routers, and the service's life around it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from serving.api import forecasts, inference, labels, mlflow_scoring, openapi, predictions, records, shadows, status
from serving.handlers import add_handlers
from serving.service import Service
from serving.settings import Settings


@asynccontextmanager
async def run_service(app: FastAPI) -> AsyncIterator[None]:
    """Run the service while the application runs."""
    service: Service = app.state.service
    service.start()
    yield
    service.stop()


def create_app(settings: Settings) -> FastAPI:
    """Return the application; while it runs it follows the registry."""
    app = FastAPIOffline(
        title="Trainyard serving",
        description="Predictions of the registry's champions. The paths of models change with them.",
        version="1",
        lifespan=run_service,
        redoc_url=None,
        static_url="/docs/files",
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service = Service.create(settings)
    # The busiest routes are matched first, and directly: an included router would add some percent to a request.
    app.router.routes[:0] = [r for module in (predictions, inference, mlflow_scoring) for r in module.router.routes]
    for router in (forecasts.router, labels.router, records.router, shadows.router, status.router, inference.public):
        app.include_router(router)
    app.openapi = openapi.Documents(app, service).get  # type: ignore[method-assign] # FastAPI's own way
    add_handlers(app)
    return app
