"""What lies in the result storage: the folder of the cache, whose paths say how long an entry is kept, and results of runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from prefect.context import SyncClientContext
from prefect.filesystems import LocalFileSystem
from prefect.results import get_default_result_storage

FOLDER = "cache"
SUFFIX = "-days"
KEPT_DAYS_OF_OTHERS = 30.0
"""How long entries are kept whose path does not say it: those of releases before 0.3.0, of which none was kept longer."""


@dataclass(frozen=True)
class Stored:
    """A file or object of the result storage."""

    path: str
    """Below the storage's folder."""
    age: timedelta
    """Since it was written."""
    size: int
    """In bytes."""


def entry_path(days: float, task: str, digest: str) -> str:
    """Return the path of an entry: it says how long the entry is kept, so that its age tells whether it has expired."""
    return f"{FOLDER}/{days:g}{SUFFIX}/{task}/{digest}"


def kept_days(path: str) -> float:
    """Return for how many days the entry of a path is kept."""
    folder = PurePosixPath(path).relative_to(FOLDER).parts[0]
    try:
        return float(folder.removesuffix(SUFFIX)) if folder.endswith(SUFFIX) else KEPT_DAYS_OF_OTHERS
    except ValueError:
        return KEPT_DAYS_OF_OTHERS


def has_expired(stored: Stored) -> bool:
    """Return whether it is a cache entry that has expired, which its path and age tell: it is not read."""
    return stored.path.startswith(f"{FOLDER}/") and stored.age > timedelta(days=kept_days(stored.path))


def default_storage() -> Any:
    """Return the default result storage; outside a run Prefect asks for it by a client that it does not close."""
    with SyncClientContext.get_or_create():
        return get_default_result_storage(_sync=True)  # type: ignore[call-arg]


def list_stored() -> Iterator[Stored]:
    """Yield what lies in the default result storage; nothing of storages other than S3 and folders."""
    return (stored for stored, _ in _list())


def remove(is_removable: Callable[[Stored], bool]) -> list[Stored]:
    """Delete what is removable from the default result storage; return what was deleted."""
    removed = []
    for stored, delete in _list():
        if is_removable(stored):
            delete()
            removed.append(stored)
    return removed


def _list() -> Iterator[tuple[Stored, Callable[[], object]]]:
    """Yield what lies in the default result storage, each with the function that deletes it."""
    storage = default_storage()
    now = datetime.now(UTC)
    if isinstance(storage, LocalFileSystem):
        yield from _list_files(Path(str(storage.basepath)).expanduser(), now)
    elif hasattr(storage, "list_objects"):  # prefect_aws.S3Bucket, which only installations with an object store need
        yield from _list_objects(storage, now)


def _list_files(base: Path, now: datetime) -> Iterator[tuple[Stored, Callable[[], object]]]:
    for file in sorted(base.rglob("*")):
        if file.is_file():
            found = file.stat()
            age = now - datetime.fromtimestamp(found.st_mtime, UTC)
            yield Stored(file.relative_to(base).as_posix(), age, found.st_size), partial(file.unlink, missing_ok=True)


def _list_objects(storage: Any, now: datetime) -> Iterator[tuple[Stored, Callable[[], object]]]:
    client, folder = storage.credentials.get_s3_client(), storage.bucket_folder
    for each in storage.list_objects("", _sync=True):
        key = PurePosixPath(each["Key"])
        if key.is_relative_to(folder or "."):
            delete = partial(client.delete_object, Bucket=storage.bucket_name, Key=each["Key"])
            path = key.relative_to(folder or ".").as_posix()
            yield Stored(path, now - each["LastModified"], each["Size"]), delete
