"""Which of several values is best."""

import math

import pytest

from swavg.errors import RequestError
from swavg.evaluation.ranking import Measure, measure_of, rank
from swavg.evaluation.survey import Value

NAN, INF = math.nan, math.inf


def ranked(measure, values):
    found = rank(measure, "abcdefgh"[: len(values)], [None] * len(values), values)
    return "".join(entry.path for entry in found.entries), found.best and found.best.path


@pytest.mark.parametrize(
    ("mode", "values", "order", "best"),
    [
        ("min", [3, 1, 2], "bca", "b"),
        ("max", [3, 1, 2], "acb", "a"),
        # Equal ones stay as they came.
        ("min", [2, 1, 2, 1], "bdac", "b"),
        ("max", [2, 1, 2, 1], "acbd", "a"),
        # What is not finite is last, also where it would be the highest or the lowest.
        ("min", [NAN, 1, -INF, 0], "dbac", "d"),
        ("max", [INF, 1, NAN, 0], "bdac", "b"),
        ("min", [NAN], "a", None),
        ("min", [0.0, NAN, -1.0], "cab", "c"),
    ],
)
def test_the_best_comes_first(mode, values, order, best):
    measure = Measure("metric", "own", mode)
    assert ranked(measure, [Value(metric=value) for value in values]) == (order, best)


def test_beside_a_loss_that_is_nan_an_error_rate_says_nothing():
    values = [Value(NAN, 0.1), Value(2.0, 0.3), Value(INF, 0.2)]
    assert ranked(measure_of("error"), values) == ("cba", "c")


@pytest.mark.parametrize(
    ("text", "better", "name", "mode"),
    [
        ("loss", None, "loss", "min"),
        ("error", None, "error", "min"),
        ("loss", "max", "loss", "max"),
        ("math:dist", "max", "dist", "max"),
        ("torch.nn.functional:mse_loss", None, "mse_loss", "min"),
        ("torch.nn.functional:mse_loss", "max", "mse_loss", "max"),
    ],
)
def test_a_name_says_which_way_is_better_unless_that_is_said(text, better, name, mode):
    found = measure_of(text, better)
    assert (found.name, found.mode) == (name, mode)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_loss", "is loss, error or a function"),
        ("math:dist", "does not say whether the lowest or the highest is best"),
        ("math:pi", "is a float, which cannot be called"),
        ("math:nothing", "has no 'nothing'"),
    ],
)
def test_what_is_no_measure_is_refused(text, message):
    with pytest.raises(RequestError, match=message):
        measure_of(text)
