"""The application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from dashboard.middleware import SameOriginMiddleware, SecurityHeadersMiddleware
from dashboard.routes import ROUTES, render_page
from dashboard.selection import Selection
from dashboard.settings import Settings
from dashboard.state import DashboardState


def create_app(settings: Settings) -> Starlette:
    """Create the application."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(SecurityHeadersMiddleware), Middleware(SameOriginMiddleware)],
        lifespan=lifespan,
    )
    if settings.metrics_enabled:
        # Its memory is for those who want metrics.
        from trainyard.servers.request_metrics import RequestMetricsMiddleware

        app.add_middleware(RequestMetricsMiddleware, token=settings.metrics_token.get_secret_value())
    app.state.dashboard = DashboardState.from_settings(settings)
    return app


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Warm the caches in the background, and close the connections at shutdown."""
    state: DashboardState = app.state.dashboard
    warm_up = asyncio.create_task(warm_caches(state))
    yield
    warm_up.cancel()
    await state.close()


async def warm_caches(state: DashboardState) -> None:
    """Load the snapshots of the default view, and render it once, which compiles the templates."""
    while (view := await state.views.load(Selection())).is_pending:
        await asyncio.sleep(1)
    render_page(state, view)
