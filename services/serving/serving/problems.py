"""What can be wrong with a request: each kind has its own status and code, and none shows a traceback."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_SHOWN = 20
"""A batch may be wrong in each of its cells; the first problems say enough."""

# Each code with the status it is answered with and the sentence of the documentation.
CODES: dict[str, tuple[int, str]] = {
    "malformed": (400, "The body is not of the format that Content-Type says."),
    "no-key": (401, "The API key is missing or wrong."),
    "unknown-model": (404, "No such model is registered."),
    "unknown-place": (404, "Open-Meteo knows no such place."),
    "no-forecast": (404, "The model is of no place, so there is nothing to forecast."),
    "not-recorded": (404, "Predictions are not recorded: a setting says so."),
    "too-many-rows": (413, "The batch has too many rows."),
    "body-too-large": (413, "The body is too large."),
    "content-type": (415, "Content-Type is none of those that are understood."),
    "invalid-rows": (422, "Rows do not fit the model's signature; `problems` names each field."),
    "not-finite": (422, "A number is NaN or infinite; `problems` names each field."),
    "refused-by-model": (422, "The rows fit the signature, and the estimator refuses them."),
    "invalid-query": (422, "A parameter of the query is missing or wrong; `problems` names it."),
    "weather-data": (502, "Open-Meteo's answer cannot be used."),
    "no-champion": (503, "The model has no champion that can be loaded."),
    "registry-unknown": (503, "MLflow has not answered yet, so no model is known."),
    "features-unfit": (503, "The flows' code does not make the features that the champion was fitted on."),
    "weather-down": (503, "Open-Meteo does not answer, or asks for fewer requests."),
    "records-down": (503, "The database of the predictions does not answer."),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field; the row counts from 0, and either may be unknown."""

    row: int | None
    field: str | None
    problem: str

    def as_json(self) -> dict[str, Any]:
        """Return what is known."""
        known = {"row": self.row, "field": self.field, "problem": self.problem}
        return {name: value for name, value in known.items() if value is not None}


class RequestError(Exception):
    """A request that is answered with a problem."""

    def __init__(self, code: str, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.problems = CODES[code][0], code, message, problems

    def as_json(self) -> dict[str, Any]:
        """Return the answer's body."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.problems:
            body["problems"] = [problem.as_json() for problem in self.problems[:MOST_SHOWN]]
        return body


def wrong_parameter(name: str, rule: str) -> RequestError:
    """Return the refusal of a query's parameter that breaks a rule, such as `is a number`."""
    return RequestError("invalid-query", f"The parameter {name!r} {rule}.", [Problem(None, name, rule)])
