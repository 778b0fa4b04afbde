"""Servers outside the stack: a Postgres and an S3, in the forms in which their clients read where they are.

The overrides infra/compose/external-postgres.yml and external-s3.yml pass their settings on. Standard library only.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

# Which settings make a server external, and what it then needs. POSTGRES_PASSWORD is the administrator's there.
POSTGRES, S3 = "POSTGRES_HOST", "S3_ENDPOINT"
REQUIRED = {
    POSTGRES: ("POSTGRES_USER", "POSTGRES_PASSWORD"),
    S3: ("S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_RESULTS_ACCESS_KEY", "S3_RESULTS_SECRET_KEY"),
}
PASSWORDS = ("S3_SECRET_KEY", "S3_RESULTS_SECRET_KEY")
# What the overrides set in the environment.
SETTINGS = (
    "POSTGRES_HOST",
    "POSTGRES_PORT",
    "POSTGRES_USER",
    "POSTGRES_SSLMODE",
    "BACKUP_POINT_IN_TIME",
    "S3_ENDPOINT",
    "S3_REGION",
    "S3_BUCKET",
    "S3_PREFIX",
    "S3_PATH_STYLE",
    "S3_ACCESS_KEY",
    "S3_RESULTS_ACCESS_KEY",
)

# Names that Postgres's documentation gives to how far a connection is secured.
SSL_MODES = ("verify-full", "verify-ca", "require", "prefer", "disable")

# As the overrides mount the files of certificates that .env names, and what is trusted without such a file.
GIVEN = Path("/given")
POSTGRES_AUTHORITY, S3_AUTHORITY = "postgres-authority.pem", "s3-authority.pem"
PUBLIC_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
SECRETS = "/run/secrets"

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
PREFIX = re.compile(r"[A-Za-z0-9!_.'()-]+(/[A-Za-z0-9!_.'()-]+)*")


def find_problems(settings: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each setting that is missing or has no meaning."""
    for name, needed in REQUIRED.items():
        if settings.get(name) and (missing := [each for each in needed if not settings.get(each)]):
            yield f"{name} is set, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not"
    if settings.get(POSTGRES):
        if not settings["POSTGRES_PORT"].isdecimal():
            yield f"POSTGRES_PORT is {settings['POSTGRES_PORT']}, which is no number"
        if settings["POSTGRES_SSLMODE"] not in SSL_MODES:
            yield f"POSTGRES_SSLMODE is {settings['POSTGRES_SSLMODE']}; it is one of {', '.join(SSL_MODES)}"
        if settings.get("BACKUP_POINT_IN_TIME") == "true":
            yield (
                "BACKUP_POINT_IN_TIME is true, which needs the stack's own Postgres; with POSTGRES_HOST set, any moment is"
                " for that server's own tools to restore"
            )
    if settings.get(S3):
        address = urlsplit(settings[S3])
        if address.scheme not in ("https", "http") or not address.netloc or address.path.strip("/"):
            yield f"S3_ENDPOINT is {settings[S3]}; it needs the form https://s3.example.com, without a bucket or path"
        if settings.get("S3_BUCKET") and not BUCKET.fullmatch(settings["S3_BUCKET"]):
            yield f"S3_BUCKET is {settings['S3_BUCKET']}, which is no name of a bucket"
        if settings.get("S3_PREFIX") and not PREFIX.fullmatch(settings["S3_PREFIX"]):
            yield f"S3_PREFIX is {settings['S3_PREFIX']}; it needs the form folder/folder, without slashes at its ends"
        if settings["S3_PATH_STYLE"] not in ("true", "false"):
            yield f"S3_PATH_STYLE is {settings['S3_PATH_STYLE']}; it is true or false"


def read_authority(name: str) -> str | None:
    """Return the certificates of a file that .env names; None where it names none."""
    given = (GIVEN / name).read_text() if (GIVEN / name).exists() else ""
    return given if "-----BEGIN CERTIFICATE-----" in given else None


def postgres_address(settings: Mapping[str, str]) -> str:
    """Return the host and port of Postgres."""
    if not settings.get(POSTGRES):
        return "postgres:5432"
    host = settings[POSTGRES]
    return f"{f'[{host}]' if ':' in host else host}:{settings['POSTGRES_PORT']}"


