"""The contract: what it names is spelled nowhere else, its formats fit both sides, and imports respect the layers."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from trainyard import contract
from trainyard.contract import Artifact, Column, Record, Resource, RunTag
from trainyard.evaluation import as_table, from_table, holdout_table, training_sample

CHECKOUT = Path(__file__).parents[2]
TESTING = CHECKOUT / "infra/testing"
SERVICES = sorted(f"services/{folder.name}" for folder in (CHECKOUT / "services").iterdir() if folder.is_dir())
AREAS = ["trainyard", "flows", "infra", "bench", *SERVICES]
TEXT_SUFFIXES = {".py", ".yml", ".yaml", ".toml", ".html", ".js", ".css", ".sh", ".cfg", ""}

EXEMPT = {
    # A key of MLflow's REST API that is spelled as the contract's tag.
    "services/serving": frozenset({"model_version"}),
    "services/dashboard": frozenset({"model_version"}),
    "infra": frozenset({"model_version"}),
}


@cache
def tracked_files() -> list[Path]:
    """Return the files of the repository, new ones among them, without what Git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return [file for file in map(CHECKOUT.joinpath, listed.splitlines()) if file.is_file()]


def files_below(area: str, suffixes: set[str]) -> list[Path]:
    folder = CHECKOUT / area
    return [file for file in tracked_files() if file.is_relative_to(folder) and file.suffix in suffixes]


def strings(value: Any) -> Iterator[str]:
    """Yield the strings in a value of the contract: a string, a collection, or a class of names."""
    match value:
        case str():
            yield value
        case dict():
            yield from strings((*value.keys(), *value.values()))
        case tuple() | frozenset():
            for item in value:
                yield from strings(item)
        case type():
            yield from strings(tuple(item for name, item in vars(value).items() if not name.startswith("__")))


@cache
def distinctive_values() -> frozenset[str]:
    """Return the contract's values that nobody writes by chance: those with a dot, slash, dash or underscore."""
    names = [name for name in vars(contract) if not name.startswith("_") and name not in ("Any", "Final")]
    return frozenset(value for name in names for value in strings(vars(contract)[name]) if re.search(r"[./\-_]", value))


