"""The vault: secrets are created once, unsafe ones refused, and each service gets only its own."""

import base64
import configparser
import hashlib
import hmac
import io
import json
import os
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy.engine import make_url

from infra.provision.storage import BACKUP_USER, METRICS_USER, MLFLOW_USER, RESULTS_USER
from infra.secrets import vault
from trainyard.contract import Account

SETTINGS = {
    "PREFECT_USER": "admin",
    "MLFLOW_USER": "admin",
    "MAIL_USER": "admin",
    "DASHBOARD_USER": "admin",
    "MINIO_ROOT_USER": "trainyard",
}


def settings_file(folder: Path, **given: str) -> Path:
    file = folder / "settings"
    file.write_text("".join(f"{name}={value}\n" for name, value in (SETTINGS | given).items()))
    return file


@pytest.mark.parametrize(
    "value",
    [
        "minioadmin123",
        "postgres-2026!",
        "password1234",
        "PasswordPassword",
        "admin:admin:admin",
        "changeme-changeme",
        "0" * 12,
    ],
)
def test_a_known_default_is_refused(value: str) -> None:
    assert list(vault.find_problems({"MLFLOW_PASSWORD": value})) == ["MLFLOW_PASSWORD is a known default"]


@pytest.mark.parametrize("value", ["passwörter sind schwer", "tab\tbed-password", "short"])
def test_the_message_about_an_unsafe_secret_does_not_contain_it(value: str) -> None:
    problems = list(vault.find_problems({"MLFLOW_PASSWORD": value}))

    assert len(problems) == 1
    assert value not in problems[0]


def test_a_safe_secret_is_accepted() -> None:
    assert not list(vault.find_problems({"MLFLOW_PASSWORD": "correct-horse-battery"}))


def test_secrets_are_generated_once_and_differ(tmp_path: Path) -> None:
    first = vault.fill_vault(tmp_path, {})

    assert len(set(first.values())) == len(vault.NAMES)
    assert min(len(value) for value in first.values()) == 43  # 32 bytes in base64
    assert vault.fill_vault(tmp_path, {}) == first


def test_a_secret_of_env_wins_and_stays(tmp_path: Path) -> None:
    vault.fill_vault(tmp_path, {})
    given = vault.fill_vault(tmp_path, {"MLFLOW_PASSWORD": "correct-horse-battery"})

    assert given["MLFLOW_PASSWORD"] == "correct-horse-battery"
    assert vault.fill_vault(tmp_path, {})["MLFLOW_PASSWORD"] == "correct-horse-battery"


@pytest.mark.parametrize("name", sorted({*vault.NAMES} - {*vault.ENCRYPTION_KEYS}))
def test_an_empty_secret_is_a_missing_one(tmp_path: Path, name: str) -> None:
    vault.fill_vault(tmp_path, {})
    file = tmp_path / "vault" / name
    file.chmod(0o600)
    file.write_text("")

    assert len(vault.fill_vault(tmp_path, {})[name]) == 43
    assert len(file.read_text()) == 43


@pytest.mark.parametrize("name", vault.ENCRYPTION_KEYS)
def test_an_encryption_key_that_is_empty_is_not_replaced(tmp_path: Path, name: str) -> None:
    volume = tmp_path / "volume"
    settings = settings_file(tmp_path)
    vault.make(volume, settings)
    file = volume / "vault" / name
    file.chmod(0o600)
    file.write_text("")

    with pytest.raises(SystemExit, match=f"vault/{name} is empty, and what was encrypted under it cannot be read"):
        vault.make(volume, settings)

    assert file.read_text() == ""
    file.unlink()
    vault.make(volume, settings)
    assert len(file.read_text()) == 43, "a missing one is generated: as in an installation of an earlier version"


