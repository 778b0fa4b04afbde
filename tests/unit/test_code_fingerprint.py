"""Digests of code that change with all that a task can reach, and with nothing else."""

import importlib
import importlib.util
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import Task

from flows.weather import features, open_meteo, places, plots, promotion, sources, validation
from flows.weather import ingest as weather_ingest
from flows.weather import model as weather_model
from flows.weather import pipeline as weather
from flows.wine import model as wine_model
from trainyard import distributions, fitting, metrics, tracking, training
from trainyard.contract import Tag
from trainyard.fingerprint import code_fingerprint, fingerprint, key_fingerprint

CHECKOUT = Path(__file__).parents[2]

# In each file a place to change for each letter: small ones are reached by `work`, capital ones are not.
PROJECT = {
    "task.py": """
import math
from functools import partial, singledispatch
from . import helper, spare
from .helper import Base, scale as rescale

FACTOR = {a}
TABLE = {{"row": [{b}, FACTOR]}}
UNUSED = {A}
steps = [partial(rescale, {c}), lambda x: (x, {d})]

class Model(Base):
    size: int = {e}

    def run(self, x):
        return x, {f}

@singledispatch
def show(x):
    return x

@show.register
def show_text(x: str):
    return x, {g}

def work(x, n={h}, *, m={i}):
    '''Work {B}.'''
    # {C}
    def inner(y):
        '''Inner {D}.'''
        return [(y, FACTOR, {j}) for _ in range(3) if x in {{1, 2, n}}]

    from .late import LATER
    return inner(rescale(x)), helper.OFFSET, TABLE, steps, Model().run(m), helper.triple(x), helper.memo(x), show(x), LATER

def unreached(x):
    return {E}
""",
    "helper.py": """
import functools

OFFSET = {k}
POWER = {l}
HIDDEN = {F}

def scale(x, y):
    return (x, y, POWER)

def multiplier(n):
    def multiply(y):
        return y, n
    return multiply

triple = multiplier({m})

@functools.lru_cache
def memo(x):
    return x, {n}

def hidden(x):
    return {G}, HIDDEN

class Base:
    @property
    def doubled(self):
        return {o}

    @staticmethod
    def halved():
        return {p}
""",
    "late.py": "LATER = {q}\nNEVER = {H}\n",
    "spare.py": "SPARE = {I}\n",
}
LETTERS = "abcdefghijklmnopqABCDEFGHI"
VALUES = st.sampled_from(
    [
        "1",
        "2",
        "1.0",
        "0.0",
        "-0.0",
        "True",
        "None",
        "float('nan')",
        "'1'",
        "b'1'",
        "(1, 2)",
        "(2, 1)",
        "[1, 'a']",
        "['1', 'a']",
        "{'a': 1, 'b': 2}",
        "{'b': 2, 'a': 1}",
        "frozenset({1, 2, 'x'})",
        "len",
        "print",
        "lambda z: z + 1",
        "lambda z: z + 2",
    ]
)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, str]], ModuleType]]:
    """Write and import a project with a value at each place; each time as another package."""
    folder = tmp_path_factory.mktemp("projects")
    sys.path.insert(0, str(folder))
    made: list[str] = []

    def load_project(values: dict[str, str]) -> ModuleType:
        made.append(f"project_{len(made)}")
        package = folder / made[-1]
        package.mkdir()
        (package / "__init__.py").touch()
        for name, text in PROJECT.items():
            (package / name).write_text(text.format(**values))
        importlib.invalidate_caches()
        return importlib.import_module(f"{made[-1]}.task")

    yield load_project
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[name]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=len(LETTERS), max_size=len(LETTERS)), st.sampled_from(LETTERS), VALUES)
def test_code_counts_where_the_function_reaches_it(
    load: Callable[[dict[str, str]], ModuleType], texts: list[str], letter: str, changed: str
) -> None:
    values = dict(zip(LETTERS, texts, strict=True))
    before, again, after = (load(each) for each in (values, values, values | {letter: changed}))
    counts = letter.islower() and changed != values[letter]

    assert code_fingerprint(before.work) == code_fingerprint(again.work)
    assert (code_fingerprint(before.work) != code_fingerprint(after.work)) is counts


@pytest.mark.parametrize("letter", LETTERS)
def test_each_place_counts_or_does_not(load: Callable[[dict[str, str]], ModuleType], letter: str) -> None:
    values = dict.fromkeys(LETTERS, "1")
    before, after = load(values), load(values | {letter: "2"})

    assert (code_fingerprint(before.work) != code_fingerprint(after.work)) is letter.islower()


