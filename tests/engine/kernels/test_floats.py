"""Conversions, to the bit: against NumPy, exact fractions and torch; with NumKong and without."""

import importlib.util
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_chunks import FLOATS, bytes_of

from swavg.dtypes import BY_NAME
from swavg.engine.kernels import floats
from swavg.engine.kernels.floats import limits, narrow, round_to_odd, widen

HALVES = [BY_NAME["float16"], BY_NAME["bfloat16"]]


@pytest.fixture(params=["numkong", "numpy"])
def conversions(request, monkeypatch):
    """The module as it is, and as it is where NumKong cannot be imported."""
    if request.param == "numkong":
        assert floats.fast_cast is not None
        return floats
    monkeypatch.setitem(sys.modules, "numkong", None)
    spec = importlib.util.spec_from_file_location("floats_of_numpy", floats.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.fast_cast is None
    return module


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_widening_gives_every_value_of_the_dtype(conversions, dtype):
    if dtype.bits <= 16:
        values = np.arange(1 << dtype.bits, dtype=f"u{dtype.itemsize}").view(dtype.numpy())
    else:
        values = np.random.default_rng(0).standard_normal(1000).astype(dtype.numpy())
    for accumulator in (np.float32, np.float64):
        if accumulator == np.float32 and dtype.name == "float64":
            continue
        out = np.empty(values.size, accumulator)
        with np.errstate(invalid="ignore"):
            conversions.widen(bytes_of(values), dtype, out)
            expected = values.astype(accumulator)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(np.signbit(out), np.signbit(expected))


def patterns(dtype):
    """float32 values of all kinds around the values of a 16-bit float and between them."""
    rng = np.random.default_rng(1)
    infinity = {"float16": 0x7C00, "bfloat16": 0x7F80}[dtype.name]
    exact = np.arange(infinity, dtype=np.uint16).view(dtype.numpy()).astype(np.float32)
    ties = exact[1:] / 2 + exact[:-1] / 2
    bits = rng.integers(0, 2**32, 1 << 18, dtype=np.uint32)
    values = np.concatenate(
        [
            exact,
            ties,
            np.nextafter(ties, np.float32(np.inf)),
            np.nextafter(ties, np.float32(0)),
            bits.view(np.float32),
            # Subnormal in float32, and where float16's subnormals end.
            (bits >> 9).view(np.float32),
            np.float32([65519.996, 65520, 5e-8, 2.98e-8, 2.9802322e-08, 3.4e38, np.inf]),
        ]
    )
    values = values[~np.isnan(values)]
    return np.concatenate([values, -values])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_to_16_bits_has_the_bits_of_numpy_and_torch(conversions, dtype):
    values = patterns(dtype)
    inside = np.abs(values) < limits(dtype)[1]
    assert 0 < inside.sum() < values.size
    for some, good in ((values, False), (values[inside], True)):
        out = np.empty(some.size * 2, np.uint8)
        assert conversions.narrow(some, dtype, out) == good
        with np.errstate(over="ignore"):
            expected = some.astype(dtype.numpy())
        np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
        second = torch.from_numpy(some).to(getattr(torch, dtype.name)).view(torch.int16)
        np.testing.assert_array_equal(out.view(np.int16), second.numpy())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_arrays_at_any_address_and_of_any_length_are_converted(conversions, dtype):
    for count in (0, 1, 7, 10_000):
        values = np.linspace(-3, 3, count, dtype=np.float32)
        out = np.zeros(2 * count + 1, np.uint8)[1:]
        assert conversions.narrow(values, dtype, out)
        expected = values.astype(dtype.numpy())
        np.testing.assert_array_equal(out, bytes_of(expected))
        wide = np.empty(count, np.float32)
        conversions.widen(out, dtype, wide)
        np.testing.assert_array_equal(wide, expected.astype(np.float32))


def test_conversions_leave_subnormal_numbers_alone_afterwards(conversions):
    out = np.empty(8, np.float32)
    conversions.widen(np.zeros(16, np.uint8), BY_NAME["float16"], out)
    smallest = np.full(64, 1e-45, np.float32)
    assert (smallest * np.float32(1) == smallest).all()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted there")
def test_conversions_start_no_threads():
    before = len(list(Path("/proc/self/task").iterdir()))
    values = np.zeros(1 << 20, np.float32)
    narrow(values, BY_NAME["float16"], np.empty(2 << 20, np.uint8))
    assert len(list(Path("/proc/self/task").iterdir())) == before


@given(st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=20))
def test_float64_rounds_once_to_bfloat16_and_float16(values):
    wide = np.float64(values)
    for name, precision, smallest in (("bfloat16", 8, -133), ("float16", 11, -24)):
        dtype = BY_NAME[name]
        inside = wide[np.abs(wide) < limits(dtype)[1]]
        out = np.empty(inside.size * 2, np.uint8)
        assert narrow(inside, dtype, out)
        rounded = out.view(dtype.numpy()).astype(np.float64)
        expected = [nearest(value, precision, smallest) for value in inside.tolist()]
        assert rounded.tolist() == expected


