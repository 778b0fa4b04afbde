"""Measure `make demo` without Docker: the first run, which creates the databases, and two more; nothing is installed."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.report import save
from infra.testing.stack import CHECKOUT, copy_checkout


def main() -> None:
    """Run it in a copy of the checkout that uses this checkout's .venv; save the times."""
    with tempfile.TemporaryDirectory() as home:
        copy_checkout(Path(home))
        (Path(home) / ".venv").symlink_to(CHECKOUT / ".venv")
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            subprocess.run(["make", "demo"], cwd=home, check=True, capture_output=True)
            seconds.append(round(time.monotonic() - start, 1))
        shutil.rmtree(Path(home) / ".demo")
    save("demo", {"first_seconds": seconds[0], "later_seconds": seconds[1:]})


if __name__ == "__main__":
    main()
