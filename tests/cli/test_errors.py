"""Errors for people and for programs; hints that name what was meant."""

import json

import pytest
import torch
from checkpoints import load, save, state
from command_line import done, swavg

from swavg.cli import cli
from swavg.cli.errors import with_options
from swavg.errors import (
    InputError,
    MismatchError,
    NumericsError,
    OutputError,
    OutputExistsError,
    ReaderGoneError,
    RequestError,
)


@pytest.fixture
def pair(tmp_path):
    for seed, name in ((1, "a"), (2, "b")):
        save(tmp_path / f"{name}.safetensors", state(seed))
    (tmp_path / "there.safetensors").write_text("mine")
    save(tmp_path / "other.safetensors", state(3, extra=torch.ones(1)) | {"steps": torch.ones(2)})
    save(tmp_path / "inf.safetensors", state(1) | {"body.bias": torch.full((7,), torch.inf)})
    return tmp_path


A = "a.safetensors"


@pytest.mark.parametrize(
    ("args", "code", "kind", "message"),
    [
        (["average", "--weights"], 2, "usage", "--weights needs numbers"),
        (["average", A, "--quite"], 2, "usage", "Did you mean '--quiet'?"),
        (["average", A, "-w", "2"], 2, "usage", "sum to 2, not 1"),
        (["average", A, "other.safetensors"], 3, "mismatch", "differ"),
        (["average", A, "nowhere"], 4, "input", "nowhere: no such file"),
        (["average", A, "-o", f"{A}/x.safetensors"], 5, "output", "cannot be made"),
        (["average", A, "inf.safetensors"], 6, "numerics", "is Inf"),
        (["average", A, "-o", "there.safetensors"], 7, "exists", "exists already"),
    ],
)
def test_a_program_gets_one_object_for_an_error(pair, args, code, kind, message):
    found = swavg(*args, "--json", cwd=pair)
    told = json.loads(found.stdout)
    assert list(told) == ["schema", "code", "kind", "message", "hint", "differences"]
    assert (found.returncode, told["schema"], told["code"], told["kind"]) == (
        code, "swavg.error/1", code, kind
    )  # fmt: skip
    assert message in told["message"]
    # People read it, too.
    assert message in " ".join(found.stderr.split())


def test_the_differences_are_all_there(pair):
    told = json.loads(swavg("average", A, "other.safetensors", "--json", cwd=pair).stdout)
    assert {entry["name"]: entry["what"] for entry in told["differences"]} == {
        "extra": "missing", "steps": "shape"
    }  # fmt: skip
    extra = next(entry for entry in told["differences"] if entry["name"] == "extra")
    assert extra["facts"][0] == {"input": A, "fact": "missing"}
    assert "--lenient" in told["hint"]


def test_of_models_with_no_name_in_common_it_is_asked_whether_they_are_one(tmp_path):
    save(tmp_path / "one.safetensors", {"a": torch.ones(2), "b": torch.ones(2)})
    save(tmp_path / "two.safetensors", {"c": torch.ones(2), "d": torch.ones(2)})
    found = swavg("average", "one.safetensors", "two.safetensors", cwd=tmp_path)
    assert found.returncode == 3
    assert "Are they of the same model? For a .pt file, --key chooses" in found.stderr


def test_each_error_has_a_code_and_a_kind_of_its_own():
    kinds = (RequestError, MismatchError, InputError, OutputError, NumericsError,
             OutputExistsError, ReaderGoneError)  # fmt: skip
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6, 7, 141]
    assert len({kind.kind for kind in kinds}) == len(kinds)


def test_an_argument_is_named_as_the_caller_names_it():
    error = RequestError("must be at least 1, not 0.", argument="threads")
    assert str(error) == "threads must be at least 1, not 0."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Use force=True to replace it.", "Use --force to replace it."),
        ("Use strict=False, or exclude= it.", "Use --lenient, or --exclude it."),
        ("Leave distances=False out.", "Leave --no-geometry out."),
        ("from_step=3 is behind to_step=1.", "--from-step 3 is behind --to-step 1."),
        ("Give mode='min' or mode='max'.", "Give --mode min or --mode max."),
        ("metrics_file= names a file", "--metrics names a file"),
        ("sum_to='normalize' or sum_to='raw'", "--normalize or --raw-weights"),
        ("step=100-last=5.pt: no such file", "step=100-last=5.pt: no such file"),
        ("Recipe 'ema:last=x': last=x is wrong", "Recipe 'ema:last=x': last=x is wrong"),
        ("unknown=3 stays", "unknown=3 stays"),
    ],
)
def test_arguments_of_the_library_are_shown_as_options(text, shown):
    assert with_options(text, cli.get_command(None, "average").params) == shown


