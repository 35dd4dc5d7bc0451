"""Checkpoints that Orbax wrote (tests/frameworks/orbax) are read, averaged, and found in runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from command_line import done, process, swavg

from swavg.engine.average import average
from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.series import discover, in_given_order

FILES = Path(__file__).parents[2] / "frameworks" / "orbax" / "files"
EXPECTED = np.load(FILES / "expected.npz")
CHECKPOINTS = sorted({name.rpartition("/")[0] for name in EXPECTED.files})


def expected(checkpoint):
    """What Orbax was given, by name; bfloat16 as float32."""
    prefix = f"{checkpoint}/"
    return {
        name.removeprefix(prefix): EXPECTED[name]
        for name in EXPECTED.files
        if name.startswith(prefix)
    }


def as_float32(array):
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


def copied(tmp_path, name="ocdbt"):
    return Path(shutil.copytree(FILES / name, tmp_path / name))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_array_of_the_model_is_what_orbax_was_given(name):
    opened, arrays = open_checkpoint(FILES / name), expected(name)
    assert (opened.format, set(opened)) == ("orbax", set(arrays))
    for key, array in arrays.items():
        found = opened.read(key)
        assert (key.endswith("down.kernel")) == (found.dtype == ml_dtypes.bfloat16)
        np.testing.assert_array_equal(as_float32(found), array)
        if array.ndim:
            np.testing.assert_array_equal(as_float32(opened[key][1:3]), array[1:3])


@pytest.mark.parametrize(
    "names",
    [
        ("ocdbt/10", "ocdbt/20"),
        ("items/1", "items/2"),
        ("plain3/10", "zarr3/20", "plain/20"),  # chunks of other shapes, and files of other kinds
    ],
)
def test_averages_are_those_of_the_arrays(tmp_path, names):
    average([FILES / name for name in names], output=tmp_path / "out.safetensors")
    made = open_checkpoint(tmp_path / "out.safetensors")
    states = [expected(name) for name in names]
    assert set(made) == set(states[0])
    for key in made:
        mean = np.mean([state[key].astype(np.float64) for state in states], axis=0)
        found = made.read(key)
        np.testing.assert_array_equal(found, mean.astype(found.dtype))


def test_an_item_can_be_given_by_itself():
    whole, item = (open_checkpoint(FILES / "ocdbt" / name) for name in ("10", "10/default"))
    assert list(whole) == list(item)


def test_what_is_beside_the_model_is_told():
    opened = open_checkpoint(FILES / "ocdbt" / "20")
    assert opened.extras.others == ("step", "opt_state", "ema_params")
    assert opened.extras.scalars == {"step": 20}
    assert opened.notes == (
        "taken for the model: 'params', 'batch_stats'",
        "there is also 'ema_params' (choose it with --key ema_params)",
    )
    assert open_checkpoint(FILES / "items" / "2").extras.scalars == {
        "metrics.loss": 0.75,
        "step": 2,
    }
    assert not open_checkpoint(FILES / "plain" / "10").notes


def test_a_key_chooses_another_part():
    path, arrays = FILES / "ocdbt" / "10", expected("ocdbt/10")
    ema = open_checkpoint(path, key="ema_params")
    np.testing.assert_array_equal(ema.read("up.kernel"), arrays["params.up.kernel"] / 2)
    assert "opt_state.0.trace.up.kernel" in open_checkpoint(path, key="")
    with pytest.raises(InputError, match=r"has no 'ema'\. There are: batch_stats, ema_params"):
        open_checkpoint(path, key="ema")
    with pytest.raises(InputError, match="key= names an array"):
        open_checkpoint(path, key="params.up.bias")


def test_a_run_is_a_series_of_its_steps(tmp_path):
    run = copied(tmp_path)
    for name in ("30.orbax-checkpoint-tmp", "step_40.orbax-checkpoint-tmp-17"):
        shutil.copytree(run / "20", run / name)
    series = discover([run])
    assert [(Path(s.path).name, s.step) for s in series.snapshots] == [("10", 10), ("20", 20)]
    assert [note for note in series.notes if "temporary" in note]
    done("average", run, "--last", "1", "-o", tmp_path / "last.safetensors")
    last = open_checkpoint(tmp_path / "last.safetensors")
    np.testing.assert_array_equal(
        last.read("params.up.kernel"), expected("ocdbt/20")["params.up.kernel"]
    )
    done("ema", run, "--decay", "0.25", "-o", tmp_path / "ema.safetensors")
    first, second = (expected(f"ocdbt/{step}")["params.up.bias"] for step in (10, 20))
    found = open_checkpoint(tmp_path / "ema.safetensors").read("params.up.bias")
    np.testing.assert_allclose(found, 0.25 * first + 0.75 * second, rtol=1e-6)
    listed = done("list", copied(tmp_path, "items")).stdout
    assert "best 0.75 at step 2" in listed
    # The folder of a step is called by its number alone.
    assert series.unit == in_given_order([run / "10", run / "20"]).unit == "step"
    done("ema", run, "--half-life", "5steps", "-o", tmp_path / "by-step.safetensors")
    found = open_checkpoint(tmp_path / "by-step.safetensors").read("params.up.bias")
    np.testing.assert_allclose(found, 0.25 * first + 0.75 * second, rtol=1e-6)


def test_an_unfinished_step_is_refused(tmp_path):
    run = copied(tmp_path)
    path = (run / "20").rename(run / "20.orbax-checkpoint-tmp-1")
    found = swavg("average", run / "10", path, "-o", tmp_path / "out.safetensors")
    assert found.returncode == 4
    assert "is unfinished: Orbax gives it another name when it is written" in found.stderr
    (run / "10" / "default").rename(run / "10" / "default.orbax-checkpoint-tmp")
    with pytest.raises(InputError, match="is unfinished"):
        open_checkpoint(run / "10")


def test_nothing_is_written_into_a_checkpoint(tmp_path):
    run = copied(tmp_path)
    for place in ("10/out.safetensors", "20/default/d/out.safetensors"):
        found = swavg("average", run / "10", run / "20", "-o", run / place)
        assert (found.returncode, "lies in the input" in found.stderr) == (5, True)


def test_without_tensorstore_it_is_told_what_to_install(tmp_path):
    (tmp_path / "tensorstore.py").write_text("raise ImportError\n")
    env = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    found = process("inspect", FILES / "plain" / "10", env=env)
    assert found.returncode == 2
    assert "pip install 'swavg[orbax]'" in found.stderr


def test_another_collection_of_weights_is_the_models(tmp_path):
    item = copied(tmp_path, "plain") / "10" / "default"
    listed = (item / "_METADATA").read_text()
    (item / "_METADATA").write_text(listed.replace("batch_stats", "spectral_stats"))
    for place in item.glob("batch_stats*"):
        place.rename(place.with_name(place.name.replace("batch_stats", "spectral_stats")))
    arrays = {name.replace("batch_stats", "spectral_stats") for name in expected("plain/10")}
    assert set(open_checkpoint(tmp_path / "plain/10")) == arrays
    assert "spectral_stats" in str(arrays)


def test_a_torch_file_of_it_is_told_to_be_bare(tmp_path):
    report = average([FILES / "ocdbt/10"] * 2, output=tmp_path / "out.pt")
    assert any("a bare state dict (the last input is no PyTorch file)" in n for n in report.notes)