def string_literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of a module's string constants, those in f-strings among them, without docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def repeated_values(source: str, exempt: Set[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Yield line and value of each literal that repeats a value of the contract.

    A value such as `gate.decision` counts within a longer literal too; one without a dot or slash between words, such
    as the prefix `live_`, only as the whole literal.
    """
    values = distinctive_values() - exempt
    unmistakable = "|".join(
        map(re.escape, sorted(filter(re.compile(r"\w[./]\w").search, values), key=len, reverse=True))
    )
    within = re.compile(rf"(?<![\w./-])(?:{unmistakable})(?!\w)")
    for line, literal in string_literals(ast.parse(source)):
        if literal in values:
            yield line, literal
        elif match := within.search(literal):
            yield line, match[0]


class TestLiterals:
    def test_the_search_knows_the_contracts_distinctive_values(self) -> None:
        values = distinctive_values()

        assert {
            "gate.decision",
            "evaluation/holdout.json",
            "too-few",
            "ks_p_value",
            "prefect.flow-run",
            "live_",
        } <= values
        assert not {"champion", "none", "typing"} & values

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("TAG = 'gate.decision'", ["gate.decision"]),
            ("query = f\"tags.`mlflow.parentRunId` = '{run}'\"", ["mlflow.parentRunId"]),
            ("name = f'live_{metric}'", ["live_"]),
            ("'A docstring may name gate.decision.'", []),
            ("name, other = 'live_features', 'not.gate.decision'", []),
        ],
    )
    def test_the_search_finds_whole_literals_and_unmistakable_parts(self, source: str, found: list[str]) -> None:
        assert [value for _, value in repeated_values(source)] == found

    @pytest.mark.parametrize("area", AREAS)
    def test_no_other_module_repeats_a_value_of_the_contract(self, area: str) -> None:
        files = [file for file in files_below(area, {".py"}) if file != Path(contract.__file__)]
        found = [
            f"{file.relative_to(CHECKOUT)}:{line}: {value!r}"
            for file in files
            for line, value in repeated_values(file.read_text(), EXEMPT.get(area, frozenset()))
        ]

        assert not found, "import these from trainyard.contract:\n" + "\n".join(found)


class TestConfiguration:
    """Files that cannot import the contract agree with it."""

    @pytest.mark.parametrize("file", ["prefect.yaml", "trainyard/flows/prefect.yaml"])
    def test_every_deployment_runs_on_the_platforms_work_pool(self, file: str) -> None:
        deployments = yaml.safe_load((CHECKOUT / file).read_text())["deployments"]

        assert {deployment["work_pool"]["name"] for deployment in deployments} == {Resource.WORK_POOL}

    def test_the_platforms_deployments_have_their_names_queue_and_tags(self) -> None:
        deployments = yaml.safe_load((CHECKOUT / "trainyard/flows/prefect.yaml").read_text())["deployments"]
        by_name = {deployment["name"]: deployment for deployment in deployments}

        assert by_name.keys() == {Resource.MONITOR, Resource.RECONCILE, Resource.SEND_MAIL}
        assert by_name[Resource.MONITOR]["tags"] == by_name[Resource.RECONCILE]["tags"] == [RunTag.MAIL_ALERTS]
        assert by_name[Resource.SEND_MAIL]["tags"] == [RunTag.PLATFORM]
        assert by_name[Resource.SEND_MAIL]["work_pool"]["work_queue_name"] == Resource.MAIL_QUEUE

    def test_one_deployment_is_the_first_run_and_is_mailed(self) -> None:
        deployments = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
        (first,) = [deployment for deployment in deployments if RunTag.FIRST_RUN in deployment.get("tags", [])]

        assert RunTag.MAIL in first["tags"]

    def test_workers_are_started_for_the_platforms_work_pool(self) -> None:
        compose = [
            *CHECKOUT.glob("*.yml"),
            *(CHECKOUT / "infra").rglob("*.yml"),
            *CHECKOUT.glob("services/*/Dockerfile"),
        ]
        text = re.sub(r"[\"',\[\]]", " ", "\n".join(file.read_text() for file in compose))

        assert set(re.findall(r"(?s)worker\s+start.*?--pool\s+(\S+)", text)) == {Resource.WORK_POOL}
        assert set(re.findall(r"(?s)worker\s+start.*?--type\s+(\S+)", text)) == {Resource.WORK_POOL_TYPE}

    def test_the_results_block_of_the_stack_is_the_one_that_provisioning_makes(self) -> None:
        text = (CHECKOUT / "docker-compose.yml").read_text()
        block = f"{Resource.RESULTS_BLOCK_TYPE}/{Resource.RESULTS_BLOCK}"

        assert set(re.findall(r"PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK: (\S+)", text)) == {block}


class TestFormats:
    def test_the_holdout_table_is_read_by_its_columns(self) -> None:
        days = pd.date_range("2026-01-01", periods=2)
        table = as_table(holdout_table(pd.Series([1, 0]), {Column.MODEL: np.array([0.75, np.nan])}, days))
        rows = contract.table_rows(table, Artifact.HOLDOUT)

        assert rows == [
            {Column.TIME: "2026-01-01", Column.OBSERVED: 1, Column.MODEL: 0.75},
            {Column.TIME: "2026-01-02", Column.OBSERVED: 0, Column.MODEL: None},
        ]

    def test_the_training_sample_is_read_as_the_frame_that_was_written(self) -> None:
        sample = training_sample(pd.DataFrame({"price": [1.5, 2.5], "kind": ["a", "b"]}), ["x", "y"])

        pd.testing.assert_frame_equal(from_table(as_table(sample)), sample, check_dtype=False)
        assert contract.table_rows(as_table(sample), Artifact.TRAINING_SAMPLE)[1] == {
            "price": 2.5,
            "kind": "b",
            Column.TIME: "",
            Column.PREDICTION: "y",
        }

    def test_tables_of_former_versions_are_read_under_todays_names(self) -> None:
        forecasts = {"columns": ["place", "day", "probability"], "data": [["Oslo", "2026-01-01", 0.5]]}
        drift = {"columns": ["column", "ks_statistic", "ks_p_value"], "data": [["speed", 0.5, 0.01]]}

        assert contract.table_rows(forecasts, Artifact.FORECASTS) == [
            {Column.SUBJECT: "Oslo", Column.TIME: "2026-01-01", Column.PROBABILITY: 0.5}
        ]
        assert contract.table_rows(drift, Artifact.DRIFT) == [{"column": "speed", "statistic": 0.5, "p_value": 0.01}]

    @pytest.mark.parametrize("table", [None, [], {}, {"columns": ["time"]}, "text"])
    def test_what_is_not_a_table_has_no_rows(self, table: Any) -> None:
        assert contract.table_rows(table, Artifact.HOLDOUT) == []

    @pytest.mark.parametrize(
        ("record", "about"),
        [
            ({Record.ABOUT: {Record.SUBJECT: "Oslo", Record.TIMES: ["2026-01-01"]}}, ("Oslo", ["2026-01-01"])),
            ({Record.ABOUT: {"place": "Oslo", "days": ["2026-01-01"]}}, ("Oslo", ["2026-01-01"])),
            ({Record.ABOUT: None}, ("", [])),
            ({}, ("", [])),
        ],
    )
    def test_records_of_today_and_of_former_versions_say_what_they_are_about(
        self, record: dict[str, Any], about: tuple[str, list[str]]
    ) -> None:
        assert contract.record_about(record) == about


def imported_packages(file: Path) -> set[str]:
    """Return the top-level names of a file's absolute imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


