"""Inputs that are composites: rows times parts, and where the parts go."""

import pytest
from composites import llama, pipeline, values, w, write

import swavg
from swavg.errors import MismatchError, RequestError
from swavg.planning.composite import find_parts
from swavg.planning.policy import Policy
from swavg.planning.row import Row


def found(tmp_path, *files, policy=None):
    folders = [str(write(tmp_path / f"m{i}", each)) for i, each in enumerate(files)]
    return find_parts(folders, Policy() if policy is None else policy)


def test_rows_times_parts(tmp_path):
    parts = found(tmp_path, llama(0), llama(1), llama(2))
    rows = [Row((0.5, 0.5), (0, 2), "x"), Row((1.0,), (1,))]
    made, outputs = parts.times(rows, ["o", "p"])
    assert [row.members for row in made] == [(0, 4), (1, 5), (2,), (3,)]
    assert [row.method for row in made] == ["x", "x", None, None]
    assert outputs == ["o", "o", "p", "p"]
    assert [each.path.rpartition("/")[2] for each in parts.checkpoints[:3]] == [
        "consolidated.00.pth",
        "consolidated.01.pth",
        "consolidated.00.pth",
    ]


def test_the_first_part_takes_the_files_of_none_along(tmp_path):
    parts = found(tmp_path, pipeline(0), pipeline(1))
    first, second = (
        parts.target("o/", Row((1.0,), (2 + part,)), Policy(), force=True) for part in (0, 1)
    )
    assert (first.path, first.part, first.format, first.force) == ("o", "unet", "folder", True)
    assert {*first.side_files} == {"README.md", "model_index.json", "tokenizer/vocab.txt"}
    assert (second.part, dict(second.side_files)) == ("vae", {})
    assert parts.target("", Row((1.0,), (2,)), Policy(), force=False).path == "averaged"


def test_a_part_that_is_a_file_has_no_shards(tmp_path):
    parts = found(tmp_path, llama(0), llama(1))
    with pytest.raises(RequestError, match="max_shard_size="):
        parts.target("o", Row((1.0,), (2,)), Policy(max_shard_size=1000), force=False)


def test_plain_checkpoints_have_no_parts(tmp_path):
    plain = {"model.safetensors": w(0), "config.json": "{}"}
    assert found(tmp_path, plain, plain) is None


def test_names_that_differ_are_named(tmp_path):
    with pytest.raises(MismatchError, match=r"m1 has 2 \(c.pt only there\)"):
        found(tmp_path, {"a.pt": w(0), "b.pt": w(0)}, {"a.pt": w(0), "c.pt": w(0)})


def test_the_library_averages_composites(tmp_path):
    folders = [write(tmp_path / f"m{i}", pipeline(i)) for i in range(4)]
    report = swavg.average(folders, output=tmp_path / "o")
    assert report.parts == ("unet", "vae")
    made = values(tmp_path / "o")
    assert made["unet/diffusion_pytorch_model.safetensors"] == 1.5
    assert made["vae/diffusion_pytorch_model.bin"] == 101.5
