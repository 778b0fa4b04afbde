"""The objects of the installation's buckets: read in order, and written where they are not there already."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from infra.backup.archive import Member, Writer
from infra.backup.errors import BackupError
from infra.object_store import ObjectStore
from trainyard.contract import Bucket

BUCKETS = (Bucket.MLFLOW, Bucket.RESULTS)
THREADS, AHEAD = 4, 16
# Objects up to these sizes are read, or written in a restore, by several threads, with some (AHEAD) in memory; larger ones are
# streamed one after the other. The service that reads has less memory than a restore.
MAX_SMALL_BYTES, MAX_RESTORED_BYTES = 1 << 20, 16 << 20
# The parts of boto3: a restored object then has the ETag that it had, and a repeated restore does not send it again.
UPLOAD_PART_BYTES = 8 << 20
MAX_DELETED_AT_ONCE = 1000
ETAG, CONTENT_TYPE, META = "TRAINYARD.etag", "TRAINYARD.content-type", "TRAINYARD.meta."

T = TypeVar("T")
R = TypeVar("R")


class Listed(NamedTuple):
    """An object of a listing; sorted, the oldest comes first."""

    modified: int
    name: str
    bucket: str
    size: int
    etag: str


class Objects:
    """The installation's objects, as an account of the store sees them."""

    def __init__(self, store: ObjectStore, user: str, password: str) -> None:
        self.client = store.connect(user, password)
        self._store = store

    def locate(self, bucket: str, name: str) -> tuple[str, str]:
        """Return where an object is: the store's bucket, and its name there."""
        actual, folder = self._store.locate(bucket)
        return actual, folder + name

    def list_bucket(self, bucket: str) -> Iterator[Listed]:
        """Yield the objects of one of the installation's buckets."""
        actual, folder = self._store.locate(bucket)
        for entry in self.client.list_objects(bucket_name=actual, prefix=folder or None, recursive=True):
            assert entry.object_name is not None
            assert entry.last_modified is not None
            modified, name = int(entry.last_modified.timestamp()), entry.object_name.removeprefix(folder)
            yield Listed(modified, name, bucket, entry.size or 0, (entry.etag or "").strip('"'))

    def list_all(self) -> list[Listed]:
        """Return the objects of all buckets, the oldest first."""
        return sorted(entry for bucket in BUCKETS for entry in self.list_bucket(bucket))

    def make_buckets(self) -> None:
        """Create the buckets that are missing; the bucket of an external S3 is its owner's."""
        for bucket in () if self._store.is_external else BUCKETS:
            if not self.client.bucket_exists(bucket_name=bucket):
                self.client.make_bucket(bucket_name=bucket)

    def remove(self, bucket: str, names: Iterable[str]) -> None:
        """Delete objects.

        Raises:
            BackupError: The store refused.
        """
        actual, folder = self._store.locate(bucket)
        doomed = (DeleteObject(folder + name) for name in names)
        while batch := list(islice(doomed, MAX_DELETED_AT_ONCE)):
            for error in self.client.remove_objects(bucket_name=actual, delete_object_list=batch):
                raise BackupError(f"an object could not be deleted: {error.code} {error.message}")


def write_objects(objects: Objects, archive: Writer, listed: Iterable[Listed]) -> None:
    """Add objects to a backup. With the oldest first, new ones change its end only.

    Objects that are deleted meanwhile are left out: no row named them any more.

    Raises:
        minio.error.MinioException: The store refused a request.
        urllib3.exceptions.HTTPError: The store did not answer.
    """

    def prefetch(entry: Listed) -> tuple[Listed, Any]:
        return entry, open_object(objects, entry, preload=True) if entry.size <= MAX_SMALL_BYTES else None

    for entry, response in map_ahead(prefetch, listed):
        if entry.size > MAX_SMALL_BYTES:
            response = open_object(objects, entry)
        if response is not None:
            with closing(response):
                add_object(archive, entry, response)


