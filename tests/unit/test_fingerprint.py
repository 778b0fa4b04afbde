"""Digests that change with content and with nothing else."""

import pickle
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.weather import features, model
from tests.unit.weather import make_frame, make_observations
from trainyard import fingerprint as module
from trainyard.candidates import Candidate
from trainyard.fingerprint import code_fingerprint, fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclass
class Point:
    x: float
    tags: frozenset[str] = frozenset()


@given(PLAIN, PLAIN)
def test_equal_where_equal_and_only_there(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(pickle.loads(pickle.dumps(one)))
    assert (fingerprint(one) == fingerprint(other)) == (repr(one) == repr(other) or (one == other and same(one, other)))


def same(one: Any, other: Any) -> bool:
    """Say whether two equal values are of the same types, which 1, 1.0 and True are not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return all(map(same, one, other))
    if isinstance(one, dict):
        return all(same(value, other[key]) for key, value in one.items())
    return repr(one) == repr(other)


def test_a_frame_counts_by_its_cells_index_and_columns() -> None:
    frame = make_frame(60)
    changed = [
        frame.assign(wind_ms=frame["wind_ms"] + 1e-12),
        frame.rename(columns={"wind_ms": "wind"}),
        frame[frame.columns[::-1]],
        frame.iloc[::-1],
        frame.astype("float32"),
        frame.set_axis(frame.index + pd.Timedelta(days=1)),
    ]
    digests = {fingerprint(each) for each in [frame, *changed]}
    assert len(digests) == 1 + len(changed)
    assert fingerprint(frame.copy()) == fingerprint(frame)


@pytest.mark.parametrize("candidate", model.make_candidates()[::4], ids=lambda each: each.family)
def test_a_model_is_the_same_after_the_cache(candidate: Candidate) -> None:
    examples = features.build_examples(make_observations()).frame
    training = model.fit_and_score(*model.split_by_time(examples, 0.2), candidate)
    assert fingerprint(pickle.loads(pickle.dumps(training))) == fingerprint(training)


def test_models_of_pydantic_and_dataclasses_count_by_their_fields() -> None:
    one, other = make_observations(make_frame(60)), make_observations(make_frame(60, seed=1))
    assert fingerprint(one) == fingerprint(make_observations(make_frame(60)))
    assert fingerprint(one) != fingerprint(other), "a frame that is left out of the JSON counts"
    assert fingerprint(Point(1.0)) != fingerprint(Point(1.0, frozenset({"a"})))


def test_the_same_in_another_process() -> None:
    program = (
        "from trainyard.fingerprint import fingerprint; from tests.unit.weather import make_frame;"
        "print(fingerprint([make_frame(60), {'b': {1, 'x'}, 'a': None}]))"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(module.PROJECT)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    assert shown.stdout.strip() == fingerprint([make_frame(60), {"a": None, "b": {"x", 1}}])


@pytest.mark.parametrize("unknown", [object(), lambda: None, np.array([object()]), open])
def test_what_it_does_not_know_it_refuses(unknown: Any) -> None:
    with pytest.raises(TypeError, match="Nobody can say"):
        fingerprint({"date": date(2020, 1, 1), "unknown": unknown})


class TestCode:
    @pytest.fixture
    def project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        files = {
            "steps/__init__.py": "",
            "steps/task.py": "from steps import helper\nfrom .deep import inner\n\ndef work():\n    return helper\n",
            "steps/helper.py": "import steps.deep.other\n",
            "steps/unrelated.py": "",
            "steps/deep/__init__.py": "",
            "steps/deep/inner.py": "",
            "steps/deep/other.py": "",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(module, "PROJECT", tmp_path)
        return tmp_path

    def digest(self, project: Path, name: str) -> str:
        found = ModuleType(name)
        found.__file__ = str(project / f"steps/{name}.py")
        module._imports.cache_clear()
        return code_fingerprint(None, [found])

    @pytest.mark.parametrize("file", ["task", "helper", "deep/inner", "deep/other", "__init__"])
    def test_a_change_in_what_is_imported_counts(self, project: Path, file: str) -> None:
        before = self.digest(project, "task")
        with (project / f"steps/{file}.py").open("a") as target:
            target.write("\n# changed\n")
        assert self.digest(project, "task") != before

    def test_a_change_elsewhere_does_not(self, project: Path) -> None:
        before = self.digest(project, "task")
        (project / "steps/unrelated.py").write_text("CHANGED = True\n")
        assert self.digest(project, "task") == before

    def test_a_function_counts_with_its_whole_module_or_with_the_named_ones(self) -> None:
        assert code_fingerprint(make_frame) != code_fingerprint(make_frame, [features])
        assert code_fingerprint(make_frame, [features]) != code_fingerprint(make_observations, [features])
