"""Whose modules go to Dask's workers by value."""

from pathlib import Path

import pytest

from trainyard.dask_tasks import is_of_project


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project, and a run that has fetched its code elsewhere."""
    for name in ("project", "fetched"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path / "fetched")


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("flows.shop", "project/flows/shop.py", True),
        ("__prefect_loader_1__", "fetched/shop.py", True),
        ("trainyard.search", "project/trainyard/search.py", False),
        ("pandas", "project/.venv/lib/python3.13/site-packages/pandas/__init__.py", False),
        ("__main__", "project/flows/shop.py", False),
        ("elsewhere", "other/elsewhere.py", False),
    ],
)
def test_only_modules_of_the_project_or_the_run_s_folder(tmp_path: Path, name: str, file: str, expected: bool) -> None:
    assert is_of_project(name, str(tmp_path / file)) is expected


def test_a_module_without_a_file_is_nobody_s() -> None:
    assert not is_of_project("sys", None)