def test_an_argument_that_is_wrong_becomes_its_option(pair):
    found = swavg("landscape", A, A, A, "--model", "x:y", "--data", "x:y", "--grid", "3x", cwd=pair)
    assert found.returncode == 2
    assert "error --grid is '3x'; write 21" in found.stderr


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["avrage", A], "No such command 'avrage'. Did you mean 'average'?"),
        (["average", A, "--theads", "2"], "Did you mean '--threads'?"),
        (["average", "a.safetensor"], "Did you mean 'a.safetensors'?"),
        (["average", "./othr.pt"], "Did you mean './other.safetensors'?"),
        (["diff", A, "./othr.safetensors"], "Did you mean './other.safetensors'?"),
        # Of two that are equal but for the suffix, the one whose suffix is near.
        (["inspect", "twin.ckp"], "Did you mean 'twin.ckpt'?"),
        (["inspect", "twim"], "Did you mean 'twin'?"),
    ],
)
def test_what_was_meant_is_named(pair, args, meant):
    (pair / "twin").mkdir()
    (pair / "twin.ckpt").write_bytes((pair / A).read_bytes())
    found = swavg(*args, cwd=pair)
    assert found.returncode in (2, 4)
    assert meant in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("nothing-like-it", "Here are: a.safetensors, b.safetensors, inf.safetensors,"
         " other.safetensors and 2 more."),
        ("runs/step-9.pt", "In runs there are: 17, seed-1."),
        ("runs/18/old/a.pt", "There is no folder 'runs/18'."),
        ("rusn/17/a.pt", "There is no folder 'rusn'. Did you mean 'runs'?"),
        ("runs/seed-2/a.pt", "There is no folder 'runs/seed-2'. Did you mean 'runs/seed-1'?"),
        ("/none/such/a.pt", "There is no folder '/none'."),
        ("runs/17/a.pt", None),
        ("", None),
        ("gone.csv", "Here is: log.csv."),
    ],
)  # fmt: skip
def test_what_is_there_is_told_where_nothing_is_near(pair, path, hint):
    (pair / "runs/17").mkdir(parents=True)
    (pair / "runs/seed-1").mkdir()
    (pair / "log.csv").write_text("")
    (pair / "a\nrm -r.pt").write_text("")
    told = json.loads(swavg("average", path, "--json", cwd=pair).stdout)
    assert (told["code"], told["hint"]) == (4, hint)


@pytest.mark.parametrize("args", [["bogus"], ["average", "nothing-like-it"]])
def test_nothing_is_named_that_is_not_near(pair, args):
    assert "Did you mean" not in swavg(*args, cwd=pair).stderr


def test_the_way_out_of_an_output_that_exists_works(pair):
    refused = swavg("average", A, "b.safetensors", "-o", "there.safetensors", cwd=pair)
    assert "Use --force to replace it." in refused.stderr
    done("average", A, "b.safetensors", "-o", "there.safetensors", "--force", cwd=pair)
    assert "body.bias" in load(pair / "there.safetensors")


def test_a_weight_among_the_paths_is_told_from_a_name(pair):
    found = swavg("average", A, "b.safetensors", "0.5", "0.5", cwd=pair)
    assert "0.5: no such file" in found.stderr
    assert "Weights go behind --weights." in found.stderr
    assert "--weights" not in swavg("inspect", "0.5", cwd=pair).stderr


def test_a_hint_that_cannot_be_had_hides_no_error(tmp_path, monkeypatch):
    def names_in(path):
        raise RequestError("there are no credentials")

    monkeypatch.setattr("swavg.cli.errors.names_in", names_in)
    found = swavg("inspect", tmp_path / "gone.pt")
    assert (found.returncode, "no such file" in found.stderr) == (4, True)
