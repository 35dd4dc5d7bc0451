"""Tensors side by side: names across wrappers, ties across formats, equal headers once."""

import pytest
import torch
from checkpoints import save

from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Shared
from swavg.planning.match import SideBySide, canonical

X, Y = torch.arange(4.0), torch.arange(4.0) + 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.a.weight", "a.weight"),
        ("module.module.a", "a"),
        ("_orig_mod.a.weight", "a.weight"),
        ("module._orig_mod.a", "a"),
        ("encoder._orig_mod.a.b", "encoder.a.b"),
        ("encoder.module.a", "encoder.module.a"),
        ("modules.a", "modules.a"),
        ("a", "a"),
    ],
)
def test_wrappers_prefixes_do_not_count(name, expected):
    assert canonical(name) == expected


def side_by_side(folder, *states):
    """A match of PyTorch files, or of safetensors files where a state is given as a pair with
    True."""
    shared, opened = Shared(), []
    for index, given in enumerate(states):
        state, as_safetensors = given if isinstance(given, tuple) else (given, False)
        path = folder / str(index)
        if as_safetensors:
            save(path, state)
        else:
            torch.save(state, path)
        opened.append(open_checkpoint(path, shared=shared))
    return SideBySide(opened)


def test_names_are_those_of_the_last_in_its_order_then_those_of_earlier_ones(tmp_path):
    match = side_by_side(tmp_path, {"a": X, "old": Y}, {"module.b": X, "module.a": Y})
    assert match.names() == ["b", "a", "old"]
    assert list(map(match.output_name, match.names())) == ["module.b", "module.a", "old"]
    assert list(match.columns(match.names())) == [(-1, 0), (0, 1), (1, -1)]


def test_checkpoints_of_one_run_are_matched_once(tmp_path):
    match = side_by_side(tmp_path, {"a": X}, {"a": Y}, {"a": X, "b": Y}, {"a": Y})
    assert (len(match.tables), match.table_of) == (2, (0, 0, 1, 0))


def test_names_that_differ_only_by_a_wrapper_stay_apart(tmp_path):
    match = side_by_side(tmp_path, {"module.x": X, "x": Y})
    assert match.names() == ["module.x", "x"]


def test_a_tie_holds_where_all_that_have_it_agree(tmp_path):
    tied, equal, apart = {"a": X, "b": X}, {"a": Y, "b": Y.clone()}, {"a": X, "b": Y}
    assert side_by_side(tmp_path, tied, tied).ties == [("a", "b")]
    # A safetensors file cannot tell: its bytes do.
    assert side_by_side(tmp_path, tied, (equal, True)).ties == [("a", "b")]
    assert side_by_side(tmp_path, (equal, True), tied).ties == [("a", "b")]
    assert side_by_side(tmp_path, tied, (apart, True)).ties == []
    assert side_by_side(tmp_path, (equal, True), (equal, True)).ties == []


def test_a_tied_name_that_is_left_out_is_found_through_its_partner(tmp_path):
    match = side_by_side(tmp_path, {"a": X, "b": X}, ({"a": Y}, True))
    assert dict(zip(match.names(), match.columns(match.names()), strict=True)) == {
        "a": (0, 0),
        "b": (1, 0),
    }
    assert match.tied_to("b") == ("a", "b")


def test_long_tied_tensors_are_compared_to_their_end(tmp_path):
    long = torch.zeros(300_000)
    other = long.clone()
    other[-1] = 1
    tied = {"a": long, "b": long}
    assert side_by_side(tmp_path, tied, ({"a": long, "b": long.clone()}, True)).ties
    assert not side_by_side(tmp_path, tied, ({"a": long, "b": other}, True)).ties
