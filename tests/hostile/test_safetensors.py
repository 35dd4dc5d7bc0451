"""Broken and hostile files: each is refused, in bounded memory, and the message says why."""

from __future__ import annotations

import gzip
import json
import os
import random
import stat
import struct
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.safetensors import open_safetensors
from swavg.formats.safetensors_header import DIMENSION_LIMIT, ENTRY_LIMIT, HEADER_LIMIT

relaxed = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FOUR = b"\0\0\x80\x3f"
VALID = make.packed(
    {
        "head.w": ("F32", (2, 2), FOUR * 4),
        "n": ("I64", (), b"\1" + b"\0" * 7),
        "e": ("U8", (0,), b""),
    }
)


def refused(path: str | Path, problem: str) -> InputError:
    """Opening ``path`` fails with this problem, and names the file; whatever its suffix."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert problem in caught.value.problem
    assert str(caught.value).startswith(str(path))
    assert caught.value.exit_code == 4
    return caught.value


def one(**changes: Any) -> dict[str, Any]:
    """The header of one float32, changed."""
    return {"a": make.entry() | changes}


def spans(*found: tuple[int, int]) -> dict[str, Any]:
    """A header of bytes with these data_offsets."""
    return {
        f"t{i}": make.entry("U8", (end - begin,), (begin, end))
        for i, (begin, end) in enumerate(found)
    }


BROKEN: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "a hole": (spans((0, 2), (3, 4)), b"abcd", "'t1' leaves a hole"),
    "an overlap": (spans((0, 3), (2, 4)), b"abcd", "'t1' overlaps the tensor before it"),
    "a shared extent": (spans((0, 4), (0, 4)), b"abcd", "'t1' overlaps the tensor before it"),
    "trailing bytes": (spans((0, 3)), b"abcd", "1 bytes follow its last tensor"),
    "data without tensors": (b"{}", b"abcd", "4 bytes follow its last tensor"),
    "a first offset that is not 0": (spans((1, 4)), b"abcd", "'t0' leaves a hole"),
    "missing data": (spans((0, 9)), b"abcd", "truncated: its tensors need"),
    "an empty tensor behind the data": (spans((0, 4), (9, 9)), b"abcd", "'t1' leaves a hole"),
    "reversed offsets": (one(data_offsets=[4, 0]), FOUR, "its data_offsets span -4"),
    "a wrong size": (one(shape=[2]), FOUR, "'a' is [2] of float32, 8 bytes, but its data_offsets"),
    "a size of half bytes": (one(dtype="F4", shape=[3]), FOUR, "'a' is [3] of float4_e2m1fn, 1.5"),
    "a scalar of two": (one(shape=[], data_offsets=[0, 8]), FOUR * 2, "'a' is [] of float32, 4"),
    "a product beyond 2**63": (one(shape=[2**40, 2**30]), FOUR, "'a' has the impossible shape"),
    "a product beyond a float": (one(shape=[2**62] * 40), FOUR, "'a' has the impossible shape"),
    "a product that wraps to 1": (
        one(shape=[2**32 + 1, 2**32 - 1]), FOUR, "'a' has the impossible shape",
    ),
    "a product that 0 hides": (
        one(shape=[2**62, 4, 0], data_offsets=[0, 0]), b"", "'a' has the impossible shape",
    ),
    "too many dimensions": (
        one(shape=[1] * (DIMENSION_LIMIT + 1)), FOUR, "'a' has 65 dimensions; 64 at most",
    ),
    "a negative extent": (one(shape=[-1]), FOUR, "'a' has the invalid shape [-1]"),
    "two negative extents": (one(shape=[-1, -1]), FOUR, "'a' has the invalid shape [-1, -1]"),
    "a float extent": (one(shape=[1.0]), FOUR, "'a' has the invalid shape [1.0]"),
    "a bool extent": (one(shape=[True]), FOUR, "'a' has the invalid shape [True]"),
    "a string extent": (one(shape=["1"]), FOUR, "'a' has the invalid shape ['1']"),
    "an extent of 2**63": (one(shape=[2**63]), FOUR, "'a' has the invalid shape"),
    "a null shape": (one(shape=None), FOUR, "'a' has the invalid shape None"),
    "a shape that is a number": (one(shape=1), FOUR, "'a' has the invalid shape 1"),
    "negative offsets": (one(data_offsets=[-4, 0]), FOUR, "'a' has the invalid data_offsets"),
    "float offsets": (one(data_offsets=[0, 4.0]), FOUR, "'a' has the invalid data_offsets"),
    "bool offsets": (
        one(dtype="U8", data_offsets=[False, True]), b"a", "'a' has the invalid data_offsets",
    ),
    "string offsets": (one(data_offsets=["0", "4"]), FOUR, "'a' has the invalid data_offsets"),
    "offsets beyond 2**63": (one(data_offsets=[0, 2**64]), FOUR, "'a' has the invalid data_offs"),
    "one offset": (one(data_offsets=[4]), FOUR, "'a' has the invalid data_offsets [4]"),
    "three offsets": (one(data_offsets=[0, 2, 4]), FOUR, "'a' has the invalid data_offsets"),
    "an unknown dtype": (one(dtype="F33"), FOUR, "'a' has the unknown dtype 'F33'"),
    "a dtype in lower case": (one(dtype="f32"), FOUR, "'a' has the unknown dtype 'f32'"),
    "a dtype that is a number": (one(dtype=1), FOUR, "'a' has the unknown dtype 1"),
    "a dtype that is a list": (one(dtype=["F32"]), FOUR, "'a' has the unknown dtype ['F32']"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, FOUR, "'a' is not described by"),
    "one field more": (one(strides=[1]), FOUR, "'a' is not described by dtype, shape and"),
    "an entry that is a list": ({"a": [1]}, FOUR, "'a' is not described by"),
    "an entry that is null": ({"a": None}, b"", "'a' is not described by"),
    "a key twice": (
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        FOUR,
        "the key 'a' is there twice",
    ),
    "a key twice, once escaped": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        FOUR,
        "the key 'a' is there twice",
    ),
    "a key twice in an entry": (
        b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}',
        FOUR,
        "the key 'shape' is there twice",
    ),
    "a key twice in the metadata": (
        b'{"__metadata__":{"x":"1","x":"2"}}', b"", "the key 'x' is there twice",
    ),
    "the metadata twice": (
        b'{"__metadata__":{},"__metadata__":{}}', b"", "the key '__metadata__' is there twice",
    ),
    "metadata that is a number": ({"__metadata__": {"a": 1}}, b"", "strings to strings"),
    "metadata that is nested": ({"__metadata__": {"a": {}}}, b"", "strings to strings"),
    "metadata that is a list": ({"__metadata__": ["a"]}, b"", "strings to strings"),
    "metadata that is false": ({"__metadata__": False}, b"", "strings to strings"),
    "a leading form feed": (b"\f{}", b"", "does not start with '{'"),
    "minus zero": (
        b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', b"", "-0 is no count",
    ),
    "a byte order mark": (b"\xef\xbb\xbf{}", b"", "does not start with '{'"),
    "a list": (b"[]", b"", "does not start with '{'"),
    "no header": (b"", b"abcd", "does not start with '{'"),
    "an open brace": (b"{", b"", "is not valid JSON"),
    "text behind the header": (b"{}x", b"", "is not valid JSON"),
    "a NUL behind the header": (b"{}\0", b"", "is not valid JSON"),
    "a trailing comma": (b'{"__metadata__":{},}', b"", "is not valid JSON"),
    "single quotes": (b"{'a':1}", b"", "is not valid JSON"),
    "a raw control character": (b'{"__metadata__":{"a":"\n"}}', b"", "is not valid JSON"),
    "a number without end": (b'{"a":' + b"9" * 5000 + b"}", b"", "hundreds of digits"),
    "NaN": (b'{"a":NaN}', b"", "'a' is not described by"),
    "bytes that are no UTF-8": (b'{"__metadata__":{"a":"\xff"}}', b"", "is not valid JSON"),
    "an encoded surrogate": (b'{"__metadata__":{"a":"\xed\xa0\x80"}}', b"", "is not valid JSON"),
    "an escaped surrogate as a name": (
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR, "half a surrogate",
    ),
    "an escaped surrogate as metadata": (
        b'{"__metadata__":{"a":"\\udfff"}}', b"", "half a surrogate pair",
    ),
    "UTF-16": (
        json.dumps(one()).encode("utf-16-le"), FOUR, "its safetensors header is not valid JSON",
    ),
    "UTF-32": (
        json.dumps(one()).encode("utf-32-le"), FOUR, "its safetensors header is not valid JSON",
    ),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "is not valid JSON"),
    "deep nesting of objects": (b'{"a":' * 90_000, b"", "is not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_header_is_refused_with_its_fault(tmp_path: Path, fault: str) -> None:
    header, data, problem = BROKEN[fault]
    refused(make.raw_file(tmp_path / "a.safetensors", header, data), problem)


STRICTER = {
    # What the reference library takes, and we do not: duplicates, other fields, odd shapes.
    "a key twice",
    "a key twice, once escaped",
    "a key twice in the metadata",
    "one field more",
    "too many dimensions",
}


@pytest.mark.parametrize("fault", sorted(BROKEN.keys() - STRICTER))
def test_the_library_refuses_it_too(tmp_path: Path, fault: str) -> None:
    header, data, _ = BROKEN[fault]
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(make.raw(header, data))


@pytest.mark.parametrize("fault", sorted(STRICTER))
def test_the_library_would_let_it_pass(tmp_path: Path, fault: str) -> None:
    header, data, _ = BROKEN[fault]
    assert isinstance(safetensors.deserialize(make.raw(header, data)), list)


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        (HEADER_LIMIT + 1, "its header claims 100,000,001 bytes; at most 100,000,000 are allowed"),
        (2**40, "its header claims 1,099,511,627,776 bytes"),
        (2**64 - 1, "its header claims 18,446,744,073,709,551,615 bytes"),
        (HEADER_LIMIT, "truncated: its header has 100,000,000 bytes, the file 61"),
        (54, "truncated: its header has 54 bytes, the file 61"),
        (52, "its safetensors header is not valid JSON"),
    ],
)
def test_a_wrong_length_of_the_header_is_refused(tmp_path: Path, length: int, problem: str) -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'[:53]
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + text)
    refused(tmp_path / "a.safetensors", problem)


@relaxed
@example(0)
@example(1)
@example(8)
@example(len(VALID) - 1)
@given(st.integers(0, len(VALID) - 1))
def test_a_file_cut_short_anywhere_is_an_input_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(VALID[:size])
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))


@relaxed
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 41), st.integers(0, 255)), max_size=4))
def test_flipped_bytes_open_as_the_library_reads_them_or_are_an_input_error(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(VALID)
    for place, byte in flips:
        data[place] = byte
    assert_agrees(tmp_path, bytes(data))


def assert_agrees(folder: Path, data: bytes) -> None:
    """Our reader refuses ``data``, or the library accepts it too and reads the same."""
    path = folder / "a.safetensors"
    path.write_bytes(data)
    try:
        checkpoint = open_safetensors(str(path))
    except InputError:
        return
    reference = dict(safetensors.deserialize(data))
    assert set(checkpoint.tensors) == set(reference)
    for name, tensor in checkpoint.tensors.items():
        assert list(tensor.spec.shape) == reference[name]["shape"]
        box = tensor.packed
        assert box is not None
        read = data[box.offset : box.offset + tensor.spec.nbytes]
        assert read == bytes(reference[name]["data"])
        assert tensor.spec.dtype.safetensors == reference[name]["dtype"]


WORDS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"0", b"4", b"16", b"-1", b"1e1", b"null", b"true",
    b'"F32"', b'"U8"', b'"shape"', b'"dtype"', b'"data_offsets"', b'"__metadata__"', b"\\u0061",
    b" ", b"\xff", b'"n"', b"18446744073709551616",
]  # fmt: skip


@relaxed
@given(st.lists(st.tuples(st.integers(8, 200), st.sampled_from(WORDS)), min_size=1, max_size=3))
def test_a_mangled_header_opens_as_the_library_reads_it_or_is_an_input_error(
    tmp_path: Path, changes: list[tuple[int, bytes]]
) -> None:
    (length,) = struct.unpack("<Q", VALID[:8])
    text = bytearray(VALID[8 : 8 + length])
    for place, word in changes:
        text[place - 8 : place - 8 + len(word)] = word
    assert_agrees(tmp_path, make.raw(bytes(text), VALID[8 + length :]))


@relaxed
@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_an_input_error(tmp_path: Path, data: bytes) -> None:
    assume(data[8:9] != b"{")
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "problem", "hint"),
    [
        (b"", "is empty (0 bytes)", None),
        (b"\0" * 4096, "starts with zeros", "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
         "Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page", "download that failed"),
        (b"\n  <HTML lang=en><head>", "is a web page", "download that failed"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is a web page", "failed"),
        (gzip.compress(VALID), "is compressed with gzip", "Decompress it first"),
        (b"\x28\xb5\x2f\xfd" + b"\1" * 40, "is compressed with zstd", "Decompress it first"),
        (b"\xfd7zXZ\0" + b"\1" * 40, "is compressed with xz", "Decompress it first"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "cannot be read as HDF5", None),
        (b"GGUF\3\0\0\0" + b"\0" * 40, "is a GGUF file", "before converting"),
        (b"\x93NUMPY\1\0v\0" + b" " * 40, "is a NumPy array", "Convert each"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a"])
def test_what_is_passed_by_mistake_is_named(
    tmp_path: Path, name: str, content: bytes, problem: str, hint: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused(tmp_path / name, problem)
    assert (hint is None) == (error.hint is None)
    assert (hint or "") in (error.hint or "")


@pytest.mark.parametrize("name", ["a.pt", "notes.txt", "a"])
def test_any_other_file_is_named_as_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("the quick brown fox jumps")
    refused(tmp_path / name, "is neither a safetensors nor a PyTorch file")


def test_an_index_alone_is_refused_and_its_folder_offered(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert refused(path, "only the index").hint == "Give its folder."


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.safetensors", "no such file")


def test_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to("nowhere")
    refused(tmp_path / "a.safetensors", "no such file")


def test_a_link_to_itself_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to("a.safetensors")
    refused(tmp_path / "a.safetensors", "cannot be read")


def test_a_name_that_is_too_long_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 300), "cannot be read: File name too long")


def test_paths_glued_together_by_nul_are_refused_and_null_is_offered() -> None:
    with pytest.raises(InputError, match="no file has a NUL byte in its name") as caught:
        open_checkpoint("a.safetensors\0b.safetensors")
    assert "null=True" in str(caught.value)
    assert "\0" not in str(caught.value)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("hello")
    error = refused(
        tmp_path, "is a folder without model.safetensors, pytorch_model.bin or an index"
    )
    assert error.hint == "Give the checkpoint files themselves."


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "not a regular file")


def test_a_device_is_refused() -> None:
    refused("/dev/zero", "not a regular file")


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make.arrays(tmp_path / "a.safetensors")
    system_open = os.open

    def denied(name: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if name == path:
            raise PermissionError(13, "Permission denied", path)
        return system_open(name, flags, mode, **more)

    # Root may read everything, so that the system's refusal is played.
    monkeypatch.setattr(os, "open", denied)
    refused(path, "cannot be read: Permission denied")


def test_a_file_that_grows_by_one_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(VALID + b"\0")
    refused(tmp_path / "a.safetensors", "1 bytes follow its last tensor")


def test_names_of_hostile_length_are_cut_in_the_message(tmp_path: Path) -> None:
    path = make.raw_file(tmp_path / "a.safetensors", {"x" * 1_000_000: 1})
    error = refused(path, "(1,000,002 characters) is a name of more than 4,096 characters")
    assert len(str(error)) < 500


def test_opening_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for header, data, _ in list(BROKEN.values())[:20]:
        with pytest.raises(InputError):
            open_checkpoint(make.raw_file(tmp_path / "a.safetensors", header, data))
    assert len(os.listdir("/proc/self/fd")) == before


_MEASURED = """
import sys, time
from swavg.errors import InputError
from swavg.formats import open_checkpoint
try:
    outcome = f"opened {len(open_checkpoint(sys.argv[1]))}"
