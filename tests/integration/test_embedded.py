"""`make demo`: the platform without Docker, as a person runs it, on a machine that reaches no Open-Meteo."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.testing.stack import copy_checkout
from infra.testing.waiting import wait_until

NOWHERE = {
    "WEATHER_ARCHIVE_URL": "http://127.0.0.1:9/v1/archive",
    "WEATHER_FORECAST_URL": "http://127.0.0.1:9/v1/forecast",
    "WEATHER_GEOCODING_URL": "http://127.0.0.1:9/v1/search",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, whose .demo the tests fill."""
    home = tmp_path_factory.mktemp("embedded")
    copy_checkout(home)
    return home


def start(home: Path, command: str) -> subprocess.Popen[str]:
    """Start `make demo` or `make ui` without the installation, in a process group of its own as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "infra.embedded", command],
        cwd=home,
        env=os.environ | NOWHERE | {"BROWSER": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=restore_sigint,
    )


def restore_sigint() -> None:
    """Restore the default: a shell makes its background jobs, such as these tests may be, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Return once a process has printed a line with this text."""
    output = process.stdout
    assert output is not None
    wait_until(lambda: text in output.readline(), 120, text, every=0)


def left_behind(home: Path) -> Iterator[psutil.Process]:
    """Yield the processes whose working folder or home is the copied checkout."""
    for process in psutil.process_iter():
        try:
            if str(home) in process.environ().get("TRAINYARD_HOME", "") or str(home) in process.cwd():
                yield process
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue


def test_ctrl_c_leaves_no_process_behind(home: Path) -> None:
    demo = start(home, "demo")
    wait_for_line(demo, "Beginning flow run")
    running = len(list(left_behind(home)))
    os.killpg(demo.pid, signal.SIGINT)
    demo.communicate(timeout=60)

    assert running > 3, "both servers, the worker and the process of the run"
    assert demo.returncode == 130
    assert not list(left_behind(home))


@pytest.mark.slow
def test_the_demo_trains_and_ends_also_after_one_that_was_interrupted(home: Path) -> None:
    demo = start(home, "demo")
    output, _ = demo.communicate(timeout=240)

    assert demo.returncode == 0, output
    assert "USING RECORDED OBSERVATIONS" in output
    assert "rain-tomorrow version 1 is the champion" in output
    report = output.split("rain-tomorrow version 1\n\n")[1].splitlines()
    header, brier = report[0].split(), next(line.split() for line in report if line.startswith("brier "))
    assert header[:2] == ["metric", "model"]
    assert set(header[2:]) >= {"persistence", "climatology"}
    assert float(brier[1]) < min(map(float, brier[2:])), "the model beats the baselines"
    assert "make ui" in output.splitlines()[-1]
    assert not list(left_behind(home))


def test_both_uis_open_over_the_same_data_and_end_when_terminated(home: Path) -> None:
    ui = start(home, "ui")
    wait_for_line(ui, "Ctrl-C ends both")
    ui.send_signal(signal.SIGTERM)
    ui.communicate(timeout=60)

    assert ui.returncode == 130
    assert not list(left_behind(home))
