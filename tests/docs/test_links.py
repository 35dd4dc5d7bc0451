"""What the pages point to is there: files, figures, functions, commands and their options."""

import ast
import re

import pytest
from pages import INDEX, PAGES, ROOT
from PIL import Image

PACKAGE = ROOT / "swavg"
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|<img\s+src=\"([^\"]+)\"")
CODE = re.compile(r"`([^`\n]+)`")
# What stands for another name (NAME.py, tests/.../*.py) is no path.
PATH = re.compile(r"(?:[a-z_.-]+/)+[a-z_.-]*|[a-z_-]+\.(?:py|md|toml)")
DOTTED = re.compile(r"[a-z_]+(?:\.[A-Za-z_]+)+")
OURS = [
    page
    for page in PAGES
    if page.name in ("architecture.md", "CONTRIBUTING.md", "README.md") and page != INDEX
]


def name(page):
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=name)
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


@pytest.mark.parametrize("page", OURS[1:], ids=name)
def test_every_file_and_folder_that_is_named_is_there(page):
    named = [text for text in CODE.findall(page.read_text()) if PATH.fullmatch(text)]
    assert len(named) > 5
    for text in named:
        assert any((folder / text).exists() for folder in (ROOT, PACKAGE)), text


def defined(tree):
    """Names that a module or class defines or imports, with what defines them."""
    found = {}
    for node in ast.walk(tree) if isinstance(tree, ast.Module) else tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id: node for each in targets if isinstance(each, ast.Name)}
    return found


def is_there(parts):
    """Whether a dotted name is one of the package's modules, or is defined in one."""
    place = PACKAGE
    while parts and (place / parts[0]).is_dir():
        place, parts = place / parts[0], parts[1:]
    if parts and (place / f"{parts[0]}.py").is_file():
        place, parts = place / f"{parts[0]}.py", parts[1:]
    module = place / "__init__.py" if place.is_dir() else place
    tree = ast.parse(module.read_text())
    for part in parts:
        tree = defined(tree).get(part)
        if tree is None:
            return False
    return True


@pytest.mark.parametrize("page", OURS, ids=name)
def test_every_function_and_class_that_is_named_is_there(page):
    rooms = {path.stem for path in PACKAGE.iterdir()} | {"swavg"}
    for text in CODE.findall(page.read_text()):
        first, *more = text.split(".")
        if first in rooms and DOTTED.fullmatch(text) and not PATH.fullmatch(text):
            assert is_there(more if first == "swavg" else [first, *more]), text


def test_a_name_that_is_not_there_is_noticed():
    assert is_there(["engine", "average", "prepare"])
    assert is_there(["formats", "checkpoint", "Checkpoint", "read_into"])
    assert not is_there(["engine", "average", "prepared"])
    assert not is_there(["formats", "checkpoint", "Checkpoint", "readinto"])


def options_of(name):
    from swavg.cli import cli

    command = cli.get_command(None, name)
    own = {each for parameter in command.params for each in (*parameter.opts,
           *parameter.secondary_opts)} | {"--help", "-h"}  # fmt: skip
    # They take those of what they run.
    takes_more = name in ("watch", "run")
    return own | options_of("average") | options_of("ema") if takes_more else own


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_that_are_shown_have_the_options_that_they_are_shown_with(page):
    text = re.sub(r"\$\(.*?\)", "", page.read_text())
    shown = re.findall(r"^(?:\$ )?(?:.*\| )?swavg ([a-z]+) (.*)$", text, re.MULTILINE)
    if page.name in ("README.md", "landscape.md", "batch-norm.md") and page != INDEX:
        assert shown
    for command, rest in shown:
        known = options_of(command)
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", f" {rest.partition('#')[0]}"):
            assert option in known, f"swavg {command} {option}"


def test_the_examples_of_the_help_have_options_that_there_are():
    from swavg.cli import cli

    for command in cli.list_commands(None):
        text = cli.get_command(None, command).help.replace("\\\n", " ")
        shown = re.findall(r"^ *swavg ([a-z]+) (.*?)(?: {2,}|$)", text, re.MULTILINE)
        assert shown, f"swavg {command} --help has no example"
        for name, rest in shown:
            for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", f" {rest}"):
                assert option in options_of(name), f"swavg {name} {option}"


def test_every_option_that_a_page_names_is_one_of_some_command():
    from swavg.cli import cli

    known = {option for command in cli.list_commands(None) for option in options_of(command)}
    # Those of the project's own scripts, and of other programs.
    known |= {"--array", "--torch", "--version"}
    # What is gone is named in the changelog.
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        for text in CODE.findall(page.read_text()):
            option = re.match(r"--[a-z][a-z-]*", text)
            assert option is None or option[0] in known, f"{page.name}: {option[0]}"


def test_the_readme_names_every_command():
    from swavg.cli import cli

    text = (ROOT / "README.md").read_text()
    for command in cli.list_commands(None):
        assert f"swavg {command} " in text, command
