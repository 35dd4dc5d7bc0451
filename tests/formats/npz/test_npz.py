"""NumPy archives: what is read is what NumPy reads, what is written NumPy loads."""

from __future__ import annotations

import io
import re
import shlex
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from command_line import done
from numpy.lib import format as npy

import swavg
from swavg import Policy
from swavg.engine.recipe import recipe_of
from swavg.engine.resources import Resources
from swavg.errors import InputError, NoWeightsError, RequestError
from swavg.formats import open_checkpoint, recipe_in
from swavg.formats.npz.header import CODES
from swavg.formats.table import FORMATS
from swavg.testing import FormatTests


def saved(path: Path, *, deflated: bool = False, **arrays: Any) -> Path:
    with open(path, "wb") as file:
        (np.savez_compressed if deflated else np.savez)(file, **arrays)
    return path


def loaded(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive.items())


def npy_bytes(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class TestNpz(FormatTests):
    format = FORMATS["npz"]
    suffix = ".npz"
    dtypes = tuple(CODES)
    lacks = {  # noqa: RUF012
        "ties": "each name has bytes of its own",
        "golden": "NumPy's own files are made by each test",
    }
    deflated = False

    def write(self, path, tensors):
        with zipfile.ZipFile(path, "w", self.method) as archive:
            # As np.savez does it, which takes no name of "file".
            for name, array in tensors.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, array, allow_pickle=False)

    @property
    def method(self):
        return zipfile.ZIP_DEFLATED if self.deflated else zipfile.ZIP_STORED

    def read(self, path):
        return loaded(path)

    def write_extras(self, path, tensors, number):
        saved(path, deflated=self.deflated, label=np.array(f"run {number}"),
              objects=np.array([{"a": number}], object), **tensors)  # fmt: skip

    def read_extras(self, path):
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(f"{name}.npy") for name in ("label", "objects")}


class TestDeflated(TestNpz):
    deflated = True


def test_every_member_has_its_crc_and_the_comment_is_the_recipe(tmp_path):
    paths = [saved(tmp_path / f"{i}.npz", w=np.full(5, i, np.float32)) for i in range(2)]
    swavg.average(paths, output=tmp_path / "o.npz")
    archive = zipfile.ZipFile(tmp_path / "o.npz")
    assert archive.testzip() is None
    assert archive.comment.decode() == recipe_in(str(tmp_path / "o.npz"))
    assert recipe_of(tmp_path / "o.npz")["inputs"] == ["0.npz", "1.npz"]
    assert recipe_in(str(paths[0])) is None


def test_it_is_streamed_to_standard_output(tmp_path):
    for i in range(2):
        saved(tmp_path / f"{i}.npz", w=np.full((3, 2), i, np.float32).T, s=np.array("x"))
    command = [sys.executable, "-m", "swavg", "average", "0.npz", "1.npz", "--format", "npz",
               "-o", "-"]  # fmt: skip
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    done("average", tmp_path / "0.npz", tmp_path / "1.npz", "--format", "npz",
         "-o", tmp_path / "o.npz")  # fmt: skip
    assert made == (tmp_path / "o.npz").read_bytes()
    (tmp_path / "piped.npz").write_bytes(made)
    assert loaded(tmp_path / "piped.npz")["w"].tolist() == [[0.5] * 3] * 2


def test_fortran_order_is_kept_where_all_have_it_and_mixed_orders_are_right(tmp_path):
    chance = np.random.default_rng(0)
    states = [chance.random((40, 30), np.float32) for _ in range(2)]
    expected = ((states[0].astype(float) + states[1]) / 2).astype(np.float32)
    for number, orders in enumerate(("FF", "FC", "CF")):
        paths = [
            saved(tmp_path / f"{i}.npz", deflated=i == 0, w=np.asarray(state, order=order))
            for i, (state, order) in enumerate(zip(states, orders, strict=True))
        ]
        swavg.average(paths, output=tmp_path / f"o{number}.npz")
        found = loaded(tmp_path / f"o{number}.npz")["w"]
        np.testing.assert_array_equal(found, expected)
    paths = [saved(tmp_path / f"{i}.npz", w=state.T.copy().T) for i, state in enumerate(states)]
    swavg.average(paths, output=tmp_path / "o.npz")
    found = loaded(tmp_path / "o.npz")["w"]
    assert found.flags.f_contiguous
    np.testing.assert_array_equal(found, expected)