def test_what_was_written_survives_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, int]] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(opened: int) -> None:
        fsync(opened)
        events.append(("synced", os.fstat(opened).st_ino))

    def record_rename(file: Path, target: Path) -> Path:
        assert ("synced", file.stat().st_ino) in events, f"{target} may be empty"
        events.append(("changed", target.parent.stat().st_ino))
        return rename(file, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    volume = tmp_path / "volume"
    vault.make(volume, settings_file(tmp_path))

    folders = [folder for folder in volume.iterdir() if folder.is_dir()]
    assert {"vault", "prefect", "mlflow"} <= {folder.name for folder in folders}
    for folder in folders:
        last = [event for event in events if event[1] == folder.stat().st_ino][-1]
        assert last[0] == "synced", f"files of {folder.name} may be missing"
    assert events[-1] == ("synced", volume.stat().st_ino)


@pytest.mark.parametrize("service", ["prefect", "mlflow"])
def test_an_encryption_key_has_the_form_that_its_server_takes(tmp_path: Path, service: str) -> None:
    vault.make(tmp_path, settings_file(tmp_path))
    (file,) = (tmp_path / service).glob("*SE*_ENCRYPTION_KEY")
    cipher = Fernet(file.read_text())

    assert cipher.decrypt(cipher.encrypt(b"a value")) == b"a value"


@pytest.mark.parametrize(
    ("setting", "accounts"),
    [
        ("MLFLOW_USER", {Account.WORKER, Account.SERVING, Account.DASHBOARD}),
        ("MINIO_ROOT_USER", {MLFLOW_USER, RESULTS_USER, BACKUP_USER, METRICS_USER}),
    ],
)
def test_a_services_account_is_no_administrators(tmp_path: Path, setting: str, accounts: set[str]) -> None:
    assert set(vault.RESERVED_USERS[setting]) == accounts
    for account in accounts:
        with pytest.raises(SystemExit, match=f"{setting} is {account}, which is an account of the platform's services"):
            vault.make(tmp_path / "volume", settings_file(tmp_path, **{setting: account}))
    assert not (tmp_path / "volume").exists()


def test_a_service_gets_only_the_secrets_that_it_needs(tmp_path: Path) -> None:
    values = {name: f"<{name}>" for name in vault.NAMES}
    files = {service: "".join(texts.values()) for service, texts in vault.service_files(values, SETTINGS, {}).items()}

    # A backup holds every secret but its own password.
    assert all(f"<{name}>" in files["backup"] for name in vault.NAMES)
    assert "BACKUP_PASSWORD" not in vault.service_files(values, SETTINGS, {})["backup"]["vault.json"]
    del files["backup"]
    assert [name for name, text in files.items() if "BACKUP_PASSWORD" in text] == ["restore"]
    assert "<POSTGRES_PASSWORD>" in files.pop("restore")
    assert "<POSTGRES_PASSWORD>" in files.pop("postgres")
    assert not any("<POSTGRES_PASSWORD>" in text for text in files.values())
    assert "S3_SECRET_KEY" not in files["worker"]
    assert "DATABASE" not in files["worker"]
    assert [name for name, text in files.items() if "CACHE_SIGNING_KEY" in text] == ["worker"]
    assert [name for name, text in files.items() if "<PREFECT_PASSWORD>" in text] == ["prefect", "provision"]
    assert [name for name, text in files.items() if "PREFECT_WORKER" in text] == ["prefect", "worker"]
    assert [name for name, text in files.items() if "PREFECT_DEPLOY" in text] == ["prefect", "deploy"]
    assert files["deploy"] == "deploy:<PREFECT_DEPLOY_PASSWORD>"
    assert [name for name, text in files.items() if "PREFECT_ENCRYPTION" in text] == ["prefect"]
    assert [name for name, text in files.items() if "MLFLOW_ENCRYPTION" in text] == ["mlflow"]
    assert [name for name, text in files.items() if "MLFLOW_WEBHOOK" in text] == ["mlflow"]
    assert "MINIO_ROOT" not in files["worker"] + files["mlflow"] + files["prefect"]
    assert [name for name, text in files.items() if "SERVING_READING_KEY" in text] == ["serving", "dashboard"]
    assert "SERVING_API_KEY" not in files["dashboard"]
    assert [name for name, text in files.items() if "METRICS_TOKEN" in text] == [
        "prefect",
        "mlflow",
        "dashboard",
        "prometheus",
    ]
    assert [name for name, text in files.items() if "METRICS_DATABASE" in text] == ["postgres-exporter"]
    assert "METRICS_S3_KEY" not in files["prometheus"], "only what it signed"


def test_alertmanagers_settings_are_beside_its_password_where_there_are_some(tmp_path: Path) -> None:
    settings = settings_file(tmp_path, SMTP_PASSWORD="abc")
    (tmp_path / "alertmanager.yml").write_text("global: {}")
    vault.make(tmp_path / "volume", settings)
    assert sorted(file.name for file in (tmp_path / "volume/alertmanager").iterdir()) == [
        "SMTP_PASSWORD",
        "alertmanager.yml",
    ]

    (tmp_path / "alertmanager.yml").unlink()
    vault.make(tmp_path / "volume", settings)
    assert [file.name for file in (tmp_path / "volume/alertmanager").iterdir()] == ["SMTP_PASSWORD"]


def test_the_token_of_metrics_is_signed_by_its_own_account_and_stays(tmp_path: Path) -> None:
    vault.make(tmp_path, settings_file(tmp_path))
    token = (tmp_path / "prometheus/minio").read_text()
    vault.make(tmp_path, settings_file(tmp_path))

    unsigned, _, signature = token.rpartition(".")
    key = (tmp_path / "provision/METRICS_S3_KEY").read_bytes()
    expected = base64.urlsafe_b64encode(hmac.digest(key, unsigned.encode(), hashlib.sha512)).rstrip(b"=").decode()
    assert signature == expected
    assert json.loads(base64.urlsafe_b64decode(unsigned.partition(".")[2] + "=="))["sub"] == METRICS_USER
    assert (tmp_path / "prometheus/minio").read_text() == token


@pytest.mark.parametrize(
    "address", ["http://localhost:5001", "https://mlflow.example.com", "http://10.0.0.5:80", "https://[fd00::1]:8443"]
)
def test_a_public_address_is_scheme_host_and_port(address: str) -> None:
    assert not list(vault.find_address_problems({"MLFLOW_UI_URL": address}))


@pytest.mark.parametrize(
    "address",
    [
        "mlflow.example.com",
        "https://mlflow.example.com/",
        "https://ml.example.com/mlflow",
        "https://a b",
        "ftp://ml.lan",
    ],
)
def test_another_form_of_a_public_address_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_UI_URL", address)
    with pytest.raises(SystemExit, match=r"MLFLOW_PUBLIC_URL.* needs the form https://mlflow\.example\.com"):
        vault.make(tmp_path / "volume", settings_file(tmp_path))

    assert not (tmp_path / "volume").exists()


def tls(**settings: str) -> dict[str, str]:
    """Return what infra/compose/tls.yml passes to the vault, but for these settings."""
    names = {f"{name.upper()}_UI_URL": f"https://{name}.ml.lan" for name in TLS_SERVICES}
    return {**names, "TLS_ISSUER": "internal", "HTTPS_PORT": "443", **settings}


TLS_SERVICES = ("prefect", "mlflow", "serving", "dashboard", "mail")


@pytest.mark.parametrize(
    "settings",
    [
        tls(),
        tls(TLS_ISSUER="acme", MAIL_UI_URL="https://post.example.com:443"),
        tls(HTTPS_PORT="8443", **{f"{name.upper()}_UI_URL": f"https://{name}.localhost:8443" for name in TLS_SERVICES}),
    ],
)
def test_a_name_for_each_service_can_be_served_with_tls(settings: dict[str, str]) -> None:
    assert not list(vault.find_tls_problems(settings))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"TLS_ISSUER": "letsencrypt"}, "TLS_ISSUER is letsencrypt; it is one of internal, acme, files"),
        ({"MLFLOW_UI_URL": "http://mlflow.ml.lan"}, "MLFLOW_PUBLIC_URL.* begins with https://"),
        ({"MLFLOW_UI_URL": "https://mlflow.ml.lan:8443"}, "MLFLOW_PUBLIC_URL.* has the port of HTTPS_PORT"),
        ({"MLFLOW_UI_URL": "https://mlflow.10.0.0.5"}, "MLFLOW_PUBLIC_URL.* PUBLIC_HOST needs to be a name"),
        ({"MLFLOW_UI_URL": "https://[fd00::1]"}, "MLFLOW_PUBLIC_URL.* PUBLIC_HOST needs to be a name"),
        ({"MLFLOW_UI_URL": "https://prefect.ml.lan"}, "MLFLOW_PUBLIC_URL.* is that of prefect too"),
        ({"TLS_ISSUER": "acme", "MLFLOW_UI_URL": "https://mlflow.localhost"}, "set PUBLIC_HOST"),
        ({"WORKERS_UI_URL": "https://prefect.ml.lan"}, "WORKERS_PUBLIC_URL.* is that of prefect too"),
    ],
)
def test_an_address_that_cannot_be_served_with_tls_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], problem: str
) -> None:
    for name, value in tls(**settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"a setting in .env: .*{problem}"):
        vault.make(tmp_path / "volume", settings_file(tmp_path))

    assert not (tmp_path / "volume").exists()


