"""What becomes of elements whose fast result is not finite."""

import numpy as np
import pytest
from kernel_chunks import bytes_of, mean_of, reader, uniform, weighted

from swavg.dtypes import BY_NAME
from swavg.engine.kernels.base import Arithmetic, Terms
from swavg.engine.kernels.repair import repair


def repaired(rows, dtype, weights=None, output=None, terms=None):
    count = len(rows[0])
    chunks = [bytes_of(np.array(row, dtype.numpy())) for row in rows]
    terms = terms or (weighted(*weights) if weights else uniform(len(rows)))
    arithmetic = Arithmetic((dtype,) * len(rows), (terms,), dtype.accumulator, output or dtype)
    out = np.zeros(arithmetic.output.nbytes(count), np.uint8)
    trouble = repair(arithmetic, terms, count, reader(chunks), out.data)
    return out.view(arithmetic.output.numpy()), trouble


def test_an_attention_mask_of_minus_infinity_is_kept():
    mask = [0.0, -np.inf, 1.0, -np.inf]
    out, trouble = repaired([mask, mask], BY_NAME["float16"], [1.5, -0.5])
    assert (trouble.kept, trouble.index, trouble.value) == (True, 1, -np.inf)
    np.testing.assert_array_equal(out, np.float16(mask))


def test_the_largest_finite_value_in_all_inputs_is_kept():
    largest = float(np.float32(np.finfo(np.float32).max))
    bf16 = BY_NAME["bfloat16"]
    lowest = float(np.uint16([0xFF7F]).view(bf16.numpy())[0])
    out, trouble = repaired([[lowest, 1.0]] * 4, bf16)
    assert trouble is None
    assert out.astype(np.float64).tolist() == [lowest, 1.0]
    assert abs(lowest) < largest


def test_a_finite_mean_whose_sum_overflowed_is_found_in_float64():
    out, trouble = repaired([[2e38], [3e38]], BY_NAME["bfloat16"])
    assert trouble is None
    assert float(out[0]) == pytest.approx(2.5e38, rel=0.01)


def test_a_nan_names_its_input_and_becomes_the_canonical_nan():
    rows = [[1.0, 2.0], [1.0, np.nan], [np.inf, 2.0]]
    out, trouble = repaired(rows, BY_NAME["float32"])
    assert trouble is not None
    assert trouble.index == 0
    assert [position for position, _ in trouble.inputs] == [2]
    assert np.isinf(out[0])
    assert out.view(np.uint32)[1] == 0x7FC00000


def test_a_nan_in_all_inputs_is_still_trouble():
    _, trouble = repaired([[np.nan]] * 2, BY_NAME["float32"])
    assert trouble is not None
    assert len(trouble.inputs) == 2


def test_an_overflow_of_the_output_has_no_guilty_input():
    out, trouble = repaired([[1.0, 7e4], [1.0, 8e4]], BY_NAME["float32"], output=BY_NAME["float16"])
    assert trouble is not None
    assert trouble.index == 1
    assert trouble.value == 75000.0
    assert not trouble.inputs
    assert out[0] == 1.0


def test_elements_beside_a_bad_one_keep_their_bits():
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((3, 64)).astype(np.float32)
    expected, _ = mean_of([bytes_of(row) for row in rows], BY_NAME["float32"], 64)
    spoiled = rows.copy()
    spoiled[1, 5] = np.nan
    out, _ = repaired(spoiled, BY_NAME["float32"])
    keep = np.arange(64) != 5
    np.testing.assert_array_equal(out[keep], expected.view(np.float32)[keep])


def test_a_row_of_some_inputs_names_them_as_they_are_read():
    rows = [[np.nan, 1.0], [1.0, 1.0], [np.inf, 2.0]]
    terms = Terms((1, 2), (0.25, 0.75), uniform=False)
    out, trouble = repaired(rows, BY_NAME["float32"], terms=terms)
    assert trouble.inputs == [(2, np.inf)]
    assert out.tolist() == [np.inf, 1.75]