def test_an_edit_of_a_file_counts_once_it_is_loaded(load: Callable[[dict[str, str]], ModuleType]) -> None:
    task = load(dict.fromkeys(LETTERS, "1"))
    before = code_fingerprint(task.work)
    helper = sys.modules[task.helper.__name__]
    file = Path(str(helper.__file__))
    file.write_text(file.read_text().replace("OFFSET = 1", "OFFSET = 222"))

    assert code_fingerprint(task.work) == before
    importlib.reload(helper)
    assert code_fingerprint(task.work) != before


def test_a_change_of_a_module_level_value_at_run_time_counts(load: Callable[[dict[str, str]], ModuleType]) -> None:
    task = load(dict.fromkeys(LETTERS, "1"))
    before = code_fingerprint(task.work)
    task.TABLE["row"].append(3)

    assert code_fingerprint(task.work) != before


def test_a_file_that_is_loaded_under_another_name_has_the_same_digest(tmp_path: Path) -> None:
    file = tmp_path / "flow.py"
    file.write_text("class Row:\n    size = 1\n\ndef work(x):\n    return Row(), eval('Row')\n")

    def load_as(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    one, other = load_as("__prefect_loader_1__"), load_as("__prefect_loader_2__")
    del sys.modules["__prefect_loader_1__"], sys.modules["__prefect_loader_2__"]

    assert code_fingerprint(one.work) == code_fingerprint(other.work)
    assert key_fingerprint([one.work], one.Row()) == key_fingerprint([other.work], other.Row())


def run(source: str) -> Any:
    """Return the global names after running a program."""
    module = ModuleType("program")
    exec(source, vars(module))
    return module


def test_code_that_looks_names_up_at_run_time_counts_with_its_whole_module() -> None:
    programs = [f"HIDDEN = {value}\ndef work(x):\n    return eval(x)\n" for value in (1, 2)]

    def digest(program: str) -> str:
        module = run(program)
        sys.modules["program"] = module
        try:
            return code_fingerprint(module.work)
        finally:
            del sys.modules["program"]

    assert digest(programs[0]) == digest(programs[0]) != digest(programs[1])


@dataclass(frozen=True)
class Held:
    """A class of which `pickle` keeps the names of its slots."""

    value: int


def test_a_named_module_counts_as_a_whole() -> None:
    one, other = run("RATES = [1]\n"), run("RATES = [2]\n")
    work = run("def work(x): return x").work

    assert code_fingerprint(work, one) != code_fingerprint(work, other)


def test_the_class_of_an_input_counts() -> None:
    source = "class Row:\n    def total(self):\n        return {}\n"
    one, same, other = (run(source.format(value)).Row() for value in (1, 1, 2))
    work = run("def work(row): return row.total()").work

    assert key_fingerprint([work], [one]) == key_fingerprint([work], [same]) != key_fingerprint([work], [other])


def test_what_python_keeps_on_code_that_is_used_does_not_count() -> None:
    def check(value: Held) -> Held:
        return value

    before = code_fingerprint(Held, check)
    pickle.dumps(Held(1))
    check.__signature__ = inspect.signature(check)  # type: ignore[attr-defined]

    assert "__slotnames__" in vars(Held)
    assert code_fingerprint(Held, check) == before


def test_functions_that_refer_to_each_other_have_digests() -> None:
    source = "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != {} and even(n - 1)\n"
    one, same, other = (run(source.format(value)).even for value in (0, 0, 1))

    assert code_fingerprint(one) == code_fingerprint(same) != code_fingerprint(other)


def test_a_value_without_content_is_refused_with_its_name() -> None:
    program = run("import threading\nWORKER = threading.Thread()\ndef work(): return WORKER\n")

    with pytest.raises(TypeError, match="WORKER"):
        code_fingerprint(program.work)


def test_the_digest_is_the_same_in_another_process() -> None:
    program = "from flows.wine.model import make_problem as make; from trainyard.fingerprint import code_fingerprint as of; print(of(make))"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(CHECKOUT)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)

    assert shown.stdout.strip() == code_fingerprint(wine_model.make_problem)


