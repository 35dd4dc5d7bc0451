"""What --json prints is what its schema says, which the page shows."""

import json
import runpy

import pytest
from command_line import done, swavg
from json_documents import document, documents, schema
from jsonschema import Draft202012Validator, ValidationError
from pages import ROOT

from swavg import errors

OUT = ["-o", "out.safetensors", "--json"]
TWO = ["posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.12", "--sigma-rel", "0.15"]


def test_the_schema_is_strict():
    Draft202012Validator.check_schema(schema())
    objects = [each for each in schema()["$defs"].values() if "properties" in each]
    assert len(objects) > 30
    assert all(each["additionalProperties"] is False and each["required"] for each in objects)
    alternatives = {each.get("$ref", "") for each in schema()["oneOf"]} - {""}
    assert {f"#/$defs/{name}" for name, each in schema()["$defs"].items() if "title" in each} == (
        alternatives
    )


def test_the_page_shows_the_schema():
    page = runpy.run_path(str(ROOT / "scripts" / "json-reference"))["page"]()
    assert (ROOT / "docs" / "json.md").read_text() == page, "run scripts/json-reference"


@pytest.mark.parametrize(
    ("args", "names", "expected"),
    [
        (["average", "run", *OUT], "report", {"dry_run": False, "up_to_date": False, "parts": []}),
        (["average", "run", *OUT, "-n"], "report", {"dry_run": True, "seconds": None}),
        (["average", "run", *OUT, "--part", "1/2"], "part", {"part": "1/2"}),
        (["ema", "run", "--decay", "0.9", *OUT], "report", {"dry_run": False}),
        (["sweep", "run", "-r", "uniform:last=2", "-d", "d", "--json"], "report", {"files": 1}),
        (["posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.12", *OUT], "report", {}),
        ([*TWO, "-d", "d", "--json"], "report report", {"dry_run": False}),
        (["convert", "{first}", "out.npz", "--json"], "report", {"format": "npz"}),
        (["list", "run", "--last", "2", "--json"], "list", {"unit": "step"}),
        (["inspect", "{first}", "--stats", "--json"], "inspection", {"recipe": None}),
        (["diff", "{first}", "{first}", "--json"], "comparison", {"same": True}),
        (["average", "run", "--last", "2", "--nonsense", "--json"], "error", {"kind": "usage"}),
        (["average", "nowhere", *OUT], "error", {"kind": "input", "code": 4}),
        (["average", "run", "--threads", "0", "--json"], "error", {"kind": "usage", "code": 2}),
    ],
)
def test_every_command(run, args, names, expected):
    first = str(next((run / "run").glob("step_10-*")))
    found = document(swavg(*[arg.format(first=first) for arg in args], cwd=run).stdout)
    several = found if isinstance(found, list) else [found]
    assert [each["schema"].split("/")[0] for each in several] == [
        f"swavg.{n}" for n in names.split()
    ]
    assert {key: several[0][key] for key in expected} == expected


def test_what_averages_go_on_from(run):
    paths = sorted(map(str, (run / "run").iterdir()))
    done("average", *paths[:2], "-o", "a.safetensors", cwd=run)
    added = document(done("update", "a.safetensors", *paths[2:], *OUT, cwd=run).stdout)
    assert added["recipe"]["n"] == 5
    both = ["a.safetensors", "out.safetensors"]
    window = document(done("window", *both, "-o", "w.safetensors", "--json", cwd=run).stdout)
    assert [each["name"] for each in window["inputs"]] == both
    proven = document(done("verify", "a.safetensors", *paths[:2], "--json", cwd=run).stdout)
    assert [each["path"] for each in proven["inputs"]] == paths[:2]
    assert proven["proven"] == proven["total"]
    again = document(
        done("average", *paths[:2], "-o", "a.safetensors", "--if-stale", "--json", cwd=run).stdout
    )
    assert (again["up_to_date"], again["dry_run"], again["seconds"]) == (True, False, None)


def test_the_kinds_of_errors_are_those_of_the_schema():
    known = set(schema()["$defs"]["error"]["properties"]["kind"]["enum"])
    classes = [errors.SwavgError]
    for each in classes:
        classes += each.__subclasses__()
    # Nobody reads standard output when its reader is gone.
    assert {each.kind for each in classes} - {"reader-gone"} == known - {"memory", "interrupted"}


def test_other_keys_are_found(run):
    text = done("average", "run", *OUT, cwd=run).stdout
    with pytest.raises(ValidationError, match="treated"):
        documents(json.dumps({**json.loads(text), "treated": []}))
    with pytest.raises(ValidationError, match="'notes' is a required"):
        documents(json.dumps({k: v for k, v in json.loads(text).items() if k != "notes"}))
