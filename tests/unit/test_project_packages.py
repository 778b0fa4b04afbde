"""A project's packages beside the platform's: as the images install them when they are built."""

import base64
import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PLATFORM = CHECKOUT / "requirements" / "worker.txt"
HASH = f"--hash=sha256:{'0' * 64}"


def make_project(folder: Path, dependencies: list[str], lock: str = "") -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nname = "churn"\ndependencies = {dependencies}\n')
    (folder / "requirements.txt").write_text(lock)
    return folder


def install(project: Path, python: str | Path = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [python, CHECKOUT / "services/project_packages.py", project, PLATFORM]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path, **variables})


def make_wheel(folder: Path, requires: str = "") -> str:
    """Write a wheel of the package `extra` with one module; return the lines of a lock that pin it."""
    info = "extra-1.0.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        "extra.py": "ANSWER = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for name, text in files.items()}
    record = "".join(f"{name},sha256={digest.decode().rstrip('=')},\n" for name, digest in digests.items())
    wheel = folder / "extra-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return f"extra==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def offline(folder: Path) -> dict[str, str]:
    """Return variables by which uv finds wheels in a folder only, and a new environment sees this one's packages."""
    return {
        "UV_FIND_LINKS": str(folder),
        "UV_OFFLINE": "1",
        "UV_NO_INDEX": "1",
        "UV_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": sysconfig.get_path("purelib"),
    }


def platform_version(package: str) -> str:
    (line,) = [line for line in PLATFORM.read_text().splitlines() if line.startswith(f"{package}==")]
    return line.split()[0].partition("==")[2]


def test_the_checkout_itself_adds_nothing() -> None:
    result = install(CHECKOUT)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_packages_that_the_platform_has_need_no_lock(tmp_path: Path) -> None:
    result = install(make_project(tmp_path, ["pandas>=2", "scikit_learn", "absent; sys_platform == 'win32'"]))

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_requirement_that_excludes_the_platform_s_version_is_refused_with_both(tmp_path: Path) -> None:
    result = install(make_project(tmp_path, ["pandas<3"]))

    assert result.returncode == 1
    assert f"churn needs pandas<3, and Trainyard has pandas {platform_version('pandas')}." in result.stderr


def test_a_lock_with_another_version_than_the_platform_s_is_refused_with_both(tmp_path: Path) -> None:
    result = install(make_project(tmp_path, ["pandas"], f"pandas==2.2.0 \\\n    {HASH}\n"))

    assert result.returncode == 1
    expected = f"requirements.txt of churn has pandas 2.2.0, and Trainyard has pandas {platform_version('pandas')}."
    assert expected in result.stderr


def test_a_requirement_that_was_not_locked_is_refused(tmp_path: Path) -> None:
    result = install(make_project(tmp_path, ["catboost>=4"]))

    assert result.returncode == 1
    assert "churn needs catboost, which is not in its requirements.txt: make lock PROJECT=" in result.stderr


def test_a_stale_lock_is_refused(tmp_path: Path) -> None:
    result = install(make_project(tmp_path, ["catboost>=5"], f"catboost==4.6.0 \\\n    {HASH}\n"))

    assert result.returncode == 1
    assert "churn needs catboost>=5, and its requirements.txt has catboost 4.6.0." in result.stderr


@pytest.mark.parametrize("line", ["catboost", "catboost>=4", "-e ."])
def test_a_line_that_pins_no_version_is_refused(tmp_path: Path, line: str) -> None:
    result = install(make_project(tmp_path, [], f"{line}\n"))

    assert result.returncode == 1
    assert f"requirements.txt: {line!r} is not of the form name==version." in result.stderr
    assert "Traceback" not in result.stderr


def test_the_packages_of_the_lock_are_installed(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["extra>=1"], make_wheel(tmp_path))
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"

    result = install(project, python, **offline(tmp_path))
    imported = subprocess.run([python, "-c", "import extra; print(extra.ANSWER)"], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout == "Installed the packages of churn: extra 1.0.\n"
    assert imported.stdout == "42\n"


def test_a_package_that_cannot_use_the_platform_s_version_is_refused_with_both(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["extra>=1"], make_wheel(tmp_path, requires="packaging<20"))
    venv.create(tmp_path / "venv", with_pip=False)

    result = install(project, tmp_path / "venv/bin/python", **offline(tmp_path))

    assert result.returncode == 1
    message = " ".join(result.stderr.split())
    assert "all versions of extra depend on packaging<20" in message
    assert f"packaging=={platform_version('packaging')}" in message.replace(
        "{sys_platform == 'darwin' or sys_platform == 'linux'}", ""
    )
    assert "Traceback" not in message


def test_a_package_with_another_hash_than_the_lock_s_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path)
    project = make_project(tmp_path, ["extra>=1"], f"extra==1.0 \\\n    {HASH}\n")
    venv.create(tmp_path / "venv", with_pip=False)

    result = install(project, tmp_path / "venv/bin/python", **offline(tmp_path))

    assert result.returncode == 1
    assert "see uv's message above" in result.stderr