except InputError as error:
    outcome = error.problem
# ru_maxrss would be that of the process that forked us, if that was larger.
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
print(time.process_time())
print(outcome)
"""


def measured(path: str) -> tuple[int, float, str]:
    """Peak MiB and processor seconds of a process that opens ``path``, and what became of it."""
    done = make.python(_MEASURED, path, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    peak, seconds, outcome = done.stdout.split("\n", 2)
    return int(peak), float(seconds), outcome


SLOWER = 2
"""How many times as slow a busy machine may be."""

EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
BOMBS = {
    "millions of empty tensors": (
        lambda: b"{" + b",".join(b'"%x":%s' % (i, EMPTY) for i in range(1_500_000)) + b"}",
        "its header is too large: 300,000 tensors at most",
    ),
    "as many empty tensors as are allowed": (
        lambda: b"{" + b",".join(b'"%x":%s' % (i, EMPTY) for i in range(ENTRY_LIMIT)) + b"}",
        "opened 300000",
    ),
    "millions of keys": (
        lambda: b"{" + b",".join(b'"%x":0' % i for i in range(1_340_000)) + b"}",
        "'0' is not described by",
    ),
    "millions of keys beyond the limit": (
        lambda: b"{" + b",".join(b'"%x":0' % i for i in range(1_790_000)) + b"}",
        "its header is too large",
    ),
    "millions of lists": (
        lambda: b'{"a":[' + b"[]," * 590_000 + b"[]]}",
        "'a' is not described by",
    ),
    "millions of lists beyond the limit": (
        lambda: b'{"a":' + b"[" * 50_000_000,
        "its header is too large",
    ),
    "millions of dimensions": (
        lambda: b'{"a":{"dtype":"F32","shape":['
        + b"1234567890123," * 1_700_000
        + b'1],"data_offsets":[0,4]}}',
        "'a' has 1,700,001 dimensions",
    ),
    "one string of 99 MB": (
        lambda: b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}',
        "opened 0",
    ),
    "one name of 99 MB": (lambda: b'{"' + b"x" * 99_000_000 + b'":0}', "'xxx"),
    "one string of 99 MB in wide characters": (
        lambda: b'{"__metadata__":{"a":"' + b"\xf0\x9f\x98\x80" + b"x" * 99_000_000 + b'"}}',
        "its header is too large",
    ),
    "one string of 99 MB of escapes": (
        lambda: b'{"__metadata__":{"a":"' + rb"\ud83d\ude00" * 8_200_000 + b'"}}',
        "opened 0",
    ),
    "millions of strings": (
        lambda: b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(1_790_000)) + b"}}",
        "its header is too large",
    ),
    "the same key again and again": (
        lambda: b"{" + b",".join([b'"a":' + EMPTY] * ENTRY_LIMIT) + b"}",
        "the key 'a' is there twice",
    ),
    "numbers of thousands of digits": (
        lambda: b'{"a":{"dtype":"F32","shape":['
        + b",".join([b"9" * 4000] * 20_000)
        + b'],"data_offsets":[0,0]}}',
        "a number of hundreds of digits",
    ),
    "objects in objects": (lambda: b'{"a":' * 10_000_000, "its header is too large"),
    "objects in objects within the limit": (
        lambda: b'{"a":' * 250_000 + b"1" + b"}" * 250_000,
        "is not valid JSON",
    ),
    "names of thousands of characters": (
        lambda: b"{" + b",".join(b'"%s":%s' % (b"%05x-" % i * 650, EMPTY) for i in range(22_000))
        + b"}",
        "opened 22000",
    ),
    "many dimensions": (
        lambda: b"{" + b",".join(
            b'"%d":{"dtype":"F32","shape":[0,%s%d],"data_offsets":[0,0]}' % (i, b"1," * 15, i)
            for i in range(90_000)
        ) + b"}",
        "opened 90000",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_bomb_takes_bounded_memory(tmp_path: Path, bomb: str) -> None:
    header, outcome = BOMBS[bomb]
    path = make.raw_file(tmp_path / "a.safetensors", header())
    peak, seconds, problem = measured(path)
    (tmp_path / "a.safetensors").unlink()
    assert outcome in problem
    assert peak < 400
    assert seconds < 5 * SLOWER


def test_a_claimed_length_of_100_mb_costs_nothing_in_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", HEADER_LIMIT) + b"{" + b" " * 100)
    peak, _, problem = measured(str(path))
    assert "truncated: its header has 100,000,000 bytes" in problem
    assert peak < 60


def test_random_damage_of_a_real_file_never_escapes_as_another_exception(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"layer.{i}.weight": np.full((i, 3), i, np.float32) for i in range(9)}
    whole = safetensors.numpy.save(tensors, {"format": "pt"})
    choice = random.Random(7)
    refusals = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(choice.randrange(1, 5)):
            data[choice.randrange(8, len(data))] = choice.randrange(256)
        path.write_bytes(data)
        try:
            open_checkpoint(path)
        except InputError:
            refusals += 1
    assert 100 < refusals < 300
    assert stat.S_ISREG(path.stat().st_mode)
