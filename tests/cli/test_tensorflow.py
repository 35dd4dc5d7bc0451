"""Commands on TensorFlow's checkpoints: prefixes, indices, folders of one and of a run."""

import json
import shutil
from pathlib import Path

import bundles
import numpy as np
import pytest
from command_line import done, swavg

from swavg.formats import open_checkpoint

FILES = Path(__file__).parents[1] / "frameworks" / "tensorflow" / "files"
EXPECTED = np.load(FILES / "expected.npz")
KEY = "optimizer/_trainable_variables/0/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """A folder ``run`` of three checkpoints, the latest of which ``checkpoint`` names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FILES / "keras", "run")


def mean(*numbers):
    arrays = [EXPECTED[f"keras/ckpt-{number}/{KEY}"].astype(np.float64) for number in numbers]
    return np.mean(arrays, axis=0).astype(np.float32)


def written(folder):
    return bundles.read(Path(folder) / "ckpt")[KEY]


def test_a_run_is_a_series_of_its_indices():
    Path("run/words-7.index").write_text("of a book")
    found = json.loads(done("list", "run", "--json").stdout)
    shown = [(each["step"], each["path"]) for each in found["checkpoints"]]
    assert shown == [(number, f"run/ckpt-{number}.index") for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("inputs", "numbers"),
    [
        (["run"], (1, 2, 3)),
        (["run", "--last", "2"], (2, 3)),
        (["run", "--to-step", "2"], (1, 2)),
        (["run/ckpt-1", "run/ckpt-3"], (1, 3)),
        (["run/ckpt-1.index", "run/ckpt-2"], (1, 2)),
        (["steps", "--last", "2"], (2, 3)),
        (["steps/step-10", "steps/step-30"], (1, 3)),
    ],
)
def test_paths_of_every_kind_are_averaged(inputs, numbers):
    for number in (1, 2, 3):
        folder = Path(f"steps/step-{number}0")
        folder.mkdir(parents=True)
        for file in Path("run").glob(f"ckpt-{number}.*"):
            shutil.copy(file, folder)
    done("average", *inputs, "-o", "out")
    assert np.array_equal(written("out"), mean(*numbers))


def test_indices_come_from_standard_input():
    names = "".join(f"run/ckpt-{number}.index\n" for number in (1, 2))
    done("average", "-", "-o", "out", stdin=names)
    assert np.array_equal(written("out"), mean(1, 2))


def test_an_ema_is_continued_and_an_average_is_no_snapshot():
    done("ema", "run", "--decay", "0.5", "-o", "whole")
    done("ema", "run", "--decay", "0.5", "--to-step", "2", "-o", "half")
    done("ema", "run", "--decay", "0.5", "--resume", "half", "-o", "run/rest")
    assert np.allclose(written("whole"), written("run/rest"), rtol=1e-6)
    assert "ignored rest: swavg wrote it" in done("list", "run").stderr
    found = json.loads(done("inspect", "whole", "--json").stdout)
    assert found["recipe"]["method"] == "ema"


def test_a_folder_of_runs_is_no_series_of_their_latest():
    shutil.copytree("run", "runs/a")
    shutil.copytree("run", "runs/b")
    found = swavg("list", "runs")
    assert found.returncode == 4
    assert "There are some in runs/a, runs/b." in found.stderr


def test_what_is_wrong_with_a_path_is_told():
    shutil.copy("run/ckpt-1.index", "alone.index")
    for path, problem in (
        ("run/ckpt-4", "no such file"),
        ("run/ckpt-1.data-00000-of-00001", "Give run/ckpt-1.index or, of all beside it, run/*.ind"),
        ("alone", "alone: is incomplete: alone.data-00000-of-00001 is missing"),
    ):
        found = swavg("average", path, "run/ckpt-2", "-o", "out")
        assert found.returncode == 4
        assert problem in found.stderr
    found = swavg("inspect", "run/checkpoint")
    assert found.returncode == 4
    assert "Give run or, of all in it, run/*.index" in found.stderr


