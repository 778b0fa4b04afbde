"""Create the installation's secrets and print accounts.

Runs in a container of its own, the only one that sees the whole volume. Each service mounts its own folder, read-only:

    vault/NAME        a file for each secret, written once: 32 random bytes, or the value of .env; an empty one is missing
    vault/NAME.former what a secret was before `make rotate`, until all that it opens has been moved to the new one
    SERVICE/FILE      what one service needs, in the form it needs; written at each start from the vault, together with
                      passwords of external servers, which come from .env and are not kept

Standard library only: it runs on the plain Python image.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import shlex
import string
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from urllib.parse import quote, urlsplit

from infra.secrets import external
from infra.secrets.dask import dask_files

SETTINGS = Path("/given/settings")
VOLUME = Path("/secrets")
MIN_LENGTH = 12
METRICS_TOKEN_EXPIRES = 4_102_444_800  # 2100: it is replaced together with its key

# Secrets that people use or may have chosen in .env, then those that only services use.
USER_SECRETS = (
    "PREFECT_PASSWORD",
    "MLFLOW_PASSWORD",
    "MAIL_PASSWORD",
    "SERVING_API_KEY",
    "DASHBOARD_PASSWORD",
    "MINIO_ROOT_PASSWORD",
    "POSTGRES_PASSWORD",
    "BACKUP_PASSWORD",
)
SERVICE_SECRETS = (
    "PREFECT_DATABASE_PASSWORD",
    "MLFLOW_DATABASE_PASSWORD",
    "MLFLOW_ACCOUNTS_DATABASE_PASSWORD",
    "SERVING_DATABASE_PASSWORD",
    "MLFLOW_SESSION_KEY",
    "MLFLOW_WORKER_PASSWORD",
    "MLFLOW_SERVING_PASSWORD",
    "MLFLOW_DASHBOARD_PASSWORD",
    "PREFECT_READING_PASSWORD",
    "PREFECT_WORKER_PASSWORD",
    "PREFECT_DEPLOY_PASSWORD",
    "DASHBOARD_SESSION_KEY",
    "SERVING_READING_KEY",
    "MLFLOW_S3_SECRET_KEY",
    "PREFECT_S3_SECRET_KEY",
    "CACHE_SIGNING_KEY",
    "BACKUP_DATABASE_PASSWORD",
    "BACKUP_S3_READING_KEY",
    "BACKUP_REPLICATION_PASSWORD",
    "METRICS_TOKEN",
    "METRICS_DATABASE_PASSWORD",
    "METRICS_S3_KEY",
    "REDIS_PASSWORD",
    "DASK_SECRET",
)
# Keys of values in the databases, which no other key can read.
ENCRYPTION_KEYS = ("PREFECT_ENCRYPTION_KEY", "MLFLOW_ENCRYPTION_PASSPHRASE", "MLFLOW_WEBHOOK_ENCRYPTION_KEY")
NAMES = USER_SECRETS + SERVICE_SECRETS + ENCRYPTION_KEYS
# What they open is moved to a new one by those who have both.
KEPT_WHEN_ROTATED = (*ENCRYPTION_KEYS, "BACKUP_PASSWORD")

# Passwords of external servers: they cannot be generated here, nor held to the rules.
EXTERNAL = ("SMTP_PASSWORD", "BACKUP_S3_SECRET_KEY", *external.PASSWORDS)

# Accounts of services. One that an administrator signs in with would make the service an administrator too.
RESERVED_USERS = {
    "MLFLOW_USER": ("worker", "serving", "dashboard"),
    "MINIO_ROOT_USER": ("mlflow", "prefect", "backup", "metrics"),
}

# Defaults of products and tutorials, without the digits and punctuation that people append.
KNOWN_DEFAULTS = (
    "admin", "administrator", "changeme", "changethis", "default", "example", "letmein", "minio", "minioadmin",
    "mlflow", "pass", "passw0rd", "password", "postgres", "prefect", "qwerty", "qwertyuiop", "root", "secret",
    "test", "trainyard", "user", "welcome",
)  # fmt: skip
FILLERS = string.digits + string.punctuation + " "

# What a worker on another host gets (infra/proxy/worker-token). Of mail and serving it needs nothing.
TOKEN = ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "CACHE_SIGNING_KEY")

# Where the proxy of infra/compose/tls.yml has its certificates from.
TLS_ISSUERS = ("internal", "acme", "files")

PUBLIC_ADDRESS = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:]+\])(:[0-9]{1,5})?", re.IGNORECASE)


def is_known_default(value: str) -> bool:
    """Return whether a value consists of known defaults, digits and punctuation."""
    longest_first = sorted(KNOWN_DEFAULTS, key=len, reverse=True)
    rest = value.lower().strip(FILLERS)
    while rest:
        known = next((word for word in longest_first if rest.startswith(word)), None)
        if known is None:
            return False
        rest = rest.removeprefix(known).lstrip(FILLERS)
    return True


def find_problems(values: Mapping[str, str], is_external: Collection[str] = EXTERNAL) -> Iterator[str]:
    """Yield a sentence for each secret that is not safe to use, without its value."""
    for name, value in values.items():
        if name in is_external:
            if not value.isascii() or not value.isprintable():
                yield f"{name} has a control character or a non-ASCII letter"
        elif len(value) < MIN_LENGTH:
            yield f"{name} has {len(value)} characters and needs at least {MIN_LENGTH}"
        elif is_known_default(value):
            yield f"{name} is a known default"
        elif not value.isascii() or not value.isprintable() or " " in value:
            yield f"{name} has a space, a control character or a non-ASCII letter"


def find_reserved_users(settings: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each setting that names a service's account as an administrator's."""
    for name, reserved in RESERVED_USERS.items():
        if settings[name] in reserved:
            yield f"{name} is {settings[name]}, which is an account of the platform's services; choose another name"