def postgres_files(settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the further files of the clients of Postgres, by the services' names."""
    if not settings.get(POSTGRES):
        return {"postgres-exporter": {"uri": "postgres:5432/postgres?sslmode=disable"}}
    host, port, mode = settings[POSTGRES], settings["POSTGRES_PORT"], settings["POSTGRES_SSLMODE"]
    authority = f"{SECRETS}/{POSTGRES_AUTHORITY}"
    certificates = {POSTGRES_AUTHORITY: read_authority(POSTGRES_AUTHORITY) or PUBLIC_AUTHORITIES.read_text()}
    # For libpq and asyncpg.
    tls = {"PGSSLMODE": mode, "PGSSLROOTCERT": authority, **certificates}
    service = {
        "host": host,
        "port": port,
        "dbname": "postgres",
        "user": settings["POSTGRES_USER"],
        "password": settings["POSTGRES_PASSWORD"],
        "sslmode": mode,
        "sslrootcert": authority,
    }
    lines = ["[external]", *(f"{name}={value}" for name, value in service.items())]
    uri = f"{postgres_address(settings)}/postgres?sslmode={mode}&sslrootcert={authority}"
    return {
        "postgres": {"pg_service.conf": "\n".join(lines) + "\n", **certificates},
        "prefect": {"PREFECT_SERVER_DATABASE_HOST": host, "PREFECT_SERVER_DATABASE_PORT": port, **tls},
        "mlflow": tls,
        "serving": tls,
        "backup": {"POSTGRES_HOST": host, "POSTGRES_PORT": port, **tls},
        "restore": {
            "POSTGRES_HOST": host,
            "POSTGRES_PORT": port,
            "POSTGRES_USER": settings["POSTGRES_USER"],
            "POSTGRES_PASSWORD": settings["POSTGRES_PASSWORD"],
            **tls,
        },
        "postgres-exporter": {"uri": uri, **certificates},
    }


def s3_files(settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the further files of the clients of the object store, by the services' names."""
    if not settings.get(S3):
        return {"prometheus": {"minio-targets.json": '[{"targets": ["minio:9000"]}]'}}
    endpoint, region = settings[S3].rstrip("/"), settings.get("S3_REGION", "")
    folder = f"{settings['S3_PREFIX']}/" if settings.get("S3_PREFIX") else ""
    is_path_style = settings["S3_PATH_STYLE"] == "true"
    # Beside a private authority the public ones, for backups elsewhere. Without one no client names a file: workers on other
    # hosts have none.
    private, file = read_authority(S3_AUTHORITY), f"{SECRETS}/{S3_AUTHORITY}"
    certificates = {S3_AUTHORITY: f"{private}\n{PUBLIC_AUTHORITIES.read_text()}"} if private else {}
    # Read by infra/object_store.py.
    place = {
        "S3_ENDPOINT": endpoint,
        "S3_REGION": region,
        "S3_BUCKET": settings["S3_BUCKET"],
        "S3_PREFIX": settings.get("S3_PREFIX", ""),
        "S3_PATH_STYLE": settings["S3_PATH_STYLE"],
        **({"S3_CA": file, "SSL_CERT_FILE": file} if private else {}),
        **certificates,
    }
    account = {"MINIO_USER": settings["S3_ACCESS_KEY"], "MINIO_PASSWORD": settings["S3_SECRET_KEY"]}
    return {
        "mlflow": {
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{settings['S3_BUCKET']}/{folder}mlflow",
            "MLFLOW_S3_ENDPOINT_URL": endpoint,
            "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path" if is_path_style else "virtual",
            "AWS_ACCESS_KEY_ID": settings["S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": settings["S3_SECRET_KEY"],
            **({"AWS_CA_BUNDLE": file} if private else {}),
            # Many servers do not know trailing checksums; TLS protects what is sent.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            **({"AWS_DEFAULT_REGION": region} if region else {}),
            **certificates,
        },
        "worker": certificates,
        "provision": {
            **place,
            **account,
            "RESULTS_USER": settings["S3_RESULTS_ACCESS_KEY"],
            "RESULTS_PASSWORD": settings["S3_RESULTS_SECRET_KEY"],
        },
        "backup": {**place, **account},
        "restore": {**place, **account},
        "prometheus": {"minio-targets.json": "[]"},
    }
