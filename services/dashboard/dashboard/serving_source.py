"""Queries to serving: the requests that it answered, and how the challenger would have answered them."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from dashboard.rest import RestClient
from trainyard.contract import ServingPath


class ServingSource:
    """Queries to serving.

    Raises:
        SourceError: From every method: serving does not answer as it should.
    """

    def __init__(self, client: RestClient) -> None:
        self._serving = client

    async def read_traffic(self) -> list[dict[str, Any]]:
        """Return the last hour's requests by model and version, as `ServingPath.TRAFFIC` lists them."""
        traffic: list[dict[str, Any]] = (await self._serving.get(ServingPath.TRAFFIC))["traffic"]
        return traffic

    async def read_shadow(self, model: str, seconds: float = math.inf) -> dict[str, Any] | None:
        """Return how the challenger's shadow predictions compare with the champion's; None where none are recorded.

        Args:
            model: The registered model.
            seconds: Only predictions of the last seconds.
        """
        query = {}
        if math.isfinite(seconds):
            query["since"] = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
        found: dict[str, Any] | None = await self._serving.find(ServingPath.of_model(model, "shadow"), **query)
        return found
