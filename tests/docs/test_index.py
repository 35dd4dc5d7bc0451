"""docs/README.md lists every page, a line each."""

import re

from pages import INDEX


def test_the_index_has_every_page_once():
    rows = re.findall(
        r"^\| \[([\w-]+)\]\(([\w-]+\.md)\) \| .{20,} \|$",
        INDEX.read_text(),
        re.MULTILINE,
    )
    assert all(target == f"{name}.md" for name, target in rows)
    pages = {page.name for page in INDEX.parent.glob("*.md")} - {INDEX.name}
    assert sorted(target for _, target in rows) == sorted(pages)
