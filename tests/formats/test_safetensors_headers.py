"""Odd headers of safetensors files: read where the reference library reads them, else refused.

Where swavg is stricter stands in tests/hostile/test_safetensors.py.
"""

import struct

import pytest
from safetensors import SafetensorError, safe_open

from swavg.errors import InputError
from swavg.formats import open_checkpoint

BLANKS = ("", " ", "\n", "\t", "\r\n", " \n\t\r " * 300)
NO_BLANKS = ("\f", "\v", "\0", "\xa0", "\ufeff")
ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def entry(shape="[2]", offsets="[0,8]"):
    return f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'


HEADERS = [
    *(f"{blank}{entry()}" for blank in (*BLANKS, *NO_BLANKS)),
    *(f"{entry()}{blank}" for blank in (*BLANKS, *NO_BLANKS)),
    *(f'{blank}{{{blank}"a"{blank}:{blank}{ENTRY}}}' for blank in (*BLANKS, *NO_BLANKS)),
    *(f'{{"layer-0.{blank}a":{ENTRY}}}' for blank in ("", " ", "\f", "\\n", "\x7f", "\\u0000")),
    *(
        entry(offsets=f"[{begin},8]")
        for begin in ("-0", "-0.0", "0.0", "00", "+0", "0e0", "0E1", "1e3", "null", "false", '"0"')
    ),
    *(entry(offsets=f"[0,{end}]") for end in ("8.0", "8e0", "08", "0x8", str(2**64), "-8", "8,8")),
    *(entry(offsets=offsets) for offsets in ("[]", "[0]", "null", "[0 8]", "[-0,-0]", "{}")),
    *(
        entry(shape)
        for shape in ("[2.0]", "[2e0]", "[02]", "[+2]", "[2,-0]", "[true,2]", "[1,2]", "[-1,-2]")
    ),
    *(entry(shape) for shape in ("[2,]", "[ 2 ]", "[NaN]", "[Infinity]", "null", "2", "[[2]]")),
    *(
        f'{{"__metadata__":{metadata},"a":{ENTRY}}}'
        for metadata in ("{}", "null", '{"a":"-0"}', '{"a":0}', '{"a":null}', "[]", '"a"', "-0")
    ),
    *(f'{{"a":{ENTRY},"__metadata__":{metadata}}}' for metadata in ("{}", "null", '{"a":"b"}')),
    *(f' {{ "__metadata__" : {metadata} , "a":{ENTRY}}}' for metadata in ("null", '{"a":"b"}')),
    f'{{"a":{ENTRY},}}', f'{{"a":{ENTRY}}}}}', f'{{"a":{ENTRY}}} {{}}', f"{{a:{ENTRY}}}",
    f'{{"a":{ENTRY}}}//', f'{{"\\ud800":{ENTRY}}}', f'{{"\\ud83d\\ude00":{ENTRY}}}', "", " ", "[]",
]  # fmt: skip


def written(folder, header):
    path = folder / "x.safetensors"
    encoded = header.encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(range(8)))
    return path


def reads_library(path):
    """Names and metadata as the library has them; None if it refuses."""
    try:
        with safe_open(path, "np") as file:
            return sorted(file.keys()), file.metadata() or {}
    except SafetensorError:
        return None


def reads_swavg(path):
    try:
        checkpoint = open_checkpoint(path)
    except InputError:
        return None
    assert [checkpoint.read(name).tobytes() for name in checkpoint] == [bytes(range(8))]
    return sorted(checkpoint), checkpoint.metadata


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_is_read_if_the_library_reads_it(tmp_path, header):
    path = written(tmp_path, header)
    assert reads_swavg(path) == reads_library(path)


def test_both_answers_are_among_the_cases(tmp_path):
    answers = [reads_library(written(tmp_path, header)) is not None for header in HEADERS]
    assert 20 < sum(answers) < len(answers) - 20