def test_the_secrets_of_a_backup_replace_the_vaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_backup, present = tmp_path / "source", tmp_path / "target"
    vault.make(of_the_backup, settings_file(tmp_path))
    vault.make(present, settings_file(tmp_path))
    own_password = (present / "vault/BACKUP_PASSWORD").read_text()
    (present / "vault/SECRET_OF_A_LATER_VERSION").write_text("unknown to the backup")

    monkeypatch.setattr("sys.stdin", io.StringIO((of_the_backup / "backup/vault.json").read_text()))
    vault.adopt(present)
    vault.make(present, settings_file(tmp_path, MAIL_PASSWORD="correct-horse-battery"))

    restored = vault.read_vault(of_the_backup) | {
        "BACKUP_PASSWORD": own_password,
        "MAIL_PASSWORD": "correct-horse-battery",
    }
    assert vault.read_vault(present) == restored
    assert not (present / "vault/SECRET_OF_A_LATER_VERSION").exists()
    kept = (of_the_backup / "vault/PREFECT_DATABASE_PASSWORD").read_text()
    assert (present / "postgres/prefect").read_text() == kept


@pytest.mark.parametrize("arrived", ["", "[]", '{"MAIL_PASS'])
def test_secrets_that_did_not_arrive_leave_the_vault_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrived: str
) -> None:
    vault.make(tmp_path, settings_file(tmp_path))
    before = vault.read_vault(tmp_path)

    monkeypatch.setattr("sys.stdin", io.StringIO(arrived))
    with pytest.raises(SystemExit, match="run the restore again"):
        vault.adopt(tmp_path)

    assert vault.read_vault(tmp_path) == before


