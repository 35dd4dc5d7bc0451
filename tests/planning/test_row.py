"""Rows that cannot be are refused where they are made, or where the inputs are known."""

import math

import pytest
from checkpoints import save, state

import swavg
from swavg.errors import RequestError
from swavg.planning.row import Row


@pytest.mark.parametrize(
    ("weights", "members", "message"),
    [
        ((0.5,), (0, 1), "1 weights and 2 members"),
        ((), (), "0 weights and 0 members"),
        ((math.nan, 1.0), (0, 1), "not finite"),
        ((math.inf,), (0,), "not finite"),
        ((0.5, 0.5), (1, 0), "not ascending"),
        ((0.5, 0.5), (0, 0), "not ascending"),
        ((1.0,), (-1,), "not ascending"),
    ],
)
def test_a_row_that_cannot_be_is_refused(weights, members, message):
    with pytest.raises(RequestError, match=message):
        Row(weights, members)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 rows and 1 outputs"),
        ([Row((1.0,), (0,))] * 2, "2 rows and 1 outputs"),
        ([Row((0.5, 0.5), (0, 2))], "beyond the 2 inputs"),
    ],
)
def test_rows_that_do_not_fit_the_call_are_refused(tmp_path, rows, message):
    inputs = [save(tmp_path / f"{seed}.safetensors", state(seed)) for seed in range(2)]
    with pytest.raises(RequestError, match=message):
        swavg.prepare(inputs, rows, [tmp_path / "out.safetensors"])
    assert not (tmp_path / "out.safetensors").exists()
