"""All golden cases, and what is expected of them."""

from __future__ import annotations

import json

from golden import arithmetic, methods, mistakes, tensors, training
from golden.running import EXPECTED, Case, pretty

CASES: dict[str, Case] = {}
for case in (*arithmetic.CASES, *tensors.CASES, *methods.CASES, *mistakes.CASES, *training.CASES):
    assert case.id not in CASES, case.id
    CASES[case.id] = case
GROUPS = tuple(dict.fromkeys(case.group for case in CASES.values()))


def read(group: str) -> dict[str, object]:
    """What is expected of a group's cases, by name."""
    path = EXPECTED / f"{group}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(group: str, results: dict[str, object]) -> None:
    EXPECTED.mkdir(exist_ok=True)
    (EXPECTED / f"{group}.json").write_text(pretty(results) + "\n")