def test_deflated_members_larger_than_a_task_are_read_by_several_workers(tmp_path):
    chance = np.random.default_rng(1)
    states = [chance.integers(0, 9, (2 << 20) + 3).astype(np.float32) for _ in range(2)]
    paths = [saved(tmp_path / f"{i}.npz", deflated=True, w=s) for i, s in enumerate(states)]
    for run in (Resources(threads=2, processes=True), Resources(threads=3, processes=False)):
        swavg.average(paths, output=tmp_path / "o.npz", resources=run, force=True)
        np.testing.assert_array_equal(loaded(tmp_path / "o.npz")["w"], (states[0] + states[1]) / 2)


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    names = ["a/b", "../x", "/etc/passwd", "w.npy", "a\\b"]
    arrays = {name: np.full(2, at, np.float32) for at, name in enumerate(names)}
    zipped(tmp_path / "a.npz", {f"{name}.npy": npy_bytes(each) for name, each in arrays.items()})
    swavg.average([tmp_path / "a.npz"], output=tmp_path / "o.npz")
    assert {name: each.tolist() for name, each in loaded(tmp_path / "o.npz").items()} == {
        name: each.tolist() for name, each in arrays.items()
    }
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.npz", "o.npz"]


class Evil:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_objects_text_and_records_are_left_out_kept_and_never_unpickled(tmp_path):
    objects = np.array([None], object)
    objects[0] = Evil(tmp_path / "unpickled")
    members = {
        "w.npy": npy_bytes(np.ones(2, np.float32)),
        "objects.npy": npy_bytes(objects),
        "label.npy": npy_bytes(np.array(["x", "yy"])),
        "when.npy": npy_bytes(np.array("2020-01-01", "M8[D]")),
        "rows.npy": npy_bytes(np.zeros(2, [("a", "f4"), ("b", "i8", (2,))])),
        "notes.txt": b"plain",
    }
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = zipped(tmp_path / "a.npz", members, method)
        report = swavg.average([path, path], output=tmp_path / "o.npz", force=True)
        assert any("'objects', 'label', 'when', 'rows', 'notes.txt'" in n for n in report.notes)
        with zipfile.ZipFile(tmp_path / "o.npz") as archive:
            assert archive.testzip() is None
            found = {name: archive.read(name) for name in archive.namelist()}
        assert {name: found[name] for name in list(members)[1:]} == dict(list(members.items())[1:])
        report = swavg.average([path], output=tmp_path / "o.safetensors", force=True)
        assert any("left out" in note for note in report.notes)
        assert list(open_checkpoint(tmp_path / "o.safetensors")) == ["w"]
    assert not (tmp_path / "unpickled").exists()


def test_bfloat16_is_refused_with_a_command_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        saved(Path(f"{i}.npz"), w=np.full(2, i, ml_dtypes.bfloat16), n=np.array(i))
    with pytest.raises(InputError, match="bfloat16") as caught:
        open_checkpoint("0.npz")
    command = (caught.value.hint or "").split("\n")[1]
    for i in range(2):
        line = command.replace("0.npz", f"{i}.npz").replace("0.f4.npz", f"{i}.f4.npz")
        words = [sys.executable if word == "python" else word for word in shlex.split(line)]
        subprocess.run(words, check=True)
    swavg.average(["0.f4.npz", "1.f4.npz"], output="o.npz")
    assert loaded(Path("o.npz"))["w"].tolist() == [0.5, 0.5]