def open_object(objects: Objects, entry: Listed, *, preload: bool = False) -> Any:
    """Return the response with an object, with its content in memory if asked for; None if the object is gone."""
    try:
        bucket, name = objects.locate(entry.bucket, entry.name)
        response = objects.client.get_object(bucket_name=bucket, object_name=name)
    except S3Error as error:
        if error.code == "NoSuchKey":
            return None
        raise
    if preload:
        response.data  # noqa: B018 - reads it
        response.release_conn()
    return response


def add_object(archive: Writer, entry: Listed, response: Any) -> None:
    """Add one object, as it is now, to a backup."""
    headers = {ETAG: response.headers["ETag"].strip('"')}
    if "Content-Type" in response.headers:
        headers[CONTENT_TYPE] = response.headers["Content-Type"]
    for name, value in response.headers.items():
        if name.lower().startswith("x-amz-meta-"):
            headers[META + name.lower().removeprefix("x-amz-meta-")] = value
    name = f"objects/{entry.bucket}/{entry.name}"
    if entry.size <= MAX_SMALL_BYTES:
        data = response.data
        archive.add_stream(name, io.BytesIO(data), len(data), modified=entry.modified, headers=headers)
    else:
        size = int(response.headers["Content-Length"])
        archive.add_stream(name, response, size, modified=entry.modified, headers=headers)


class Restoration:
    """Brings the buckets to what a backup holds: first adds, and deletes what is not in it at the very end."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        objects.make_buckets()
        self._present = {
            (entry.bucket, entry.name): entry for bucket in BUCKETS for entry in objects.list_bucket(bucket)
        }
        self._restored: set[tuple[str, str]] = set()
        self.sent = 0

    def add(self, members: Iterable[Member]) -> None:
        """Write the objects that are missing or different.

        Raises:
            minio.error.MinioException: The store refused a request.
            urllib3.exceptions.HTTPError: The store did not answer.
            BackupError: The backup is damaged.
        """
        for _ in map_ahead(self._put_small, self._small_ones(members)):
            pass

    def _small_ones(self, members: Iterable[Member]) -> Iterator[tuple[Member, bytes]]:
        """Send large objects, and yield the small ones, which may be sent at once."""
        for member in members:
            _, bucket, name = member.name.split("/", 2)
            if bucket not in BUCKETS:
                raise BackupError(f"the backup has objects of an unknown bucket, {bucket}.")
            self._restored.add((bucket, name))
            present = self._present.get((bucket, name))
            if present and (present.size, present.etag) == (member.size, member.headers.get(ETAG)):
                continue
            self._present.pop((bucket, name), None)  # a later member may be the same object as it was before
            self.sent += 1
            if member.size <= MAX_RESTORED_BYTES:
                yield member, member.read()
            else:
                self._put(member, member.stream)

    def _put_small(self, item: tuple[Member, bytes]) -> None:
        member, data = item
        self._put(member, io.BytesIO(data))

    def _put(self, member: Member, stream: Any) -> None:
        _, bucket, name = member.name.split("/", 2)
        metadata = {key.removeprefix(META): value for key, value in member.headers.items() if key.startswith(META)}
        actual, actual_name = self._objects.locate(bucket, name)
        self._objects.client.put_object(
            bucket_name=actual,
            object_name=actual_name,
            data=stream,
            length=member.size,
            content_type=member.headers.get(CONTENT_TYPE, "application/octet-stream"),
            metadata=dict(metadata) or None,
            part_size=UPLOAD_PART_BYTES,
        )

    def delete_others(self) -> int:
        """Delete the objects that are not in the backup; return how many.

        Raises:
            BackupError: The store refused.
        """
        others = sorted(self._present.keys() - self._restored)
        for bucket in BUCKETS:
            self._objects.remove(bucket, (name for where, name in others if where == bucket))
        return len(others)


def map_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the function's results in the order of the items, a few of which are worked on at once."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
