"""What the library returns is shown in a few lines, however many tensors it holds."""

import dataclasses
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

import swavg
from swavg.analysis import diff, inspect
from swavg.formats.torch.objects import Global
from swavg.methods import Smoothing, ema
from swavg.series import discover
from swavg.short_repr import ShortRepr

MANY = 20_000


@dataclasses.dataclass(frozen=True, repr=False)
class Things(ShortRepr):
    text: str = ""
    flag: bool = False
    number: float = 0
    many: object = ()
    secret: int = dataclasses.field(default=7, repr=False)


@pytest.fixture(scope="module")
def returned(tmp_path_factory):
    """What the public functions return, of two checkpoints of many tensors; by its class."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "run").mkdir()
    paths = []
    for step in (100, 200):
        tensors = {f"layer.{i}.weight": np.full(1, step, np.float32) for i in range(MANY)}
        paths.append(folder / "run" / f"step-{step}.safetensors")
        save_file(tensors, paths[-1])
    series = discover([folder / "run"])
    request = ema(series, Smoothing(decay=0.5), policy=swavg.Policy())
    plan = swavg.prepare(request.inputs, request.rows, [folder / "ema.safetensors"])
    (report,) = swavg.execute(plan)
    checkpoint = swavg.open_checkpoint(paths[0])
    (output,) = plan.outputs
    values = [
        series, request, request.rows[0], plan, plan.entries, output, output.files[0],
        output.files[0].layout, output.files[0].layout.specs, report, checkpoint,
        checkpoint["layer.3.weight"], checkpoint.extras, checkpoint.tensors,
        checkpoint.tensors.columns, inspect(paths[0]), diff(*paths), series.shared,
    ]  # fmt: skip
    return {type(value).__name__: value for value in values}


def test_nothing_prints_many_tensors(returned):
    assert len(returned) == 18
    for name, value in returned.items():
        for shown in (repr(value), str(value), getattr(value, "_repr_html_", str)()):
            assert len(shown) < 3000, name
            assert "layer.9.weight" not in shown
        assert all(len(line) < 500 for line in repr(value).splitlines())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Plan", ["inputs   step-100.safetensors, step-200.safetensors", "tensors  20,000"]),
        ("Report", ["inputs    step-100.safetensors: 0.5, step-200.safetensors: 0.5",
                    "tensors   averaged: 20,000"]),
        ("Checkpoint", ["format    safetensors", "tensors   20,000", "elements  float32: 20,000"]),
        ("Series", ["checkpoints  2", "steps        100, 200"]),
        ("Request", ["rows    1 Row"]),
        ("Row", ["weights  0.5, 0.5", "method   ema"]),
        ("LazyTensor", ["name   layer.3.weight", "shape  [1]"]),
    ],
)  # fmt: skip
def test_a_table_says_what_matters(returned, name, lines):
    first, *rest = repr(returned[name]).splitlines()
    assert first == name
    assert {f"  {line}" for line in lines} <= set(rest)


def test_values_are_short_and_what_is_empty_is_left_out():
    assert repr(Things()) == "Things\n  number  0"
    assert repr(Things("a\x1b[2J\n" + "b" * 200, True, 1.23456789, range(5))).splitlines() == [
        "Things",
        "  text    a\\x1b[2J\\n" + "b" * 43 + "…" + "b" * 50,
        "  flag    True",
        "  number  1.23457",
        "  many    0, 1, 2 and 2 more",
    ]
    shown = repr(
        Things(number=1234567, many={"k" * 999: [1, 2], "n": math.nan, 3: Global("a", "b")})
    )
    assert shown.splitlines()[1:] == [
        "  number  1,234,567",
        "  many    " + "k" * 49 + "…" + "k" * 50 + ": 2 in a list, n: nan, 3: Global",
    ]
    assert repr(Things(many=[Things(), Things()])).endswith("  many    2 Things")


def test_a_notebook_gets_a_table_without_markup_of_a_file():
    assert Things("<script>&", number=2)._repr_html_() == (
        "<table><caption>Things</caption><tr><th>text</th><td>&lt;script&gt;&amp;</td></tr>"
        "<tr><th>number</th><td>2</td></tr></table>"
    )
