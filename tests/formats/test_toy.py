"""Adding a format is one file and one row: a toy passes the suite that all formats pass."""

import json
from math import prod

import numpy as np
import pytest
import torch
from formats import toy

import swavg
from swavg.dtypes import BY_NAME
from swavg.formats.files import FILES
from swavg.formats.table import FORMATS
from swavg.testing import FormatTests


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The row in the table of formats."""
    for table in (FILES, FORMATS):
        monkeypatch.setitem(table, "toy", toy.FORMAT)


class TestToy(FormatTests):
    format = toy.FORMAT
    suffix = ".toy"
    lacks = {"strides": "tensors are row-major", "ties": "each name has bytes of its own"}  # noqa: RUF012
    golden = (
        b'TOY1\x59\0\0\0{"recipe": null, "note": null, "tensors": {"w": ["float32", [2, 3]],'
        b' "n": ["int64", []]}}'
        b"\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40\0\0\xa0\x40\7\0\0\0\0\0\0\0"
    )

    def write(self, path, tensors):
        self.write_extras(path, tensors, 0)

    def write_extras(self, path, tensors, number):
        names = {name: (BY_NAME_OF[array.dtype], array.shape) for name, array in tensors.items()}
        text = json.dumps({"recipe": None, "note": number, "tensors": names}).encode()
        data = b"".join(array.tobytes() for array in tensors.values())
        path.write_bytes(toy.MAGIC + len(text).to_bytes(4, "little") + text + data)

    def read(self, path):
        data, header, position = self.parsed(path)
        found = {}
        for name, (dtype, shape) in header["tensors"].items():
            kind = BY_NAME[dtype].numpy()
            flat = np.frombuffer(data, kind, prod(shape), position)
            found[name] = flat.reshape(shape)
            position += flat.nbytes
        return found

    def read_extras(self, path):
        return self.parsed(path)[1]["note"]

    def parsed(self, path):
        data = path.read_bytes()
        position = 8 + int.from_bytes(data[4:8], "little")
        return data, json.loads(data[8:position]), position


BY_NAME_OF = {BY_NAME[name].numpy(): name for name in TestToy.dtypes}


def test_it_is_averaged_with_other_formats_and_into_them(tmp_path):
    TestToy().write(tmp_path / "a.toy", {"w": np.zeros((2, 3), np.float32)})
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "b.pt")
    for name in ("out.toy", "out.safetensors", "out.pt"):
        inputs = [tmp_path / "a.toy", tmp_path / "b.pt"]
        swavg.average(inputs, [0.25, 0.75], output=tmp_path / name)
        assert swavg.open_checkpoint(tmp_path / name).read("w").tolist() == [[0.75] * 3] * 2


def test_its_suffix_names_it_and_its_inputs_do(tmp_path):
    TestToy().write(tmp_path / "a.toy", {"w": np.zeros(3, np.float32)})
    swavg.average([tmp_path / "a.toy"], output=tmp_path / "out")
    assert swavg.open_checkpoint(tmp_path / "out").format == "toy"
