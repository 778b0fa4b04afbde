"""Signed cache entries: what others have written into the result storage is never unpickled.

An entry is the JSON of Prefect's `ResultRecord` with one more member, a signature (HMAC-SHA-256) by a key of the
installation over its path and all of its content. docs/decisions/0018-signed-cache-entries.md says why.
"""

import hmac
import json
import os
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from prefect.filesystems import WritableFileSystem
from prefect.settings import PREFECT_HOME
from pydantic import PrivateAttr, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIN_KEY_LENGTH = 32
KEY_FILE = "cache-signing-key"


class SigningSettings(BaseSettings):
    """The key that signs cache entries."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    cache_signing_key: SecretStr | None = None
    """Shared by all workers of an installation; without it, one is kept in Prefect's home, for the processes that share that."""


class UnsignedEntryError(ValueError):
    """The entry has no valid signature: it is damaged, or this installation did not write it."""


def signing_key() -> bytes:
    """Return the key that signs cache entries; create the file of one where the environment names none."""
    if given := SigningSettings().cache_signing_key:
        return given.get_secret_value().encode()
    return _key_of_home(PREFECT_HOME.value() / KEY_FILE)


@lru_cache
def _key_of_home(file: Path) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not file.exists():
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
            opened.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another process was faster
            os.link(temporary, file)
        temporary.unlink()
    return file.read_bytes()


def sign(key: str, metadata: str, result: str) -> str:
    """Return the signature (hexadecimal) of an entry.

    Args:
        key: The path of the entry in the storage, so that an entry is not valid under another one.
        metadata: The JSON of Prefect's metadata: the serializer, and when the entry expires.
        result: The serialized result.
    """
    content = json.dumps([key, metadata, result]).encode()
    return hmac.digest(signing_key(), content, "sha256").hex()


class Entry:
    """One cache entry, read from the storage once.

    Args:
        storage: The result storage.
        key: The path of the entry in it.
    """

    def __init__(self, storage: Any, key: str) -> None:
        self.storage, self.key = storage, key
        self._content: tuple[bytes, bytes] | None = None
        self._error: Exception | None = None
        self._results: dict[str, bytes] = {}  # by the last part of the path, until their metadata follow

    def load(self) -> tuple[bytes, bytes]:
        """Return metadata and result.

        Raises:
            UnsignedEntryError: The entry is damaged, or this installation did not write it.
            Exception: There is none; each storage has its own error.
        """
        if self._error:
            raise self._error
        try:
            self._content = self._content or _verify(self.key, self.storage.read_path(self.key, _sync=True))
        except Exception as error:
            self._error = error
            raise
        return self._content

    @property
    def is_loaded(self) -> bool:
        """Whether there is an entry with a valid signature."""
        return self._content is not None and self._error is None

    def forget(self) -> None:
        """Treat the entry as missing from now on."""
        self._error = UnsignedEntryError("it cannot be used")

    def keep(self, path: str, result: bytes) -> None:
        """Keep a result until its metadata follow."""
        self._results[Path(path).name] = result

    def write(self, path: str, metadata: bytes) -> None:
        """Sign and write an entry: this one, or another of a task that runs within the cached one."""
        record = {"metadata": json.loads(metadata), "result": self._results.pop(Path(path).name).decode()}
        signature = sign(path, json.dumps(record["metadata"]), record["result"])
        self.storage.write_path(path, content=json.dumps({**record, "signature": signature}).encode(), _sync=True)


def _verify(key: str, content: bytes) -> tuple[bytes, bytes]:
    try:
        record = json.loads(content)
        metadata, result, signature = json.dumps(record["metadata"]), record["result"], record["signature"]
        is_valid = hmac.compare_digest(sign(key, metadata, result), signature)
    except (ValueError, LookupError, TypeError) as error:
        raise UnsignedEntryError("it is damaged or has no signature") from error
    if not is_valid:
        raise UnsignedEntryError("its signature is not of this installation")
    return metadata.encode(), result.encode()


class _Part(WritableFileSystem):
    """A part of an entry in the form of Prefect's storages, of which a result store may have one for each part."""

    _entry: Entry | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Return the part of an entry."""
        part = cls()
        part._entry = entry
        part._block_document_id = getattr(entry.storage, "_block_document_id", None)
        return part

    @property
    def entry(self) -> Entry:
        """The entry."""
        assert self._entry is not None
        return self._entry

    def _resolve_path(self, path: str) -> Any:
        resolve = getattr(self.entry.storage, "_resolve_path", None)
        return resolve(path) if resolve else None


class ResultPart(_Part):
    """The result of an entry."""

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]  # noqa: ARG002
        """Return the result."""
        return self.entry.load()[1]

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]
        """Keep the result until its metadata follow."""
        self.entry.keep(path, content)


class MetadataPart(_Part):
    """The metadata of an entry."""

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]  # noqa: ARG002
        """Return the metadata."""
        return self.entry.load()[0]

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]
        """Write the entry."""
        self.entry.write(path, content)


def unwrap(storage: Any) -> Any:
    """Return the storage of which a part of an entry is made; None where another process made the part."""
    while isinstance(storage, _Part):
        storage = storage._entry.storage if storage._entry else None
    return storage
