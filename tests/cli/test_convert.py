"""``swavg convert``."""

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
    shown = done("convert", "--help").stdout
    assert "--lora" not in shown
    assert "--no-geometry" not in shown


def test_parts_keep_their_formats(tmp_path):
    folder = write(tmp_path / "a", {"mp_rank_00/model.pt": w(1), "mp_rank_01/model.pt": w(2)})
    done("convert", folder, tmp_path / "b")
    assert open_checkpoint(tmp_path / "b/mp_rank_01/model.pt")["w"][...].tolist() == [2.0] * 3
    found = swavg("convert", folder, tmp_path / "c", "--format", "safetensors")
    assert found.returncode == 2
    assert "Parts keep their formats" in found.stderr
