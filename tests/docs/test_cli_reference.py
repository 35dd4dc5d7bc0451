"""docs/cli.md says what --help says."""

import re
import runpy

import pytest
from pages import ROOT

from swavg.cli import cli

PAGE = ROOT / "docs" / "cli.md"
COMMANDS = cli.list_commands(None)


def test_the_reference_is_what_help_shows():
    made = runpy.run_path(str(ROOT / "scripts" / "cli-reference"))["page"]()
    assert PAGE.read_text() == made, "run scripts/cli-reference"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_and_its_options_are_in_it(command):
    text = PAGE.read_text()
    _, _, rest = text.partition(f"\n## swavg {command}\n")
    own, _, _ = rest.partition("\n## ")
    _, _, shared = text.partition("\n## Shared options\n")
    for heading in re.findall(r"\[([^\]]+)\]\(#", own):
        own += shared.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    for param in cli.get_command(None, command).params:
        if param.param_type_name == "option" and not param.hidden:
            assert param.help, param.opts
            for name in (*param.opts, *param.secondary_opts):
                assert re.search(rf"^  .*{name}\b", own, re.MULTILINE), name
