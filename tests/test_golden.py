"""What users see stays as it is, byte for byte: outputs, reports, messages and exit codes.

The cases are in ``golden/``; ``scripts/golden`` makes their expectations.
"""

import difflib

import pytest
from golden.cases import CASES, GROUPS, read
from golden.running import EXPECTED, pretty, run

ALL = [
    pytest.param(case, id=case.id, marks=[getattr(pytest.mark, mark) for mark in case.marks])
    for case in CASES.values()
]


def test_each_case_has_an_expectation_and_there_are_no_others():
    found = {f"{group}/{name}" for group in GROUPS for name in read(group)}
    assert len(found) >= 250
    assert found == set(CASES)
    assert {path.stem for path in EXPECTED.iterdir()} == set(GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_nothing_that_users_see_changes(case, tmp_path):
    expected = pretty(read(case.group)[case.name])
    found = pretty(run(case, tmp_path / "here"))
    difference = "\n".join(
        difflib.unified_diff(
            expected.splitlines(), found.splitlines(), "expected", "found", lineterm="", n=2
        )
    )
    assert not difference, f"{case.id} ({case.intended or 'nothing is to change'}):\n{difference}"