def test_what_numpy_lacks_is_not_written(tmp_path):
    import safetensors.numpy

    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"w": np.ones(2, ml_dtypes.bfloat16)}, path)
    with pytest.raises(RequestError, match="NumPy has no dtype bfloat16") as caught:
        swavg.average([path], output=tmp_path / "o.npz")
    assert "dtype=float32" in (caught.value.hint or "")
    swavg.average([path], output=tmp_path / "o.npz", policy=Policy(dtype="float32"))
    assert loaded(tmp_path / "o.npz")["w"].dtype == np.float32


def test_arrays_of_other_machines_and_of_no_known_dtype_are_refused(tmp_path):
    for array, problem in (
        (np.ones(2, ">f4"), "is big-endian"),
        (np.ones(2, np.longdouble), "has the dtype '<f16'"),
        (np.ones(2, "V3"), "has the dtype '|V3'"),
    ):
        path = zipped(tmp_path / "a.npz", {"w.npy": npy_bytes(array)})
        with pytest.raises(InputError, match=problem.replace("|", r"\|")):
            open_checkpoint(path)


def test_a_file_without_numbers_holds_no_weights(tmp_path):
    with pytest.raises(NoWeightsError):
        open_checkpoint(saved(tmp_path / "a.npz", s=np.array("text")))


def test_steps_are_read_from_scalars(tmp_path):
    for step in (20, 10):
        name = tmp_path / f"model-{'ab'[step // 20]}.npz"
        saved(name, deflated=step == 10, w=np.full(2, step, np.float32), step=np.array(step))
        assert open_checkpoint(name).extras.scalars == {"step": step}
    listed = done("list", tmp_path).stdout
    assert listed.index("model-a") < listed.index("model-b")
    assert "20" in listed


def test_checksums_are_compared_if_asked_for_and_of_deflated_members_always(tmp_path):
    for deflated in (False, True):
        path = saved(tmp_path / "a.npz", deflated=deflated, w=np.arange(99, dtype=np.float32))
        run = Resources(check_crc=True)
        report = swavg.average([path], output=tmp_path / "o.npz", resources=run, force=True)
        assert any("1 records have the checksum" in note for note in report.notes)
        data = path.read_bytes()
        path.write_bytes(data.replace(data[200:210], b"?" * 10))
        with pytest.raises(InputError, match="damaged"):
            swavg.average(
                [path], output=tmp_path / "o.npz", force=True,
                resources=Resources() if deflated else run,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", "12 bytes, but its member"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,), }", "shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "not as NumPy writes it"),
        ("{'descr': '<f4', 'fortran_order': 1, 'shape': (2,), }", "not as NumPy writes it"),
        ("{'descr': '<f4', 'shape': (2,), }", "not as NumPy writes it"),
        ("__import__('os').system('true')", "not as NumPy writes it"),
        ("(" * 9_000, "not as NumPy writes it"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 65 + "), }", "shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + " " * 9_000 + "x", "not as"),
        (" " * 11_000, "at most 10,000"),
    ],
)
def test_headers_that_lie_are_refused_at_once(tmp_path, header, problem):
    head = npy.MAGIC_PREFIX + b"\2\0" + struct.pack("<I", len(header)) + header.encode()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = zipped(tmp_path / "a.npz", {"w.npy": head + bytes(8)}, method)
        begun = time.process_time()
        with pytest.raises(InputError, match=problem):
            open_checkpoint(path)
        assert time.process_time() - begun < 2