def nearest(value, precision, smallest):
    """The nearest number with ``precision`` bits, multiples of 2^smallest; ties to even."""
    exact = Fraction(value)
    if exact == 0:
        return 0.0
    exponent = np.frexp(value)[1] - precision
    step = Fraction(2) ** int(max(exponent, smallest))
    return float(round(exact / step) * step)


def test_rounding_to_odd_keeps_exact_values_and_never_an_even_inexact_one():
    wide = np.random.default_rng(3).standard_normal(10_000)
    odd = round_to_odd(wide)
    inexact = odd.astype(np.float64) != wide
    assert inexact.sum() > 9000
    assert (odd.view(np.uint32)[inexact] & 1 == 1).all()
    exact = np.float64([0.0, -0.0, 1.0, 2.5, np.inf, -np.inf, 1e-45])
    exact = exact.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(round_to_odd(exact), exact.astype(np.float32))


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.name != "float8_e8m0fnu"], ids=str)
def test_a_result_beyond_the_largest_value_is_noticed(dtype):
    high = limits(dtype)[1]
    if dtype.bits >= 32:
        inside, outside = np.finfo(dtype.numpy()).max, np.inf
    else:
        inside, outside = np.nextafter(np.float32(high), np.float32(0)), np.float32(high)
    # The last one of several parts, and the first.
    for place in (0, 19_999):
        values = np.zeros(20_000, np.float64 if dtype.bits >= 32 else np.float32)
        out = np.empty(dtype.nbytes(20_000), np.uint8)
        for value, good in ((inside, True), (outside, False), (np.nan, False)):
            for sign in (1, -1):
                values[place] = sign * value
                assert narrow(values, dtype, out) == good


@pytest.mark.parametrize("accumulator", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_nan_of_any_payload_is_noticed_and_stays_one(conversions, dtype, accumulator):
    size = np.dtype(accumulator).itemsize
    quiet = int(np.array(np.nan, accumulator).view(f"u{size}"))
    infinity, ones = int(np.array(np.inf, accumulator).view(f"u{size}")), (1 << 8 * size - 1) - 1
    for payload in (infinity + 1, quiet, quiet + 1, ones - 0x7FFF, ones):
        for sign in (0, 1 << 8 * size - 1):
            values = np.array([0.5, 0, 2], accumulator)
            values.view(f"u{size}")[1] = payload | sign
            out = np.empty(dtype.nbytes(3), np.uint8)
            assert not conversions.narrow(values, dtype, out)
            with np.errstate(invalid="ignore"):
                rounded = out.view(dtype.numpy()).astype(np.float64)
            assert np.isnan(rounded).tolist() == [False, True, False]


def test_widening_reads_what_cannot_be_written():
    raw = np.frombuffer(np.float16([1.5, -2]).tobytes(), np.uint8)
    out = np.empty(2, np.float32)
    widen(raw, BY_NAME["float16"], out)
    assert out.tolist() == [1.5, -2]