def test_an_unsafe_setting_leaves_the_volume_as_it_was(tmp_path: Path) -> None:
    settings = settings_file(tmp_path, MAIL_PASSWORD="minioadmin")
    with pytest.raises(SystemExit, match="MAIL_PASSWORD has 10 characters"):
        vault.make(tmp_path / "volume", settings)

    assert not (tmp_path / "volume").exists()


def test_a_password_with_any_character_survives_an_address(tmp_path: Path) -> None:
    password = "p@ss/w:rd%41?#[x]"
    values = dict.fromkeys(vault.NAMES, password)
    folders = vault.service_files(values, SETTINGS, {})

    assert make_url(folders["mlflow"]["MLFLOW_BACKEND_STORE_URI"]).password == password
    ini = configparser.ConfigParser()
    ini.read_string(folders["mlflow"]["accounts.ini"])
    assert make_url(ini["mlflow"]["database_uri"]).password == password


@pytest.mark.parametrize("password", ["abc", "with spaces as Google's", "password1234"])
def test_the_password_of_an_external_server_is_passed_on_unchanged(tmp_path: Path, password: str) -> None:
    vault.make(tmp_path, settings_file(tmp_path, SMTP_PASSWORD=password))

    assert (tmp_path / "worker" / "SMTP_PASSWORD").read_text() == password
    assert not (tmp_path / "vault" / "SMTP_PASSWORD").exists()
    assert sorted(file.parent.name for file in tmp_path.glob("*/SMTP_PASSWORD")) == ["alertmanager", "worker"]


