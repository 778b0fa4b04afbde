"""A client of a server's REST API."""

from typing import Any

import httpx

from dashboard.snapshots import SourceError

TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class RestClient:
    """A client of one server; its methods return parsed JSON.

    Raises:
        SourceError: From every request: the server does not answer, refuses the account, or its answer is not JSON.
    """

    def __init__(
        self, name: str, base_url: str, login: tuple[str, str] | None = None, *, bearer: str | None = None
    ) -> None:
        self.name = name
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"), auth=login, headers=headers, timeout=TIMEOUT, trust_env=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, path: str, /, **query: str) -> Any:
        """Send a GET request."""
        return self._parse(await self._request("GET", path, params=query))

    async def post(self, path: str, /, body: dict[str, Any]) -> Any:
        """Send a POST request."""
        return self._parse(await self._request("POST", path, json=body))

    async def find(self, path: str, /, **query: str) -> Any | None:
        """Send a GET request; return None if the answer is 404."""
        response = await self._request("GET", path, params=query)
        return None if response.status_code == httpx.codes.NOT_FOUND else self._parse(response)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise SourceError(f"{self.name} does not answer.") from error

    def _parse(self, response: httpx.Response) -> Any:
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise SourceError(f"{self.name} refuses this service's account ({response.status_code}).")
        if not response.is_success:
            raise SourceError(f"{self.name} answers with an error ({response.status_code}).")
        try:
            return response.json()
        except ValueError as error:
            raise SourceError(f"{self.name} answers with something that is not JSON.") from error
