"""Flax files: those that Flax wrote, and crafted ones; written as safetensors."""

from __future__ import annotations

import itertools
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done
from framework_files import FRAMEWORKS, assert_read_and_averaged

import swavg
from swavg import Policy
from swavg.dtypes import BY_NAME
from swavg.errors import InputError, NoWeightsError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.table import FORMATS
from swavg.series import discover
from swavg.storage.pool import Pool
from swavg.testing import DTYPES, FormatTests

FILES = FRAMEWORKS / "flax" / "files"


def text(value: str) -> bytes:
    data = value.encode()
    return b"\xdb" + struct.pack(">I", len(data)) + data


def tree(value: Any) -> bytes:
    """A tree as flax.serialization writes it, if with longer lengths."""
    if isinstance(value, dict):
        parts = b"".join(text(key) + tree(inner) for key, inner in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + parts
    if isinstance(value, (np.ndarray, np.generic)):
        sizes = b"".join(b"\xce" + struct.pack(">I", each) for each in value.shape)
        data = value.tobytes()
        body = b"\x93\xdc" + struct.pack(">H", value.ndim) + sizes + text(value.dtype.name)
        return extension(1, body + b"\xc6" + struct.pack(">I", len(data)) + data)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(tree, value))
    return value if isinstance(value, bytes) else b"\xd3" + struct.pack(">q", value)


def extension(code: int, body: bytes) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(body), code) + body


def saved(path: Path, value: Any) -> Path:
    path.write_bytes(tree(value))
    return path


class TestFlax(FormatTests):
    """Read only: an average is a safetensors file."""

    format = FORMATS["flax"]
    suffix = ".msgpack"
    dtypes = tuple(name for name in DTYPES if BY_NAME[name].safetensors is not None)
    lacks = {  # noqa: RUF012
        "extras": "an average is a file of another format",
        "golden": "files that Flax wrote are read below",
        "order": "that of safetensors",
        "strides": "arrays are row-major",
        "ties": "each name has bytes of its own",
    }

    def write(self, path, tensors):
        saved(path, tensors)
        self.written = dict(tensors)

    def read(self, path):
        if path.suffix == ".msgpack":
            return self.written
        checkpoint = open_checkpoint(path)
        return {name: checkpoint.read(name) for name in checkpoint}

    def _out(self, folder):
        return folder / "out.safetensors"


@pytest.mark.parametrize("layout", ["state", "variables", "model", "chunks"])
def test_what_flax_wrote_is_read_and_averaged(layout, tmp_path):
    paths = [FILES / f"{layout}-{number}.msgpack" for number in range(2)]
    assert open_checkpoint(paths[0]).format == "flax"
    assert_read_and_averaged(paths, tmp_path / "o.safetensors")


def test_any_range_of_chunks_is_read(tmp_path):
    whole = np.arange(60, dtype=np.float32).reshape(5, 12)
    flat, cuts = whole.reshape(-1), [0, 7, 8, 8, 31, 60]
    chunks = {str(at): flat[a:b] for at, (a, b) in enumerate(itertools.pairwise(cuts))}
    value = {"__msgpack_chunked_array__": b"\xc3", "shape": {"0": 5, "1": 12}, "chunks": chunks}
    checkpoint = open_checkpoint(saved(tmp_path / "a", {"params": {"w": value, "b": flat[:3]}}))
    chance = random.Random(0)
    with Pool() as pool:
        for _ in range(60):
            begin, end = sorted(chance.choices(range(61), k=2))
            out = bytearray(4 * (end - begin))
            checkpoint.read_into(checkpoint.tensors["params.w"], begin, end, memoryview(out), pool)
            assert out == flat[begin:end].tobytes()
    swavg.average([tmp_path / "a"] * 2, output=tmp_path / "o.safetensors")
    found = open_checkpoint(tmp_path / "o.safetensors").read("params.w")
    assert found.tolist() == whole.tolist()


