"""A server's REST API, read with a client that says plainly what went wrong."""

from typing import Any

import httpx

from dashboard.reading import SourceError

TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class Upstream:
    """A client of one server. All methods raise SourceError where it does not answer as it should."""

    def __init__(self, name: str, address: str, login: tuple[str, str] | None) -> None:
        self.name = name
        self._http = httpx.AsyncClient(base_url=address.rstrip("/"), auth=login, timeout=TIMEOUT, trust_env=False)

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def get(self, path: str, /, **query: str) -> Any:
        """Return the JSON that a GET is answered with."""
        return await self._json("GET", path, params=query)

    async def post(self, path: str, /, body: dict[str, Any]) -> Any:
        """Return the JSON that a POST is answered with."""
        return await self._json("POST", path, json=body)

    async def find(self, path: str, /, **query: str) -> Any | None:
        """Return the JSON of a GET, or None where there is no such thing."""
        return await self._json("GET", path, missing_is_none=True, params=query)

    async def _json(self, method: str, path: str, /, *, missing_is_none: bool = False, **request: Any) -> Any:
        try:
            answer = await self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise SourceError(f"{self.name} does not answer.") from error
        if missing_is_none and answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise SourceError(f"{self.name} refuses this service's account ({answer.status_code}).")
        if not answer.is_success:
            raise SourceError(f"{self.name} answers with an error ({answer.status_code}).")
        try:
            return answer.json()
        except ValueError as error:
            raise SourceError(f"{self.name} answers with something that is not JSON.") from error
