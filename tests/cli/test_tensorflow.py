"""Commands on TensorFlow's checkpoints: prefixes, indices, folders of one and of a run."""

import json
import shutil
from pathlib import Path

import bundles
import numpy as np
import pytest
from command_line import done, swavg

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
    shown = [(each["step"], each["path"]) for each in found["snapshots"]]
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
    assert "Folders are searched one level deep; try runs/a" in found.stderr


def test_what_is_wrong_with_a_path_is_told():
    shutil.copy("run/ckpt-1.index", "alone.index")
    for path, problem in (
        ("run/ckpt-4", "no such file"),
        ("run/ckpt-1.data-00000-of-00001", "Give run/ckpt-1.index or, of all beside it, run/*.ind"),
        ("alone", "alone.data-00000-of-00001: no such file"),
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


def test_the_output_never_lies_on_an_input():
    for output in ("run", "run/ckpt-1.index"):
        assert swavg("average", "run/ckpt-1", "-o", output, "--force").returncode == 5


def test_it_is_converted_both_ways():
    done("convert", "run/ckpt-2", "two.safetensors")
    done("convert", "two.safetensors", "two", "--format", "tensorflow")
    assert np.array_equal(written("two"), EXPECTED[f"keras/ckpt-2/{KEY}"])
    found = done("diff", "run/ckpt-2", "two").stdout
    assert "8 tensors identical, 0 differ" in found