def test_the_key_of_the_backups_s3_reaches_the_containers_that_use_it_alone(tmp_path: Path) -> None:
    vault.make(tmp_path, settings_file(tmp_path, BACKUP_S3_SECRET_KEY="abc"))

    assert sorted(file.parent.name for file in tmp_path.glob("*/BACKUP_S3_SECRET_KEY")) == ["backup", "restore"]


def test_the_password_of_an_external_server_is_deleted_once_env_no_longer_sets_it(tmp_path: Path) -> None:
    vault.make(tmp_path, settings_file(tmp_path, SMTP_PASSWORD="abc"))
    vault.make(tmp_path, settings_file(tmp_path, SMTP_PASSWORD=""))

    assert not list(tmp_path.rglob("SMTP_PASSWORD"))


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("hunter\ntwo", "SMTP_PASSWORD has a line break"),
        ("hunter2\n", "SMTP_PASSWORD has a line break"),
        ("hunter\rtwo", "SMTP_PASSWORD has a line break"),
        ("hunter\ttwo", "SMTP_PASSWORD has a control character or a non-ASCII letter"),
        ("häuptling", "SMTP_PASSWORD has a control character or a non-ASCII letter"),
    ],
)
def test_a_password_that_could_not_be_passed_on_is_refused(tmp_path: Path, password: str, problem: str) -> None:
    settings = tmp_path / "settings"
    settings_file(tmp_path, SMTP_PASSWORD=password)
    with pytest.raises(SystemExit) as refused:
        vault.make(tmp_path / "volume", settings)

    assert problem in str(refused.value)
    assert "hunter" not in str(refused.value)
    assert not (tmp_path / "volume").exists()


def test_a_check_of_secrets_says_what_is_wrong_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_UI_URL", "http://localhost:4200")
    volume = tmp_path / "secrets"
    vault.make(volume, settings_file(tmp_path))

    def check(**given: str) -> list[str]:
        before = {file: file.read_bytes() for file in volume.rglob("*") if file.is_file()}
        vault.check(volume, settings_file(tmp_path, **given))
        assert {file: file.read_bytes() for file in volume.rglob("*") if file.is_file()} == before
        return capsys.readouterr().out.splitlines()

    assert check() == []
    assert check(SMTP_PASSWORD="x")[0] == "The secrets of worker are not what the vault and .env say: SMTP_PASSWORD."
    (refused, *_) = check(MAIL_PASSWORD="short")
    assert refused.startswith("A setting in .env is refused at the next start: MAIL_PASSWORD has 5 characters")
    (volume / "worker/CACHE_SIGNING_KEY").chmod(0o600)
    (volume / "worker/CACHE_SIGNING_KEY").write_text("")
    assert check() == ["The secrets of worker are not what the vault and .env say: CACHE_SIGNING_KEY."]
    (volume / "vault/MAIL_PASSWORD").chmod(0o600)
    (volume / "vault/MAIL_PASSWORD").write_text("")
    assert check() == ["The volume secrets lacks MAIL_PASSWORD, or has an empty file."]


