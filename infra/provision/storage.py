"""The object store: a bucket each for MLflow's artifacts and Prefect's results, each with a user of its own, a user of
backups, who reads both, and one of metrics, who reads the store's figures alone.
"""

from urllib.parse import urlsplit

from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from minio.minioadmin import MinioAdmin

from infra.provision.settings import Settings
from trainyard.contract import Bucket

MLFLOW_USER, RESULTS_USER, BACKUP_USER, METRICS_USER = "mlflow", "prefect", "backup", "metrics"
METRICS_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["admin:Prometheus"]}]}


def provision_storage(settings: Settings) -> None:
    """Create buckets, users and policies; the client retries each request, which are all idempotent.

    Raises:
        minio.error.MinioException: The store refused a request.
        urllib3.exceptions.HTTPError: The store did not answer.
    """
    assert settings.minio_address is not None
    address = urlsplit(settings.minio_address)
    root = StaticProvider(settings.minio_root_user, settings.minio_root_password.get_secret_value())
    secure = address.scheme == "https"
    store = Minio(endpoint=address.netloc, credentials=root, secure=secure)
    accounts = MinioAdmin(endpoint=address.netloc, credentials=root, secure=secure)
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
