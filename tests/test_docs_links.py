"""What the pages point to is there: files, figures, commands and their options."""

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|<img\s+src=\"([^\"]+)\"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for match in LINK.finditer(page.read_text()):
        target = match[1] or match[2]
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).is_file(), target


def test_the_figure_of_the_readme_is_a_picture():
    (source,) = re.findall(r"<img src=\"([^\"]+)\"", (ROOT / "README.md").read_text())
    with Image.open(ROOT / source) as picture:
        picture.load()
        assert min(picture.size) > 500


def options_of(name):
    from swavg.cli import cli

    command = cli.get_command(None, name)
    return {each for parameter in command.params for each in (*parameter.opts,
            *parameter.secondary_opts)} | {"--help", "-h"}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_are_shown_have_the_options_that_they_are_shown_with(page):
    shown = re.findall(r"^(?:\$ )?(?:.*\| )?swavg ([a-z]+) (.*)$", page.read_text(), re.MULTILINE)
    assert shown or page.name not in ("README.md", "landscape.md", "batch-norm.md")
    for name, rest in shown:
        known = options_of(name)
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", f" {rest.partition('#')[0]}"):
            assert option in known, f"swavg {name} {option}"


def test_the_readme_names_every_command():
    from swavg.cli import cli

    text = (ROOT / "README.md").read_text()
    for name in cli.list_commands(None):
        assert f"swavg {name} " in text, name
