"""The object store: a bucket each for MLflow's artifacts and Prefect's results, each with a user of its own, a user of
backups, who reads both, and one of metrics, who reads the store's figures alone. In an external S3 its owner makes all that,
and it is tried.
"""

import io
from urllib.parse import urlsplit

from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import MinioException, S3Error
from minio.minioadmin import MinioAdmin
from urllib3.exceptions import HTTPError as StorageUnreachable

from infra.object_store import ObjectStore
from infra.provision.settings import Settings
from trainyard.contract import Bucket

MLFLOW_USER, RESULTS_USER, BACKUP_USER, METRICS_USER = "mlflow", "prefect", "backup", "metrics"
PROBE = ".trainyard"
METRICS_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["admin:Prometheus"]}]}


class ObjectStoreError(Exception):
    """An external S3 does not allow what the installation needs."""


def provision_storage(settings: Settings, store: ObjectStore) -> None:
    """Create buckets, users and policies, or try those of an external S3.

    Raises:
        ObjectStoreError: An external S3 does not answer, or does not allow what is needed.
        minio.error.MinioException: The stack's own store refused a request.
        urllib3.exceptions.HTTPError: It did not answer.
    """
    if store.is_external:
        try_storage(settings, store)
    else:
        create_storage(settings, store)


def try_storage(settings: Settings, store: ObjectStore) -> None:
    """Write, read, list and delete an object with each account of an external S3, and say what the runs' one may do too much.

    Raises:
        ObjectStoreError: It does not answer, or an account may not do that.
    """
    accounts = {
        "S3_ACCESS_KEY": store.connect(settings.minio_user, settings.minio_password.get_secret_value()),
        "S3_RESULTS_ACCESS_KEY": store.connect(settings.results_user, settings.results_password.get_secret_value()),
    }
    for name, bucket in (
        ("S3_ACCESS_KEY", Bucket.MLFLOW),
        ("S3_ACCESS_KEY", Bucket.RESULTS),
        ("S3_RESULTS_ACCESS_KEY", Bucket.RESULTS),
    ):
        actual, folder = store.locate(bucket)
        try:
            try_account(accounts[name], actual, folder)
        except (MinioException, StorageUnreachable) as error:
            raise ObjectStoreError(
                f"The account {name} cannot write, list, read and delete in s3://{actual}/{folder} of {store.endpoint}: {error}"
            ) from error
    actual, folder = store.locate(Bucket.MLFLOW)
    if can_write(accounts["S3_RESULTS_ACCESS_KEY"], actual, folder):
        print(
            f"The account S3_RESULTS_ACCESS_KEY may write to s3://{actual}/{folder} too. Every flow can read its key, and could"
            " replace registered models: give it a policy for the results alone (docs/scaling.md)."
        )


def try_account(client: Minio, bucket: str, folder: str) -> None:
    """Use all rights that an account needs.

    Raises:
        minio.error.MinioException: The store refused a request.
        urllib3.exceptions.HTTPError: The store did not answer.
    """
    name = folder + PROBE
    client.put_object(bucket_name=bucket, object_name=name, data=io.BytesIO(), length=0)
    list(client.list_objects(bucket_name=bucket, prefix=name))
    client.get_object(bucket_name=bucket, object_name=name).release_conn()
    client.remove_object(bucket_name=bucket, object_name=name)


def can_write(client: Minio, bucket: str, folder: str) -> bool:
    """Return whether an account may write into a folder."""
    name = folder + PROBE
    try:
        client.put_object(bucket_name=bucket, object_name=name, data=io.BytesIO(), length=0)
        client.remove_object(bucket_name=bucket, object_name=name)
    except S3Error:
        return False
    return True


def create_storage(settings: Settings, place: ObjectStore) -> None:
    """Create buckets, users and policies; the client retries each request, which are all idempotent."""
    user, password = settings.minio_root_user, settings.minio_root_password.get_secret_value()
    store, address = place.connect(user, password), urlsplit(place.endpoint)
    root = StaticProvider(user, password)
    accounts = MinioAdmin(endpoint=address.netloc, credentials=root, secure=address.scheme == "https")
    for bucket, user, key in (
        (Bucket.MLFLOW, MLFLOW_USER, settings.mlflow_s3_secret_key),
        (Bucket.RESULTS, RESULTS_USER, settings.prefect_s3_secret_key),
    ):
        ensure_bucket(store, bucket)
        accounts.user_add(user, key.get_secret_value())
        policy = f"only-{bucket}"
        accounts.policy_add(policy, policy=bucket_policy(bucket))
        accounts.policy_set(policy, user=user)
    accounts.user_add(BACKUP_USER, settings.backup_s3_reading_key.get_secret_value())
    accounts.policy_add("read-for-backups", policy=reading_policy(Bucket.MLFLOW, Bucket.RESULTS))
    accounts.policy_set("read-for-backups", user=BACKUP_USER)
    accounts.user_add(METRICS_USER, settings.metrics_s3_key.get_secret_value())
    accounts.policy_add("read-metrics", policy=METRICS_POLICY)
    accounts.policy_set("read-metrics", user=METRICS_USER)


def ensure_bucket(store: Minio, bucket: str) -> None:
    """Create a bucket where it is missing."""
    if store.bucket_exists(bucket_name=bucket):
        return
    try:
        store.make_bucket(bucket_name=bucket)
    except S3Error as error:
        if error.code != "BucketAlreadyOwnedByYou":  # the client repeated a request whose response was lost
            raise


def bucket_policy(bucket: str) -> dict[str, object]:
    """Return a policy that allows reading and writing objects of one bucket, and nothing in any other."""
    statements = [
        {
            "Effect": "Allow",
            "Action": ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
            "Resource": [f"arn:aws:s3:::{bucket}"],
        },
        {
            "Effect": "Allow",
            "Action": [
                "s3:GetObject",
                "s3:PutObject",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:ListMultipartUploadParts",
            ],
            "Resource": [f"arn:aws:s3:::{bucket}/*"],
        },
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def reading_policy(*buckets: str) -> dict[str, object]:
    """Return a policy that allows listing and reading the objects of some buckets, and nothing else."""
    resources = [f"arn:aws:s3:::{bucket}{suffix}" for bucket in buckets for suffix in ("", "/*")]
    actions = ["s3:GetBucketLocation", "s3:ListBucket", "s3:GetObject"]
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}]}
