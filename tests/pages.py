"""The pages of the project, and what stands in their fences."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, why it is not run (None: it is), and its text."""

    language: str
    unrun: str | None
    text: str


def blocks(page):
    found = []
    for info, text in _FENCE.findall(page.read_text()):
        language, _, more = info.partition(" ")
        unrun = more.removeprefix("no-run:").strip() if more else None
        found.append(Block(language, unrun, text))
    return found
