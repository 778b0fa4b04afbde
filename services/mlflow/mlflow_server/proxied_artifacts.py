"""Make clients of MLflow send and fetch every artifact through the server.

Over S3, MLflow's server offers its clients presigned URLs: for downloads, and for uploads of large files. They name the
object store as the server sees it, which no client here can reach: a download would hang for two minutes and fail,
unless each client set a variable that turns this off. MLflow makes the offer for repositories with its multipart mixins;
this one stores in S3 without them. Remove it when the server can turn the offer off (MLflow 3.18).
"""

from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3ArtifactRepository(ArtifactRepository):
    """MLflow's own S3 repository without its multipart mixins."""

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self._s3 = S3ArtifactRepository(artifact_uri, *args, **kwargs)

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
