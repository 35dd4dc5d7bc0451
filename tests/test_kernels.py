"""The arithmetic, to the bit: against NumPy in float64, brute force, and the torch kernel."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swavg.dtypes import BY_NAME
from swavg.kernels.base import Arithmetic
from swavg.kernels.cpu import CpuKernel
from swavg.kernels.floats import limits, narrow, round_to_odd, widen
from swavg.kernels.integers import combine
from swavg.kernels.repair import repair
from swavg.kernels.tables import table
from swavg.kernels.torch import TorchKernel
from swavg.packing import pack_codes, unpack_codes

FLOATS = [dtype for dtype in BY_NAME.values() if dtype.kind == "float"]
SMALL = [dtype for dtype in FLOATS if dtype.bits <= 8]
WIDE = [dtype for dtype in FLOATS if dtype.bits > 8]
NUMPY_HALF = np.float16


def bytes_of(array):
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def run(kernel, arithmetic, chunks, count):
    """The kernel's output bytes and whether it called them finite."""

    def read(index, target):
        target[:] = chunks[index].data

    out = np.zeros(arithmetic.output.nbytes(count), np.uint8)
    finite = kernel.weighted_sum(arithmetic, count, read, out.data)
    return out, finite


def mean_of(chunks, dtype, count, output=None, accumulator=None):
    arithmetic = Arithmetic(
        (dtype,) * len(chunks),
        (1 / len(chunks),) * len(chunks),
        True,
        accumulator or dtype.accumulator,
        output or dtype,
    )
    return run(CpuKernel(count), arithmetic, chunks, count)


def random_chunk(rng, dtype, count, output=None):
    """Packed bytes of values whose sums stay inside the dtype (and that of the output)."""
    if dtype.name == "float8_e8m0fnu":
        return rng.integers(100, 140, count, dtype=np.uint8)
    if dtype.bits <= 8:
        finite = np.flatnonzero(np.isfinite(table(dtype).widen)).astype(np.uint8)
        room = min(limits(each)[1] for each in (dtype, output or dtype)) / 4
        middle = np.abs(table(dtype).widen[finite]) < room
        return pack_codes(rng.choice(finite[middle], count), dtype)
    scale = 10.0 ** rng.integers(-7, 3, count)
    return bytes_of((rng.standard_normal(count) * scale).astype(dtype.numpy()))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_widening_gives_every_value_of_the_dtype(dtype):
    if dtype.bits <= 8:
        codes = np.arange(1 << dtype.bits, dtype=np.uint8)
        raw, expected = pack_codes(codes, dtype), codes.view(dtype.numpy())
    elif dtype.bits == 16:
        expected = np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy())
        raw = bytes_of(expected)
    else:
        values = np.random.default_rng(0).standard_normal(1000).astype(dtype.numpy())
        raw, expected = bytes_of(values), values
    for accumulator in (np.float32, np.float64):
        if accumulator == np.float32 and dtype.name == "float64":
            continue
        out = np.empty(expected.size, accumulator)
        with np.errstate(invalid="ignore"):
            widen(raw, dtype, out)
            expected_wide = expected.astype(accumulator)
        np.testing.assert_array_equal(out, expected_wide)


