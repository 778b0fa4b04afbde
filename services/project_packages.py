"""Install a project's packages on top of the platform's, or refuse those that contradict them.

    python project_packages.py PROJECT LOCK...

PROJECT is a folder with a pyproject.toml and, where it needs packages that the platform lacks, a requirements.txt made by
`make lock PROJECT=...`. Each LOCK is a lock of the platform. The images run this when they are built, and infra/dev/venv
for an environment on the host; the packages are installed into the environment of the Python that runs it.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCK = "requirements.txt"
Pins = dict[str, Version]


class ContradictionError(Exception):
    """The project's packages contradict the platform's; the message names both."""


def read_pins(lock: Path) -> Pins:
    """Return the version of each package of a lock that applies to this Python.

    Raises:
        ContradictionError: A line is not of the form name==version.
    """
    pins: Pins = {}
    for line in lock.read_text().splitlines() if lock.exists() else []:
        text = line.removesuffix("\\").strip()
        if not text or text.startswith(("#", "--")):
            continue
        try:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
            if specifier.operator != "==":
                raise ValueError(specifier.operator)
        except (InvalidRequirement, ValueError) as error:
            raise ContradictionError(f"{lock.name}: {text!r} is not of the form name==version.") from error
        if requirement.marker is None or requirement.marker.evaluate():
            pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def read_project(project: Path) -> tuple[str, list[Requirement]]:
    """Return a project's name and the packages that its pyproject.toml needs on this Python.

    Raises:
        ContradictionError: The file is missing, is not TOML, or a requirement is malformed.
    """
    file = project / "pyproject.toml"
    try:
        table = tomllib.loads(file.read_text()).get("project", {})
        needed = [Requirement(text) for text in table.get("dependencies", [])]
    except (OSError, tomllib.TOMLDecodeError, InvalidRequirement) as error:
        raise ContradictionError(f"{file.name} of the project cannot be used: {error}.") from error
    return table.get("name", "The project"), [each for each in needed if not each.marker or each.marker.evaluate()]


def find_contradictions(name: str, needed: Sequence[Requirement], locked: Pins, platform: Pins) -> Iterator[str]:
    """Yield a sentence for each package with which project and platform cannot both be satisfied.

    Args:
        name: The project's name.
        needed: The requirements of its pyproject.toml.
        locked: The versions of its lock.
        platform: The versions of the platform's lock.
    """
    for requirement in needed:
        package = canonicalize_name(requirement.name)
        if package in platform and not requirement.specifier.contains(platform[package], prereleases=True):
            yield f"{name} needs {package}{requirement.specifier}, and Trainyard has {package} {platform[package]}."
        elif package not in platform and package not in locked:
            yield f"{name} needs {package}, which is not in its {LOCK}: make lock PROJECT=..."
        elif package in locked and not requirement.specifier.contains(locked[package], prereleases=True):
            yield f"{name} needs {package}{requirement.specifier}, and its {LOCK} has {package} {locked[package]}."
    for pinned, version in locked.items():
        if platform.get(pinned, version) != version:
            yield f"{LOCK} of {name} has {pinned} {version}, and Trainyard has {pinned} {platform[pinned]}."


def install(project: Path, locks: Sequence[Path]) -> None:
    """Install the packages of a project's lock; do nothing where it has none.

    Raises:
        ContradictionError: They contradict the platform's.
        subprocess.CalledProcessError: uv could not install them, and has said why.
    """
    name, needed = read_project(project)
    locked = read_pins(project / LOCK)
    platform = {package: version for lock in locks for package, version in read_pins(lock).items()}
    if found := list(find_contradictions(name, needed, locked, platform)):
        raise ContradictionError("\n".join(f"  - {sentence}" for sentence in found))
    if locked:
        # The platform's locks decide the versions of what the project's packages need: uv refuses those that exclude them.
        constraints = [argument for lock in locks for argument in ("--constraint", str(lock))]
        command = ["uv", "pip", "install", "--no-config", "--quiet", "--require-hashes", "--compile-bytecode"]
        environment = ["--python", sys.executable, "--requirement", str(project / LOCK), *constraints]
        subprocess.run([*command, *environment], check=True)
        print(f"Installed the packages of {name}: {', '.join(f'{each} {locked[each]}' for each in sorted(locked))}.")


def main() -> None:
    """Install; exit with one message where the packages contradict each other."""
    project, *locks = (Path(argument) for argument in sys.argv[1:])
    try:
        install(project, locks)
    except ContradictionError as error:
        sys.exit(f"The project's packages cannot be installed beside Trainyard's:\n{error}")
    except subprocess.CalledProcessError:
        sys.exit("The project's packages cannot be installed beside Trainyard's: see uv's message above.")


if __name__ == "__main__":
    main()
