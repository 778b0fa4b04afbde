"""Make clients of MLflow send and fetch every artifact through the server, which passes uploads on while they arrive.

Over S3, MLflow's server offers its clients presigned URLs: for downloads, and for uploads of large files. They name the
object store as the server sees it, which no client here can reach: a download would hang for two minutes and fail,
unless each client set a variable that turns this off. MLflow makes the offer for repositories with its multipart mixins;
this one stores in S3 without them. Remove it when the server can turn the offer off (MLflow 3.18), and when MLflow's own
repository takes streams.
"""

import asyncio
import posixpath
from collections.abc import AsyncIterable
from mimetypes import guess_type
from typing import Any, BinaryIO

from boto3.s3.transfer import TransferConfig
from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository, StreamUploadMixin
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from mlflow_server.body import Body

# Of a larger file so many bytes are a part, as boto3 has it; S3 takes 10,000 parts. Some parts are in memory at once.
PART_BYTES, MAX_PARTS_IN_MEMORY = 8 << 20, 4
PARTS = TransferConfig(
    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=MAX_PARTS_IN_MEMORY
)
PARTS.max_in_memory_upload_chunks = MAX_PARTS_IN_MEMORY


class ProxiedS3ArtifactRepository(ArtifactRepository, StreamUploadMixin):
    """MLflow's own S3 repository without its multipart mixins, and with uploads as a stream."""

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self._s3 = S3ArtifactRepository(artifact_uri, *args, **kwargs)

    async def log_artifact_from_async_stream(
        self, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Upload a file below `artifact_path` while it arrives; one that does not arrive completely is not stored.

        Args:
            chunks: The file's bytes.
            artifact_file_name: Its name.
            artifact_path: The folder.

        Raises:
            botocore.exceptions.ClientError: The object store refused a request.
            boto3.exceptions.S3UploadFailedError: The same, of a file in parts, of which none stays.
            starlette.requests.ClientDisconnect: The client went away.
        """
        body = Body(chunks)
        first = await body.peek(PART_BYTES)
        if len(first) < PART_BYTES:
            await asyncio.to_thread(self._put, first, artifact_file_name, artifact_path)
        else:
            await asyncio.to_thread(self._send, body, artifact_file_name, artifact_path)

    def log_artifact_from_stream(
        self, stream: BinaryIO, artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Upload a file below `artifact_path` from a stream."""
        self._send(stream, artifact_file_name, artifact_path)

    def _put(self, content: bytes, name: str, folder: str | None) -> None:
        bucket, key, further = self._locate(name, folder)
        self._client().put_object(Bucket=bucket, Key=key, Body=content, **further)

    def _send(self, stream: Body | BinaryIO, name: str, folder: str | None) -> None:
        bucket, key, further = self._locate(name, folder)
        self._client().upload_fileobj(stream, bucket, key, ExtraArgs=further, Config=PARTS)

    def _client(self) -> Any:
        return self._s3._get_s3_client()  # type: ignore[no-untyped-call]

    def _locate(self, name: str, folder: str | None) -> tuple[str, str, dict[str, Any]]:
        """Return a file's bucket and key, and the further arguments with which MLflow's repository uploads it."""
        bucket, root = self._s3.parse_s3_compliant_uri(self.artifact_uri)  # type: ignore[no-untyped-call]
        kind, encoding = guess_type(name)
        about = {"ContentType": kind, "ContentEncoding": encoding}
        given = self._s3.get_s3_file_upload_extra_args() or {}  # type: ignore[no-untyped-call]
        further = {key: value for key, value in about.items() if value} | self._s3._bucket_owner_params | given
        return bucket, posixpath.join(root, folder or "", posixpath.basename(name)), further

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Upload a file below `artifact_path`."""
        self._s3.log_artifact(local_file, artifact_path)  # type: ignore[no-untyped-call]

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Upload a folder's files below `artifact_path`."""
        self._s3.log_artifacts(local_dir, artifact_path)  # type: ignore[no-untyped-call]

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List the files and folders directly below `path`."""
        files: list[FileInfo] = self._s3.list_artifacts(path)  # type: ignore[no-untyped-call]
        return files

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)  # type: ignore[no-untyped-call]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete the file or folder at `artifact_path`."""
        self._s3.delete_artifacts(artifact_path)  # type: ignore[no-untyped-call]
