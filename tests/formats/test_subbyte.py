"""Packed 4- and 6-bit elements."""

import numpy as np

from swavg.dtypes import BY_NAME
from swavg.formats.subbyte import unpack_codes


def test_the_first_element_lies_in_the_lowest_bits():
    packed = np.uint8([0x21, 0x43])
    assert unpack_codes(packed, BY_NAME["float4_e2m1fn"]).tolist() == [1, 2, 3, 4]
    packed = np.uint8([0b10_000001, 0b0011_0000, 0b000100_00])
    assert unpack_codes(packed, BY_NAME["float6_e2m3fn"]).tolist() == [1, 2, 3, 4]


def test_every_code_comes_back():
    codes = np.random.default_rng(0).integers(0, 64, 64, dtype=np.uint8)
    bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")
    for name, width in (("float4_e2m1fn", 4), ("float6_e3m2fn", 6)):
        packed = np.packbits(bits[:, :width].reshape(-1), bitorder="little")
        expected = codes & ((1 << width) - 1)
        np.testing.assert_array_equal(unpack_codes(packed, BY_NAME[name]), expected)


def test_nothing_unpacks_to_nothing():
    assert unpack_codes(np.empty(0, np.uint8), BY_NAME["float6_e2m3fn"]).size == 0
