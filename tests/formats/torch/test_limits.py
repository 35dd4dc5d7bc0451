"""Small files that ask for much time or memory get a refusal, or what they are worth."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch_reading import opened, tensor_pickle, torch_zip

from swavg.errors import InputError
from swavg.formats.torch.holding import hides_tensors
from swavg.formats.torch.objects import Opaque, View
from swavg.formats.torch.state import find_state
from swavg.formats.torch.unpickler import unpickle

PRIME = (1 << 61) - 1
TENSOR = tensor_pickle()[9:-2]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def keyed(*keys: bytes) -> bytes:
    """A dictionary that has the one tensor under "w", and these keys."""
    return b"\x80\x02}(" + text("w") + TENSOR + b"".join(key + b"N" for key in keys) + b"u."


@pytest.mark.parametrize(
    "key",
    [
        lambda n: number(n * PRIME),
        lambda n: number(-n * PRIME),
        lambda n: number((n << 44) % PRIME),
        lambda n: b"G" + struct.pack(">d", n * 2.0 ** (61 * (n % 16))),
        lambda n: b"G" + struct.pack(">d", float("nan")),
        lambda n: number(n * PRIME) + b"\x85",
        lambda n: number(n * PRIME) + b"K\x01\x86\x85",
    ],
)
def test_no_key_hashes_as_the_file_chose(key: Callable[[int], bytes]) -> None:
    top = unpickle("f.pt", keyed(*map(key, range(1, 2001)))).top
    assert isinstance(top, dict)
    assert len(top) == 2001
    # Of 2,000 random hashes, none has more than a few others in its bucket.
    buckets = [0] * 4096
    for each in top:
        buckets[hash(each) & 4095] += 1
    assert max(buckets) < 12
    assert find_state("f.pt", top, 10_000).views.keys() == {"w"}


def test_numbers_of_too_many_bits_are_no_keys() -> None:
    with pytest.raises(InputError, match="a number of more than 256 bits"):
        unpickle("f.pt", keyed(number(1 << 300)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("nested dictionaries", None),
        ("nested lists", "'a.* is nested without end"),
        ("nested tuples", "'a.* is nested without end"),
        ("nested calls", None),
    ],
)
def test_depth_is_harmless(tmp_path: Path, what: str, problem: str | None) -> None:
    depth = 200_000
    nested = {
        "nested dictionaries": b"}K\x01" * depth + b"N" + b"s" * depth,
        "nested lists": b"]" * depth + TENSOR + b"a" * depth,
        "nested tuples": TENSOR + b"\x85" * depth,
        "nested calls": b"cx\ny\n" + b")R" * depth,
    }[what]
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(keyed()[:-2] + text("a") + nested + b"u."))
    if problem is None:
        assert list(opened(path).tensors) == ["w"]
    else:
        with pytest.raises(InputError, match=problem):
            opened(path)


def shared(count: int, each: bytes, part: bytes) -> bytes:
    """``count`` times ``each``, which may get ``part`` from the memo at 9."""
    return (
        b"\x80\x02"
        + part
        + b"q\x090}("
        + text("w")
        + TENSOR
        + text("m")
        + b"("
        + (each * count)
        + b"tu."
    )


MODULE = b"cx\ny\n)R}(" + text("_parameters") + b"%b" + text("_modules") + b"}ub"
SIZED = b"(" + b"".join(number(n) + b"N" for n in range(20_000))


@pytest.mark.parametrize(
    "pickle",
    [
        # One large dictionary as the parameters of all modules.
        shared(1_000, MODULE % b"h\x09", b"}" + SIZED + b"u"),
        # One large set of names that all modules hide.
        shared(
            10_000,
            MODULE.replace(b"ub", text("_non_persistent_buffers_set") + b"h\x09ub") % b"}",
            b"cs\ns\n(" + b"N" * 20_000 + b"l\x85R",
        ),
    ],
)
def test_a_part_that_many_modules_share_is_not_walked_for_each(pickle: bytes) -> None:
    graph = unpickle("f.pt", pickle)
    with pytest.raises(InputError, match="repeats its parts beyond reason"):
        find_state("f.pt", graph.top, graph.opcodes)


def test_a_part_in_many_containers_is_looked_into_once() -> None:
    looked = 0

    class Counted(list):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal looked
            looked += 1
            return super().__iter__()

    part = Counted([0] * 100)
    top = {"w": unpickle("f.pt", keyed()).top, **{str(n): {"a": part} for n in range(1000)}}
    assert find_state("f.pt", top, 10_000).views.keys() == {"w"}
    assert looked == 1


def test_looking_for_hidden_tensors_ends_soon() -> None:
    view = unpickle("f.pt", keyed()).top["w"]  # type: ignore[index]
    assert isinstance(view, View)
    kind = unpickle("f.pt", b"\x80\x02cx\ny\n.").top
    assert hides_tensors(Opaque(kind, ([0] * 50, view)))  # type: ignore[arg-type]
    assert not hides_tensors(Opaque(kind, ([0] * 50, [0] * 50, [view])))  # type: ignore[arg-type]


def test_calls_with_huge_arguments_are_refused() -> None:
    huge = b"\x80\x02(" + b"N" * 100 + b"tq\x000ctorch._utils\n_rebuild_parameter\nh\x00R."
    with pytest.raises(InputError, match="a call of _rebuild_parameter with 100 arguments"):
        unpickle("f.pt", huge)


def test_what_is_in_a_tensor_that_torch_wrote_cannot_be_referred_to(tmp_path: Path) -> None:
    torch.save({f"w{n}": torch.ones(2) for n in range(50)}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    pickled = data[data.index(b"\x80\x02") : data.index(b"u.")]
    outcomes = set()
    for index in range(300, 340):
        last = text("x") + b"j" + struct.pack("<I", index) + b"u."
        try:
            top = unpickle("f.pt", pickled + last).top
        except InputError as error:
            outcomes.add(error.problem)
        else:
            assert isinstance(top, dict)
            outcomes.add(type(top["x"]).__name__)
    refused = "its pickle cannot be read: refers to the inside of a tensor"
    assert outcomes == {"str", "tuple", "View", refused}


def test_a_legacy_file_whose_first_pickles_do_not_end_is_refused_soon(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pth").read_bytes()
    for place in (2, data.index(b"M\xe9\x03."), data.index(b"(X\x10\0\0\0protocol")):
        (tmp_path / "b.pth").write_bytes(data[:place] + b"N0" * 1_000_000 + data[place:])
        with pytest.raises(InputError, match=r"more memory|more than 8,192 opcodes"):
            opened(tmp_path / "b.pth", legacy=True)


# Without torch and NumPy, which the tests import.
PROGRAM = """
import sys
from swavg.errors import InputError
from swavg.formats.torch.archive import read_archive, read_graph
from swavg.formats.torch.state import find_state
from swavg.storage.pool import Pool
from swavg.storage.sources import LocalFile
try:
    file = LocalFile.find(sys.argv[1])
    with Pool() as pool:
        read = lambda offset, size: pool.read(file, offset, size)
        graph = read_graph(read, read_archive(read, file.name, file.size))
        print(len(find_state(file.name, graph.top, graph.opcodes).views))
except InputError as error:
    print(error.problem)
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pickle", "problem"),
    [
        (b"}" * 60_000_000, "more memory"),
        (b"(" * 60_000_000, "more memory"),
        (b"N" + b"\x85\x94" * 40_000_000, "more memory"),
        (b"N" + b"\x94" * 60_000_000, "more than 8,000,000 opcodes"),
        ((b"G" + bytes(8)) * 10_000_000, "more memory"),
        ((text("a" * 200_000 + "\N{GRINNING FACE}")) * 450, "more memory"),
        ((text("abcd")) * 9_000_000, "more memory"),
        (b"B" + struct.pack("<I", 90_000_000) + bytes(90_000_000) + b".", "no state dict"),
        (b"}" + b"N}s" * 20_000_000, "more memory"),
    ],
)
def test_no_file_takes_much_memory(tmp_path: Path, pickle: bytes, problem: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(b"\x80\x02" + pickle))
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert problem in output[0]
    assert int(output[1]) < 400