def test_a_wrong_checksum_is_exit_4_and_leaves_the_output_as_it_was():
    done("average", "run", "-o", "out")
    before = written("out")
    data = bytearray(Path("run/ckpt-2.data-00000-of-00001").read_bytes())
    # The last bytes are those of step and save_counter: the weights lie before them.
    at = data.index(EXPECTED[f"keras/ckpt-2/{KEY}"].tobytes())
    data[at + 7] ^= 16
    Path("run/ckpt-2.data-00000-of-00001").write_bytes(data)
    found = swavg("average", "run", "-o", "out", "--force")
    assert found.returncode == 4
    assert f"its record '{KEY}' does not have the CRC-32C" in found.stderr
    assert np.array_equal(written("out"), before)
    for command in (("diff", "run/ckpt-1", "run/ckpt-2"), ("inspect", "run/ckpt-2", "--stats")):
        found = swavg(*command)
        assert found.returncode == 4
        assert f"its record '{KEY}' does not have the CRC-32C" in found.stderr


def test_the_output_never_lies_on_an_input():
    for output, code in (("run", 5), ("run/ckpt-1.index", 2)):
        assert swavg("average", "run/ckpt-1", "-o", output, "--force").returncode == code


def test_it_is_converted_both_ways():
    done("convert", "run/ckpt-2", "two.safetensors")
    done("convert", "two.safetensors", "two", "--format", "tensorflow")
    assert np.array_equal(written("two"), EXPECTED[f"keras/ckpt-2/{KEY}"])
    found = done("diff", "run/ckpt-2", "two").stdout
    assert "8 tensors identical, 0 differ" in found


def test_a_checkpoint_without_its_data_is_called_incomplete():
    Path("run/ckpt-3.data-00000-of-00001").unlink()
    for path in ("run", "run/ckpt-3"):
        refused = swavg("average", path, "-o", "out")
        assert refused.returncode == 4
        assert "is incomplete: ckpt-3.data-00000-of-00001 is missing" in refused.stderr
        assert "Did you mean" not in refused.stderr
        assert "give the others without it" in refused.stderr
    done("average", "run/ckpt-1", "run/ckpt-2", "-o", "out")
    np.testing.assert_array_equal(written("out"), mean(1, 2))


def test_what_is_suggested_for_a_path_that_is_not_there_can_be_read():
    refused = swavg("average", "run/ckpt-9", "-o", "out")
    assert "Did you mean 'run/ckpt-3.index'?" in refused.stderr
    done("average", "run/ckpt-3.index", "-o", "out")


@pytest.mark.parametrize(
    ("options", "suffix"),
    [([], ""), (["--format", "torch"], ".pt"), (["--format", "safetensors"], ".safetensors")],
)
def test_outputs_of_a_sweep_are_named_after_their_format_and_can_be_read(options, suffix):
    done("sweep", "run", "-r", "uniform:last=2", "-r", "ema:decay=0.5", "-d", "out", *options)
    names = [f"ema-decay-0.5{suffix}", f"uniform-last-2{suffix}"]
    listed = json.loads(done("list", "out", "--json").stdout)
    assert sorted(each["path"] for each in listed["checkpoints"]) == [f"out/{n}" for n in names]
    np.testing.assert_array_equal(open_checkpoint(f"out/{names[1]}").read(KEY), mean(2, 3))


def test_a_saved_model_is_told_to_lose_its_graph_and_how_to_keep_it():
    for number in (1, 2):
        Path(f"m{number}/variables").mkdir(parents=True)
        Path(f"m{number}/saved_model.pb").write_bytes(b"graph")
        for end in ("index", "data-00000-of-00001"):
            shutil.copy(f"run/ckpt-{number}.{end}", f"m{number}/variables/variables.{end}")
    said = " ".join(done("average", "m1", "m2", "-o", "out").stderr.split())
    assert "warning m2 is a SavedModel: the output has its variables without its graph" in said
    for end in ("index", "data-00000-of-00001"):
        assert f"ckpt.{end}" in said
        assert f"variables.{end}" in said
        shutil.copy(f"out/ckpt.{end}", f"m2/variables/variables.{end}")
    np.testing.assert_array_equal(open_checkpoint("m2/variables").read(KEY), mean(1, 2))
    others = done("average", "m1", "m2", "-o", "out.safetensors").stderr
    assert "SavedModel" not in others
