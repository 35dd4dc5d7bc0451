"""Decisions, as tables: what becomes of each tensor."""

import make
import pytest
import torch

from swavg import Policy, Row
from swavg.errors import MismatchError, RequestError
from swavg.formats import open_checkpoint
from swavg.planning.decide import decide
from swavg.planning.match import SideBySide
from swavg.weights import mean

LENIENT = Policy(strict=False)


def decided(tmp_path, states, policy=LENIENT, weights=None, *, tied=False):
    """What is decided for a row of all of these, named a, b, c ..."""
    checkpoints, names = [], []
    for index, tensors in enumerate(states):
        name = f"{'abcdef'[index]}.safetensors"
        own = tensors if tied else {name: tensor.clone() for name, tensor in tensors.items()}
        # A PyTorch file, whatever its name: it has ties.
        torch.save(own, tmp_path / name)
        checkpoints.append(open_checkpoint(tmp_path / name))
        names.append(name)
    row = Row(tuple(weights or mean(len(states))), tuple(range(len(states))))
    return decide(checkpoints, SideBySide(checkpoints), row, policy, names)


def operations(decisions):
    """By name."""
    return {
        name: decisions.operations[number]
        for name, number in zip(decisions.specs.names, decisions.operation, strict=True)
    }


def summary(decisions):
    return {
        name: (made.op, made.members, made.weights) for name, made in operations(decisions).items()
    }


X, Y = torch.zeros(2), torch.zeros(3)


def test_equal_checkpoints_are_averaged_whole(tmp_path):
    plan = decided(tmp_path, [{"x": X}, {"x": X}], Policy())
    assert summary(plan) == {"x": ("average", (0, 1), (0.5, 0.5))}
    assert operations(plan)["x"].uniform


def test_strict_lists_every_difference_and_not_only_the_first(tmp_path):
    states = [
        {"x": X, "y": Y, "z": X, "w": X},
        {"x": Y, "z": X.half(), "w": X},
        {"x": X, "y": Y, "z": X, "w": X},
    ]
    with pytest.raises(MismatchError) as caught:
        decided(tmp_path, states, Policy())
    found = {entry.name: (entry.what, dict(entry.facts)) for entry in caught.value.differences}
    assert found == {
        "x": (
            "shape",
            {"a.safetensors": "[2]", "b.safetensors": "[3]", "c.safetensors": "[2]"},
        ),
        "y": (
            "missing",
            {"a.safetensors": "present", "b.safetensors": "missing", "c.safetensors": "present"},
        ),
        "z": (
            "dtype",
            {"a.safetensors": "float32", "b.safetensors": "float16", "c.safetensors": "float32"},
        ),
    }
    assert caught.value.exit_code == 3


def test_the_message_names_both_facts_and_a_way_out(tmp_path):
    with pytest.raises(MismatchError) as caught:
        decided(tmp_path, [{"head.weight": X}, {"head.weight": Y}], Policy())
    assert str(caught.value) == (
        "b.safetensors: 'head.weight' is [3]; a.safetensors has [2]. "
        "Leave it out with exclude='head.weight' or use strict=False."
    )


def test_a_missing_tensor_is_named_with_the_file_that_lacks_it(tmp_path):
    with pytest.raises(MismatchError) as caught:
        decided(tmp_path, [{"x": X, "y": Y}, {"x": X}], Policy())
    assert caught.value.message == "b.safetensors: 'y' is missing; a.safetensors has it."
    with pytest.raises(MismatchError) as caught:
        decided(tmp_path, [{"x": X}, {"x": X, "y": Y}], Policy())
    assert caught.value.message == "a.safetensors: 'y' is missing; b.safetensors has it."


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("keep", ("copy", (1,), (1.0,))),
        ("drop", None),
        ("average", ("average", (0, 1), (0.4, 0.6))),
    ],
)
def test_lenient_treats_what_the_last_lacks_as_asked(tmp_path, missing, expected):
    states = [{"x": X, "y": Y}, {"x": X, "y": Y}, {"x": X}]
    plan = decided(tmp_path, states, Policy(strict=False, missing=missing), [0.2, 0.3, 0.5])
    found = summary(plan).get("y")
    if expected is None:
        assert found is None
    else:
        assert found[:2] == expected[:2]
        assert found[2] == pytest.approx(expected[2])
    assert summary(plan)["x"] == ("average", (0, 1, 2), (0.2, 0.3, 0.5))
    assert [entry.name for entry in plan.not_averaged] == ["y"]
    assert "missing in c.safetensors" in plan.not_averaged[0].reason


def test_lenient_takes_another_shape_for_missing(tmp_path):
    plan = decided(tmp_path, [{"x": X, "y": X}, {"x": X, "y": Y}])
    assert summary(plan)["y"] == ("copy", (1,), (1.0,))
    assert plan.not_averaged[0].reason == "from b.safetensors: float32 [2] in a.safetensors"


def test_lenient_averages_floats_of_different_dtypes_into_the_first_ones(tmp_path):
    plan = decided(tmp_path, [{"x": X.half()}, {"x": X}])
    made = operations(plan)["x"]
    assert (made.op, made.dtype.name, made.accumulate) == ("average", "float16", "float64")


def test_lenient_does_not_average_floats_with_integers(tmp_path):
    plan = decided(tmp_path, [{"x": X, "y": X}, {"x": X, "y": X.int()}])
    assert summary(plan)["y"] == ("copy", (1,), (1.0,))


def test_an_empty_intersection_is_an_error_even_when_lenient(tmp_path):
    with pytest.raises(MismatchError, match="no tensor in common"):
        decided(tmp_path, [{"x": X}, {"y": X}])
    with pytest.raises(MismatchError, match="no tensor in common"):
        decided(tmp_path, [{"x": X}, {"x": Y}])


