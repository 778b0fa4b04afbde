"""Where the installation's objects are: in a bucket each of the stack's own store, or in folders of one bucket of an external S3."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from minio import Minio

OWN = "http://minio:9000"


@dataclass(frozen=True)
class ObjectStore:
    """An object store that speaks S3."""

    endpoint: str = OWN
    region: str = ""
    bucket: str = ""
    """The one bucket of an external S3; empty where each of the installation's buckets is a bucket of the store."""
    prefix: str = ""
    """A folder in that bucket, without slashes at its ends; empty for its root."""
    has_paths: bool = True
    """Whether a bucket is named in the path of an address, or else in its host."""

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Self:
        """Return the store that the files of `infra/secrets/external.py` name, or else the stack's own."""
        if not variables.get("S3_ENDPOINT"):
            return cls()
        return cls(
            endpoint=variables["S3_ENDPOINT"],
            region=variables["S3_REGION"],
            bucket=variables["S3_BUCKET"],
            prefix=variables["S3_PREFIX"],
            has_paths=variables["S3_PATH_STYLE"] == "true",
        )

    @property
    def is_external(self) -> bool:
        """Whether it is not the stack's own."""
        return bool(self.bucket)

    def locate(self, bucket: str) -> tuple[str, str]:
        """Return where the objects of one of the installation's buckets are: a bucket, and what their names begin with there."""
        if not self.is_external:
            return bucket, ""
        return self.bucket, f"{self.prefix}/{bucket}/" if self.prefix else f"{bucket}/"

    def connect(self, user: str, password: str) -> Minio:
        """Return a client; it trusts the certificates of SSL_CERT_FILE, where that is set."""
        address = urlsplit(self.endpoint)
        client = Minio(
            endpoint=address.netloc,
            access_key=user,
            secret_key=password,
            secure=address.scheme == "https",
            region=self.region or None,
        )
        if self.has_paths:
            client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        else:
            client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        return client
