"""Which groups are optimizers': by their names at the top level, elsewhere by their variables."""

from __future__ import annotations

import time

import pytest

from swavg.dtypes import BY_NAME
from swavg.formats.keras.hdf5 import Dataset
from swavg.formats.keras.optimizers import optimizers_in

LAYER = {"g/dense/vars/0": (3, 4), "g/dense/vars/1": (4,)}
COUNT, RATE = (), 0.5
"""The shape of a scalar stands for an integer, a number for a float."""


def datasets(**shapes):
    return [
        Dataset(name, BY_NAME["int64" if shape == () else "float32"],
                () if shape == RATE else shape, 0)
        for name, shape in shapes.items()
    ]  # fmt: skip


def variables(path, *shapes):
    return {f"{path}/vars/{number}": shape for number, shape in enumerate(shapes)}


SCALED = {
    **variables("g_trainer", COUNT, RATE, COUNT, RATE),
    **variables("g_trainer/inner_optimizer", COUNT, RATE, (3, 4), (3, 4), (4,), (4,)),
}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (variables("optimizer", (9,)), ["optimizer"]),
        (variables("net/optimizer", (9,)), []),
        (variables("trainer", COUNT, RATE, (3, 4), (4,)), ["trainer"]),
        (variables("layers/inner/d", COUNT, RATE, (4,)), ["layers/inner/d"]),
        (variables("trainers/adam", COUNT, RATE, (4,)), ["trainers/adam"]),
        (SCALED, ["g_trainer"]),
        # Without moments like the weights only a name tells.
        (variables("g_opt", COUNT, RATE), ["g_opt"]),
        (variables("g_opt", COUNT, RATE, (7,)), ["g_opt"]),
        (variables("opt_2", COUNT, RATE), ["opt_2"]),
        (variables("counter", COUNT, RATE), []),
        (variables("codes", COUNT, RATE, (7,)), []),
        (variables("optics", COUNT, RATE, (7,)), []),
        (variables("g_opt", (3, 4), (4,)), []),
        (variables("g_opt", RATE, COUNT, (4,)), []),
        # Two layers with a count and a temperature are like each other, not like weights.
        (variables("a", COUNT, RATE, (7,)) | variables("b", COUNT, RATE, (7,)), []),
        # What holds layers is none.
        (variables("opt", COUNT, RATE) | variables("opt/dense", (4,)), []),
        (variables("opt", COUNT, RATE) | {"opt/table": (4,)}, []),
    ],
)
def test_optimizers_are_told_from_layers(shapes, expected):
    assert optimizers_in(datasets(**LAYER, **shapes)) == expected


def test_many_groups_take_no_long_time():
    many = {}
    for number in range(30_000):
        many |= variables(f"{'a/' * 8}{number}", COUNT, RATE)
    begun = time.process_time()
    assert optimizers_in(datasets(**many)) == []
    assert time.process_time() - begun < 3