def test_the_state_of_an_optimizer_is_left_out_and_told(tmp_path):
    paths = [FILES / f"state-{number}.msgpack" for number in range(2)]
    assert open_checkpoint(paths[0]).extras.scalars["step"] == 1
    report = swavg.average(paths, output=tmp_path / "o.safetensors")
    assert any("'opt_state'" in note and "not of the model" in note for note in report.notes)


def test_the_model_is_told_from_training_by_what_it_holds(tmp_path):
    one = {"w": np.ones(2, np.float32)}
    value = {"params": one, "lora": {"a": np.ones(3, np.float32)}, "ema_params": one, "target": one,
             "counts": {"n": np.array(3)}, "opt_state": {"0": {"mu": one}}}  # fmt: skip
    checkpoint = open_checkpoint(saved(tmp_path / "a", value))
    assert list(checkpoint) == ["params.w", "lora.a", "ema_params.w"]
    assert checkpoint.extras.others == ("target", "counts", "opt_state")
    rl = {"actor": {"params": one, "opt_state": one, "step": 1}, "critic": {"params": one}}
    checkpoint = open_checkpoint(saved(tmp_path / "b", rl))
    assert list(checkpoint) == ["actor.params.w", "critic.params.w"]
    assert checkpoint.extras.others == ("actor.opt_state", "actor.step")


def test_a_key_chooses_the_tree(tmp_path):
    value = {name: {"w": np.full(2, at, np.float32)} for at, name in enumerate(("params", "ema"))}
    path = saved(tmp_path / "a.msgpack", value)
    assert list(open_checkpoint(path)) == ["params.w"]
    assert open_checkpoint(path, key="ema").read("w").tolist() == [1, 1]
    with pytest.raises(InputError, match="has no 'other'"):
        swavg.average([path], output=tmp_path / "o.safetensors", policy=Policy(key="other"))


def test_the_output_is_safetensors_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(Path("a.msgpack"), {"params": {"w": np.ones(2, np.float32)}})
    done("average", path, path)
    assert open_checkpoint("averaged.safetensors").read("params.w").tolist() == [1, 1]
    swavg.average([path], output="o.npz")
    assert open_checkpoint("o.npz").format == "npz"
    with pytest.raises(RequestError, match=r"does not write \.msgpack") as caught:
        swavg.average([path], output="o.msgpack")
    assert "unflatten_dict(load_file('o.safetensors'), sep='.')" in (caught.value.hint or "")
    with pytest.raises(RequestError) as caught:
        swavg.average([path], output="o.npy")
    assert caught.value.hint == "Give o.npz: one array holds no names."


def test_values_of_other_kinds_are_left_out(tmp_path):
    value = {
        "params": {"w": np.ones(2, np.float32), "name": "text", "c": extension(2, b"\x92\xca"),
                   "list": [np.zeros(1, np.float32)], "none": b"\xc0", "bytes": b"\xc4\x01x"},
        "step": np.array(7, np.int32),
    }  # fmt: skip
    checkpoint = open_checkpoint(saved(tmp_path / "a", value))
    assert list(checkpoint) == ["params.w", "params.list.0"]
    assert checkpoint.extras.scalars == {"step": 7}
    assert checkpoint.extras.non_tensors == ("params.name", "params.c", "params.none",
                                             "params.bytes")  # fmt: skip


def damaged(body: bytes) -> bytes:
    return b"\x81" + text("w") + extension(1, body)


