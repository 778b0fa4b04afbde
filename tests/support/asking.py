"""Predictions that are asked for without a pause, while something else happens to the installation."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from infra.testing.stack import NO_IDLE_CONNECTIONS, Stack
from tests.support.installation import MODEL
from trainyard.contract import ServingPath

PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Failure:
    """A request without a prediction."""

    start: float
    end: float
    reason: str


class Asking:
    """While it is entered, asks the champion for its example's prediction, each time over a new connection."""

    def __init__(self, stack: Stack, prediction: dict[str, Any]) -> None:
        variables = stack.variables()
        self._address = variables["SERVING_URL"]
        self._headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
        self._version = str(prediction["version"])
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answers = 0
        self.failures: list[Failure] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(
            base_url=self._address, headers=self._headers, timeout=30, limits=NO_IDLE_CONNECTIONS
        ) as client:
            example = client.get(ServingPath.MODELS).raise_for_status().json()["models"][MODEL]["example"]
            while not self._end.wait(PAUSE_SECONDS):
                start = time.monotonic()
                if reason := self._ask_once(client, example):
                    self.failures.append(Failure(start, time.monotonic(), reason))
                else:
                    self.answers += 1

    def _ask_once(self, client: httpx.Client, example: dict[str, Any]) -> str:
        """Return why there is no prediction, or an empty text."""
        try:
            answer = client.post(ServingPath.of_model(MODEL, "predict"), json=example)
        except httpx.TransportError as error:
            return type(error).__name__
        if answer.status_code != httpx.codes.OK:
            return f"{answer.status_code}: {answer.text}"
        body = answer.json()
        is_answered = body["predictions"] and str(body["version"]) == self._version
        return "" if is_answered else f"not a prediction of version {self._version}: {body}"
