"""Paths and JSON on standard output."""

import contextlib
import io
import json

import pytest
from checkpoints import save, state
from command_line import done

from swavg.cli.printing import print_json, print_published


def test_what_json_lacks_is_null(capsys):
    inf, nan = float("inf"), float("nan")
    print_json("test", {"a": inf, "b": [nan, 1.5], "c": {"d": (-inf, "x")}})
    assert json.loads(capsys.readouterr().out) == {
        "schema": "swavg.test/1", "a": None, "b": [None, 1.5], "c": {"d": [None, "x"]}
    }  # fmt: skip


@pytest.mark.parametrize(("as_json", "said"), [(False, "é.pt\n"), (True, '"é"')])
def test_standard_output_may_be_text_in_memory(as_json, said):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_published("test", [{"a": "é"}], ["é.pt"], as_json=as_json)
    assert said in out.getvalue()


@pytest.mark.parametrize(
    ("args", "schema"),
    [
        (["average", "a.safetensors", "-n"], "swavg.report/2"),
        (["average", "a.safetensors"], "swavg.report/2"),
        (["list", "a.safetensors"], "swavg.list/2"),
        (["inspect", "a.safetensors", "--stats"], "swavg.inspection/2"),
        (["diff", "a.safetensors", "a.safetensors"], "swavg.comparison/2"),
    ],
)
def test_every_report_says_what_it_is(tmp_path, args, schema):
    save(tmp_path / "a.safetensors", state(1))
    found = json.loads(done(*args, "--json", cwd=tmp_path).stdout)
    assert next(iter(found.items())) == ("schema", schema)


def test_several_reports_are_a_list(tmp_path):
    save(tmp_path / "run/step-1.safetensors", state(1))
    save(tmp_path / "run/step-2.safetensors", state(2))
    args = ["sweep", "run", "-r", "uniform:last=1", "-r", "uniform:last=2", "-d", "out", "--json"]
    assert [report["schema"] for report in json.loads(done(*args, cwd=tmp_path).stdout)] == [
        "swavg.report/2", "swavg.report/2"
    ]  # fmt: skip
