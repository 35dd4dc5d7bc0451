"""Keras: files that Keras wrote and files of h5py, read and written like their template."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from framework_files import FRAMEWORKS, assert_read_and_averaged

import swavg
from swavg import Policy
from swavg.engine.resources import Resources
from swavg.errors import InputError, NoWeightsError, OutputError, RequestError
from swavg.formats import open_checkpoint, recipe_in
from swavg.formats.npz.header import CODES
from swavg.formats.table import FORMATS
from swavg.testing import FormatTests

FILES = FRAMEWORKS / "keras" / "files"
LAYOUTS = {"archive": ".keras", "legacy": ".h5", "bf16": ".weights.h5"}


def put(group: Any, name: str, array: Any, **options: Any) -> None:
    """A dataset as Keras writes it: what HDF5 has no type for as opaque bytes."""
    if array.dtype == ml_dtypes.bfloat16:
        group.create_dataset(name, data=array.view("V2"), **options)
        group[name].attrs["dtype"] = "bfloat16"
    else:
        group.create_dataset(name, data=array, **options)


def got(node: Any) -> Any:
    array = node[()]
    opaque = node.dtype.kind == "V"
    return np.asarray(array).view(ml_dtypes.bfloat16) if opaque else np.asarray(array)


def arrays_in(file: Any) -> dict[str, Any]:
    found = {}
    with h5py.File(file) as whole:
        whole.visititems(
            lambda name, node: (
                found.update({name: got(node)}) if isinstance(node, h5py.Dataset) else None
            )
        )
    return found


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def saved(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            put(file, name, array)
    return path


class TestHdf5(FormatTests):
    format = FORMATS["hdf5"]
    suffix = ".h5"
    dtypes = ("float32", "bfloat16", *(name for name in CODES if name != "float32"))
    names = ("w", "a b", "ä", "層.重み", "😀", 'quo"te', "back\\slash", "tab\t\x7f\n", "a/b/c")
    lacks = {  # noqa: RUF012
        "ties": "each dataset has bytes of its own",
        "order": "names are sorted",
        "strides": "datasets are row-major",
        "golden": "files that Keras wrote are read below",
    }

    def write(self, path, tensors):
        with h5py.File(path, "w") as file:
            for name, array in tensors.items():
                put(file, name, array)

    def read(self, path):
        return arrays_in(path)

    def write_extras(self, path, tensors, number):
        self.write(path, {**tensors, "optimizer/vars/0": np.array(number)})

    def read_extras(self, path):
        return self.read(path)["optimizer/vars/0"].tolist()


class TestArchive(TestHdf5):
    format = FORMATS["keras"]
    suffix = ".keras"

    def write(self, path, tensors):
        data = io.BytesIO()
        super().write(data, tensors)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", f'"{list(tensors)}"')
            archive.writestr("model.weights.h5", data.getvalue())

    def read(self, path):
        return arrays_in(io.BytesIO(members(path)["model.weights.h5"]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_keras_wrote_is_read_and_averaged(layout, tmp_path):
    suffix = LAYOUTS[layout]
    paths = [FILES / f"{layout}-{number}{suffix}" for number in range(2)]
    assert_read_and_averaged(paths, tmp_path / f"o{suffix}")


def test_all_else_of_an_archive_is_the_last_ones(tmp_path):
    paths = [FILES / f"archive-{number}.keras" for number in range(2)]
    report = swavg.average(paths, output=tmp_path / "o.keras")
    assert any("6 variables in 'optimizer'" in note for note in report.notes)
    made, last = members(tmp_path / "o.keras"), members(paths[1])
    assert list(made) == list(last)
    changed, as_it_was = (
        arrays_in(io.BytesIO(each.pop("model.weights.h5"))) for each in (made, last)
    )
    assert made == last
    for name, array in as_it_was.items():
        same = changed[name].tobytes() == array.tobytes()
        assert same == (not name.startswith("layers"))
    assert open_checkpoint(tmp_path / "o.keras").extras.scalars == {"iteration": 2}
    assert '"archive-0.keras"' in (recipe_in(str(tmp_path / "o.keras")) or "")


def test_an_archive_is_streamed(tmp_path):
    import subprocess

    paths = [FILES / f"archive-{number}.keras" for number in range(2)]
    command = [sys.executable, "-m", "swavg", "average", *paths, "--format", "keras", "-o", "-"]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    (tmp_path / "piped.keras").write_bytes(made)
    swavg.average(paths, output=tmp_path / "o.keras")
    assert members(tmp_path / "piped.keras") == members(tmp_path / "o.keras")


@pytest.mark.parametrize("name", ["archive-0.keras", "legacy-0.h5", "bf16-0.weights.h5"])
def test_a_file_is_converted_into_its_own_format(name, tmp_path):
    from command_line import done

    done("convert", FILES / name, tmp_path / name)
    if name.endswith(".keras"):
        assert members(tmp_path / name) == members(FILES / name)
    else:
        assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes()


def test_other_formats_take_the_model_alone(tmp_path):
    paths = [FILES / f"legacy-{number}.h5" for number in range(2)]
    swavg.average(paths, output=tmp_path / "o.safetensors")
    assert sorted(open_checkpoint(tmp_path / "o.safetensors")) == ["up/up/bias", "up/up/kernel"]


def test_optimizers_that_are_attributes_of_a_model_are_left_out(tmp_path):
    arrays = {"layers/dense/vars/0": np.ones(2), "optimizer/vars/0": np.array(7),
              "generator_optimizer/vars/1": np.ones(2)}  # fmt: skip
    TestHdf5().write(tmp_path / "a.weights.h5", arrays)
    checkpoint = open_checkpoint(tmp_path / "a.weights.h5")
    assert list(checkpoint) == ["layers/dense/vars/0"]
    assert sorted(checkpoint.extras.others) == ["generator_optimizer", "optimizer"]


def test_optimizers_of_any_name_are_the_last_ones(tmp_path):
    for number in (1, 2):
        one = np.full(2, number, np.float32)
        moments = {"opts/adam/vars/0": np.array(number), "opts/adam/vars/1": one[0],
                   "opts/adam/vars/2": one, "opts/adam/vars/3": one}  # fmt: skip
        arrays = {"layers/dense/vars/0": one, **moments}
        TestArchive().write(tmp_path / f"{number}.keras", arrays)
        TestHdf5().write(tmp_path / f"{number}.weights.h5", arrays)
    for suffix, owner in (".keras", TestArchive()), (".weights.h5", TestHdf5()):
        paths = [tmp_path / f"{number}{suffix}" for number in (1, 2)]
        report = swavg.average(paths, output=tmp_path / f"o{suffix}")
        assert any("4 variables in 'opts/adam'" in note for note in report.notes)
        made = owner.read(tmp_path / f"o{suffix}")
        assert made.pop("layers/dense/vars/0").tolist() == [1.5, 1.5]
        assert all((array == 2).all() for array in made.values())


def test_optimizers_of_whole_models_are_left_out(tmp_path):
    arrays = {
        "model_weights/up/up/kernel:0": np.ones(3, np.float32),
        "optimizer_weights/Adam/iter:0": np.array(7),
        "optimizer_weights/Adam/up/kernel/m:0": np.zeros(3, np.float32),
    }
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.h5")
        TestHdf5().write(paths[-1], {name: each + each.dtype.type(number)
                                     for name, each in arrays.items()})  # fmt: skip
    checkpoint = open_checkpoint(paths[0])
    assert list(checkpoint) == ["up/up/kernel:0"]
    assert checkpoint.extras.scalars == {"iteration": 7}
    swavg.average(paths, output=tmp_path / "o.h5")
    made = arrays_in(tmp_path / "o.h5")
    assert made["model_weights/up/up/kernel:0"].tolist() == [1.5] * 3
    assert made["optimizer_weights/Adam/up/kernel/m:0"].tolist() == [1.0] * 3


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"chunks": (7, 5)},
                                     {"compression": "lzf", "shuffle": True}])  # fmt: skip
def test_chunks_are_read_and_not_written(options, tmp_path):
    chance, states = np.random.default_rng(0), []
    for number in range(2):
        states.append(chance.random((50, 30), np.float32))
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            put(file, "w", states[-1], **options)
            put(file, "b", states[-1][0].astype(ml_dtypes.bfloat16), chunks=(4,))
    paths = [tmp_path / f"{number}.h5" for number in range(2)]
    for run in (Resources(threads=1), Resources(threads=2, processes=True)):
        swavg.average(paths, output=tmp_path / "o.safetensors", resources=run, force=True)
        found = open_checkpoint(tmp_path / "o.safetensors")
        mean = ((states[0].astype(float) + states[1]) / 2).astype(np.float32)
        np.testing.assert_array_equal(found.read("w"), mean)
    assert open_checkpoint(paths[0])["w"][20:30].tolist() == states[0][20:30].tolist()
    with pytest.raises(RequestError, match="compressed or in chunks") as caught:
        swavg.average(paths, output=tmp_path / "o.h5")
    assert caught.value.hint == "Write a .safetensors file instead."


def test_an_output_that_cannot_be_like_the_last_is_refused(tmp_path):
    for suffix, layout, rule in (
        (".h5", "legacy", "up/up/kernel=u"),
        (".keras", "archive", "layers/dense/vars/0=d"),
    ):
        path = FILES / f"{layout}-0{suffix}"
        out = tmp_path / f"o{suffix}"
        with pytest.raises(RequestError, match="becomes float16"):
            swavg.average([path], output=out, policy=Policy(dtype="float16"))
        with pytest.raises(RequestError, match="names of tensors change"):
            swavg.average([path], output=out, policy=Policy(rename=(rule,)))
        swavg.average([path], output=tmp_path / "o.safetensors", force=True)
        with pytest.raises(RequestError, match="has the structure of the last input"):
            swavg.average([tmp_path / "o.safetensors"], output=out)
        assert not out.exists()


def test_the_weights_of_an_archive_are_had_as_the_hint_says(tmp_path):
    path = shutil.copy(FILES / "archive-0.keras", tmp_path / "a b.keras")
    with pytest.raises(RequestError, match="has the structure of the last input") as caught:
        swavg.average([path], output=tmp_path / "o.weights.h5")
    told, command = (caught.value.hint or "").splitlines()
    assert told == "It has one:"
    subprocess.run(command, shell=True, check=True)
    whole, inner = open_checkpoint(path), open_checkpoint(tmp_path / "a b.weights.h5")
    assert all(np.array_equal(whole.read(name), inner.read(name)) for name in whole)
    assert [*whole] == [*inner]


def test_shards_are_refused(tmp_path):
    saved(tmp_path / "m_00000.weights.h5", w=np.ones(2))
    assert list(open_checkpoint(tmp_path / "m_00000.weights.h5")) == ["w"]
    (tmp_path / "m.weights.json").write_text("{}")
    for name in ("m_00000.weights.h5", "m.weights.json"):
        with pytest.raises(InputError, match="several shards") as caught:
            open_checkpoint(tmp_path / name)
        assert "max_shard_size" in (caught.value.hint or "")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.json", "{}")
    with pytest.raises(InputError, match="several shards"):
        open_checkpoint(tmp_path / "a.keras")


def test_without_h5py_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="h5py") as caught:
        open_checkpoint(FILES / "legacy-0.h5")
    assert caught.value.hint == "pip install 'swavg[keras]'"


def test_data_in_other_files_and_hostile_chunks_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    (tmp_path / "secret").write_bytes(bytes(8))
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (2,), "f4", external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(InputError, match="lie in other files"):
        open_checkpoint(path)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "w", (2,))
        file.create_virtual_dataset("w", layout)
    with pytest.raises(InputError, match="lie in other files"):
        open_checkpoint(path)
    with h5py.File(path, "w") as file:
        file["w"] = h5py.ExternalLink(str(FILES / "legacy-0.h5"), "/model_weights")
    with pytest.raises(NoWeightsError):
        open_checkpoint(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (1 << 25,), "f4", chunks=(1 << 25,), compression="gzip")
    with pytest.raises(InputError, match="chunks of 134,217,728 bytes"):
        open_checkpoint(path)


def test_datasets_that_overlap_or_reach_beyond_the_end_are_refused(tmp_path):
    path = saved(tmp_path / "a.h5", a=np.full(64, 3.0), b=np.full(64, 4.0))
    first, second = (open_checkpoint(path).tensors[name].boxes[0].offset for name in "ab")
    data = path.read_bytes()
    for offset, problem in ((first + 8, "overlaps another"), (len(data) - 8, "beyond its end")):
        changed = data.replace(second.to_bytes(8, "little"), offset.to_bytes(8, "little"))
        assert changed != data
        path.write_bytes(changed)
        with pytest.raises(InputError, match=f"{problem}|cannot be read as HDF5"):
            open_checkpoint(path)


def test_what_is_no_number_is_left_out_and_big_endian_refused(tmp_path):
    path = saved(tmp_path / "a.h5", w=np.ones(2))
    with h5py.File(path, "a") as file:
        file["text"] = "words"
        file["rows"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["nothing"] = h5py.Empty("f4")
    report = swavg.average([path], output=tmp_path / "o.h5")
    assert any("'nothing', 'rows', 'text': no numbers" in note for note in report.notes)
    with h5py.File(tmp_path / "o.h5") as file:
        assert file["text"][()] == b"words"
    with h5py.File(path, "a") as file:
        file["big"] = np.ones(2, ">f4")
    with pytest.raises(InputError, match="'big' is big-endian"):
        open_checkpoint(path)
    with h5py.File(path, "w") as file:
        file["opaque"] = np.ones(2, ml_dtypes.bfloat16).view("V2")
    with pytest.raises(InputError, match="'opaque' has the dtype"):
        open_checkpoint(path)


def test_a_zip_that_is_no_archive_of_keras_is_called_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(NoWeightsError, match="no Keras archive"):
        open_checkpoint(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(FILES / "archive-0.keras").items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match=r"model\.weights\.h5 is compressed"):
        open_checkpoint(tmp_path / "a.keras")


def test_a_series_is_listed_and_the_default_name_can_be_loaded(tmp_path, monkeypatch):
    from command_line import done

    monkeypatch.chdir(tmp_path)
    for step in (5, 10):
        shutil.copy(FILES / f"bf16-{step // 10}.weights.h5", f"model-{step}.weights.h5")
    assert "10" in done("list", ".").stdout
    done("average", "model-5.weights.h5", "model-10.weights.h5")
    assert Path("averaged.weights.h5").exists()


def test_many_datasets_are_opened_fast(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(2000):
            file.create_dataset(f"layers/l{number}/vars/0", data=np.ones(3, np.float32))
    begun = time.process_time()
    assert len(open_checkpoint(tmp_path / "a.h5")) == 2000
    assert time.process_time() - begun < 10


def test_a_damaged_average_is_noticed(tmp_path):
    from swavg.engine.average import prepare
    from swavg.planning.row import Row

    path = FILES / "archive-0.keras"
    plan = prepare([path], [Row((1.0,), (0,))], [tmp_path / "o.keras"], distances=False)
    verify = plan.outputs[0].files[0].layout.verify
    with pytest.raises(OutputError):
        verify(str(FILES / "legacy-0.h5"))


def recipe_of(path: Path) -> Any:
    return json.loads(recipe_in(str(path)) or "{}")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_how_an_average_was_made_is_an_attribute_that_the_next_one_replaces(libver, tmp_path):
    arrays = {"layers/d/vars/0": np.arange(6.0), "layers/e/vars/0": np.ones((2, 3), np.float16)}
    paths = [tmp_path / f"ä{number}.weights.h5" for number in range(2)]
    for number, path in enumerate(paths):
        with h5py.File(path, "w", libver=libver) as file:
            file.attrs["keras_version"] = "3"
            for name, array in arrays.items():
                file[name] = array + array.dtype.type(number)
    outs = [tmp_path / f"o{number}.h5" for number in range(3)]
    swavg.average(paths, output=outs[0])
    assert recipe_of(outs[0])["inputs"] == ["ä0.weights.h5", "ä1.weights.h5"]
    assert open_checkpoint(outs[0]).extras.recipe == recipe_in(str(outs[0]))
    swavg.average([paths[0], outs[0]], output=outs[1])
    assert recipe_of(outs[1])["inputs"] == ["ä0.weights.h5", "o0.h5"]
    # A longer one in its place.
    swavg.average([*paths * 40, outs[1]], output=outs[2])
    assert recipe_of(outs[2])["n"] == 81
    for out, share in zip(outs, (0.5, 0.25, 40.25 / 81), strict=True):
        with h5py.File(out) as file:
            assert json.loads(file.attrs["swavg"]) == recipe_of(out)
            assert file.attrs["keras_version"] == "3"
        assert arrays_in(out)["layers/d/vars/0"].tolist() == (np.arange(6.0) + share).tolist()


def test_a_recipe_that_is_too_long_is_left_out_and_the_former_one_too(tmp_path):
    path = saved(tmp_path / "1.h5", w=np.ones(2))
    swavg.average([path], output=tmp_path / "2.h5")
    assert recipe_in(str(tmp_path / "2.h5")) is not None
    report = swavg.average([tmp_path / "2.h5"] * 2, output=tmp_path / "3.h5",
                           policy=Policy(include=("*",) * 13_000))  # fmt: skip
    assert any("is not recorded: that takes 65," in note for note in report.notes)
    assert recipe_in(str(tmp_path / "3.h5")) is None
    with h5py.File(tmp_path / "3.h5") as file:
        assert [*file.attrs] == []


def test_a_recipe_goes_between_datasets_without_touching_them(tmp_path):
    """With many groups HDF5 has headers between the data, and freed room for a shorter recipe."""
    for number in range(2):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            for layer in range(300):
                file[f"layers/{layer}/vars/0"] = np.full(3, layer + number, np.float32)
            file.attrs["swavg"] = np.bytes_(b'{"' + b"x" * 3000)
    swavg.average([tmp_path / f"{number}.h5" for number in range(2)], output=tmp_path / "o.h5")
    made = arrays_in(tmp_path / "o.h5")
    assert len(made) == 300
    assert all(made[f"layers/{n}/vars/0"].tolist() == [n + 0.5] * 3 for n in range(300))
    assert recipe_of(tmp_path / "o.h5")["inputs"] == ["0.h5", "1.h5"]


def test_averages_are_no_members_of_their_series(tmp_path):
    from command_line import done

    names = [tmp_path / f"{name}.weights.h5" for name in ("m_1", "m_2", "m_3", "again", "more")]
    for number, path in enumerate(names[:2]):
        saved(path, w=np.array([number, 0.5 * number], np.float32))
    done("average", tmp_path, "-o", names[2])
    again = done("average", tmp_path, "-o", names[3])
    assert "averaged 2 checkpoints" in again.stderr
    assert "ignored m_3.weights.h5: swavg wrote it" in again.stderr
    saved(names[4], w=np.full(2, 2.0, np.float32))
    done("update", names[3], names[4], "-o", tmp_path / "three.h5")
    assert arrays_in(tmp_path / "three.h5")["w"].tolist() == [1.0, np.float32(2.5 / 3)]
    done("ema", *names[:2], "--decay", "0.5", "-o", tmp_path / "ema.h5")
    done("ema", names[4], "--decay", "0.5", "--resume", tmp_path / "ema.h5",
         "-o", tmp_path / "ema2.h5")  # fmt: skip
    assert recipe_of(tmp_path / "ema2.h5")["n"] == 3
    assert arrays_in(tmp_path / "ema2.h5")["w"].tolist() == [1.25, 1.125]


def test_a_file_that_hdf5_does_not_change_is_averaged_without_its_recipe(tmp_path, monkeypatch):
    path = saved(tmp_path / "1.h5", w=np.ones(2, np.float32))
    plain = h5py.File

    def never_for_writing(file, mode):
        if mode != "r":
            raise OSError("no write intent on file")
        return plain(file, mode)

    monkeypatch.setattr(h5py, "File", never_for_writing)
    report = swavg.average([path, path], output=tmp_path / "o.h5")
    assert any("how it was made is not recorded: cannot be read" in note for note in report.notes)
    assert recipe_in(str(tmp_path / "o.h5")) is None
    assert (tmp_path / "o.h5").read_bytes() == path.read_bytes()