def find_address_problems(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each public address that is not one: browsers' origins and hosts are compared with it."""
    for name, address in environment.items():
        service, is_address, _ = name.partition("_UI_URL")
        if is_address and not PUBLIC_ADDRESS.fullmatch(address):
            yield (
                f"{service}_PUBLIC_URL, or PUBLIC_HOST, makes the address {address}; it needs the form"
                f" https://{service.lower()}.example.com, with neither a path nor a slash at its end"
            )


def find_tls_problems(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each setting that the proxy of infra/compose/tls.yml, if there is one, could not serve."""
    issuer = environment.get("TLS_ISSUER")
    if issuer is None:
        return
    if issuer not in TLS_ISSUERS:
        yield f"TLS_ISSUER is {issuer}; it is one of {', '.join(TLS_ISSUERS)}"
    taken: dict[str, str] = {}
    for service in ("PREFECT", "MLFLOW", "SERVING", "DASHBOARD", "MAIL", "WORKERS"):
        if (address := environment.get(f"{service}_UI_URL")) is None:  # without infra/compose/remote-workers.yml
            continue
        parts = urlsplit(address)
        name, port = parts.hostname or "", str(parts.port or 443)
        makes = f"{service}_PUBLIC_URL, or PUBLIC_HOST, makes the address {address}"
        if parts.scheme != "https" or port != environment["HTTPS_PORT"]:
            yield f"{makes}; with infra/compose/tls.yml it begins with https:// and has the port of HTTPS_PORT"
        elif ":" in name or name.rpartition(".")[2].isdecimal():
            yield f"{makes}, which has no name; PUBLIC_HOST needs to be a name, beneath which each service has one"
        elif issuer == "acme" and name.endswith("localhost"):
            yield f"{makes}, for which no ACME server issues a certificate; set PUBLIC_HOST"
        elif name in taken:
            yield f"{makes}, which is that of {taken[name]} too; each service needs a name of its own"
        taken.setdefault(name, service.lower())


def read_settings(path: Path = SETTINGS) -> dict[str, str]:
    """Read the settings that Compose passes on from .env and the shell: a line NAME=value each, empty where unset.

    Raises:
        SystemExit: A value has a line break.
    """
    settings, name = {}, "The file"
    for line in path.read_text().removesuffix("\n").split("\n"):
        if not re.match("[A-Z][A-Z0-9_]*=", line):
            sys.exit(f"Nothing was started, because of a setting in .env: {name} has a line break.")
        name, _, value = line.partition("=")
        if value:
            settings[name] = value
    return settings | {name: os.environ[name] for name in external.SETTINGS if os.environ.get(name)}


def external_secrets(settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the passwords that belong to servers outside."""
    return (*EXTERNAL, "POSTGRES_PASSWORD") if external.POSTGRES in settings else EXTERNAL


def fill_vault(volume: Path, chosen: Mapping[str, str]) -> dict[str, str]:
    """Write the secrets that are missing, and those that .env sets.

    Returns:
        The value of each of NAMES.

    Raises:
        SystemExit: The file of an encryption key is empty: a new key would make values in the databases unreadable.
    """
    vault = volume / "vault"
    vault.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {name: (vault / name).read_text() for name in NAMES if (vault / name).exists()}
    lost = [name for name in ENCRYPTION_KEYS if kept.get(name) == ""]
    if lost:
        sys.exit(
            f"Nothing was started: in the volume secrets, {' and '.join(f'vault/{name}' for name in lost)} is empty, and "
            "what was encrypted under it cannot be read without it. Restore the volume from a backup, or delete the file "
            "to have a new key generated."
        )
    values = {name: chosen.get(name) or kept.get(name) or secrets.token_urlsafe(32) for name in NAMES}
    for name, value in values.items():
        write(vault / name, value, mode=0o400)
    sync_folder(vault)
    return values


def service_files(
    values: Mapping[str, str], settings: Mapping[str, str], former: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return the files of each service's folder: their names and contents.

    A file in capitals becomes the variable of that name (services/with-secrets).
    """
    prefect_login = f"{settings['PREFECT_USER']}:{values['PREFECT_PASSWORD']}"
    prefect_reading_login = f"dashboard:{values['PREFECT_READING_PASSWORD']}"
    prefect_worker_login = f"worker:{values['PREFECT_WORKER_PASSWORD']}"
    prefect_deploy_login = f"deploy:{values['PREFECT_DEPLOY_PASSWORD']}"

    def outside(name: str) -> dict[str, str]:
        return {name: settings[name]} if name in settings else {}

    def former_secret(variable: str, name: str, form: Callable[[str], str] = str) -> dict[str, str]:
        return {variable: form(former[name])} if name in former else {}

    def database_url(role: str, name: str, scheme: str = "postgresql+psycopg2") -> str:
        return f"{scheme}://{role}:{quote(values[name], safe='')}@{external.postgres_address(settings)}/{role}"

    return {
        "postgres": {
            "postgres": values["POSTGRES_PASSWORD"],
            "prefect": values["PREFECT_DATABASE_PASSWORD"],
            "mlflow": values["MLFLOW_DATABASE_PASSWORD"],
            "mlflow_accounts": values["MLFLOW_ACCOUNTS_DATABASE_PASSWORD"],
            "serving": values["SERVING_DATABASE_PASSWORD"],
            "backup": values["BACKUP_DATABASE_PASSWORD"],
            "backup_wal": values["BACKUP_REPLICATION_PASSWORD"],
            "metrics": values["METRICS_DATABASE_PASSWORD"],
        },
        "minio": {"access_key": settings["MINIO_ROOT_USER"], "secret_key": values["MINIO_ROOT_PASSWORD"]},
        "prefect": {
            "PREFECT_SERVER_API_AUTH_STRING": prefect_login,
            "PREFECT_API_AUTH_STRING": prefect_login,
            "PREFECT_READING_AUTH_STRING": prefect_reading_login,
            "PREFECT_WORKER_AUTH_STRING": prefect_worker_login,
            "PREFECT_DEPLOY_AUTH_STRING": prefect_deploy_login,
            "PREFECT_SERVER_DATABASE_PASSWORD": values["PREFECT_DATABASE_PASSWORD"],
            "PREFECT_SERVER_ENCRYPTION_KEY": fernet_key(values["PREFECT_ENCRYPTION_KEY"]),
            **former_secret("PREFECT_FORMER_ENCRYPTION_KEY", "PREFECT_ENCRYPTION_KEY", fernet_key),
            "METRICS_TOKEN": values["METRICS_TOKEN"],
            "REDIS_PASSWORD": values["REDIS_PASSWORD"],
        },
        "redis": {"redis.conf": f'requirepass "{values["REDIS_PASSWORD"]}"\n', "password": values["REDIS_PASSWORD"]},
        "mlflow": {
            "MLFLOW_BACKEND_STORE_URI": database_url("mlflow", "MLFLOW_DATABASE_PASSWORD"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": values["MLFLOW_SESSION_KEY"],
            "MLFLOW_AUTH_ADMIN_USERNAME": settings["MLFLOW_USER"],
            "MLFLOW_AUTH_ADMIN_PASSWORD": values["MLFLOW_PASSWORD"],
            "MLFLOW_CRYPTO_KEK_PASSPHRASE": values["MLFLOW_ENCRYPTION_PASSPHRASE"],
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": fernet_key(values["MLFLOW_WEBHOOK_ENCRYPTION_KEY"]),
            **former_secret("MLFLOW_FORMER_KEK_PASSPHRASE", "MLFLOW_ENCRYPTION_PASSPHRASE"),
            **former_secret("MLFLOW_FORMER_WEBHOOK_KEY", "MLFLOW_WEBHOOK_ENCRYPTION_KEY", fernet_key),
            "METRICS_TOKEN": values["METRICS_TOKEN"],
            "AWS_ACCESS_KEY_ID": "mlflow",
            "AWS_SECRET_ACCESS_KEY": values["MLFLOW_S3_SECRET_KEY"],
            "accounts.ini": accounts_ini(database_url("mlflow_accounts", "MLFLOW_ACCOUNTS_DATABASE_PASSWORD")),
        },
        "deploy": {"PREFECT_API_AUTH_STRING": prefect_deploy_login},
        "worker": {
            "PREFECT_API_AUTH_STRING": prefect_worker_login,
            "MLFLOW_TRACKING_USERNAME": "worker",
            "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_WORKER_PASSWORD"],
            "SERVING_API_KEY": values["SERVING_API_KEY"],
            "CACHE_SIGNING_KEY": values["CACHE_SIGNING_KEY"],
            **outside("SMTP_PASSWORD"),
        },
        "provision": {
            "PREFECT_API_AUTH_STRING": prefect_login,
            "MLFLOW_TRACKING_USERNAME": settings["MLFLOW_USER"],
            "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_PASSWORD"],
            "MLFLOW_WORKER_PASSWORD": values["MLFLOW_WORKER_PASSWORD"],
            "MLFLOW_SERVING_PASSWORD": values["MLFLOW_SERVING_PASSWORD"],
            "MLFLOW_DASHBOARD_PASSWORD": values["MLFLOW_DASHBOARD_PASSWORD"],
            "MINIO_ROOT_USER": settings["MINIO_ROOT_USER"],
            "MINIO_ROOT_PASSWORD": values["MINIO_ROOT_PASSWORD"],
            "MLFLOW_S3_SECRET_KEY": values["MLFLOW_S3_SECRET_KEY"],
            "PREFECT_S3_SECRET_KEY": values["PREFECT_S3_SECRET_KEY"],
            "BACKUP_S3_READING_KEY": values["BACKUP_S3_READING_KEY"],
            "METRICS_S3_KEY": values["METRICS_S3_KEY"],
        },
        "serving": {
            "MLFLOW_TRACKING_USERNAME": "serving",
            "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_SERVING_PASSWORD"],
            "SERVING_API_KEY": values["SERVING_API_KEY"],
            "SERVING_READING_KEY": values["SERVING_READING_KEY"],
            "SERVING_DATABASE_URL": database_url("serving", "SERVING_DATABASE_PASSWORD", "postgresql"),
        },
        "dashboard": {
            "PREFECT_API_AUTH_STRING": prefect_reading_login,
            "MLFLOW_TRACKING_USERNAME": "dashboard",
            "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_DASHBOARD_PASSWORD"],
            "DASHBOARD_PASSWORD": values["DASHBOARD_PASSWORD"],
            "DASHBOARD_SESSION_KEY": values["DASHBOARD_SESSION_KEY"],
            "METRICS_TOKEN": values["METRICS_TOKEN"],
            "SERVING_READING_KEY": values["SERVING_READING_KEY"],
        },
        "mail": {"login": f"{settings['MAIL_USER']}:{values['MAIL_PASSWORD']}"},
        "backup": {
            "BACKUP_PASSWORD": values["BACKUP_PASSWORD"],
            **former_secret("BACKUP_FORMER_PASSWORD", "BACKUP_PASSWORD"),
            "POSTGRES_USER": "backup",
            "POSTGRES_PASSWORD": values["BACKUP_DATABASE_PASSWORD"],
            "REPLICATION_PASSWORD": values["BACKUP_REPLICATION_PASSWORD"],
            "MINIO_USER": "backup",
            "MINIO_PASSWORD": values["BACKUP_S3_READING_KEY"],
            "vault.json": json.dumps({name: value for name, value in values.items() if name != "BACKUP_PASSWORD"}),
            **outside("BACKUP_S3_SECRET_KEY"),
        },
        "restore": {
            "BACKUP_PASSWORD": values["BACKUP_PASSWORD"],
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": values["POSTGRES_PASSWORD"],
            "MINIO_USER": settings["MINIO_ROOT_USER"],
            "MINIO_PASSWORD": values["MINIO_ROOT_PASSWORD"],
            **outside("BACKUP_S3_SECRET_KEY"),
        },
        "prometheus": {
            "token": values["METRICS_TOKEN"],
            "minio": minio_metrics_token(values["METRICS_S3_KEY"]),
            "prefect-targets.json": targets(*os.environ.get("PREFECT_SERVERS", "prefect:4200").split()),
        },
        "postgres-exporter": {"password": values["METRICS_DATABASE_PASSWORD"]},
        "alertmanager": outside("SMTP_PASSWORD"),
    }


def targets(*addresses: str) -> str:
    """Return what Prometheus reads the addresses of a job from."""
    return json.dumps([{"targets": addresses}])


def accounts_ini(database: str) -> str:
    """Return the settings of MLflow's accounts, which it reads from a file only."""
    settings = {
        "database_uri": database.replace("%", "%%"),
        "default_permission": "READ",
        "auth_cache_ttl_seconds": "60",  # else each request spends half a second on hashing the password
    }
    return "\n".join(["[mlflow]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n"


def minio_metrics_token(key: str) -> str:
    """Return the token by which Prometheus reads the object store's figures, as `mc admin prometheus generate` makes it.

    It is a JSON Web Token of the account `metrics`, which may do nothing else, signed with the account's key.
    """

    def encode(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    claims = {"sub": "metrics", "iss": "prometheus", "exp": METRICS_TOKEN_EXPIRES}
    unsigned = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS512", "typ": "JWT"}, claims))
    return f"{unsigned}.{encode(hmac.digest(key.encode(), unsigned.encode(), hashlib.sha512))}"


def fernet_key(value: str) -> str:
    """Return a secret's 32 bytes as a key of Fernet: in base64, like the secret, but padded."""
    return f"{value}="


def write(file: Path, text: str, *, mode: int) -> bool:
    """Write a file atomically; leave one with the same text untouched. Return whether it was written.

    The text is on the disk before the file has its name: after a power loss a file is whole or missing, never empty.
    """
    if file.exists() and file.read_text() == text:
        return False
    temporary = file.with_name(f".{file.name}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.rename(file)
    return True


def sync_folder(folder: Path) -> None:
    """Return once the names of a folder's files are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def make(volume: Path = VOLUME, settings_file: Path = SETTINGS) -> list[str]:
    """Fill the vault and each service's folder.

    Returns:
        The services whose folder has changed.

    Raises:
        SystemExit: A setting is unsafe or an encryption key is lost; nothing was written.
    """
    settings = read_settings(settings_file)
    for problem in chain(find_address_problems(os.environ), find_tls_problems(os.environ)):
        sys.exit(f"Nothing was started, because of a setting in .env: {problem}.")
    chosen, outside = chosen_secrets(settings), external_secrets(settings)
    unsafe = list(find_problems(chosen, outside))
    problems = [*find_reserved_users(settings), *external.find_problems(settings), *unsafe]
    if problems:
        advice = (
            "Leave it empty to have a safe one generated, or choose one of at least 12 characters.\n"
            f"Only {', '.join(outside)} may be shorter: they belong to an external server."
        )
        sys.exit(
            "Nothing was started, because of a setting in .env:\n"
            + "".join(f"  - {problem}.\n" for problem in problems)
            + (advice if unsafe else "")
        )
    os.umask(0)  # the modes below apply as they are
    own = {name: value for name, value in chosen.items() if name not in outside}
    values, changed = fill_vault(volume, own), []
    for service, files in all_files(volume, values, settings, settings_file).items():
        folder = volume / service
        folder.mkdir(mode=0o755, exist_ok=True)
        # Readable by whatever user the image of the service runs as; no other service mounts this folder.
        written = [name for name, text in files.items() if write(folder / name, text, mode=0o444)]
        for stale in {file.name for file in folder.iterdir()} - files.keys():
            (folder / stale).unlink()
        sync_folder(folder)
        if written:
            changed.append(service)
    sync_folder(volume)
    return changed


def chosen_secrets(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that .env sets."""
    return {name: settings[name] for name in NAMES + EXTERNAL if name in settings}


def all_files(
    volume: Path, values: Mapping[str, str], settings: Mapping[str, str], settings_file: Path
) -> dict[str, dict[str, str]]:
    """Return the files of each service's folder, with what is beside the settings."""
    folders = service_files(values, settings, read_former(volume))
    for further in (external.postgres_files(settings), external.s3_files(settings)):
        for service, files in further.items():
            folders[service] |= files
    if "DASK_SCHEDULER_ADDRESS" in os.environ:  # infra/compose/dask.yml
        member = dask_files(values["DASK_SECRET"])
        folders |= {"worker": folders["worker"] | member, "dask": member}
    # infra/compose/metrics.yml makes it; Alertmanager reads no environment.
    if (alerting := settings_file.with_name("alertmanager.yml")).exists():
        folders["alertmanager"]["alertmanager.yml"] = alerting.read_text()
    return folders


def rotate(volume: Path = VOLUME, settings_file: Path = SETTINGS, *names: str) -> None:
    """Generate secrets anew, all of them or some, and print the services whose folder has changed.

    Encryption keys and the password of the backups keep their former value until `settle`, for those who move what
    they open to the new one. One whose former value is still there was rotated by a run that did not end.

    Raises:
        SystemExit: A name is unknown or its value is in .env, or the stack has never been started; nothing was written.
    """
    settings, vault = read_settings(settings_file), volume / "vault"
    read_vault(volume)
    if unknown := sorted(set(names) - set(NAMES)):
        sys.exit(f"There is no secret {' or '.join(unknown)}. There are {', '.join(NAMES)}.")
    given = [name for name in names or NAMES if name in settings]
    if given and names:
        sys.exit(f"{' and '.join(given)} is set in .env: change it there, then `make down` and `make up`.")
    for name in names or NAMES:
        file, former = vault / name, former_file(volume, name)
        if name in given or (former.exists() and former.read_text() != file.read_text()):
            continue
        if name in KEPT_WHEN_ROTATED:
            write(former, file.read_text(), mode=0o400)
            sync_folder(vault)
        write(file, secrets.token_urlsafe(32), mode=0o400)
    sync_folder(vault)
    print(*make(volume, settings_file))
    if given:
        print(f"Left as .env sets them: {', '.join(given)}.", file=sys.stderr)


def settle(volume: Path = VOLUME, settings_file: Path = SETTINGS) -> None:
    """Delete the former secrets: nothing needs them any more."""
    for name in KEPT_WHEN_ROTATED:
        former_file(volume, name).unlink(missing_ok=True)
    make(volume, settings_file)


def read_former(volume: Path) -> dict[str, str]:
    """Return the former values that are still needed, by the secrets' names."""
    return {name: file.read_text() for name in KEPT_WHEN_ROTATED if (file := former_file(volume, name)).exists()}


def former_file(volume: Path, name: str) -> Path:
    """Return the file of a secret's value before `make rotate`."""
    return volume / "vault" / f"{name}.former"


def adopt(volume: Path = VOLUME) -> None:
    """Replace the vault's secrets by those of a backup, a JSON object on standard input.

    The password of the backups stays: it is that of this installation's repository. The other folders follow at the
    next start, where what .env sets wins again.

    Raises:
        SystemExit: Standard input has no secrets; nothing was written.
    """
    try:
        restored = {str(name): str(value) for name, value in json.load(sys.stdin).items()}
    except (ValueError, AttributeError):
        sys.exit("The backup's secrets did not arrive: run the restore again.")
    vault = volume / "vault"
    restored["BACKUP_PASSWORD"] = (vault / "BACKUP_PASSWORD").read_text()
    for name, value in restored.items():
        write(vault / name, value, mode=0o400)
    for stale in {file.name for file in vault.iterdir()} - restored.keys():
        (vault / stale).unlink()
    sync_folder(vault)


def show_accounts(volume: Path = VOLUME) -> None:
    """Print the addresses and accounts of the installation."""
    settings, values = {**os.environ, **read_settings()}, read_vault(volume)
    rows = [
        ("Prefect", settings["PREFECT_UI_URL"], settings["PREFECT_USER"], values["PREFECT_PASSWORD"]),
        ("MLflow", settings["MLFLOW_UI_URL"], settings["MLFLOW_USER"], values["MLFLOW_PASSWORD"]),
        ("Mail", settings["MAIL_UI_URL"], settings["MAIL_USER"], values["MAIL_PASSWORD"]),
        ("Serving", settings["SERVING_UI_URL"], "(API key)", values["SERVING_API_KEY"]),
        ("Dashboard", settings["DASHBOARD_UI_URL"], settings["DASHBOARD_USER"], values["DASHBOARD_PASSWORD"]),
    ]
    print(f"{'':9}  {'address':28}  {'user':12}  password")
    for service, address, user, password in rows:
        print(f"{service:9}  {address:28}  {user:12}  {password}")
    print(f"\nPrefect asks for user:password in one field, such as {settings['PREFECT_USER']}:<password>")
    print(f"Backups are encrypted with {values['BACKUP_PASSWORD']}: keep it elsewhere too, or nobody can restore them.")
    if settings.get("TLS_ISSUER") == "internal":
        print("The certificates are of this installation's own authority: `make ca` prints the one to trust.")


def show_environment(volume: Path = VOLUME) -> None:
    """Print `export` lines by which the host's prefect and mlflow, and clients of serving, use the stack."""
    settings, values = {**os.environ, **read_settings()}, read_vault(volume)
    variables = {
        "PREFECT_API_URL": settings["PREFECT_UI_URL"] + "/api",
        "PREFECT_API_AUTH_STRING": f"{settings['PREFECT_USER']}:{values['PREFECT_PASSWORD']}",
        "MLFLOW_TRACKING_URI": settings["MLFLOW_UI_URL"],
        "MLFLOW_TRACKING_USERNAME": settings["MLFLOW_USER"],
        "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_PASSWORD"],
        "SERVING_URL": settings["SERVING_UI_URL"],
        "SERVING_API_KEY": values["SERVING_API_KEY"],
    }
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def show_worker_token(volume: Path = VOLUME) -> None:
    """Print what a worker on another host needs, a line NAME=value each: secrets, and addresses for links.

    Raises:
        SystemExit: The stack has never been started.
    """
    read_vault(volume)
    values = {name: (volume / "worker" / name).read_text() for name in TOKEN}
    addresses = {name: os.environ[name] for name in ("PREFECT_UI_URL", "MLFLOW_UI_URL")}
    for name, value in {**values, **addresses}.items():
        print(f"{name}={value}")


def read_vault(volume: Path) -> dict[str, str]:
    """Read the secrets that people use.

    Raises:
        SystemExit: The stack has never been started.
    """
    try:
        return {name: (volume / "vault" / name).read_text() for name in USER_SECRETS}
    except FileNotFoundError:
        sys.exit("There are no secrets yet: start the stack first, with `make up` or `docker compose up -d --wait`.")


def check(volume: Path = VOLUME, settings_file: Path = SETTINGS) -> None:
    """Print a sentence for each thing that is wrong with settings and secrets; write nothing."""
    settings = read_settings(settings_file)
    chosen, outside = chosen_secrets(settings), external_secrets(settings)
    for problem in (
        *find_address_problems(os.environ),
        *find_reserved_users(settings),
        *external.find_problems(settings),
        *find_problems(chosen, outside),
    ):
        print(f"A setting in .env is refused at the next start: {problem}.")
    files = {name: volume / "vault" / name for name in NAMES}
    values = {name: file.read_text() if file.exists() else "" for name, file in files.items()}
    if missing := [name for name, value in values.items() if not value]:
        print(f"The volume secrets lacks {', '.join(missing)}, or has an empty file.")
        return
    values = {name: value if name in outside else chosen.get(name) or value for name, value in values.items()}
    if former := read_former(volume):
        print(f"A rotation of {', '.join(former)} did not end: run make rotate again.")
    for service, expected in all_files(volume, values, settings, settings_file).items():
        present = {file.name: file.read_text() for file in (volume / service).glob("*")}
        if present != expected:
            names = sorted({name for name, _ in present.items() ^ expected.items()})
            print(f"The secrets of {service} are not what the vault and .env say: {', '.join(names)}.")


COMMANDS: dict[str, Callable[..., object]] = {
    "make": make,
    "adopt": adopt,
    "check": check,
    "info": show_accounts,
    "env": show_environment,
    "rotate": lambda *names: rotate(VOLUME, SETTINGS, *names),
    "settle": settle,
    "worker-token": show_worker_token,
}

if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or ["make"]
    COMMANDS[command](*arguments)
