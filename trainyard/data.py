"""Data files: read from where they are, and checked, or refused in one sentence."""

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

S3 = "s3://"
CONFIG = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3})
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
REFUSALS = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object in the bucket",
    # What a store answers about an object that is not there, to one who may not list the bucket.
    "AccessDenied": "the store does not let these keys read it, or it is not there",
    "InvalidAccessKeyId": f"the store does not know the keys; check {KEYS}, and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": f"the keys are wrong; check {KEYS}",
}


def read_csv(location: str, s3: Any = None) -> pd.DataFrame:
    """Return the rows of a CSV with a line of column names.

    Args:
        location: A file's path, or `s3://bucket/key`.
        s3: boto3's client; without it, one that is made of what all clients of S3 read: AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, and AWS_ENDPOINT_URL for a store that is not Amazon's.

    Raises:
        DataError: There is no such file or object, or it is empty, or no CSV.
        SourceUnreachableError: The store does not answer, which may pass.
    """
    try:
        with _open_object(location, s3) if location.startswith(S3) else _open_file(location) as content:
            frame = pd.read_csv(content)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{location} is no CSV with a line of column names: {error}") from error
    if frame.empty:
        raise DataError(f"{location} has no rows below its column names.")
    return frame


def validate_frame(frame: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Return the frame as the schema makes it.

    Raises:
        DataError: It does not fit; the message lists each column and rule, the first row and how many.
    """
    try:
        return schema.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        found = cases.groupby([cases["column"].astype(object).fillna("data"), "check"], sort=False)
        problems = [_describe(str(column), str(rule), rows) for (column, rule), rows in found]
        raise DataError(f"The data is refused: {'; '.join(problems)}.") from errors


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
    bucket, _, key = location.removeprefix(S3).partition("/")
    if not bucket or not key:
        raise DataError(f"{location} is not of the form s3://bucket/key.")
    try:
        # A session of its own: boto3's shared one remembers the variables as they were.
        s3 = s3 or boto3.Session().client("s3", config=CONFIG)
        return BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except NoCredentialsError as error:
        raise DataError(f"There are no keys to read {location} with: set {KEYS}.") from error
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status >= 500:
            raise SourceUnreachableError(f"The store of {location} answers with status {status} ({code}).") from error
        raise DataError(f"{location} cannot be read: {REFUSALS.get(code, error)}.") from error
    except (HTTPClientError, NotConnectedError, IncompleteReadError) as error:
        raise SourceUnreachableError(f"The store of {location} does not answer ({error}).") from error
    except (BotoCoreError, ValueError) as error:  # keys by halves, an endpoint that is no address, a bad name
        raise DataError(f"{location} cannot be read: {error}") from error
