"""The errors that the library raises: one tree, whose base is `TrainyardError`.

`transient` says whether the same call may succeed later; tasks with `trainyard.retries.RETRIES` retry those errors.
"""

from collections.abc import Mapping, Sequence


class TrainyardError(Exception):
    """The base of the library's errors; the message says what is wrong and what to do."""

    transient = False


class SourceError(TrainyardError):
    """A data source did not return the data that was asked for."""


class SourceUnreachableError(SourceError):
    """The source gave no complete response: no connection, a timeout, a response cut off, or a status of 5xx."""

    transient = True


class RateLimitedError(SourceError):
    """The source asks for fewer requests (429); `reason` is what it says about that, if anything."""

    transient = True

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class WaitTooLongError(SourceError):
    """The source asks for a pause that is longer than a run waits; the message says when to run again."""


class RefusedError(SourceError):
    """The source refused the request (4xx); a retry would be refused too."""


class BadAnswerError(SourceError):
    """The response is complete and unusable: it is not JSON, or too long."""


class DataError(TrainyardError, ValueError):
    """The data is missing or invalid; the message says which data, what is wrong and what to do.

    `problems` lists every problem, a row for each, where there are more than the message names.
    """

    def __init__(self, message: str, problems: Sequence[Mapping[str, str | int]] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class UnknownSubjectError(TrainyardError, ValueError):
    """There is no such subject (such as a place); the message says how to name one."""


class QueryError(TrainyardError, ValueError):
    """A parameter of a request is missing or invalid."""

    def __init__(self, parameter: str, rule: str) -> None:
        super().__init__(parameter, rule)
        self.parameter, self.rule = parameter, rule

    def __str__(self) -> str:
        return f"The parameter {self.parameter!r} {self.rule}."


class SearchError(TrainyardError):
    """No candidate could be evaluated; the message says why the first failed."""


class RegistryError(TrainyardError):
    """A change of the model registry is not possible; the message says why and what to do."""


class LockTimeoutError(TrainyardError, TimeoutError):
    """Another run held a lock for longer than the timeout."""


class ReproductionError(TrainyardError):
    """What a version was trained from is not kept; the message says which part."""


class TrackingUnreachableError(TrainyardError):
    """MLflow does not answer; the message says at which address and what to do."""

    transient = True


class UnsafeModelError(TrainyardError):
    """A model cannot be saved in a format that runs no code on loading; the message names what it holds."""


class HookError(TrainyardError):
    """A hook is declared wrongly or cannot be imported; the message names the file and the hook."""