def folders(volume: Path) -> dict[str, dict[str, str]]:
    return {
        folder.name: {file.name: file.read_text() for file in folder.iterdir()}
        for folder in volume.iterdir()
        if folder.is_dir()
    }


def test_a_rotation_changes_every_secret_and_names_the_services(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, settings = tmp_path / "volume", settings_file(tmp_path)
    vault.make(volume, settings)
    before = folders(volume)
    vault.rotate(volume, settings)
    after = folders(volume)

    assert all(after["vault"][name] != before["vault"][name] for name in vault.NAMES)
    assert set(capsys.readouterr().out.split()) == set(before) - {"vault", "alertmanager"}  # which has mail's password
    assert vault.make(volume, settings) == []


def test_one_secret_is_rotated_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, settings = tmp_path / "volume", settings_file(tmp_path)
    vault.make(volume, settings)
    before = folders(volume)["vault"]
    vault.rotate(volume, settings, "SERVING_READING_KEY")
    after = folders(volume)["vault"]

    assert {name for name in after if after[name] != before.get(name)} == {"SERVING_READING_KEY"}
    assert capsys.readouterr().out.split() == ["serving", "dashboard", "backup"]


@pytest.mark.parametrize(
    ("name", "service", "variable"),
    [
        ("PREFECT_ENCRYPTION_KEY", "prefect", "PREFECT_FORMER_ENCRYPTION_KEY"),
        ("MLFLOW_ENCRYPTION_PASSPHRASE", "mlflow", "MLFLOW_FORMER_KEK_PASSPHRASE"),
        ("MLFLOW_WEBHOOK_ENCRYPTION_KEY", "mlflow", "MLFLOW_FORMER_WEBHOOK_KEY"),
        ("BACKUP_PASSWORD", "backup", "BACKUP_FORMER_PASSWORD"),
    ],
)
def test_the_former_key_stays_until_all_is_moved(tmp_path: Path, name: str, service: str, variable: str) -> None:
    volume, settings = tmp_path / "volume", settings_file(tmp_path)
    vault.make(volume, settings)
    former = folders(volume)["vault"][name]
    vault.rotate(volume, settings, name)
    rotated = folders(volume)
    vault.rotate(volume, settings, name)  # the first one did not end
    again = folders(volume)
    vault.settle(volume, settings)
    settled = folders(volume)

    assert rotated[service][variable].removesuffix("=") == former
    assert again == rotated
    assert settled["vault"][name] == rotated["vault"][name]
    assert variable not in settled[service]
    assert f"{name}.former" not in settled["vault"]


def test_a_rotation_leaves_what_env_sets_and_refuses_to_change_it_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, settings = tmp_path / "volume", settings_file(tmp_path, MAIL_PASSWORD="correct-horse-battery")
    vault.make(volume, settings)
    vault.rotate(volume, settings)
    before = folders(volume)
    with pytest.raises(SystemExit, match=r"MAIL_PASSWORD is set in \.env: change it there"):
        vault.rotate(volume, settings, "SERVING_API_KEY", "MAIL_PASSWORD")

    assert "Left as .env sets them: MAIL_PASSWORD." in capsys.readouterr().err
    assert before["vault"]["MAIL_PASSWORD"] == "correct-horse-battery"
    assert folders(volume) == before


def test_an_unknown_secret_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    volume, settings = tmp_path / "volume", settings_file(tmp_path)
    vault.make(volume, settings)
    before = folders(volume)
    with pytest.raises(SystemExit, match=r"There is no secret PASSWORD\. There are PREFECT_PASSWORD, "):
        vault.rotate(volume, settings, "PASSWORD")

    assert folders(volume) == before


def test_a_rotation_before_the_first_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="start the stack first"):
        vault.rotate(tmp_path / "volume", settings_file(tmp_path))
