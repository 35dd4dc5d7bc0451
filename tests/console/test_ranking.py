"""The table of evaluated checkpoints."""

import math

import pytest

from swavg.console.ranking import ranking_table
from swavg.evaluation.ranking import Measure, measure_of, rank
from swavg.evaluation.survey import Value

NAN, INF = math.nan, math.inf


def shown(capsys, values, measure=None, steps=None):
    """The lines below the headings, as words, and the last line."""
    paths = [f"run/{letter}.pt" for letter in "abcd"[: len(values)]]
    steps = steps or [None] * len(values)
    ranking_table(rank(measure or measure_of("loss"), paths, steps, values))
    title, _, headings, _, *rows, _, last = capsys.readouterr().err.splitlines()
    return title, headings.split(), [row.split() for row in rows], last


@pytest.mark.parametrize(
    ("losses", "texts"),
    [
        # As many decimals as give the smallest five digits.
        ([0.0894612, 0.0911, 1.2], ["0.089461", "0.091100", "1.200000"]),
        ([1, 120.5], ["1.0000", "120.5000"]),
        ([20_000, 123_456], ["20000", "123456"]),
        # Where that would be too many, each has its own.
        ([1e-12, 3], ["1e-12", "3"]),
        ([2, 1e30], ["2", "1e+30"]),
        ([0.0, NAN], ["0.0000", "nan"]),
        ([1.5, INF], ["1.5000", "inf"]),
    ],
)
def test_values_of_a_column_have_the_same_decimals(capsys, losses, texts):
    _, headings, rows, last = shown(capsys, [Value(loss, None, 7) for loss in losses])
    assert headings == ["checkpoint", "loss"]
    assert [row[1] for row in rows] == texts
    assert last == f"best: run/a.pt, loss {texts[0]}"


def test_what_decides_comes_first_and_is_told_with_what_is_better(capsys):
    values = [Value(0.5, 0.25, 8, 0.7), Value(0.4, 0.125, 8, 0.6)]
    title, headings, rows, last = shown(
        capsys, values, Measure("metric", "hits", "max"), steps=[3, None]
    )
    assert title == "2 checkpoints on 8 examples; higher is better"
    assert headings == ["checkpoint", "step", "hits", "loss", "error"]
    assert rows == [["a.pt", "3", "0.70000", "0.50000", "25.00%"],
                    ["b.pt", "-", "0.60000", "0.40000", "12.50%"]]  # fmt: skip
    assert last == "best: run/a.pt, hits 0.70000"


def test_a_loss_that_nothing_has_has_no_column(capsys):
    _, headings, _, _ = shown(capsys, [Value(None, None, 8, 1.0)], Measure("metric", "f", "min"))
    assert headings == ["checkpoint", "f"]


def test_there_is_no_best_without_a_finite_value(capsys):
    *_, last = shown(capsys, [Value(NAN, None, 1), Value(INF, None, 1)])
    assert last == "best: none"
