"""Globs that match no tensor are errors, each for itself, with the nearest name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from command_line import swavg as run

import swavg
from swavg.errors import RequestError
from swavg.planning.globs import check_globs

NAMES = ["model.embed.weight", "model.layers.0.norm.bias", "model.layers.1.norm.bias", "head"]


@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("model.embed.wieght", "Did you mean 'model.embed.weight'?"),
        ("haed", "Did you mean 'head'?"),
        ("layers.*", None),
        ("model.layer.*", "Did you mean 'model.layers.*'?"),
        ("model.embd*", "Did you mean 'model.embed*'?"),
        ("*.nrom.bias", "Did you mean '*.norm.bias'?"),
        ("*nrm.bias", "Did you mean '*norm.bias'?"),
        ("*.emb.*", None),
        ("zzz", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_an_error(
    glob: str, hint: str | None, argument: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check_globs([NAMES, NAMES[:2]], **{"include": (), argument: ("head", glob)})
    assert str(caught.value).startswith(f"{argument} '{glob}' matches none of 4 tensors.")
    assert caught.value.hint == (hint or "Names look like 'model.embed.weight'.")


@pytest.mark.parametrize(
    "glob", ["a.w", "module.a.w", "_orig_mod.*", "a.*", "*.w", "[ab].w", "b?w"]
)
def test_own_names_and_canonical_ones_match(glob: str) -> None:
    check_globs([["module.a.w"], ["_orig_mod.a.w", "b.w"]], [glob], [glob])


def test_there_may_be_no_names_and_no_globs() -> None:
    check_globs([[]], [])
    with pytest.raises(RequestError, match="matches none of 0 tensors"):
        check_globs([[]], ["*"])


def save(path: Path, value: float, *names: str) -> Path:
    path.write_bytes(safetensors.numpy.save({n: np.full(2, value, np.float32) for n in names}))
    return path


@pytest.mark.parametrize("glob", ["module.a", "_orig_mod.a", "a"])
def test_the_name_in_any_input_chooses(tmp_path: Path, glob: str) -> None:
    one = save(tmp_path / "1.safetensors", 0, "module.a", "module.b")
    other = save(tmp_path / "2.safetensors", 1, "_orig_mod.a", "_orig_mod.b")
    policy = swavg.Policy(exclude=(glob,))
    out = tmp_path / "o.safetensors"
    swavg.average([one, other], output=out, policy=policy)
    found = safetensors.numpy.load_file(out)
    assert {name: array.tolist() for name, array in found.items()} == {
        "_orig_mod.a": [1, 1],
        "_orig_mod.b": [0.5, 0.5],
    }


def test_the_command_line_names_the_option(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", 0, "body.w", "head.w")
    line = ["average", "1.safetensors", "1.safetensors", "-o", "o.safetensors"]
    found = run(*line, "--include", "body.*", "--exclude", "haed.*", cwd=tmp_path)
    assert found.returncode == 2
    assert found.stderr.split("\n")[:2] == [
        "error --exclude 'haed.*' matches none of 2 tensors.",
        "      Did you mean 'head.*'?",
    ]
    assert not (tmp_path / "o.safetensors").exists()
    found = run("inspect", "1.safetensors", "--include", "head.*", "--include", "z", cwd=tmp_path)
    assert (found.returncode, "--include 'z' matches none of 2" in found.stderr) == (2, True)
