"""The unpickler runs nothing, imports nothing, and stays small."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_reading import assert_same, opened, tensor_pickle, torch_zip

from swavg.errors import InputError
from swavg.formats.torch.objects import Opaque, View, name_of
from swavg.formats.torch.unpickler import MAX_OPCODES, unpickle

STATE = {"w": torch.arange(3.0)}


def unpickled(data: bytes) -> Any:
    return unpickle("f.pt", data).top


def refused(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        unpickled(data)
    return caught.value.problem


class Running:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Slotted:
    __slots__ = ("a",)

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("nothing of a checkpoint may run")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_does_nothing_and_still_reads(
    tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "marker"
    slotted = Slotted()
    slotted.a = 1
    content = {
        "shell": Running(os.system, f"touch {marker}"),
        "open": Running(open, str(marker), "w"),
        "evil": Running(eval, f"open({str(marker)!r}, 'w')"),
        "slotted": slotted,
        "state_dict": STATE,
    }
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    assert_same(opened(tmp_path / "a.pt"), STATE)
    assert not marker.exists()


def test_no_module_of_a_pickle_is_imported() -> None:
    # A module of the standard library that nothing here needs.
    assert "antigravity" not in sys.modules
    for opcodes in (b"cantigravity\nfly\n)R", b"(iantigravity\nfly\n", b"cantigravity\nfly\n)\x81"):
        found = unpickled(b"\x80\x02" + opcodes + b".")
        assert (found.of.module, found.of.name, found.args) == ("antigravity", "fly", ())
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(X\x01\0\0\0xtR",
        b"cos\nsystem\n(X\x01\0\0\0xt\x81",
        b"cos\nsystem\n(X\x01\0\0\0xt}\x92",
        b"(X\x01\0\0\0xios\nsystem\n",
        b"(cos\nsystem\nX\x01\0\0\0xo",
        b"\x8c\x02os\x8c\x06system\x93)R",
        b"cos\nsystem\n)Rcos\nsystem\n)R}bb",
        b"cos\nsystem\n)RN}\x86b",
        b"cos\nsystem\n)RK\x01a(K\x02K\x03e",
        b"cos\nsystem\n)RK\x01K\x02s(K\x03K\x04u",
        b"\x82\x01)R",
        b"\x83\x01\x01)R",
        b"\x84\x01\0\0\0)R",
        b"cos\nsystem\n)R)R",
    ],
)
def test_every_way_to_call_gives_a_stand_in(opcodes: bytes) -> None:
    assert type(unpickled(b"\x80\x02" + opcodes + b".")) is Opaque


@pytest.mark.parametrize(
    ("opcodes", "problem"),
    [
        (b"K\x01)R", "neither a class nor a function"),
        (b"X\x01\0\0\0x)\x81", "neither a class nor a function"),
        (b"cos\nsystem\nK\x01R", "no tuple"),
        (b"K\x01}b", "sets the state"),
        (b"}K\x01a", "appends to something"),
        (b"]K\x01K\x02s", "sets items of something"),
        (b"]}K\x01s", "no dictionary"),
        (b"}]K\x01s", "unhashable"),
        (b"K\x01Q", "no tuple"),
        (b"Px\n", "no tuple"),
        (b"X\x01\0\0\0x\x85Q", "no storage"),
        (b"\x97", "buffer"),
        (b"\xff", "opcode 0xff is unknown"),
        (b"00", "cannot be read"),
        (b"h\x07", "Memo value not found"),
        (b"\x80\x63", "protocol"),
    ],
)
def test_a_malformed_pickle_is_an_input_error(opcodes: bytes, problem: str) -> None:
    assert problem in refused(b"\x80\x02" + opcodes + b".")


def test_declared_lengths_beyond_the_data_cost_nothing() -> None:
    huge, wide = b"\xff\xff\xff\x7f", struct.pack("<Q", 1 << 40)
    bombs = [
        b"X" + huge, b"B" + huge, b"T" + huge, b"\x8b" + huge, b"\x8d" + wide, b"\x8e" + wide,
        b"\x96" + wide, b"\x95" + wide, b"\x8a\xff", b"U\xff", b"C\xff", b"\x8c\xff",
    ]  # fmt: skip
    tracemalloc.start()
    for bomb in bombs:
        assert "ends early" in refused(b"\x80\x02" + bomb + b"data."), bomb
    # A memo index is a key, not a position.
    assert unpickled(b"\x80\x02K\x07r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.") == 7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.slow
def test_opcodes_and_memory_are_counted() -> None:
    def problem(data: bytes) -> str:
        with pytest.raises(InputError) as caught:
            unpickle("f.pt", data, max_opcodes=65_536, max_memory=4 << 20)
        return caught.value.problem

    assert MAX_OPCODES == 8_000_000
    tracemalloc.start()
    assert "more than 65,536 opcodes" in problem(b"\x80\x02" + b"N" * 100_000 + b".")
    for opcode in b"}](\x8f":
        assert "more memory" in problem(b"\x80\x02" + bytes([opcode]) * 100_000 + b".")
    # Copies of one long list cost what they copy.
    pairs = pickle.dumps([(n, n) for n in range(1000)], 2)[:-1]
    copies = b"q\x000ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R" * 1000
    assert "more memory" in problem(pairs + copies + b".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_keys_that_take_for_ever_to_hash_are_refused() -> None:
    doubled = b")" + b"2\x86" * 60
    assert "more than 100 parts" in refused(b"\x80\x02}" + doubled + b"K\x01s.")
    deep = b")" + b"\x85" * 200_000
    assert "more than 100 parts" in refused(b"\x80\x02}" + deep + b"K\x01s.")
    ((key, value),) = unpickled(b"\x80\x02}K\x01K\x02\x86K\x03s.").items()
    assert (name_of(key), value) == ("(1, 2)", 3)


def test_deep_nesting_is_harmless() -> None:
    lists = unpickled(b"\x80\x02" + b"]" * 100_000 + b"N" + b"a" * 100_000 + b".")
    tuples = unpickled(b"\x80\x02N" + b"\x85" * 100_000 + b".")
    calls = unpickled(b"\x80\x02cos\nx\n" + b")R" * 100_000 + b".")
    for top, below in ((lists, lists[0]), (tuples, tuples[0]), (calls, calls.of)):
        assert type(top) is type(below)


def test_a_chain_of_rebuilds_too_deep_for_the_stack_is_refused() -> None:
    nested = b")"
    for _ in range(3000):
        # (function, type, args, state), where args is the tuple so far.
        nested = b"(h\x00N" + nested + b"Nt"
    function = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
    assert refused(b"\x80\x02" + function + nested + b"R.") == "its pickle is nested too deeply"


def test_sharing_that_doubles_at_every_level_is_refused_quickly(tmp_path: Path) -> None:
    tensor = tensor_pickle()[2:-1]
    # Each level is {"a": below, "b": below}: 2^40 names out of a kilobyte.
    level = b"q\x000}(X\x01\0\0\0ah\x00X\x01\0\0\0bh\x00u"
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(b"\x80\x02" + tensor + level * 40 + b"."))
    with pytest.raises(InputError, match="repeats its parts beyond reason"):
        opened(path, key="")


def test_a_dictionary_inside_itself_is_refused(tmp_path: Path) -> None:
    tensor = tensor_pickle()[2:-1]
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(b"\x80\x02" + tensor + b"q\x00X\x01\0\0\0xh\x00s."))
    with pytest.raises(InputError, match="'x' is nested without end"):
        opened(path)


def test_containers_come_out_as_they_were() -> None:
    content = {"a": [1, 2.5, None, True], "b": (b"x", "y"), 3: {"n": -(1 << 70)}}
    for protocol in (3, 4, 5):
        assert unpickled(pickle.dumps(content, protocol)) == content
    for protocol in (0, 1, 2):
        # These have no opcode for bytes; a call makes them.
        assert unpickled(pickle.dumps({**content, "b": ("x",)}, protocol))["b"] == ("x",)
    top = unpickled(tensor_pickle())
    assert isinstance(top["w"], View)
    assert (top["w"].size, top["w"].stride, top["w"].storage.key) == ((2,), (1,), "0")


def test_strings_of_python_2_read() -> None:
    assert unpickled(b"\x80\x02U\x02\xc3\xa4.") == "ä"
    assert unpickled(b"\x80\x02(U\x01aU\x01bd.") == {"a": "b"}
