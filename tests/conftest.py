"""What all tests share: nothing that they start reports to anybody outside, and each run says where its time went."""

import os
from collections import Counter

import pytest

os.environ.update(DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true")

SLOWEST_MODULES = 10


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each group of tests took, with its fixtures, and the slowest modules."""
    groups: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            module = report.nodeid.partition("::")[0]
            modules[module] += report.duration
            groups["/".join(module.split("/")[:2])] += report.duration
    if not groups:
        return
    terminalreporter.section("durations by group")
    for group, seconds in groups.most_common():
        terminalreporter.write_line(f"{seconds:7.0f} s  {group}")
    terminalreporter.section(f"slowest {SLOWEST_MODULES} modules")
    for module, seconds in modules.most_common(SLOWEST_MODULES):
        terminalreporter.write_line(f"{seconds:7.0f} s  {module}")