def test_widening_finite_float16_in_bulk_is_exact_and_keeps_signed_zeros():
    codes = np.arange(1 << 16, dtype=np.uint16)
    codes = codes[codes & 0x7C00 != 0x7C00]
    out = np.empty(codes.size, np.float32)
    widen(bytes_of(codes), BY_NAME["float16"], out)
    expected = codes.view(NUMPY_HALF).astype(np.float32)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_rounding_to_float16_equals_numpy_for_patterns_of_all_kinds():
    rng = np.random.default_rng(1)
    halves = np.arange(0x7C00, dtype=np.uint16).view(NUMPY_HALF).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate(
        [
            halves,
            ties,
            np.nextafter(ties, np.float32(np.inf)),
            np.nextafter(ties, np.float32(0)),
            rng.integers(0, 2**32, 1 << 18, dtype=np.uint32).view(np.float32),
            np.float32([0.0, 65519.996, 5e-8, 2.98e-8, 1e-45]),
        ]
    )
    values = values[np.abs(values) < 65520]
    values = np.concatenate([values, -values])
    out = np.empty(values.size * 2, np.uint8)
    assert narrow(values.copy(), BY_NAME["float16"], out)
    np.testing.assert_array_equal(out.view(np.uint16), values.astype(NUMPY_HALF).view(np.uint16))


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_rounding_to_a_small_float_finds_the_nearest_by_brute_force(dtype):
    rng = np.random.default_rng(2)
    found = table(dtype)
    finite = np.unique(found.widen[np.isfinite(found.widen)].astype(np.float64))
    ties = (finite[1:] + finite[:-1]) / 2
    spread = rng.uniform(finite[0], finite[-1], 5000)
    values = np.concatenate([finite, ties, spread, spread / 64]).astype(np.float32)
    values = values[(values > found.low) & (values < found.high)]
    values = values[: values.size // 8 * 8]
    out = np.empty(dtype.nbytes(values.size), np.uint8)
    assert narrow(values.copy(), dtype, out)
    got = found.widen[unpack_codes(out, dtype)].astype(np.float64)
    distances = np.abs(values.astype(np.float64)[:, None] - finite[None, :])
    best = distances.min(axis=1)
    np.testing.assert_array_equal(np.abs(got - values), best)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_a_tie_between_small_floats_goes_to_the_even_code(dtype):
    if dtype.name == "float8_e8m0fnu":
        # No fraction bits: its ties follow ml_dtypes.
        tie = np.float32([1.5])
        expected = tie.astype(dtype.numpy()).view(np.uint8)
    else:
        codes = np.arange(1, 9, dtype=np.uint8)
        steps = table(dtype).widen[codes]
        tie = ((steps[1:] + steps[:-1]) / 2)[:1].astype(np.float32)
        expected = np.uint8([2])
    padded = np.repeat(tie, 8)
    out = np.empty(dtype.nbytes(8), np.uint8)
    narrow(padded, dtype, out)
    assert unpack_codes(out, dtype)[0] == expected[0]


@given(st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=20))
def test_float64_rounds_once_to_bfloat16_and_float16(values):
    wide = np.float64(values)
    for name, precision, smallest, largest in (
        ("bfloat16", 8, -133, limits(BY_NAME["bfloat16"])[1]),
        ("float16", 11, -24, 65520.0),
    ):
        inside = wide[np.abs(wide) < largest]
        out = np.empty(inside.size * 2, np.uint8)
        assert narrow(inside.copy(), BY_NAME[name], out)
        got = out.view(BY_NAME[name].numpy()).astype(np.float64)
        for value, rounded in zip(inside.tolist(), got.tolist(), strict=True):
            assert rounded == nearest(value, precision, smallest)


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


