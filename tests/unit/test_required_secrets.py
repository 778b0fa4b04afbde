"""Prefect's and MLflow's servers, and MLflow's migration, refuse to start without what protects them."""

from collections.abc import Callable
from pathlib import Path

import mlflow_server.required
import prefect_server.required
import pytest

from infra.secrets import vault


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume of secrets, with those of both servers in the environment, as with-secrets sets them."""
    settings = tmp_path / "settings"
    names = ("PREFECT_USER", "MLFLOW_USER", "MAIL_USER", "DASHBOARD_USER", "MINIO_ROOT_USER")
    settings.write_text("".join(f"{name}=somebody\n" for name in names))
    vault.make(tmp_path, settings)
    for file in (*(tmp_path / "prefect").iterdir(), *(tmp_path / "mlflow").iterdir()):
        if file.name.isupper():
            monkeypatch.setenv(file.name, file.read_text())
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "mlflow" / "accounts.ini"))
    return tmp_path


REQUIRED = [
    *((prefect_server.required.require_secrets, name) for name in prefect_server.required.LOGINS),
    (prefect_server.required.require_secrets, prefect_server.required.ENCRYPTION_KEY),
    *((mlflow_server.required.require_secrets, name) for name in mlflow_server.required.REQUIRED),
]


def test_they_start_with_what_the_vault_writes(secrets: Path) -> None:
    prefect_server.required.require_secrets()
    mlflow_server.required.require_secrets()


@pytest.mark.parametrize(("require", "name"), REQUIRED)
@pytest.mark.parametrize("value", ["", None])
def test_they_do_not_start_without_a_secret(
    secrets: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[], None], name: str, value: str | None
) -> None:
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit, match=f"does not start without {name}, missing or incomplete in the volume secrets"):
        require()


@pytest.mark.parametrize("name", prefect_server.required.LOGINS)
@pytest.mark.parametrize("login", ["admin:", ":a-password-of-somebody", "admin"])
def test_prefect_does_not_start_with_a_part_of_a_login(
    secrets: Path, monkeypatch: pytest.MonkeyPatch, name: str, login: str
) -> None:
    monkeypatch.setenv(name, login)

    with pytest.raises(SystemExit, match=name) as refused:
        prefect_server.required.require_secrets()

    assert "password" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[mlflow]\n", "[mlflow]\ndatabase_uri =\n", None])
def test_mlflow_does_not_start_without_its_accounts(secrets: Path, text: str | None) -> None:
    file = secrets / "mlflow" / "accounts.ini"
    file.unlink()
    if text is not None:
        file.write_text(text)

    with pytest.raises(SystemExit, match=r"does not start without accounts\.ini"):
        mlflow_server.required.require_secrets()
