"""The object store: a bucket each for MLflow's artifacts and Prefect's results, and a user each who sees no other."""

from urllib.parse import urlsplit

from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from infra.provision.settings import Settings

MLFLOW_BUCKET = "mlflow"
RESULTS_BUCKET = "prefect-results"
RESULTS_USER = "prefect"


def provision_storage(settings: Settings) -> None:
    """Make buckets, users and policies.

    Raises:
        minio.error.MinioException: The store refused a step.
        urllib3.exceptions.HTTPError: The store did not answer.
    """
    assert settings.minio_address is not None
    address = urlsplit(settings.minio_address)
    root = StaticProvider(settings.minio_root_user, settings.minio_root_password.get_secret_value())
    secure = address.scheme == "https"
    buckets = Minio(endpoint=address.netloc, credentials=root, secure=secure)
    accounts = MinioAdmin(endpoint=address.netloc, credentials=root, secure=secure)
    for bucket, user, key in (
        (MLFLOW_BUCKET, "mlflow", settings.mlflow_s3_secret_key),
        (RESULTS_BUCKET, RESULTS_USER, settings.prefect_s3_secret_key),
    ):
        if not buckets.bucket_exists(bucket_name=bucket):
            buckets.make_bucket(bucket_name=bucket)
        accounts.user_add(user, key.get_secret_value())
        policy = f"only-{bucket}"
        accounts.policy_add(policy, policy=only(bucket))
        accounts.policy_set(policy, user=user)


def only(bucket: str) -> dict[str, object]:
    """Return a policy that allows what a client does in one bucket, and nothing in any other."""
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
