"""Run pytest within this process, for the tests that a page shows: a process of their own would import torch again."""

import pytest


class _Reports:
    """A plugin that keeps all reports."""

    def __init__(self) -> None:
        self.kept: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.kept.append(report)


def passed_tests(*words: str) -> list[str]:
    """Run pytest in the working directory and return the names of its tests, all of which have to pass.

    Args:
        *words: Files, folders and options.
    """
    reports, without = _Reports(), [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "faulthandler")]
    status = pytest.main([*words, "-q", *without], plugins=[reports])
    told = [f"{report.nodeid}: {report.longreprtext}" for report in reports.kept if not report.passed]
    assert (status, told) == (pytest.ExitCode.OK, []), "\n".join(told)
    return [report.nodeid for report in reports.kept if report.when == "call"]
