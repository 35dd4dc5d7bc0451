"""Tensors side by side: names across wrappers, ties across formats, equal headers once."""

import pytest
import torch
from checkpoints import save

from swavg.formats import open_checkpoint
from swavg.formats.tensors import Shared
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
        ("encoder.module.a", "encoder.a"),
        ("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.w", "layers.0.w"),
        ("layers.0._checkpoint_wrapped_module._fsdp_wrapped_module.w", "layers.0.w"),
        ("module.model.layers.0._orig_mod.w", "model.layers.0.w"),
        ("a._orig_mod", "a._orig_mod"),
        ("a.module", "a.module"),
        ("submodule.a", "submodule.a"),
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


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        (["module._orig_mod.a.w"], ["a.w"]),
        (["_fsdp_wrapped_module.a._checkpoint_wrapped_module.w"], ["a.w"]),
        (["a.0._fsdp_wrapped_module._checkpoint_wrapped_module.w", "b.w"], ["a.0.w", "b.w"]),
        (["module.model.a.w", "module.model.b.module.w"], ["model.a.w", "model.b.module.w"]),
        (["a.module.w", "b.module.module.w"], ["a.w", "b.w"]),
    ],
)
def test_wrappers_of_one_input_anywhere_in_its_names_do_not_count(tmp_path, wrapped, bare):
    states = [{name: X + number for number, name in enumerate(names)} for names in (wrapped, bare)]
    for order in (states, states[::-1]):
        match = side_by_side(tmp_path, *order)
        assert all(-1 not in column for column in match.columns(match.names()))
        assert list(map(match.output_name, match.names())) == list(order[-1])


def test_modules_called_module_keep_names_apart_in_all_inputs(tmp_path):
    both, wrapped = {"a.module.w": X, "a.w": Y}, {"module.a.module.w": X, "module.a.w": Y}
    match = side_by_side(tmp_path, both, wrapped)
    assert match.names() == ["a.module.w", "a.w"]
    assert list(match.columns(match.names())) == [(0, 0), (1, 1)]
    # Alone it would be 'a.w', and meet the wrong tensor of the other.
    match = side_by_side(tmp_path, {"a.module.w": X}, both)
    assert dict(zip(match.names(), match.columns(match.names()), strict=True)) == {
        "a.module.w": (0, 0),
        "a.w": (-1, 1),
    }