def own_packages(area: str) -> set[str]:
    """Return the packages that an area consists of: itself, or those in a service's folder."""
    return {file.parent.name for file in (CHECKOUT / area).glob("*/__init__.py")} if area in SERVICES else {area}


class TestLayers:
    def test_the_contract_imports_the_standard_library_only(self) -> None:
        program = "import sys; before = set(sys.modules); import trainyard.contract; print(*set(sys.modules) - before)"
        loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

        assert {name.partition(".")[0] for name in loaded.split()} <= {"trainyard", *sys.stdlib_module_names}

    @pytest.mark.parametrize("area", AREAS)
    def test_imports_respect_the_layers(self, area: str) -> None:
        """Everything may import the library and itself; benchmarks also provisioning and the examples they measure."""
        packages = {"tests"}.union(*map(own_packages, AREAS))
        allowed = own_packages(area) | {"trainyard"} | ({"infra", "flows"} if area == "bench" else set())
        found = [
            f"{file.relative_to(CHECKOUT)}: {name}"
            for file in files_below(area, {".py"})
            for name in sorted(imported_packages(file) & (packages - allowed))
        ]

        assert not found, "these imports cross a layer:\n" + "\n".join(found)

    @pytest.mark.parametrize("area", ["trainyard", "infra", "services", "docker-compose.yml", "Makefile"])
    def test_the_platform_does_not_mention_the_weather_example(self, area: str) -> None:
        found = [
            f"{file.relative_to(CHECKOUT)}:{number}: {line.strip()}"
            for file in files_below(area, TEXT_SUFFIXES)
            if TESTING not in file.parents  # where the stand-ins for the examples' sources are
            for number, line in enumerate(file.read_text().splitlines(), start=1)
            if re.search(r"weather|\brain\b|\brained\b|open.?meteo", line, re.IGNORECASE)
        ]

        assert not found, "the example is mentioned in:\n" + "\n".join(found)
