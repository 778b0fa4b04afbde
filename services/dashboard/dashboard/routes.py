"""The service's routes: sign-in, the page, the state that its script polls, and static files."""

import asyncio
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from dashboard.auth import Session
from dashboard.panels import make_panels
from dashboard.proxy import caller_address
from dashboard.selection import Selection
from dashboard.state import DashboardState, state_of
from dashboard.view import View

COOKIE = "trainyard_dashboard"
BROWSER_COOKIE, BROWSER_SECONDS = "trainyard_browser", 365 * 86_400
"""Names a browser in which somebody has signed in before."""
MAX_FORM_BYTES, FORM_SECONDS = 4096, 10.0


async def show_page(request: Request) -> Response:
    """Show the dashboard."""
    if current_session(request) is None:
        return RedirectResponse("/login", 303)
    state = state_of(request)
    view = await state.views.load(Selection.from_query(request.query_params))
    return HTMLResponse(render_page(state, view))


async def show_state(request: Request) -> Response:
    """Return the page's fingerprint and the time of each snapshot, for the script that updates the page."""
    if current_session(request) is None:
        return JSONResponse({"signed_in": False}, 401)
    view = await state_of(request).views.load(Selection.from_query(request.query_params))
    return JSONResponse({"state": view.fingerprint, "read_at": view.read_at})


async def refresh(request: Request) -> Response:
    """Refresh all snapshots and show the page."""
    if current_session(request) is None:
        return RedirectResponse("/login", 303)
    state_of(request).snapshots.expire()
    return RedirectResponse(Selection.from_query(request.query_params).url(), 303)


async def show_sign_in(request: Request) -> Response:
    """Show the sign-in form."""
    return RedirectResponse("/", 303) if current_session(request) else sign_in_form(request)


async def sign_in(request: Request) -> Response:
    """Start a session if user and password are right."""
    state, form = state_of(request), await read_form(request)
    address = await caller_address(request, state.proxy)
    # From here on nothing is awaited: of posts whose forms arrive together, each is counted before the next is checked.
    browser = state.sessions.verify_browser(request.cookies.get(BROWSER_COOKIE))
    caller = (address, browser)
    if seconds := state.sign_in_limiter.retry_after(*caller):
        problem = f"Too many failed attempts. Try again in {seconds:.0f} seconds."
        return sign_in_form(request, problem, 429, {"Retry-After": f"{seconds:.0f}"})
    if not state.sessions.check_credentials(form.get("user", ""), form.get("password", "")):
        state.sign_in_limiter.record_failure(*caller)
        return sign_in_form(request, "User or password is wrong. `make info` shows them.", 401)
    state.sign_in_limiter.reset(*caller)
    response = RedirectResponse("/", 303)
    is_secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(
        COOKIE,
        state.sessions.issue(),
        max_age=int(state.sessions.max_age_seconds),
        httponly=True,
        samesite="lax",
        secure=is_secure,
    )
    if browser is None:
        response.set_cookie(
            BROWSER_COOKIE,
            state.sessions.issue_browser(),
            max_age=BROWSER_SECONDS,
            path="/login",
            httponly=True,
            samesite="lax",
            secure=is_secure,
        )
    return response


async def sign_out(request: Request) -> Response:
    """End the session."""
    if session := current_session(request):
        state_of(request).sessions.revoke(session)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")
    return response


async def static_file(request: Request) -> Response:
    """Return a static file, compressed if the client accepts it."""
    file = state_of(request).static_files.get(request.path_params["name"])
    if file is None:
        return PlainTextResponse("There is no such file.", 404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.gzipped, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)


async def health(_: Request) -> Response:
    """Return 200 while the service runs, whether or not MLflow and Prefect answer."""
    return JSONResponse({"status": "alive"})


def current_session(request: Request) -> Session | None:
    """Return the session of a request's cookie; None if the caller is not signed in."""
    return state_of(request).sessions.verify(request.cookies.get(COOKIE))


def render_page(state: DashboardState, view: View) -> str:
    """Return the dashboard's HTML."""
    return state.templates.get_template("page.html").render(view=view, ui=state.ui, **make_panels(view, state.ui))


def sign_in_form(
    request: Request, problem: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return the sign-in form, with what was wrong with the last attempt."""
    return HTMLResponse(state_of(request).templates.get_template("login.html").render(problem=problem), status, headers)


async def read_form(request: Request) -> dict[str, Any]:
    """Return the fields of a URL-encoded form; none if it is longer than MAX_FORM_BYTES or does not arrive in time."""
    body = b""
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM_BYTES:
                    return {}
    except TimeoutError:
        return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


ROUTES = [
    Route("/", show_page),
    Route("/state", show_state),
    Route("/refresh", refresh, methods=["POST"]),
    Route("/login", show_sign_in),
    Route("/login", sign_in, methods=["POST"]),
    Route("/logout", sign_out, methods=["POST"]),
    Route("/static/{name}", static_file),
    Route("/health", health),
]
