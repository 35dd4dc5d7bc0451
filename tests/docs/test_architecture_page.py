"""The map of rooms in docs/architecture.md is the one that imports are held to."""

import ast
import re

from pages import ROOT


def test_the_map_of_rooms_has_their_floors():
    rows = re.findall(
        r"^\| (\d+) \| ((?:`\w+`(?:, )?)+) \|",
        (ROOT / "docs" / "architecture.md").read_text(),
        re.MULTILINE,
    )
    shown = {room: int(floor) for floor, rooms in rows for room in re.findall(r"\w+", rooms)}
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text())
    (held,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    )
    assert shown == held