FLOATS = b"\xc4\x08" + bytes(8)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (damaged(b"\x93\x91\x03" + text("float32") + FLOATS), "12 bytes, but has 8"),
        (damaged(b"\x93\x91\xff" + text("float32") + FLOATS), "corrupt: an array"),
        (damaged(b"\x93\x91\x02" + text("float32") + FLOATS + b"x"), "corrupt: an array"),
        (damaged(b"\x93\x91\x02" + text("float32") + b"\xc4\x09" + bytes(8)), "corrupt: an array"),
        (damaged(b"\x92\x91\x02" + text("float32") + FLOATS), "corrupt: an array"),
        (damaged(b"\x93\x91\x04" + text("V2") + FLOATS), "has the dtype V2"),
        (damaged(b"\x93\x92\xcf" + b"\xff" * 8 + b"\x02" + text("int8") + FLOATS), "corrupt"),
        (b"\x82" + 2 * (text("w") + b"\x01"), "a key that is no name, or twice"),
        (b"\x81" + text("w") + b"\x91" * 5000 + b"\x01", "deeper"),
        (b"\x81" + text("w") + b"\xdd\xff\xff\xff\xff" + b"\x01" * 600_000, "truncated"),
        (b"\x81" + text("w") + b"\xdd\0\x0f\xff\xff" + b"\x01" * 0xFFFFF, "more values"),
        (b"\x81" + text("w") + b"\xc6\xff\xff\xff\xff", "truncated"),
        (b"\x81" + text("w") + b"\x01\x01", "1 bytes follow its end"),
        (b"\x81" + b"\xa1\xff" + b"\x01", "a text that cannot be read"),
        (tree({"a.b": np.ones(1), "a": {"b": np.ones(1)}}), "two of its names are 'a.b'"),
        (tree({"w": {"__msgpack_chunked_array__": 1, "shape": {"0": 3},
                     "chunks": {"0": np.ones(2)}}}), "chunks are not what"),
        (tree({"w": {"__msgpack_chunked_array__": 1, "shape": {"0": 2},
                     "chunks": {"0": np.ones(1), "1": np.ones(1, np.float32)}}}), "chunks"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_at_once(data, problem, tmp_path):
    (tmp_path / "a.msgpack").write_bytes(data)
    begun = time.process_time()
    with pytest.raises(InputError, match=problem):
        open_checkpoint(tmp_path / "a.msgpack")
    assert time.process_time() - begun < 5


def test_a_file_without_arrays_holds_no_weights(tmp_path):
    with pytest.raises(NoWeightsError, match="holds no parameters"):
        open_checkpoint(saved(tmp_path / "a", {"step": 3}))


def test_large_arrays_are_not_read_when_a_file_is_opened(tmp_path):
    value = {"params": {str(at): np.zeros(4 << 20, np.float32) for at in range(3)}}
    path = saved(tmp_path / "a.msgpack", value)
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(checkpoint) == 3
    assert peak < 1 << 20


def test_files_without_a_suffix_are_a_run_and_outputs_of_it_have_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for step in (100, 200, 300):
        saved(tmp_path / f"run/checkpoint_{step}", {"params": {"w": np.full(2, step, np.float32)}})
    assert [each.step for each in discover(["run"]).snapshots] == [100, 200, 300]
    # A folder of that name is no place for it.
    (tmp_path / "averaged").mkdir()
    assert done("average", "run").stdout.split() == ["averaged.safetensors"]
    assert open_checkpoint("averaged.safetensors").read("params.w").tolist() == [200.0, 200.0]
    swept = done("sweep", "run", "-r", "uniform:last=2", "-d", "out").stdout.split()
    assert swept == ["out/uniform-last-2.safetensors"]
    assert open_checkpoint(swept[0]).read("params.w").tolist() == [250.0, 250.0]


def test_arrays_of_numpy_are_averaged_with_those_of_flax(tmp_path):
    tree = {"params": {"dense": {"w": np.ones(2, np.float32)}}}
    saved(tmp_path / "1.msgpack", tree)
    np.savez(tmp_path / "2.npz", **{"params/dense/w": np.full(2, 2, np.float32)})
    out = tmp_path / "o.safetensors"
    done("average", tmp_path / "1.msgpack", tmp_path / "2.npz", "--rename", "/=.", "-o", out)
    assert open_checkpoint(out).read("params.dense.w").tolist() == [1.5, 1.5]
