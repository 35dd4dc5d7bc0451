"""``swavg convert``."""

import numpy as np
from checkpoints import save, state
from command_line import done, swavg
from composites import w, write

from swavg import open_checkpoint


def test_a_file_and_a_format(tmp_path):
    path = save(tmp_path / "a.safetensors", state(0))
    found = done("convert", path, tmp_path / "b.pt")
    assert found.stdout == f"{tmp_path / 'b.pt'}\n"
    assert "converted 1 checkpoint: 4 tensors" in found.stderr
    done("convert", path, tmp_path / "named-oddly", "--format", "torch")
    assert open_checkpoint(tmp_path / "named-oddly").format == "torch"
    found = swavg("convert", path, tmp_path / "c.pt", "--format", "gguf")
    assert found.returncode == 2
    assert "--format gguf is not written." in found.stderr
    found = swavg("average", path, path, "--format", "banana", cwd=tmp_path)
    assert (found.returncode, "--format banana is not written." in found.stderr) == (2, True)
    for name in ("numpy", "NPZ"):
        done("convert", path, tmp_path / name, "--format", name)
        assert open_checkpoint(tmp_path / name).format == "npz"
    shown = done("convert", "--help").stdout
    assert "--lora" not in shown
    assert "--no-geometry" not in shown


def test_in_a_folder_the_output_is_called_like_the_input(tmp_path):
    path = save(tmp_path / "step.10.safetensors", state(0))
    (tmp_path / "out").mkdir()
    found = done("convert", path, "out", "--format", "torch", cwd=tmp_path)
    assert found.stdout == "out/step.10.pt\n"
    found = done("convert", tmp_path / "out/step.10.pt", "out", "--format", "npz", cwd=tmp_path)
    assert found.stdout == "out/step.10.npz\n"


def test_parts_keep_their_formats(tmp_path):
    folder = write(tmp_path / "a", {"mp_rank_00/model.pt": w(1), "mp_rank_01/model.pt": w(2)})
    done("convert", folder, tmp_path / "b")
    assert open_checkpoint(tmp_path / "b/mp_rank_01/model.pt")["w"][...].tolist() == [2.0] * 3
    found = swavg("convert", folder, tmp_path / "c", "--format", "safetensors")
    assert found.returncode == 2
    assert "Parts keep their formats" in found.stderr


def test_a_hint_names_only_options_that_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", c=np.ones(2, complex), w=np.ones(2))
    made = swavg("convert", "a.npz", "a.safetensors", cwd=tmp_path)
    assert made.returncode == 2
    assert made.stderr.endswith("Write a .pt file instead.\n")
    averaged = swavg("average", "a.npz", "-o", "a.safetensors", cwd=tmp_path)
    assert averaged.stderr.endswith("leave it out with --exclude and --drop-excluded.\n")
