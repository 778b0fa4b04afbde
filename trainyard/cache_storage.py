"""The folder of the cache in the result storage: the paths of its entries, and the removal of those that have expired."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from prefect.filesystems import LocalFileSystem
from prefect.results import get_default_result_storage

FOLDER = "cache"
SUFFIX = "-days"
KEPT_DAYS_OF_OTHERS = 30.0
"""How long entries are kept whose path does not say it: those of releases before 0.3.0, of which none was kept longer."""


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


def remove_expired() -> int:
    """Delete the entries of the default result storage that have expired; return their number.

    Entries are told apart by their age and path, and not read. Of storages other than S3 and folders none is deleted.
    """
    storage: Any = get_default_result_storage(_sync=True)  # type: ignore[call-arg]
    now = datetime.now(UTC)
    if isinstance(storage, LocalFileSystem):
        return sum(_remove_files(Path(str(storage.basepath)).expanduser(), now))
    if hasattr(storage, "list_objects"):  # prefect_aws.S3Bucket, which only installations with an object store need
        return _remove_objects(storage, now)
    return 0


def _is_expired(path: str, written: datetime, now: datetime) -> bool:
    return now - written > timedelta(days=kept_days(path))


def _remove_files(base: Path, now: datetime) -> Iterator[bool]:
    for file in sorted((base / FOLDER).rglob("*")):
        if file.is_file():
            written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
            if _is_expired(file.relative_to(base).as_posix(), written, now):
                file.unlink(missing_ok=True)
                yield True


def _remove_objects(storage: Any, now: datetime) -> int:
    client, folder = storage.credentials.get_s3_client(), storage.bucket_folder
    removed = 0
    for each in storage.list_objects(f"{FOLDER}/", _sync=True):
        path = PurePosixPath(each["Key"]).relative_to(folder or ".").as_posix()
        if _is_expired(path, each["LastModified"], now):
            client.delete_object(Bucket=storage.bucket_name, Key=each["Key"])
            removed += 1
    return removed
