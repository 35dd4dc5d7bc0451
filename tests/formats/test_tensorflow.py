"""TensorFlow's V2 bundles: what TensorFlow wrote is read, and what is written is what it reads."""

import os
import shutil
import sys
from pathlib import Path

import bundles
import ml_dtypes
import numpy as np
import pytest

import swavg
from swavg.errors import InputError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.table import FORMATS
from swavg.formats.tensorflow import prefix_at
from swavg.storage.crc import crc_function
from swavg.testing import NAMES, FormatTests, assert_equal

FILES = Path(__file__).parents[1] / "frameworks" / "tensorflow" / "files"
EXPECTED = np.load(FILES / "expected.npz")
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
PREFIXES = sorted({key.split("/", 2)[0] + "/" + key.split("/", 2)[1] for key in EXPECTED.files})
RUNS = sorted({prefix.split("/")[0] for prefix in PREFIXES})
DATA = "ckpt.data-00000-of-00001"


def expected(prefix):
    """The arrays of the model that TensorFlow wrote there, by name."""
    own = [key for key in EXPECTED.files if key.startswith(f"{prefix}/")]
    return {key.removeprefix(f"{prefix}/"): EXPECTED[key] for key in own}


def widened(array):
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


class TestTensorFlow(FormatTests):
    format = FORMATS["tensorflow"]
    suffix = ""
    dtypes = tuple(bundles.NUMBERS)
    names = tuple(name for name in NAMES if name)
    lacks = {  # noqa: RUF012
        "order": "keys are sorted",
        "strides": "tensors are row-major",
        "ties": "each key has bytes of its own",
    }
    golden = {  # noqa: RUF012
        "ckpt.index": (
            b"\0\0\6\x08\1\x1a\2\x08\1\0\1\x0bn\x08\t\x12\0(\x085\xbb\xd7\x9f\x11\0\1\x15w\x08\1\x12"
            b"\x08\x12\2\x08\2\x12\2\x08\3 \x08(\x185\xc0\xdb=\x17\0\0\0\0\1\0\0\0\0\xd2\xb2\xe4\xeb"
            b"\0\0\0\0\1\0\0\0\0\xc0\xf2\xa1\xb0\0\1\2x\x009\0\0\0\0\1\0\0\0\0S\xee\x0f]>\x08K\x0e"
            + bytes(36)
            + b"W\xfb\x80\x8b$uG\xdb"
        ),
        DATA: b"\7\0\0\0\0\0\0\0\0\0\0\0\0\0\x80?\0\0\0@\0\0@@\0\0\x80@\0\0\xa0@",
    }

    def write(self, path, tensors):
        bundles.write(path, tensors)

    def read(self, path):
        return {k: v for k, v in bundles.read(path / "ckpt").items() if not isinstance(v, bytes)}

    def write_extras(self, path, tensors, number):
        bundles.write(path, tensors, {"note": b"the words of %d" % number})

    def read_extras(self, path):
        return bundles.read(path / "ckpt")["note"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_tensorflow_wrote_is_read(prefix):
    arrays = expected(prefix)
    checkpoint = open_checkpoint(FILES / prefix)
    assert list(checkpoint) == sorted(arrays)
    for name, array in arrays.items():
        assert_equal(name, widened(checkpoint.read(name)), array)
        if array.ndim:
            assert_equal(name, widened(checkpoint[name][1:2]), array[1:2])


@pytest.mark.parametrize("run", RUNS)
def test_an_average_is_a_whole_checkpoint(tmp_path, run):
    prefixes = [prefix for prefix in PREFIXES if prefix.startswith(f"{run}/")]
    swavg.average([FILES / prefix for prefix in prefixes], output=tmp_path / "out")
    arrays = [expected(prefix) for prefix in prefixes]
    found = bundles.read_index(tmp_path / "out/ckpt.index")
    assert set(bundles.read_index(FILES / f"{prefixes[-1]}.index")) - set(found) == {
        key for key in bundles.read_index(FILES / f"{prefixes[-1]}.index")
        if key.startswith(b"\0") and not key.startswith((b"\0net/table/Adam", ))
    }  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "out")
    for name, last in arrays[-1].items():
        own = checkpoint.read(name)
        if last.dtype.kind == "i":
            assert_equal(name, own, last)
            continue
        mean = np.mean([each[name].astype(np.float64) for each in arrays], axis=0)
        assert_equal(name, own, mean.astype(own.dtype))


def test_all_but_the_model_is_the_lasts(tmp_path):
    prefixes = [FILES / f"objects/model-{step}" for step in (10, 20)]
    swavg.average(prefixes, output=tmp_path / "out")
    last = bundles.read(prefixes[-1])
    found = bundles.read(tmp_path / "out/ckpt")
    assert set(found) == set(last)
    for key in set(last) - set(expected("objects/model-20")):
        assert np.array_equal(found[key], last[key]), key
    assert b"long" * 20 in found[f"net/words{VALUE}"]
