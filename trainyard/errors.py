"""Errors that the library raises: one tree, whose base callers catch.

`transient` says whether the same call may succeed later; Prefect retries those (`trainyard.retries`).
"""

from collections.abc import Mapping, Sequence


class TrainyardError(Exception):
    """The base of the library's errors; the message says what is wrong and what to do."""

    transient = False


class SourceError(TrainyardError):
    """A source of data did not deliver."""


class SourceUnreachableError(SourceError):
    """The source gave no whole answer: no connection, a timeout, a cut, or a fault of its own (5xx)."""

    transient = True


class RateLimitedError(SourceError):
    """The source asks for fewer requests (429)."""

    transient = True


class WaitTooLongError(SourceError):
    """The source asks for a pause that is longer than a run waits; the message says until when."""


class RefusedError(SourceError):
    """The source refused the request (4xx) and would refuse it again."""


class BadAnswerError(SourceError):
    """The answer is complete and cannot be used: it is not JSON, or too long."""


class DataError(TrainyardError, ValueError):
    """The data cannot be used; the message says where it is from, what is wrong and what to do.

    `problems` lists all that is wrong, a row each, where there is more than the message says.
    """

    def __init__(self, message: str, problems: Sequence[Mapping[str, str | int]] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class UnknownSubjectError(TrainyardError, ValueError):
    """There is no such subject, such as a place; the message says how to name one."""


class QueryError(TrainyardError, ValueError):
    """A parameter of a request is missing or wrong."""

    def __init__(self, parameter: str, rule: str) -> None:
        super().__init__(parameter, rule)
        self.parameter, self.rule = parameter, rule

    def __str__(self) -> str:
        return f"The parameter {self.parameter!r} {self.rule}."


class SearchError(TrainyardError):
    """No candidate could be evaluated; the message says why the first failed."""


class RegistryError(TrainyardError):
    """The registry cannot do what was asked; the message says why and what can be done."""


class LockTimeoutError(TrainyardError, TimeoutError):
    """Another run holds a lock for longer than this one waits."""


class TrackingUnreachableError(TrainyardError):
    """MLflow does not answer; the message says at which address and what to do."""

    transient = True


class HookError(TrainyardError):
    """A hook is declared wrongly or cannot be imported; the message names the file and the hook."""
