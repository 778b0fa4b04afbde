"""Digests that change with content, and with nothing else."""

import pickle
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from flows.wine import model
from trainyard import outcome, search, tracking
from trainyard.candidates import Candidate
from trainyard.fingerprint import code_files, code_fingerprint, fingerprint
from trainyard.frames import Frame

CHECKOUT = Path(__file__).parents[2]

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclass
class Point:
    x: float
    tags: frozenset[str] = frozenset()


class Data(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    frame: Frame


def make_frame(first: float = 0.5) -> pd.DataFrame:
    days = pd.date_range("2026-01-01", periods=3, name="day")
    return pd.DataFrame({"speed": [first, 2.5, 4.0], "name": ["a", "b", "c"], "count": [1, 2, 3]}, index=days)


@given(PLAIN, PLAIN)
def test_digests_are_equal_for_equal_values_of_the_same_types_only(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(pickle.loads(pickle.dumps(one)))
    assert (fingerprint(one) == fingerprint(other)) == (
        repr(one) == repr(other) or (one == other and have_same_types(one, other))
    )


def have_same_types(one: Any, other: Any) -> bool:
    """Return whether two equal values have the same types throughout; 1, 1.0 and True are equal and do not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return all(map(have_same_types, one, other))
    if isinstance(one, dict):
        return all(have_same_types(value, other[key]) for key, value in one.items())
    return repr(one) == repr(other)


def test_a_frame_counts_by_its_cells_types_index_and_columns() -> None:
    frame = make_frame()
    changed = [
        make_frame(0.5 + 1e-12),
        frame.rename(columns={"speed": "wind"}),
        frame[frame.columns[::-1]],
        frame.iloc[::-1],
        frame.astype({"speed": "float32"}),
        frame.set_axis(frame.index + pd.Timedelta(days=1)),
    ]
    digests = {fingerprint(each) for each in [frame, *changed]}

    assert len(digests) == 1 + len(changed)
    assert fingerprint(frame.copy()) == fingerprint(frame)


@pytest.mark.parametrize("candidate", model.CANDIDATES[::3], ids=lambda each: each.name)
def test_a_fitted_estimator_is_the_same_after_pickling(candidate: Candidate) -> None:
    fitted = model.fit(model.split(model.read_wines()), candidate)

    assert fingerprint(pickle.loads(pickle.dumps(fitted))) == fingerprint(fitted)


def test_dataclasses_and_pydantic_models_count_by_their_fields() -> None:
    assert fingerprint(Point(1.0)) != fingerprint(Point(1.0, frozenset({"a"})))
    assert fingerprint(Data(frame=make_frame())) == fingerprint(Data(frame=make_frame()))
    assert fingerprint(Data(frame=make_frame())) != fingerprint(Data(frame=make_frame(1.0))), "excluded from its JSON"


def test_a_digest_is_the_same_in_another_process() -> None:
    program = (
        "from trainyard.fingerprint import fingerprint; import pandas as pd;"
        "print(fingerprint([pd.DataFrame({'x': [1.5, None]}), {'b': {1, 'x'}, 'a': None}]))"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(CHECKOUT)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)

    assert shown.stdout.strip() == fingerprint([pd.DataFrame({"x": [1.5, None]}), {"a": None, "b": {"x", 1}}])


@pytest.mark.parametrize("unknown", [object(), lambda: None, np.array([object()]), open])
def test_a_value_of_an_unknown_type_is_refused(unknown: Any) -> None:
    with pytest.raises(TypeError, match="has no fingerprint"):
        fingerprint({"date": date(2020, 1, 1), "unknown": unknown})


class TestCode:
    """A project and a library in two folders of `sys.path`, as flows/ and trainyard/ are in the worker's image."""

    FILES: ClassVar = {
        "project/jobs/__init__.py": "",
        "project/jobs/task.py": (
            "import numpy\nfrom jobs import helper\nfrom .deep import inner\nimport toolbox.cutting\n\n"
            "def work():\n    return helper\n"
        ),
        "project/jobs/helper.py": "import jobs.deep.other\n",
        "project/jobs/unrelated.py": "",
        "project/jobs/deep/__init__.py": "",
        "project/jobs/deep/inner.py": "from ..relative import *\n",
        "project/jobs/deep/other.py": "",
        "project/jobs/relative.py": "",
        "project/loose/script.py": "import neighbour\n\ndef work():\n    return neighbour\n",
        "project/loose/neighbour.py": "",
        "library/toolbox/__init__.py": "",
        "library/toolbox/cutting.py": "from toolbox import measuring\n",
        "library/toolbox/measuring.py": "",
        "library/toolbox/mail.py": "",
        "site-packages/numpy/__init__.py": "",
    }

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        for name, text in self.FILES.items():
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(text)
        for root in ("project", "library", "site-packages"):
            monkeypatch.syspath_prepend(tmp_path / root)
        return tmp_path

    def load(self, file: Path) -> ModuleType:
        """Load a file as Prefect loads an entrypoint: under a name of its own, with its folder on the path."""
        sys.path.insert(0, str(file.parent))
        module = ModuleType("__prefect_loader_0123__")
        module.__file__ = str(file)
        return module

    @pytest.mark.parametrize(
        "file",
        [
            "project/jobs/task.py",
            "project/jobs/helper.py",
            "project/jobs/deep/inner.py",
            "project/jobs/deep/other.py",
            "project/jobs/deep/__init__.py",
            "project/jobs/relative.py",
            "project/jobs/__init__.py",
            "library/toolbox/__init__.py",
            "library/toolbox/cutting.py",
            "library/toolbox/measuring.py",
        ],
    )
    def test_an_edit_of_an_imported_module_of_project_or_library_counts(self, folder: Path, file: str) -> None:
        task = self.load(folder / "project/jobs/task.py")
        before = code_fingerprint(None, [task])
        with (folder / file).open("a") as target:
            target.write("\n# changed\n")

        assert code_fingerprint(None, [task]) != before

    def test_an_import_that_an_edit_adds_counts(self, folder: Path) -> None:
        task = self.load(folder / "project/jobs/task.py")
        (folder / "project/jobs/helper.py").write_text("from jobs import unrelated\n")

        assert folder / "project/jobs/unrelated.py" in code_files([task])

    @pytest.mark.parametrize(
        "file", ["project/jobs/unrelated.py", "library/toolbox/mail.py", "site-packages/numpy/__init__.py"]
    )
    def test_an_edit_elsewhere_or_of_an_installed_package_does_not_count(self, folder: Path, file: str) -> None:
        task = self.load(folder / "project/jobs/task.py")
        before = code_fingerprint(None, [task])
        (folder / file).write_text("CHANGED = True\n")

        assert code_fingerprint(None, [task]) == before

    def test_a_module_beside_an_entrypoint_counts(self, folder: Path) -> None:
        script = self.load(folder / "project/loose/script.py")

        assert folder / "project/loose/neighbour.py" in code_files([script])

    def test_a_function_counts_with_its_whole_module_or_with_the_named_ones(self) -> None:
        assert code_fingerprint(make_frame) != code_fingerprint(make_frame, [model])
        assert code_fingerprint(make_frame, [model]) != code_fingerprint(have_same_types, [model])


def test_a_training_depends_on_the_contract_and_not_on_mail_or_monitoring() -> None:
    files = code_files([model, tracking, search, outcome])
    unrelated = [CHECKOUT / "trainyard" / name for name in ("mail", "monitoring.py", "drift.py", "flows", "hooks.py")]

    assert {CHECKOUT / "flows/wine/model.py", CHECKOUT / "trainyard/contract.py"} <= files
    assert not [file for file in files if any(file.is_relative_to(path) for path in unrelated)]
