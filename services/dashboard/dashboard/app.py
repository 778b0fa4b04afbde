"""The service's pages: sign-in, the dashboard, and what its script asks for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from dashboard.guard import Guard
from dashboard.mlflow_source import MLflowSource
from dashboard.models import Links
from dashboard.prefect_source import PrefectSource
from dashboard.reading import Readings
from dashboard.rendering import load_files, make_templates
from dashboard.sessions import Session, Sessions, Tries
from dashboard.settings import Settings
from dashboard.upstream import Upstream
from dashboard.view import Choice, View, Viewer, calibration_panel, model_panels, monitoring_panels, platform_panels

COOKIE = "trainyard_dashboard"
MOST_FORM_BYTES = 4096


class Pages:
    """What the routes answer."""

    def __init__(self, settings: Settings) -> None:
        login = settings.prefect_api_auth_string.get_secret_value() if settings.prefect_api_auth_string else ""
        user, _, password = login.partition(":")
        account = settings.mlflow_tracking_username
        self._upstreams = (
            Upstream(
                "MLflow",
                settings.mlflow_tracking_uri,
                (account, settings.mlflow_tracking_password.get_secret_value()) if account else None,
            ),
            Upstream("Prefect", settings.prefect_api_url, (user, password) if login else None),
        )
        self._readings = Readings(settings.dashboard_cache_seconds)
        self._viewer = Viewer(
            MLflowSource(self._upstreams[0]), PrefectSource(self._upstreams[1]), self._readings, settings.dashboard_rows
        )
        self._links = Links(settings.mlflow_ui_url.rstrip("/"), settings.prefect_ui_url.rstrip("/"))
        self._sessions = Sessions(
            settings.dashboard_user,
            settings.dashboard_password.get_secret_value(),
            settings.dashboard_session_key.get_secret_value(),
            settings.dashboard_session_seconds,
        )
        self._seconds = int(settings.dashboard_session_seconds)
        self._tries = Tries()
        self._files = load_files(settings.dashboard_bundle)
        self._templates = make_templates(self._files)

    @asynccontextmanager
    async def run(self, _: Starlette) -> AsyncIterator[None]:
        """Read the first view before anybody asks, and end the connections at last."""
        first = asyncio.create_task(self._warm())
        yield
        first.cancel()
        await self._readings.close()
        for upstream in self._upstreams:
            await upstream.close()

    async def home(self, request: Request) -> Response:
        """Show the dashboard."""
        if self._session(request) is None:
            return RedirectResponse("/login", 303)
        return self._show(await self._viewer.view(Choice.of(request.query_params)))

    async def state(self, request: Request) -> Response:
        """Tell the page's script whether the page is still right, and how old its readings are."""
        if self._session(request) is None:
            return JSONResponse({"signed_in": False}, 401)
        view = await self._viewer.view(Choice.of(request.query_params))
        return JSONResponse({"state": view.fingerprint, "read_at": view.read_at})

    async def refresh(self, request: Request) -> Response:
        """Read everything anew and show it."""
        if self._session(request) is None:
            return RedirectResponse("/login", 303)
        self._readings.expire()
        return RedirectResponse(Choice.of(request.query_params).address(), 303)

    async def ask(self, request: Request) -> Response:
        """Show the form to sign in with."""
        return RedirectResponse("/", 303) if self._session(request) else self._page("login.html", problem="")

    async def sign_in(self, request: Request) -> Response:
        """Begin a session, or say that user or password are wrong."""
        address = request.client.host if request.client else ""
        if wait := self._tries.wait(address):
            problem = f"Too many wrong tries. Try again in {wait:.0f} seconds."
            return self._page("login.html", 429, {"Retry-After": f"{wait:.0f}"}, problem=problem)
        form = await read_form(request)
        if not self._sessions.is_right(form.get("user", ""), form.get("password", "")):
            self._tries.wrong(address)
            return self._page("login.html", 401, problem="User or password is wrong. `make info` shows them.")
        self._tries.right(address)
        answer = RedirectResponse("/", 303)
        secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        answer.set_cookie(
            COOKIE, self._sessions.begin(), max_age=self._seconds, httponly=True, samesite="lax", secure=secure
        )
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        if session := self._session(request):
            self._sessions.end(session)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="lax")
        return answer

    async def file(self, request: Request) -> Response:
        """Return a static file; its address changes with it, so browsers may keep it."""
        found = self._files.get(request.path_params["name"])
        if found is None:
            return Response("There is no such file.", 404, media_type="text/plain")
        plain, small, media_type = found
        headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(small, headers={**headers, "Content-Encoding": "gzip"}, media_type=media_type)
        return Response(plain, headers=headers, media_type=media_type)

    async def health(self, _: Request) -> Response:
        """Answer while the service is alive, whatever the servers behind it do."""
        return JSONResponse({"status": "alive"})

    async def _warm(self) -> None:
        """Make the first page before anybody asks: the first chart is the slowest."""
        while (view := await self._viewer.view(Choice())).pending:
            await asyncio.sleep(1)
        self._show(view)

    def _show(self, view: View) -> Response:
        return self._page(
            "page.html",
            view=view,
            links=self._links,
            model=model_panels(view, self._links),
            calibration=calibration_panel(view),
            monitoring=monitoring_panels(view, self._links),
            platform=platform_panels(view, self._links),
        )

    def _session(self, request: Request) -> Session | None:
        return self._sessions.read(request.cookies.get(COOKIE))

    def _page(self, name: str, status: int = 200, headers: dict[str, str] | None = None, **given: Any) -> Response:
        return HTMLResponse(self._templates.get_template(name).render(given), status, headers)


async def read_form(request: Request) -> dict[str, str]:
    """Return a small form's fields; nothing of one that is larger or no form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_FORM_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def create_app(settings: Settings) -> Starlette:
    """Return the service."""
    pages = Pages(settings)
    routes = [
        Route("/", pages.home),
        Route("/state", pages.state),
        Route("/refresh", pages.refresh, methods=["POST"]),
        Route("/login", pages.ask, methods=["GET"]),
        Route("/login", pages.sign_in, methods=["POST"]),
        Route("/logout", pages.sign_out, methods=["POST"]),
        Route("/static/{name}", pages.file),
        Route("/health", pages.health),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard)], lifespan=pages.run)
