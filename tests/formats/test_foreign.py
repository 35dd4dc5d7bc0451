"""What people pass by mistake is named, and the commands of the hint lead to an average."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import struct
import sys
import tarfile
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.distributed.checkpoint as dcp
from command_line import done, shell

from swavg import open_checkpoint
from swavg.errors import InputError
from swavg.formats.commands import output_for, with_paths
from swavg.formats.files import open_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    return tmp_path


def weights(number: int) -> dict[str, Any]:
    return {"a.weight": np.full((4, 3), number, np.float32), "n": np.array(3)}


def tensors(number: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in weights(number).items()}


def refused(path: str, problem: str) -> InputError:
    with pytest.raises(InputError) as caught:
        open_file(path)
    assert problem in caught.value.problem
    return caught.value


def follow(paths: Sequence[str], problem: str) -> list[str]:
    """Run the first command of the hint of each; what they made, by the last word."""
    lines = [commands(path, problem)[0] for path in paths]
    before = [Path(path).read_bytes() for path in paths]
    ran = shell(" && ".join(lines), ".")
    assert ran.returncode == 0, ran.stderr
    assert [Path(path).read_bytes() for path in paths] == before
    return [shlex.split(line)[-1] for line in lines]


def commands(path: str, problem: str) -> list[str]:
    return (refused(path, problem).hint or "").split("\n")[1:]


def assert_average(path: str, names: Collection[str] = ("a.weight", "n")) -> None:
    """That of the weights 0 and 1."""
    found = open_checkpoint(path)
    assert set(found.tensors) == {*names}
    np.testing.assert_array_equal(found["a.weight"][...], np.full((4, 3), 0.5, np.float32))


def packed(path: str, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("folder", ["./", "", "it's $HOME/"])
@pytest.mark.slow
def test_a_nemo_archive_is_unpacked_averaged_and_packed(mode: str, folder: str) -> None:
    inner = f"{folder}model_weights.ckpt"
    for i in range(2):
        files = {"./model_config.yaml": b"target: x\n", inner: saved(tensors(i))}
        packed(f"m {i}.nemo", files, mode)
    assert follow(["m 0.nemo", "m 1.nemo"], "is a NeMo archive (a tar") == ["m 0", "m 1"]
    done("average", f"m 0/{inner}", f"m 1/{inner}", "-o", "averaged.ckpt")
    ran = shell(commands("m 1.nemo", "NeMo")[1], ".")
    assert ran.returncode == 0, ran.stderr
    with tarfile.open("averaged.nemo") as archive:
        archive.extractall("again", filter="data")
    assert_average(f"again/{inner}")
    assert Path("again/model_config.yaml").read_bytes() == b"target: x\n"


def test_any_tar_says_what_is_in_it() -> None:
    packed("m.tar", {"run/last.ckpt": b"x", "run/notes.txt": b""})
    hint = refused("m.tar", "is an archive (a tar), not a checkpoint").hint or ""
    assert hint.startswith("Unpack each, average their last.ckpt with -o averaged.ckpt")
    packed("m.tgz", {"mp_rank_00/w.pt": b"x", "mp_rank_01/w.pt": b"x"}, "w:gz")
    hint = refused("m.tgz", "(a tar, compressed with gzip)").hint or ""
    assert "part with part (mp_rank_00/w.pt, mp_rank_01/w.pt)" in hint
    packed("m.tar.xz", {"notes.txt": b"x"}, "w:xz")
    assert commands("m.tar.xz", "(a tar, compressed with xz)") == [
        "mkdir m && tar -xf m.tar.xz -C m"
    ]
    for name in ("__0_0.distcp", "decoder.weight/0.0"):
        packed("d.nemo", {"model_weights/common.pt": b"x", f"model_weights/{name}": b"x"})
        assert "distributed checkpoint" in (refused("d.nemo", "NeMo").hint or "")


@pytest.mark.parametrize(
    "name", ["a\nrm -rf x #.pt", "../../x.ckpt", "a/../../x.pt", "\x1b[2Jx.pt"]
)
def test_names_in_a_tar_add_no_commands_and_lead_nowhere_else(name: str) -> None:
    packed("m.tar", {name: b"x"})
    assert commands("m.tar", "is an archive (a tar)") == ["mkdir m && tar -xf m.tar -C m"]


@pytest.mark.parametrize("size", [b"9" * 12, b"-1", b"\x80" + b"\xff" * 11, b"\xff" * 12])
def test_a_hostile_tar_is_still_only_a_tar(size: bytes) -> None:
    packed("m.tar", {"a": b""})
    data = Path("m.tar").read_bytes()
    Path("m.tar").write_bytes(data[:124] + size.ljust(12, b"\0") + data[136:])
    with pytest.raises(InputError):
        open_file("m.tar")


def test_of_an_object_in_a_store_a_copy_is_converted() -> None:
    url = "s3://bucket/run/a.pkl"
    assert with_paths("Save it:\nsave FILE STEM.pt", url) == (
        "Copy it here first. Save it:\nsave a.pkl a.pt"
    )
    assert with_paths("Give FOLDER", url) == "Give s3://bucket/run"


@pytest.mark.slow
def test_a_numpy_array_is_converted() -> None:
    for i in range(2):
        np.save(f"m{i}.npy", weights(i)["a.weight"])
    made = follow(["m0.npy", "m1.npy"], "is a NumPy array (.npy)")
    done("average", *made, "-o", "o.safetensors")
    assert open_checkpoint("o.safetensors")["array"][...].tolist() == [[0.5] * 3] * 4


NUMPY, TORCH = "is a pickle of NumPy arrays", "is a bare pickle of PyTorch tensors"
PICKLED = [
    (NUMPY, lambda i: {"model": weights(i), "__author__": "x"}),
    (NUMPY, weights),
    (TORCH, lambda i: {"model": tensors(i)}),
    (TORCH, tensors),
]


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "content"), PICKLED)
@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_bare_pickles_are_saved_with_torch(problem: str, content: Any, suffix: str) -> None:
    paths = [f"m{i}{suffix}" for i in range(2)]
    for i, path in enumerate(paths):
        Path(path).write_bytes(pickle.dumps(content(i)))
    done("average", *follow(paths, problem), "-o", "o.pt")
    assert_average("o.pt")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(("problem", "content"), PICKLED)
def test_bare_pickles_are_told_by_what_is_in_them(
    problem: str, content: Any, protocol: int
) -> None:
    Path("m").write_bytes(pickle.dumps(content(0), protocol))
    found = refused("m", problem)
    assert "only if you trust who made it" in (found.hint or "")


def test_a_pickle_of_anything_else_is_called_one() -> None:
    import joblib

    Path("m.pkl").write_bytes(pickle.dumps({"a": [1, 2]}))
    refused("m.pkl", "is a pickle, but not one that torch.save wrote")
    from sklearn.linear_model import LogisticRegression

    joblib.dump(LogisticRegression(), "m.joblib")
    refused("m.joblib", "is a pickle of scikit-learn objects")


@pytest.mark.parametrize("program", ["gzip", "zstd", "xz", "bzip2", "lz4"])
@pytest.mark.slow
def test_a_compressed_checkpoint_is_decompressed(program: str) -> None:
    if shell(f"command -v {program}", ".").returncode:
        pytest.skip(f"there is no {program} here")
    for i in range(2):
        Path(f"m{i}").write_bytes(saved(tensors(i)))
        assert shell(f"{program} -c m{i} > m{i}.pt.z", ".").returncode == 0
    problem = f"is compressed with {program}"
    assert follow(["m0.pt.z", "m1.pt.z"], problem) == ["m0.pt", "m1.pt"]
    done("average", "m0.pt", "m1.pt", "-o", "o.pt")
    assert_average("o.pt")


def zipped(path: str, files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["", "run/"])
@pytest.mark.slow
def test_a_zip_of_a_checkpoint_is_unpacked(method: int, folder: str) -> None:
    for i in range(2):
        zipped(f"m{i}.zip", {f"{folder}model.pt": saved(tensors(i))}, method)
    assert follow(["m0.zip", "m1.zip"], "a zip") == ["m0", "m1"]
    done("average", f"m0/{folder}model.pt", f"m1/{folder}model.pt", "-o", "o.pt")
    assert_average("o.pt")


@pytest.mark.slow
@pytest.mark.slow
def test_a_torchscript_archive_gives_its_state_dict() -> None:
    for i in range(2):
        model = torch.nn.Linear(3, 4, bias=False)
        torch.nn.init.constant_(model.weight, i)
        torch.jit.script(model).save(f"m{i}.pt")
    made = follow(["m0.pt", "m1.pt"], "a TorchScript archive")
    done("average", *made, "-o", "o.pt")
    assert open_checkpoint("o.pt")["weight"][...].tolist() == [[0.5] * 3] * 4


@pytest.mark.slow
@pytest.mark.slow
def test_what_only_torch_reads_is_saved_again() -> None:
    for i in range(2):
        files = members(saved({"a.weight": tensors(i)["a.weight"]}))
        zipped(f"compressed{i}.pt", files, zipfile.ZIP_DEFLATED)
        swapped = np.frombuffer(files["archive/data/0"], "<f4").astype(">f4").tobytes()
        files |= {"archive/data/0": swapped, "archive/byteorder": b"big"}
        zipped(f"big{i}.pt", files)
    for name, problem in (("big", "big-endian"), ("compressed", "is compressed; torch stores")):
        made = follow([f"{name}0.pt", f"{name}1.pt"], problem)
        done("average", *made, "-o", f"{name}.pt")
        assert_average(f"{name}.pt", {"a.weight"})


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.onnx", b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "an ONNX model"),
        ("x", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX model"),
        ("x.onnx", b"\x08\x07\x1a\x05", "an ONNX model"),
        ("x.keras", None, "is no Keras archive"),
        ("x", struct.pack("<I", 28) + b"TFL3" + bytes(8), "a TensorFlow Lite model"),
        ("saved_model.pb", b"\x08\x01\x12\xff", "of a TensorFlow SavedModel"),
        ("model.ckpt-7.index", b"\0\0\x02\x08\xff", "of a TensorFlow checkpoint"),
        ("model.ckpt-7.data-00000-of-00001", b"\xff\xfe", "of a TensorFlow checkpoint"),
        ("checkpoint", b'model_checkpoint_path: "model.ckpt-7"\n', "the latest checkpoint of Tens"),
        ("__0_0.distcp", saved(torch.ones(2)), "a part of a distributed checkpoint"),
        (".metadata", pickle.dumps({}), "a part of a distributed checkpoint"),
        ("flax_model.msgpack.index.json", b"{}", "the index of Flax's shards"),
        ("x.gguf", b"GGUF\3\0\0\0", "a GGUF file"),
        ("x.bin", b"lmgg\1\0\0\0", "a GGUF file"),
        ("x.pdparams", b"\x01\xff", "a pickle of NumPy arrays"),
        ("x.xml", b'<?xml version="1.0"?>\n<net name="m" version="11">', "an OpenVINO model"),
        ("x.parquet", b"PAR1\xff", "a Parquet file"),
        ("x.db", b"SQLite format 3\0\xff", "an SQLite database"),
        ("x.7z", b"7z\xbc\xaf\x27\x1c\xff", "a 7z archive"),
        ("config.json", json.dumps({"a": 1}).encode(), "it is text that begins with '{\"a\": 1}'"),
        ("config.yaml", b"model:\n  size: 3\n", "it is text that begins with 'model:'"),
        ("latest", b"global_step100", "it is text that begins with 'global_step100'"),
        ("x.pt", b"\xff\xfe\xfd", "is neither a safetensors nor a PyTorch file"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_named(name: str, content: bytes | None, problem: str) -> None:
    if content is None:
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("metadata.json", "{}")
    else:
        Path(name).write_bytes(content)
    refused(name, problem)


@pytest.mark.parametrize("path", ["m", "m.pt", "m.tar.gz", ".pt", "a.b/c", "run/.x", "m.pt.pt"])
@pytest.mark.parametrize("suffix", ["", ".pt"])
def test_no_command_writes_over_the_file_it_reads(path: str, suffix: str) -> None:
    assert output_for(path, suffix) != path


def test_safetensors_in_any_name_stay_readable() -> None:
    for name in ("m.npz", "m.pkl", "m.nemo", "m.onnx", "m.h5", "m"):
        Path(name).write_bytes(safetensors.numpy.save(weights(1)))
        assert set(open_file(name).tensors) == {"a.weight", "n"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_averaged_as_it_is() -> None:
    for i in range(2):
        dcp.save({"model": tensors(i)}, checkpoint_id=f"m{i}")
    done("average", "m0", "m1", "-o", "o.pt")
    assert_average("o.pt")
