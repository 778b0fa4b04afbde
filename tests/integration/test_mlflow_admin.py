"""The admin of MLflow's settings is the installation's only one, whatever it was called before; with MLflow's own accounts."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server.admin import ensure_admin
from mlflow_server.schema import Database

from trainyard.contract import Account

FIRST, SECOND = "a-first-password", "a-second-password"


class Accounts:
    """MLflow's accounts, and the migration of their admin."""

    def __init__(self, url: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # MLflow's server uses a deprecated module of Starlette and settings of Alembic
            from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

            self.store = SqlAlchemyStore()
            self.store.init_db(url)  # type: ignore[no-untyped-call]
        self.database = Database(url, Path(), "alembic_version_auth", "")

    def migrate(self, name: str, password: str = FIRST) -> None:
        """Do what a start with these settings does."""
        with self.database.cursor() as cursor:
            ensure_admin(cursor, name, password)

    def admins(self) -> set[str]:
        """Return the names of the accounts that may do everything."""
        return {user.username for user in self.store.list_users() if user.is_admin}


@pytest.fixture(scope="module")
def opened(database: str) -> Iterator[Accounts]:
    """Accounts of a new installation."""
    accounts = Accounts(database.replace("postgresql:", "postgresql+psycopg2:"))
    yield accounts
    accounts.store.engine.dispose()


@pytest.fixture
def accounts(opened: Accounts) -> Iterator[Accounts]:
    """No accounts."""
    yield opened
    with opened.database.cursor() as cursor:
        cursor.execute("DELETE FROM users; DROP SCHEMA IF EXISTS trainyard CASCADE")


def test_the_admin_is_created_and_its_password_follows_the_setting(accounts: Accounts) -> None:
    accounts.migrate("admin")
    assert accounts.store.authenticate_user("admin", FIRST)

    accounts.migrate("admin", SECOND)

    assert accounts.store.authenticate_user("admin", SECOND)
    assert not accounts.store.authenticate_user("admin", FIRST)
    assert accounts.admins() == {"admin"}


def test_a_renamed_admin_is_no_admin_under_the_former_name(accounts: Accounts) -> None:
    accounts.store.create_user(
        "alice", FIRST, is_admin=True
    )  # by MLflow's server, in an installation of an earlier version
    accounts.store.create_user("dave", FIRST, is_admin=True)  # by alice
    former_id = accounts.store.get_user("alice").id
    for name in ("bob", "carol"):
        accounts.migrate(name)

        assert accounts.admins() == {name, "dave"}
        assert accounts.store.get_user(name).id == former_id, "what it may do and owns is kept"
    assert not accounts.store.has_user("alice")


def test_an_admin_that_an_earlier_version_left_is_one_no_longer(accounts: Accounts) -> None:
    for name in ("alice", "bob"):  # MLFLOW_USER was alice, then bob
        accounts.store.create_user(name, FIRST, is_admin=True)
    accounts.migrate("bob")

    assert accounts.admins() == {"bob"}
    assert accounts.store.authenticate_user("alice", FIRST), "as an account without rights of its own"


def test_an_account_that_becomes_the_admin_replaces_it(accounts: Accounts) -> None:
    accounts.migrate("alice")
    accounts.store.create_user("bob", SECOND)
    accounts.migrate("bob")
    assert accounts.admins() == {"bob"}
    assert accounts.store.authenticate_user("bob", FIRST)

    accounts.migrate("carol")

    assert accounts.admins() == {"carol"}


def test_a_service_that_was_the_admin_stays_an_account(accounts: Accounts) -> None:
    accounts.store.create_user(Account.WORKER, FIRST, is_admin=True)  # MLFLOW_USER=worker in an earlier version
    accounts.migrate("admin")

    assert accounts.admins() == {"admin"}
    assert accounts.store.has_user(Account.WORKER), "with the experiments and models that it made"


def test_an_admin_of_the_peoples_own_is_left_alone_when_the_installations_was_deleted(accounts: Accounts) -> None:
    accounts.migrate("admin")
    accounts.store.create_user("dave", FIRST, is_admin=True)
    accounts.store.delete_user("admin")
    accounts.migrate("admin")

    assert accounts.admins() == {"admin", "dave"}
