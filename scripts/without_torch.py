"""A pytest plugin for an environment without PyTorch (-p without_torch --tb=short): tests that
import by themselves what is not installed there are skipped. An import in swavg's code still fails.
"""

from __future__ import annotations

import re
from collections.abc import Generator

import pytest

ABSENT = "PIL|accelerate|lightning|matplotlib|sklearn|torch|transformers"
# The last frame of a traceback in pytest's short style.
NOT_IN_SWAVG = re.compile(
    rf"^(?!swavg/)\S+:\d+: in .*\n(?: .*\n)+E +ModuleNotFoundError: No module named '({ABSENT})\b",
    re.M,
)


def skip_if_absent(
    report: pytest.CollectReport | pytest.TestReport, path: str
) -> pytest.CollectReport | pytest.TestReport:
    if report.failed and (match := NOT_IN_SWAVG.search(report.longreprtext)):
        report.outcome = "skipped"
        report.longrepr = (path, 0, f"needs {match[1]}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, object]:
    return skip_if_absent((yield), str(collector.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, object]:
    return skip_if_absent((yield), str(item.path))