class TestLibraries:
    """Distributions in a folder of installed packages: `used` requires `needed` and, where installed, `optional`."""

    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        folder = tmp_path / "site-packages"

        def install_one(name: str, version: str, *requirements: str) -> None:
            for old in folder.glob(f"{name}-*"):
                old.rename(tmp_path / f"removed-{name}-{version}")
            made = folder / f"{name}-{version}.dist-info"
            made.mkdir(parents=True)
            required = "".join(f"Requires-Dist: {each}\n" for each in requirements)
            (made / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}\nText\n"
            )
            (made / "RECORD").write_text(f"{name}_module/__init__.py,,\n")
            (folder / f"{name}_module").mkdir(exist_ok=True)
            (folder / f"{name}_module" / "__init__.py").write_text("def call(): return 1\n")
            for memory in (distributions._installed, distributions._records, distributions._providers):
                memory.cache_clear()
            distributions._requirements.cache_clear()
            distributions._describe.cache_clear()

        monkeypatch.syspath_prepend(folder)
        install_one("needed", "1.0")
        install_one("optional", "1.0")
        install_one("tool", "1.0")
        install_one("unrelated", "1.0")
        optional = ("optional; extra == 'speed'", "tool; extra == 'tests'", "absent; extra == 'more'")
        install_one("used", "1.0", "needed>=1; python_version > '3'", *optional)
        return install_one

    @pytest.mark.parametrize(
        ("name", "counts"),
        [("used", True), ("needed", True), ("optional", True), ("tool", False), ("unrelated", False)],
    )
    def test_a_version_counts_where_the_code_uses_the_library(
        self, install: Callable[..., None], name: str, counts: bool
    ) -> None:
        work = run("import used_module\ndef work(): return used_module.call()\n").work
        before = code_fingerprint(work)
        install(name, "1.1", *(["needed", "optional ; extra=='speed'"] if name == "used" else []))

        assert (code_fingerprint(work) != before) is counts

    @pytest.mark.usefixtures("install")
    def test_versions_are_listed_with_that_of_python(self) -> None:
        python = ".".join(map(str, sys.version_info[:3]))

        assert distributions.versions(["used_module"]) == [
            f"cpython=={python}",
            "needed==1.0",
            "optional==1.0",
            "used==1.0",
        ]
        assert distributions.versions(["json", "program", ""]) == [f"cpython=={python}"]


TASKS = [
    weather.log_run,
    *(weather_ingest.find_place, weather_ingest.fetch_archive, weather_ingest.build_features),
    *(training.cross_validate, training.search_candidates, training.fit, training.refit, training.log_run),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.fn.__module__.split('.')[1]} {task.name}")
def test_each_cached_task_of_the_examples_has_a_digest(task: Task[..., Any]) -> None:
    assert code_fingerprint(task.fn) == code_fingerprint(task.fn)


def other(*_: Any, **__: Any) -> Any:
    return "another value"


@pytest.mark.parametrize(
    ("task", "owner", "name", "invalidates"),
    [
        (training.log_run, training, "EXAMPLE_ROWS", True),
        (training.log_run, tracking, "log_training", True),
        (training.log_run, Tag, "EVALUATED_MODEL", True),
        (training.log_run, training, "DEFAULT_GATE", False),
        (training.fit, metrics, "flatten_scores", False),  # imported by name: `fitting` has its own
        (training.fit, fitting, "flatten_scores", True),
        (training.fit, training, "EXAMPLE_ROWS", False),
        (training.cross_validate, fitting, "mean_score", True),
        (training.cross_validate, fitting, "refit", False),
        (training.search_candidates, training, "cross_validate", False),  # an input
        (weather.log_run, training, "EXAMPLE_ROWS", True),
        (weather.log_run, tracking, "log_training", True),
        (weather.log_run, weather, "describe_sources", True),
        (weather.log_run, sources, "compare_sources", True),
        (weather.log_run, fitting, "cross_validate", False),
        (weather.log_run, weather, "describe_training", False),
        (weather_ingest.fetch_archive, validation, "TEMPERATURES", True),
        (weather_ingest.fetch_archive, open_meteo, "DAILY", True),
        (weather_ingest.build_features, features, "LONGEST_WINDOW", True),
        (weather_ingest.find_place, places, "parse_geocoding", True),
    ],
    ids=lambda value: str(getattr(value, "name", getattr(value, "__name__", value))),
)
def test_a_task_is_invalidated_by_what_it_uses(
    monkeypatch: pytest.MonkeyPatch, task: Task[..., Any], owner: Any, name: str, invalidates: bool
) -> None:
    before = code_fingerprint(task.fn)
    monkeypatch.setattr(owner, name, other if callable(getattr(owner, name)) else "another value")

    assert (code_fingerprint(task.fn) != before) is invalidates


@pytest.mark.parametrize(
    ("owner", "name", "for_fitting", "for_logging"),
    [
        (weather_model, "persistence", False, False),  # BASELINES refers to the function
        (weather_model, "_rule_of_succession", True, True),
        (weather_model, "SEED", True, False),  # of the logistic regression's function
        (weather_model.DaySplit, "find_unseen", True, True),
        (weather_model, "next_days", True, True),
        (plots, "draw_forecast", False, True),
        (promotion, "describe_data", False, False),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_a_problem_counts_with_the_functions_that_it_holds(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, for_fitting: bool, for_logging: bool
) -> None:
    problem = weather_model.make_problem(places.SEATTLE)
    parts = problem.for_fitting(*problem.families), problem.for_logging("random-forest")
    before = [fingerprint(part) for part in parts]
    monkeypatch.setattr(owner, name, other if callable(getattr(owner, name)) else "another value")

    assert [fingerprint(part) != digest for part, digest in zip(parts, before, strict=True)] == [
        for_fitting,
        for_logging,
    ]