@pytest.mark.parametrize("output", FLOATS, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_the_torch_kernel_gives_the_same_bits_as_the_numpy_kernel(source, output):
    rng = np.random.default_rng(4)
    count = 1000
    compared = 0
    for accumulator in ("float32", "float64"):
        for weights, uniform in (((1 / 3,) * 3, True), ((0.2, 0.9, -0.1), False)):
            chunks = [random_chunk(rng, source, count, output) for _ in range(3)]
            arithmetic = Arithmetic((source,) * 3, weights, uniform, accumulator, output)
            ours, finite = run(CpuKernel(count), arithmetic, chunks, count)
            theirs, agreed = run(TorchKernel(count, device="cpu"), arithmetic, chunks, count)
            assert finite == agreed
            if finite:
                np.testing.assert_array_equal(ours, theirs)
                compared += 1
    narrow_range = output.bits <= 6 or output.name == "float8_e8m0fnu"
    assert compared or narrow_range or source.name == "float8_e8m0fnu"


def test_the_torch_kernel_divides_as_numpy_does_for_every_number_of_inputs():
    rng = np.random.default_rng(5)
    for n in (3, 7, 10, 49):
        chunks = [bytes_of(rng.standard_normal(512).astype(np.float32)) for _ in range(n)]
        dtype = BY_NAME["float32"]
        arithmetic = Arithmetic((dtype,) * n, (1 / n,) * n, True, "float32", dtype)
        ours, _ = run(CpuKernel(512), arithmetic, chunks, 512)
        theirs, _ = run(TorchKernel(512, device="cpu"), arithmetic, chunks, 512)
        np.testing.assert_array_equal(ours, theirs)
        expected = np.sum([chunk.view(np.float32) for chunk in chunks], axis=0) / np.float32(n)
        np.testing.assert_allclose(ours.view(np.float32), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@given(n=st.integers(1, 33), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_equal_inputs_return_themselves_bit_for_bit(dtype, n, seed):
    rng = np.random.default_rng(seed)
    if dtype.name == "float64":
        # Exact as long as the sum has room: 53 bits hold values of up to 47 bits n times.
        chunk = bytes_of(np.float64(rng.standard_normal(64).astype(np.float32)))
    else:
        chunk = random_chunk(rng, dtype, 64)
    out, finite = mean_of([chunk] * n, dtype, 64)
    assert finite
    np.testing.assert_array_equal(out, chunk)


def test_bfloat16_means_are_the_correctly_rounded_means():
    rng = np.random.default_rng(6)
    dtype = BY_NAME["bfloat16"]
    chunks = [bytes_of((rng.standard_normal(4096) * 0.02).astype(dtype.numpy())) for _ in range(4)]
    out, _ = mean_of(chunks, dtype, 4096)
    exact = np.mean([chunk.view(dtype.numpy()).astype(np.float64) for chunk in chunks], axis=0)
    expected = [nearest(value, 8, -133) for value in exact.tolist()]
    np.testing.assert_array_equal(out.view(dtype.numpy()).astype(np.float64), expected)


@given(
    weights=st.lists(st.floats(-2, 2), min_size=2, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=30, deadline=None)
def test_the_float16_shortcut_gives_the_bits_of_the_plain_sum(weights, seed):
    rng = np.random.default_rng(seed)
    half = BY_NAME["float16"]
    chunks = [
        bytes_of((rng.standard_normal(256) * 10.0 ** rng.integers(-8, 3, 256)).astype(NUMPY_HALF))
        for _ in weights
    ]
    for uniform in (False, True):
        out, finite = run(
            CpuKernel(256),
            Arithmetic((half,) * len(weights), tuple(weights), uniform, "float32", half),
            chunks,
            256,
        )
        total = np.zeros(256, np.float32)
        for position, (chunk, weight) in enumerate(zip(chunks, weights, strict=True)):
            term = chunk.view(NUMPY_HALF).astype(np.float32)
            term = term if uniform else term * np.float32(weight)
            total = term if position == 0 else total + term
        if uniform:
            total = total / np.float32(len(weights))
        if finite:
            expected = total.astype(NUMPY_HALF)
            np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
        else:
            assert not (np.abs(total) < 65520).all()


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.name != "float8_e8m0fnu"], ids=str)
def test_a_result_beyond_the_largest_value_is_noticed(dtype):
    high = limits(dtype)[1]
    if dtype.bits >= 32:
        inside, outside = [np.finfo(dtype.numpy()).max] * 8, [np.inf] * 8
    else:
        inside = [np.nextafter(np.float32(high), np.float32(0))] * 8
        outside = [np.float32(high)] * 8
    accumulator = np.float64 if dtype.bits >= 32 else np.float32
    out = np.empty(dtype.nbytes(8), np.uint8)
    assert narrow(np.array(inside, accumulator), dtype, out)
    assert not narrow(np.array(outside, accumulator), dtype, out)
    assert not narrow(np.array([np.nan] * 8, accumulator), dtype, out)


def test_packing_inverts_unpacking():
    rng = np.random.default_rng(7)
    for dtype in SMALL:
        codes = rng.integers(0, 1 << dtype.bits, 64, dtype=np.uint8)
        packed = pack_codes(codes, dtype)
        assert packed.size == dtype.nbytes(64)
        np.testing.assert_array_equal(unpack_codes(packed, dtype), codes)
    assert pack_codes(np.uint8([1, 2]), BY_NAME["float4_e2m1fn"]).tolist() == [0x21]
    assert pack_codes(np.uint8([1, 2, 3, 4]), BY_NAME["float6_e2m3fn"]).tolist() == [
        0b10_000001,
        0b0011_0000,
        0b000100_00,
    ]


class TestRepair:
    """What becomes of elements whose fast result is not finite."""

    def repaired(self, rows, dtype, weights=None, output=None):
        count = len(rows[0])
        chunks = [bytes_of(np.array(row, dtype.numpy())) for row in rows]
        uniform = weights is None
        arithmetic = Arithmetic(
            (dtype,) * len(rows),
            tuple(weights or [1 / len(rows)] * len(rows)),
            uniform,
            dtype.accumulator,
            output or dtype,
        )
        out = np.zeros(arithmetic.output.nbytes(count), np.uint8)

        def read(index, target):
            target[:] = chunks[index].data

        trouble = repair(arithmetic, count, read, out.data)
        return out.view(arithmetic.output.numpy()), trouble

    def test_an_attention_mask_of_minus_infinity_is_kept(self):
        mask = [0.0, -np.inf, 1.0, -np.inf]
        out, trouble = self.repaired([mask, mask], BY_NAME["float16"], [1.5, -0.5])
        assert (trouble.kept, trouble.index, trouble.value) == (True, 1, -np.inf)
        np.testing.assert_array_equal(out, np.float16(mask))

    def test_the_largest_finite_value_in_all_inputs_is_kept(self):
        largest = float(np.float32(np.finfo(np.float32).max))
        bf16 = BY_NAME["bfloat16"]
        lowest = float(np.uint16([0xFF7F]).view(bf16.numpy())[0])
        out, trouble = self.repaired([[lowest, 1.0]] * 4, bf16)
        assert trouble is None
        assert out.astype(np.float64).tolist() == [lowest, 1.0]
        assert abs(lowest) < largest

    def test_a_finite_mean_whose_sum_overflowed_is_found_in_float64(self):
        out, trouble = self.repaired([[2e38], [3e38]], BY_NAME["bfloat16"])
        assert trouble is None
        assert float(out[0]) == pytest.approx(2.5e38, rel=0.01)

    def test_a_nan_names_its_input_and_becomes_the_canonical_nan(self):
        rows = [[1.0, 2.0], [1.0, np.nan], [np.inf, 2.0]]
        out, trouble = self.repaired(rows, BY_NAME["float32"])
        assert trouble is not None
        assert trouble.index == 0
        assert [position for position, _ in trouble.inputs] == [2]
        assert np.isinf(out[0])
        assert out.view(np.uint32)[1] == 0x7FC00000

    def test_a_nan_in_all_inputs_is_still_trouble(self):
        _, trouble = self.repaired([[np.nan]] * 2, BY_NAME["float32"])
        assert trouble is not None
        assert len(trouble.inputs) == 2

    def test_an_overflow_of_the_output_has_no_guilty_input(self):
        out, trouble = self.repaired(
            [[1.0, 7e4], [1.0, 8e4]], BY_NAME["float32"], output=BY_NAME["float16"]
        )
        assert trouble is not None
        assert trouble.index == 1
        assert trouble.value == 75000.0
        assert not trouble.inputs
        assert out[0] == 1.0

    def test_elements_beside_a_bad_one_keep_their_bits(self):
        rng = np.random.default_rng(8)
        rows = rng.standard_normal((3, 64)).astype(np.float32)
        expected, _ = mean_of([bytes_of(row) for row in rows], BY_NAME["float32"], 64)
        spoiled = rows.copy()
        spoiled[1, 5] = np.nan
        out, _ = self.repaired(spoiled, BY_NAME["float32"])
        keep = np.arange(64) != 5
        np.testing.assert_array_equal(out[keep], expected.view(np.float32)[keep])


class TestIntegers:
    def test_first_last_and_max(self):
        rows = [np.int64([1, 9]), np.int64([5, 2])]
        assert combine("first", rows, (0.5, 0.5), True).tolist() == [1, 9]
        assert combine("last", rows, (0.5, 0.5), True).tolist() == [5, 2]
        assert combine("max", rows, (0.5, 0.5), True).tolist() == [5, 9]

    def test_the_mean_floors_as_fairseq_does(self):
        assert combine("mean", [np.int64([7]), np.int64([2])], (0.5, 0.5), True).tolist() == [4]
        assert combine("mean", [np.int8([-7]), np.int8([2])], (0.5, 0.5), True).tolist() == [-3]

    def test_bools_are_true_in_the_mean_where_all_are(self):
        rows = [np.array([True, True]), np.array([True, False])]
        assert combine("mean", rows, (0.5, 0.5), True).tolist() == [True, False]
        assert combine("max", rows, (0.5, 0.5), True).tolist() == [True, True]

    @pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint64"])
    @given(data=st.data())
    @settings(max_examples=30, deadline=None)
    def test_the_uniform_mean_is_exact_over_the_whole_range(self, dtype, data):
        info = np.iinfo(dtype)
        values = data.draw(
            st.lists(st.integers(int(info.min), int(info.max)), min_size=1, max_size=6)
        )
        rows = [np.array([value], dtype) for value in values]
        found = combine("mean", rows, (1 / len(rows),) * len(rows), True)
        assert found.dtype == np.dtype(dtype)
        assert int(found[0]) == sum(values) // len(values)

    @given(st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=4))
    def test_weighted_means_of_huge_integers_do_not_lose_units(self, values):
        weights = [0.5, *([0.5 / (len(values) - 1)] * (len(values) - 1))]
        rows = [np.int64([value]) for value in values]
        found = combine("mean", rows, weights, False)
        exact = sum(
            Fraction(w).limit_denominator(10**9) * v for w, v in zip(weights, values, strict=True)
        )
        tolerance = 0 if max(map(abs, values)) >= 2**52 else 1
        assert abs(int(found[0]) - exact.__floor__()) <= tolerance

    def test_ten_tenths_of_three_are_three(self):
        rows = [np.int32([3, 3])] * 9 + [np.int32([3, 13])]
        assert combine("mean", rows, (0.1,) * 10, False).tolist() == [3, 4]

    def test_a_sum_beyond_the_dtype_is_an_error(self):
        with pytest.raises(OverflowError, match="does not fit int8"):
            combine("mean", [np.int8([100]), np.int8([101])], (1.0, 1.0), False)


def test_torch_is_the_second_opinion_on_casts():
    values = np.random.default_rng(9).standard_normal(5000).astype(np.float32)
    out = np.empty(10_000, np.uint8)
    narrow(values.copy(), BY_NAME["bfloat16"], out)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(out.view(np.int16), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16, 100])
def test_float16_means_have_the_bits_of_divided_float32_sums_also_where_subnormal(n):
    rng = np.random.default_rng(n)
    half, count = BY_NAME["float16"], 1 << 14
    for scale in (2.0**-24, 2.0**-15, 2.0**-13, 1.0, 30000.0):
        rows = np.clip(rng.standard_normal((n, count)) * scale, -65504, 65504).astype(NUMPY_HALF)
        # Ties, and both sides of the smallest normal number.
        rows[:, :64] = np.float16(2.0**-14) * np.float16(rng.integers(-2, 3, (n, 64)))
        out, finite = mean_of([bytes_of(row) for row in rows], half, count)
        total = rows[0].astype(np.float32)
        for row in rows[1:]:
            total = total + row.astype(np.float32)
        expected = (total / np.float32(n)).astype(NUMPY_HALF)
        assert finite
        np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
