"""Nothing but tests imports tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testing.stack import CHECKOUT


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(), file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("folder", ["bench", "flows", "infra", "services", "trainyard"])
def test_nothing_but_tests_imports_tests(folder: str) -> None:
    files = list((CHECKOUT / folder).rglob("*.py"))

    imports = {(str(file), module) for file in files for module in imported_modules(file)}

    assert files
    assert {(file, module) for file, module in imports if module.partition(".")[0] == "tests"} == set()
