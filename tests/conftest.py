"""What all tests share: nothing that they start reports to anybody outside, and each run says where its time went."""

import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import certifi
import pytest

# A client of Prefect or httpx reads all certificate authorities, which takes 50 ms, at each look at a server. Those of the tests
# speak HTTP, or are trusted by an authority of their own, so that one will do, as in the worker's image. Other processes have all.
CERTIFICATES = Path(tempfile.mkdtemp("trainyard-tests"))
END = "-----END CERTIFICATE-----\n"
(CERTIFICATES / "one.pem").write_text(certifi.contents().partition(END)[0] + END)
certifi.where = lambda: str(CERTIFICATES / "one.pem")
os.environ["PREFECT_API_SSL_CERT_FILE"] = certifi.where()
os.environ.update(DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true")
os.environ.pop("PROJECT", None)  # the tests are about the examples, and make their own projects
# A shell that runs the tests in the background has Ctrl-C ignored, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What ends the tests from outside, as a CI's time limit does, ends them as Ctrl-C does: what they started is removed.
signal.signal(signal.SIGTERM, signal.default_int_handler)

SLOWEST_MODULES = 10


def pytest_unconfigure() -> None:
    """Remove what the tests share on disk."""
    shutil.rmtree(CERTIFICATES, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each group of tests took, with its fixtures, and the slowest modules."""
    groups: defaultdict[str, float] = defaultdict(float)
    modules: defaultdict[str, float] = defaultdict(float)
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            module = report.nodeid.partition("::")[0]
            modules[module] += report.duration
            groups["/".join(module.split("/")[:2])] += report.duration
    if not groups:
        return
    terminalreporter.section("durations by group")
    for group, seconds in _longest_first(groups):
        terminalreporter.write_line(f"{seconds:7.0f} s  {group}")
    terminalreporter.section(f"slowest {SLOWEST_MODULES} modules")
    for module, seconds in _longest_first(modules)[:SLOWEST_MODULES]:
        terminalreporter.write_line(f"{seconds:7.0f} s  {module}")


def _longest_first(durations: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(durations.items(), key=lambda item: item[1], reverse=True)
