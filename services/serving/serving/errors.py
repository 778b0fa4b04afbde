"""Errors of the service that no request caused; `serving.problems` has those that a request is answered with."""


class ServingError(Exception):
    """The base of the service's own errors."""


class RegistryError(ServingError):
    """MLflow did not answer, or not as documented; the next poll may succeed."""


class UnknownVersionError(RegistryError):
    """The registry has no such version of the model."""


class UnservableError(ServingError):
    """A version that cannot be served; the message says why. Loading it again would fail in the same way."""


class NoRoomError(ServingError):
    """A version that fits into memory only in place of others."""


class RecordsUnavailableError(ServingError):
    """The database of the recorded predictions did not answer."""
