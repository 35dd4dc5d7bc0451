"""Each format of the table, against its reference library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from safetensors_files import read_safetensors, write_safetensors
from torch_arrays import array_of, tensors_of

from swavg.dtypes import BY_NAME
from swavg.formats.table import FORMATS
from swavg.testing import DTYPES, GOLDEN, Ability, FormatTests

Array = np.ndarray[Any, Any]


class TestSafetensors(FormatTests):
    format = FORMATS["safetensors"]
    suffix = ".safetensors"
    dtypes = tuple(name for name in DTYPES if BY_NAME[name].safetensors)
    lacks: ClassVar[Mapping[Ability, str]] = {
        "order": "the library sorts tensors by dtype and name",
        "strides": "tensors are row-major",
        "ties": "each name has bytes of its own",
    }
    golden = (
        b"m\0\0\0\0\0\0\0"
        b'{"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        b'"w":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]}}'
        b"\7\0\0\0\0\0\0\0"
        b"\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40\0\0\xa0\x40"
    )

    def write(self, path: Path, tensors: Mapping[str, Array]) -> None:
        write_safetensors(path, tensors)

    def read(self, path: Path) -> dict[str, Array]:
        return read_safetensors(path)

    def write_extras(self, path: Path, tensors: Mapping[str, Array], number: int) -> None:
        write_safetensors(path, tensors, {"format": "pt", "epoch": str(number)})

    def read_extras(self, path: Path) -> object:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata()["epoch"]


class TestTorch(FormatTests):
    format = FORMATS["torch"]
    suffix = ".pt"
    lacks: ClassVar[Mapping[Ability, str]] = {
        "golden": "files of several versions are in tests/golden"
    }
    legacy = False

    def write(self, path: Path, tensors: Mapping[str, Array]) -> None:
        self.save(tensors_of(tensors), path)

    def save(self, content: Any, path: Path) -> None:
        torch.save(content, path, _use_new_zipfile_serialization=not self.legacy)

    def read(self, path: Path) -> dict[str, Array]:
        found = torch.load(path, weights_only=True)
        return {name: array_of(tensor) for name, tensor in found.get("model", found).items()}

    def write_extras(self, path: Path, tensors: Mapping[str, Array], number: int) -> None:
        content = {"epoch": number, "optimizer": {"m": torch.full((3,), float(number))}}
        self.save({"model": tensors_of(tensors), **content}, path)

    def read_extras(self, path: Path) -> object:
        content = torch.load(path, weights_only=True)
        return content["epoch"], content["optimizer"]["m"].tolist()


class TestTorchLegacy(TestTorch):
    format = FORMATS["torch-legacy"]
    suffix = ".pth"
    # Torch itself cannot load storages without a type from these.
    dtypes = tuple(name for name in DTYPES if BY_NAME[name].torch_storage)
    legacy = True


class TestFolder(FormatTests):
    format = FORMATS["folder"]
    suffix = ""
    dtypes = TestSafetensors.dtypes
    lacks: ClassVar[Mapping[Ability, str]] = {
        **TestSafetensors.lacks,
        "golden": "its files are those of safetensors",
    }

    def write(self, path: Path, tensors: Mapping[str, Array]) -> None:
        """Two shards with an index, as Hugging Face writes them."""
        path.mkdir(exist_ok=True)
        names, weight_map = list(tensors), {}
        for number, part in enumerate((names[::2], names[1::2]), start=1):
            shard = f"model-{number:05d}-of-00002.safetensors"
            write_safetensors(path / shard, {name: tensors[name] for name in part})
            weight_map |= dict.fromkeys(part, shard)
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    def read(self, path: Path) -> dict[str, Array]:
        index = json.loads((path / "model.safetensors.index.json").read_text())
        found: dict[str, Array] = {}
        for shard in set(index["weight_map"].values()):
            part = read_safetensors(path / shard)
            assert set(part) == {n for n, home in index["weight_map"].items() if home == shard}
            found |= part
        return found

    def write_extras(self, path: Path, tensors: Mapping[str, Array], number: int) -> None:
        self.write(path, tensors)
        (path / "config.json").write_text(f'{{"epoch": {number}}}')

    def read_extras(self, path: Path) -> object:
        return (path / "config.json").read_text()


SUITES = [TestSafetensors, TestTorch, TestTorchLegacy, TestFolder]


def test_each_format_of_the_table_has_its_suite() -> None:
    files = Path(__file__).parent.rglob("test_*.py")
    suites = [re.findall(r'^    format = FORMATS\["(.+)"\]$', f.read_text(), re.M) for f in files]
    assert {name for names in suites for name in names} == set(FORMATS)


def test_the_suite_itself_is_not_collected(pytestconfig: pytest.Config) -> None:
    assert not FormatTests.__name__.startswith(tuple(pytestconfig.getini("python_classes")))
    assert set(GOLDEN) == {"w", "n"}


def test_what_a_suite_lacks_has_a_reason() -> None:
    for suite in SUITES:
        assert set(suite.lacks) <= set(get_args(Ability))
        assert all(suite.lacks.values())
