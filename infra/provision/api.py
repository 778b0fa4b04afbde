"""HTTP clients of the servers that provisioning talks to; they retry what is safe to repeat.

Prefect's own client has retries too, and takes seconds to import: `make run` and an `up` with nothing to do go without.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry,
    retry_if_exception,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_exponential_jitter,
)

from infra.provision.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})
MAX_RETRY_SECONDS = 30.0
CONNECT_RETRIES = 5
# POST requests that only read: Prefect's and MLflow's.
READING_ENDINGS = ("/filter", "/count", "/search")
IDEMPOTENT = {"idempotent": True}
"""The `extensions` of a POST request that has an idempotency key."""


def backoff(state: RetryCallState) -> float:
    """Return the seconds to wait: what Retry-After asks for, or an exponential backoff with jitter."""
    outcome = state.outcome
    if outcome and not outcome.failed and isinstance(response := outcome.result(), httpx.Response):
        seconds = response.headers.get("retry-after", "")
        if seconds.isascii() and seconds.isdigit():
            return min(float(seconds), MAX_RETRY_SECONDS)
    return wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.2)(state)


def is_transient(error: BaseException) -> bool:
    """Return whether a request that failed with this error may succeed later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in TRANSIENT_STATUSES
    return isinstance(error, httpx.TransportError)


def retry_transient(function: Callable[P, T]) -> Callable[P, T]:
    """Repeat a function that looks for a resource and creates it where it is missing.

    Such a function is safe to repeat as a whole, also when the server carried out a request whose response was lost.
    """
    policy = retry(
        retry=retry_if_exception(is_transient), wait=backoff, stop=stop_after_delay(MAX_RETRY_SECONDS), reraise=True
    )
    return policy(function)


class RetryTransport(httpx.HTTPTransport):
    """Retries requests: all that found no connection, and idempotent ones after a lost or transient response."""

    def __init__(self) -> None:
        super().__init__(retries=CONNECT_RETRIES)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the last response when all attempts got a transient one."""
        if not is_idempotent(request):
            return super().handle_request(request)
        attempts = Retrying(
            retry=retry_if_exception_type(httpx.TransportError)
            | retry_if_result(lambda response: response.status_code in TRANSIENT_STATUSES),
            wait=backoff,
            stop=stop_after_delay(MAX_RETRY_SECONDS),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        response: httpx.Response = attempts(self._receive, request)
        return response

    def _receive(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.read()  # a connection that is lost midway counts as well
        return response


def is_idempotent(request: httpx.Request) -> bool:
    """Return whether a request may be sent twice; PATCH is always used with absolute values here."""
    if request.method != "POST":
        return True
    return request.url.path.endswith(READING_ENDINGS) or bool(request.extensions.get("idempotent"))


def http_client(base_url: str, auth: httpx.BasicAuth | None = None) -> httpx.Client:
    """Return a client that retries what is safe to repeat."""
    return httpx.Client(base_url=base_url, auth=auth, timeout=30, transport=RetryTransport())


def prefect_api(settings: Settings) -> httpx.Client:
    """Return a client of the Prefect server that the settings name."""
    login = settings.prefect_api_auth_string
    auth = httpx.BasicAuth(*login.get_secret_value().split(":", 1)) if login else None
    return http_client(settings.prefect_api_url, auth)


def find_deployments(api: httpx.Client, *names: str, tag: str | None = None) -> list[dict[str, Any]]:
    """Return deployments, each with its `full_name` FLOW/DEPLOYMENT.

    Args:
        api: Prefect's API.
        names: Only those of these names; without any, all.
        tag: Only those with this tag.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    query: dict[str, Any] = {}
    if names:
        query["name"] = {"any_": list(names)}
    if tag:
        query["tags"] = {"all_": [tag]}
    found = api.post("/deployments/filter", json={"deployments": query}).raise_for_status().json()
    flow_ids = list({deployment["flow_id"] for deployment in found})
    answer = api.post("/flows/filter", json={"flows": {"id": {"any_": flow_ids}}}).raise_for_status().json()
    flows = {flow["id"]: flow["name"] for flow in answer}
    return [{**deployment, "full_name": f"{flows[deployment['flow_id']]}/{deployment['name']}"} for deployment in found]


def create_flow_run(api: httpx.Client, deployment_id: str, idempotency_key: str, **body: Any) -> httpx.Response:
    """Create a run of a deployment; Prefect creates one for each idempotency key of a flow.

    Raises:
        httpx.HTTPError: Prefect did not answer.
    """
    content = {"idempotency_key": idempotency_key, **body}
    return api.post(f"/deployments/{deployment_id}/create_flow_run", json=content, extensions=IDEMPOTENT)
