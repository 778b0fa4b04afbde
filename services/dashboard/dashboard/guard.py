"""What stands before every page: security headers, and no forms from other sites."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Puts the security headers on every answer and refuses posts that other sites' pages make."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                names = {name for name, _ in message["headers"]}
                kept = [] if b"cache-control" in names else [(b"cache-control", b"no-store")]
                message = {**message, "headers": [*message["headers"], *given, *kept]}
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and not is_from_here(Headers(scope=scope)):
            refusal = Response("This form was sent from another site.", 403, media_type="text/plain")
            await refusal(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)


def is_from_here(headers: Headers) -> bool:
    """Tell whether a browser says that one of our own pages makes a request."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    # Browsers leave that header out of plain HTTP to other names than localhost, but never this one.
    return urlsplit(headers.get("origin", "")).netloc.lower() == headers.get("host", "-").lower()
