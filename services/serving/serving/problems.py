"""Problems that a request is answered with: each code has its status, and none shows a traceback."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from serving.errors import ServingError

MAX_PROBLEMS = 20
"""A batch may be wrong in each of its cells; the first problems are enough to correct it."""

# The status of each code, and its sentence in the OpenAPI document.
CODES: dict[str, tuple[int, str]] = {
    "malformed": (400, "The body is not of the format that Content-Type names."),
    "no-key": (401, "The API key is missing or wrong."),
    "unknown-model": (404, "No such model is registered."),
    "unknown-version": (404, "The model has no such version."),
    "unknown-subject": (404, "The query names a subject that the model's project does not know."),
    "unknown-prediction": (404, "There is no recorded prediction with the id of a label; `problems` names each label."),
    "no-forecast": (404, "No project declares live features for the model."),
    "not-recorded": (404, "Predictions are not recorded: a setting turns it off."),
    "too-slow": (408, "The body did not arrive in time."),
    "too-many-rows": (413, "The batch has too many rows."),
    "body-too-large": (413, "The body is too large."),
    "content-type": (415, "Content-Type is not supported."),
    "invalid-rows": (422, "Rows do not fit the model's signature; `problems` names each field."),
    "not-finite": (422, "A number is NaN or infinite; `problems` names each field."),
    "invalid-labels": (422, "Labels do not fit their predictions; `problems` names each, and none is stored."),
    "refused-by-model": (422, "The rows fit the signature, and the estimator refuses them."),
    "invalid-query": (422, "A parameter of the query is missing or wrong; `problems` names it."),
    "source-data": (502, "The source of the live features sent data that cannot be used."),
    "overloaded": (503, "More requests wait than can be answered soon; Retry-After says when to try again."),
    "no-champion": (503, "The model has no champion that can be served."),
    "unservable": (503, "The version cannot be served; the message says why."),
    "version-down": (503, "MLflow does not answer, so the version cannot be fetched."),
    "loading": (503, "The model is being loaded; Retry-After says when to try again."),
    "registry-unknown": (503, "MLflow has not answered yet, so no model is known."),
    "features-unfit": (503, "The project's hook fails, or makes other features than the champion was fitted on."),
    "source-down": (503, "The source of the live features does not answer, or asks for fewer requests."),
    "records-down": (503, "The database of the recorded predictions does not answer."),
}


RETRY_AFTER_SECONDS = {"loading": 2, "overloaded": 1}
"""By code, what the header Retry-After says."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of one row; rows count from 0, and either may be unknown."""

    problem: str
    field: str | None = None
    row: int | None = None


@dataclass(frozen=True)
class ProblemBody:
    """The body of an answer to a request that failed."""

    code: str
    message: str
    problems: list[Problem] = field(default_factory=list)


class RequestError(ServingError):
    """A request that is answered with a problem."""

    def __init__(self, code: str, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.problems = CODES[code][0], code, message, problems

    def as_json(self) -> dict[str, Any]:
        """Return the answer's body, without what is unknown."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.problems:
            body["problems"] = [
                {name: value for name, value in asdict(problem).items() if value is not None}
                for problem in self.problems[:MAX_PROBLEMS]
            ]
        return body


def document_problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for the problems that a path may be answered with."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, sentence = CODES[code]
        response = responses.setdefault(status, {"model": ProblemBody, "description": ""})
        response["description"] += f"{' Or: ' if response['description'] else ''}`{code}`: {sentence}"
    return responses
