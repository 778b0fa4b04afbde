"""Valid and invalid requests, generated from the service's OpenAPI document; responses must conform to it."""

import warnings
from collections.abc import Callable
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import HypothesisDeprecationWarning
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.support.champions import HEADERS

FUZZING = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def write_integers(value: Any) -> Any:
    """Return a body whose whole numbers have no decimal point: to JSON Schema 1.0 is an integer, to the service not."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [write_integers(item) for item in value]
        case dict():
            return {name: write_integers(item) for name, item in value.items()}
    return value


def fuzz(address: str, path: str, mode: GenerationMode, accept: Callable[[int], bool]) -> None:
    """Send generated requests to a path of the document; `accept` says which statuses are right."""
    document = httpx.get(f"{address}/openapi.json").json()
    for operation in document["paths"][path].values():
        del operation["security"]  # schemathesis would break the key rather than the rest
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]
            operation["requestBody"]["content"] = {"application/json": content["application/json"]}
    (found,) = schemathesis.openapi.from_dict(document).include(path=path).get_all_operations()
    strategy = found.ok().as_strategy(generation_mode=mode)  # type: ignore[union-attr] # our own document is valid

    @FUZZING
    @given(case=strategy)
    def ask(case: Any) -> None:
        case.body = write_integers(case.body)
        answer = case.call(base_url=address, headers=HEADERS)
        assert accept(answer.status_code), answer.text
        case.validate_response(answer, checks=[response_schema_conformance, status_code_conformance])

    with warnings.catch_warnings():
        # Threads that other tests have left in this process draw random numbers; Hypothesis ascribes them to its strategy.
        warnings.filterwarnings("ignore", "Do not use the `random` module", HypothesisDeprecationWarning)
        ask()
