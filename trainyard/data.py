"""Data files: read a CSV from a path or an S3 store, and validate a frame against a schema."""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import pandas as pd
import pandera.pandas as pa
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnectedError
from pandera.errors import SchemaErrors

from trainyard.errors import DataError, SourceUnreachableError

S3_SCHEME = "s3://"
S3_CONFIG = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3})
KEY_VARIABLES = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object in the bucket",
    # Also the answer for a missing object to an account that may not list the bucket.
    "AccessDenied": "these keys may not read it, or it does not exist",
    "InvalidAccessKeyId": f"the store does not know these keys; check {KEY_VARIABLES}, and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": f"the keys are wrong; check {KEY_VARIABLES}",
}


def read_csv(location: str, s3: Any = None, block: str = "") -> pd.DataFrame:
    """Return the rows of a CSV file with a header.

    Args:
        location: A file's path, or `s3://bucket/key`.
        s3: A boto3 client; the default one is configured by boto3's usual environment variables (AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, and AWS_ENDPOINT_URL for a store other than Amazon's).
        block: The name of a Prefect block of the type MinIO Credentials, which has the key and address of the store.

    Raises:
        DataError: The file or object does not exist, may not be read, is empty, or is not a CSV.
        SourceUnreachableError: The store does not answer; a retry may succeed.
    """
    if block and location.startswith(S3_SCHEME):
        from prefect_aws import MinIOCredentials

        credentials: Any = MinIOCredentials.load(block)
        s3 = credentials.get_s3_client()
    try:
        with _open_object(location, s3) if location.startswith(S3_SCHEME) else _open_file(location) as content:
            frame = pd.read_csv(content)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{location} is not a CSV with a header: {error}") from error
    if frame.empty:
        raise DataError(f"{location} has a header and no rows.")
    return frame


def validate_frame(frame: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Return the frame as the schema coerces it.

    Raises:
        DataError: The frame does not fit the schema; the message lists each column and rule with the first row that
            violates it and the number of others.
    """
    try:
        return schema.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        violations = cases.groupby([cases["column"].astype(object).fillna("data"), "check"], sort=False)
        problems = [_describe(str(column), str(rule), rows) for (column, rule), rows in violations]
        raise DataError(f"The data is invalid: {'; '.join(problems)}.") from errors


def _describe(column: str, rule: str, rows: pd.DataFrame) -> str:
    index, value = rows.iloc[0][["index", "failure_case"]]
    if pd.isna(index):
        return f"{column}: {rule} ({value})"
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{column}: {rule} (row {index}: {value}{others})"


def _open_file(location: str) -> BinaryIO:
    path = Path(location)
    try:
        return path.open("rb")
    except OSError as error:
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"{location} cannot be read{where}: {error.strerror}.") from error


def _open_object(location: str, s3: Any) -> BinaryIO:
    bucket, _, key = location.removeprefix(S3_SCHEME).partition("/")
    if not bucket or not key:
        raise DataError(f"{location} is not of the form s3://bucket/key.")
    try:
        # A new session: boto3's default one keeps the environment variables of its first use.
        s3 = s3 or boto3.Session().client("s3", config=S3_CONFIG)
        return BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except NoCredentialsError as error:
        raise DataError(f"There are no keys for {location}: set {KEY_VARIABLES}.") from error
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status >= 500:
            raise SourceUnreachableError(f"The store of {location} answers with status {status} ({code}).") from error
        raise DataError(f"{location} cannot be read: {REASONS.get(code, error)}.") from error
    except (HTTPClientError, NotConnectedError, IncompleteReadError) as error:
        raise SourceUnreachableError(f"The store of {location} does not answer ({error}).") from error
    except (BotoCoreError, ValueError) as error:  # half of the keys, an invalid endpoint or bucket name
        raise DataError(f"{location} cannot be read: {error}") from error
