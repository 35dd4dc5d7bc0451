"""The map of rooms in docs/architecture.md is that of the package."""

import ast
import re

from pages import ROOT

PACKAGE = ROOT / "swavg"


def floors():
    """The floor of each room, as the page has it."""
    rows = re.findall(
        r"^\| (\d+) \| ((?:`\w+`(?:, )?)+) \|",
        (ROOT / "docs" / "architecture.md").read_text(),
        re.MULTILINE,
    )
    return {room: int(floor) for floor, rooms in rows for room in re.findall(r"\w+", rooms)}


def test_every_room_is_on_the_map_and_no_other():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert set(floors()) == rooms - {"__init__", "__main__", "__pycache__", "testing"}


def test_imports_point_to_lower_floors():
    floor = floors()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in floor:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                package, _, rest = name.partition(".")
                other = rest.partition(".")[0]
                if package == "swavg" and other and other != room:
                    assert floor[other] < floor[room], f"{path} imports {name}"