def test_many_long_headers_are_refused_at_once(tmp_path):
    members = {}
    for number in range(6_000):
        text = "{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }".ljust(
            9_000 + number // 9
        )
        head = npy.MAGIC_PREFIX + b"\1\0" + struct.pack("<H", len(text)) + text.encode()
        members[f"{number}.npy"] = head
    path = zipped(tmp_path / "a.npz", members, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(InputError, match="headers of more bytes"):
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 << 20


def test_many_deflated_members_are_not_opened_one_by_one(tmp_path):
    data = io.BytesIO()
    np.save(data, np.ones(2, np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5000):
            archive.writestr(f"a{number}.npy", data.getvalue())

    def reads():
        return int(re.search(r"syscr: (\d+)", Path("/proc/self/io").read_text())[1])

    before = reads()
    opened = open_checkpoint(tmp_path / "a.npz")
    assert reads() - before < 500
    assert opened.read("a4999").tolist() == [1, 1]


@pytest.mark.parametrize("dimensions", [1, 32])
def test_headers_of_any_length_are_deflated(tmp_path, dimensions):
    array = np.arange(6, dtype=np.float64).reshape(*[1] * (dimensions - 1), 6)
    opened = open_checkpoint(saved(tmp_path / "a.npz", deflated=True, w=array))
    np.testing.assert_array_equal(opened.read("w"), array)


def test_a_member_whose_beginning_is_damaged_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", deflated=True, w=np.zeros(9))
    data = bytearray(path.read_bytes())
    # Behind a local header with a name of five bytes and an extra field of twenty: no such block.
    data[30 + 5 + 20] |= 6
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz.* is damaged"):
        open_checkpoint(path)


def test_a_member_that_claims_more_than_is_deflated_in_it_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", deflated=True, w=np.zeros(1 << 20, np.float32))
    data = path.read_bytes()
    size = zipfile.ZipFile(path).infolist()[0].file_size
    header = npy_bytes(np.zeros(1 << 20, np.float32))[:128]
    larger = bytearray(data.replace(struct.pack("<I", size), struct.pack("<I", size + (1 << 30))))
    assert header not in data
    path.write_bytes(larger)
    with pytest.raises(InputError, match=r"two sizes|bytes, but its member has"):
        open_checkpoint(path)


def test_many_members_are_opened_in_little_memory(tmp_path):
    arrays = {f"layer.{at}.weight.npy": npy_bytes(np.ones(3, np.float32)) for at in range(20_000)}
    path = zipped(tmp_path / "a.npz", arrays)
    begun = time.process_time()
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(checkpoint) == 20_000
    assert peak < 64 << 20
    assert time.process_time() - begun < 20


@pytest.mark.slow
def test_members_beyond_four_gibibytes_are_read_and_written(tmp_path):
    from formats.test_zip_layout import write_sparse

    from swavg.engine.average import prepare
    from swavg.planning.row import Row

    # A file with a hole: its arrays are not read.
    head, big = tmp_path / "big.safetensors", (1 << 30) + 5
    text = f'{{"a":{{"dtype":"F32","shape":[{big}],"data_offsets":[0,{4 * big}]}},' + (
        f'"b":{{"dtype":"F32","shape":[3],"data_offsets":[{4 * big},{4 * big + 12}]}}}}'
    )
    with open(head, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text.encode())
        file.truncate(8 + len(text) + 4 * big + 12)
    plan = prepare([head], [Row((1.0,), (0,))], [tmp_path / "o.npz"], distances=False)
    layout = plan.outputs[0].files[0].layout
    write_sparse(tmp_path / "o.npz", layout)
    layout.verify(str(tmp_path / "o.npz"))
    found = open_checkpoint(tmp_path / "o.npz")
    assert {name: found.tensors[name].spec.shape for name in found} == {"a": (big,), "b": (3,)}
    assert found.read("b").tolist() == [0, 0, 0]
    with zipfile.ZipFile(tmp_path / "o.npz") as archive, archive.open("a.npy") as member:
        assert npy.read_magic(member) == (1, 0)
        assert npy.read_array_header_1_0(member)[0] == (big,)
    # As NumPy has it: 64-bit sizes in the local header, and none behind the data.
    with zipfile.ZipFile(tmp_path / "n.npz", "w") as archive:
        for name in ("w", "v"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(npy_bytes(np.ones(2)))
    assert list(open_checkpoint(tmp_path / "n.npz")) == ["w", "v"]
