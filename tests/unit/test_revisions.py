"""The revisions that an image knows: a database with another one was migrated by a later version, and is left alone."""

from pathlib import Path

import mlflow
import prefect.server.database
import prefect_server.schema
import pytest
from alembic.script import ScriptDirectory
from mlflow_server.schema import Database, accounts_database, tracking_database


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Database]:
    """MLflow's two databases, by their folder in MLflow."""
    accounts = tmp_path / "accounts.ini"
    accounts.write_text("[mlflow]\ndatabase_uri = postgresql://localhost/mlflow_accounts\n")
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(accounts))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://localhost/mlflow")
    return {"store/db_migrations": tracking_database(), "server/auth/db/migrations": accounts_database()}


def revisions(folder: Path, *versions: Path) -> set[str]:
    """Return what Alembic finds."""
    scripts = ScriptDirectory(str(folder), version_locations=[str(version) for version in versions] or None)
    return {script.revision for script in scripts.walk_revisions()}


@pytest.mark.parametrize("folder", ["store/db_migrations", "server/auth/db/migrations"])
def test_mlflows_revisions_are_those_that_alembic_finds(databases: dict[str, Database], folder: str) -> None:
    (home,) = mlflow.__path__

    assert databases[folder].known_revisions() == revisions(Path(home, folder))


def test_prefects_revisions_are_those_that_alembic_finds() -> None:
    (home,) = prefect.server.database.__path__
    folder = Path(home, "_migrations")

    assert prefect_server.schema.known_revisions() == revisions(folder, folder / "versions/postgresql")


def test_a_database_of_a_later_version_is_refused_in_one_sentence(databases: dict[str, Database]) -> None:
    advice = r", which has the revision ffffffffffff: start the version of Trainyard that ran last, or restore a backup"
    with pytest.raises(SystemExit, match=f"^Prefect does not start, because it is older than its database{advice}"):
        prefect_server.schema.refuse_newer("ffffffffffff")
    for database in databases.values():
        refusal = f"^MLflow does not start, because it is older than its database {database.name}{advice}"
        with pytest.raises(SystemExit, match=refusal):
            database.refuse_newer("ffffffffffff")