def test_include_and_exclude_choose_what_is_averaged(tmp_path):
    states = [{"head.x": X, "body.x": X, "body.y": X}] * 2
    plan = decided(tmp_path, states, Policy(include=("body.*",), exclude=("*.y",)))
    kinds = {name: kind for name, (kind, _, _) in summary(plan).items()}
    assert kinds == {"body.x": "average", "body.y": "copy", "head.x": "copy"}
    assert {entry.name for entry in plan.not_averaged} == {"head.x", "body.y"}


def test_excluded_tensors_need_not_match_and_can_be_dropped(tmp_path):
    states = [{"x": X, "head": X}, {"x": X, "head": Y}]
    kept = decided(tmp_path, states, Policy(exclude=("head",)))
    assert summary(kept)["head"] == ("copy", (1,), (1.0,))
    dropped = decided(tmp_path, states, Policy(exclude=("head",), drop_excluded=True))
    assert list(summary(dropped)) == ["x"]


def test_globs_that_leave_nothing_are_an_error(tmp_path):
    with pytest.raises(RequestError, match="none of 1 tensors"):
        decided(tmp_path, [{"x": X}] * 2, Policy(include=("nothing",)))


def test_names_match_across_wrappers_and_come_out_as_in_the_last(tmp_path):
    plan = decided(tmp_path, [{"module.x": X}, {"_orig_mod.x": X}], Policy())
    assert summary(plan) == {"_orig_mod.x": ("average", (0, 1), (0.5, 0.5))}


def test_names_that_differ_only_by_a_wrapper_inside_one_file_stay_apart(tmp_path):
    states = [{"module.x": X, "x": Y}] * 2
    assert set(summary(decided(tmp_path, states, Policy()))) == {"module.x", "x"}


def test_a_tied_name_that_a_file_leaves_out_is_found_through_its_partner(tmp_path):
    plan = decided(tmp_path, [{"embed": X, "head": X}, {"embed": X}], Policy(), tied=True)
    assert summary(plan)["head"] == ("average", (0, 1), (0.5, 0.5))
    assert plan.ties == (("embed", "head"),)


def test_the_output_dtype_applies_to_all_floats_and_to_nothing_else(tmp_path):
    states = [
        {"x": X, "y": X, "n": torch.tensor([1]), "c": torch.zeros(2, dtype=torch.complex64)}
    ] * 2
    plan = decided(tmp_path, states, Policy(dtype="bfloat16", exclude=("y",)))
    found = {name: (made.op, made.dtype.name) for name, made in operations(plan).items()}
    assert found == {
        "x": ("average", "bfloat16"),
        "y": ("average", "bfloat16"),
        "n": ("integer", "int64"),
        "c": ("average", "complex64"),
    }


def test_zero_sized_tensors_and_scalars_are_tensors(tmp_path):
    states = [{"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0)}] * 2
    plan = decided(tmp_path, states, Policy())
    shapes = [plan.specs.at(number)[2] for number in range(2)]
    assert dict(zip(plan.specs.names, shapes, strict=True)) == {"empty": (0, 3), "scalar": ()}


@pytest.mark.parametrize(("one", "other"), [("float32", "bfloat16"), ("float16", "float64")])
def test_floats_of_different_dtypes_are_refused_with_the_option_that_averages_them(
    tmp_path, one, other
):
    states = [{"x": X.to(getattr(torch, dtype)), "y": X} for dtype in (one, other)]
    with pytest.raises(MismatchError) as caught:
        decided(tmp_path, states, Policy())
    assert caught.value.hint == "Average them with mixed_dtypes=True."
    plan = decided(tmp_path, states, Policy(mixed_dtypes=True))
    made = operations(plan)["x"]
    assert (made.op, made.dtype.name, made.accumulate) == ("average", one, "float64")
    plan = decided(tmp_path, states, Policy(mixed_dtypes=True, dtype="float64"))
    assert operations(plan)["x"].dtype.name == "float64"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (X, torch.ones(2).to(torch.int32)),
        (torch.ones(2, dtype=torch.int32), torch.ones(2, dtype=torch.int64)),
        (X, torch.ones(2, dtype=torch.complex64)),
        (X, Y),
    ],
)
def test_mixed_dtypes_joins_nothing_but_floats_of_one_shape(tmp_path, one, other):
    for policy in (Policy(), Policy(mixed_dtypes=True)):
        with pytest.raises(MismatchError) as caught:
            decided(tmp_path, [{"x": one, "y": X}, {"x": other, "y": X}], policy)
        assert "strict=False" in caught.value.hint
    with pytest.raises(MismatchError, match="is missing"):
        decided(tmp_path, [{"x": X, "y": X}, {"x": X}], Policy(mixed_dtypes=True))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_codes_narrower_than_a_byte_mix_with_nothing(tmp_path, order):
    data = {"y": ("F32", [1], bytes(4))}
    states = [{"x": ("F4", [2], b"\0")} | data, {"x": ("F32", [2], bytes(8))} | data]
    checkpoints = []
    for at in order:
        (tmp_path / f"{at}").write_bytes(make.packed(states[at]))
        checkpoints.append(open_checkpoint(tmp_path / f"{at}"))
    row, match = Row((0.5, 0.5), (0, 1)), SideBySide(checkpoints)
    made = operations(decide(checkpoints, match, row, LENIENT, "ab"))["x"]
    assert (made.op, made.members) == ("copy", (1,))
    with pytest.raises(MismatchError, match="'x' is") as caught:
        decide(checkpoints, match, row, Policy(mixed_dtypes=True), "ab")
    assert "strict=False" in caught.value.hint
