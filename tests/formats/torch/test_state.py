"""The state dict is found as its trainer meant it, and read as torch reads it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_reading import DTYPES, Opened, assert_same, of_bytes, opened

from swavg.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def saved(path: Path, value: Any, **options: Any) -> Opened:
    torch.save(value, path, **options)
    return opened(path)


def test_every_dtype_reads_as_torch_reads_it(tmp_path: Path) -> None:
    state = {str(dtype): of_bytes(dtype, 6).reshape(2, 3) for dtype in DTYPES}
    assert_same(saved(tmp_path / "a.pt", state), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_reads(tmp_path: Path, protocol: int) -> None:
    state = {"w": torch.arange(6.0), "b": torch.arange(3.0)}
    assert_same(saved(tmp_path / "a.pt", state, pickle_protocol=protocol), state)


def test_views_scalars_and_empty_tensors_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {
        "whole": base,
        "part": base[5:9],
        "transposed": base.reshape(4, 6).t(),
        "stepped": base[::5],
        "channels_last": torch.arange(48.0)
        .reshape(2, 3, 2, 4)
        .to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "one": torch.arange(9.0)[4:5].reshape(1, 1),
    }
    checkpoint = saved(tmp_path / "a.pt", state)
    assert_same(checkpoint, state)
    strides = {name: tensor.strides for name, tensor in checkpoint.tensors.items()}
    assert strides == {
        "whole": None,
        "part": None,
        "transposed": (1, 6),
        "stepped": (5,),
        "channels_last": (24, 1, 12, 3),
        "expanded": (0, 1),
        "scalar": None,
        "empty": None,
        "one": None,
    }
    assert checkpoint.tensors["empty"].nbytes == 0


def test_a_size_of_one_does_not_make_strides_differ(tmp_path: Path) -> None:
    data = torch.arange(6.0)
    state = {"plain": data.reshape(1, 6), "odd": data.as_strided((1, 6), (77, 1))}
    checkpoint = saved(tmp_path / "a.pt", state)
    assert checkpoint.tensors["odd"][1:] == checkpoint.tensors["plain"][1:]


def test_tied_names_share_their_place(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"embed": weight, "head": weight, "other": weight.clone(), "turned": weight.t()}
    embed, head, other, turned = (
        tensor[1:] for tensor in saved(tmp_path / "a.pt", state).tensors.values()
    )
    assert embed == head
    assert embed not in (other, turned)


def test_parameters_buffers_and_subclasses_are_unwrapped(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    module.weight.note = "state of a parameter"  # type: ignore[attr-defined]
    state = {"w": module.weight, "b": torch.nn.Buffer(torch.arange(3.0))}
    assert_same(saved(tmp_path / "a.pt", state), state)


def test_device_tags_do_not_matter(tmp_path: Path) -> None:
    state = {"w": torch.arange(4.0)}
    torch.save(state, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    # Same length, so that nothing else moves.
    assert data.count(b"X\x03\0\0\0cpu") == 1
    (tmp_path / "b.pt").write_bytes(data.replace(b"X\x03\0\0\0cpu", b"X\x03\0\0\0hpu"))
    assert_same(opened(tmp_path / "b.pt"), state)


@pytest.mark.slow
def test_ten_thousand_tensors_are_found_in_order(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    state = {f"layers.{index}.weight": weight[index % 4 :] for index in range(10_000)}
    checkpoint = saved(tmp_path / "a.pt", state)
    assert list(checkpoint.tensors) == list(state)
    assert checkpoint.tensors["layers.9999.weight"].shape == (1,)


def module_state(offset: float = 0.0) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(weight=torch.arange(4.0) + offset, bias=torch.arange(2.0) + offset)


def test_trainers_files_give_their_state_dict_and_what_is_beside_it(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"params": [0]}]}
    checkpoint = saved(
        tmp_path / "a.pt",
        {
            "epoch": 3,
            "global_step": 1200,
            "loss": 0.5,
            "arch": "resnet",
            "state_dict": module_state(),
            "optimizer": optimizer,
            "rng_state": torch.zeros(16, dtype=torch.uint8),
        },
    )
    assert_same(checkpoint, module_state())
    assert checkpoint.state.root_key == "state_dict"
    assert checkpoint.state.other_entries == (
        "epoch", "global_step", "loss", "arch", "optimizer", "rng_state",
    )  # fmt: skip
    assert checkpoint.values == {
        "epoch": 3, "global_step": 1200, "loss": 0.5, "arch": "resnet",
    }  # fmt: skip
    assert checkpoint.state.notes == ()


def test_the_plain_weights_win_over_the_moving_average_with_a_note(tmp_path: Path) -> None:
    content = {"state_dict_ema": module_state(1), "state_dict": module_state()}
    checkpoint = saved(tmp_path / "a.pt", content)
    assert_same(checkpoint, module_state())
    assert checkpoint.state.notes == (
        "state dict found under 'state_dict'; there is also 'state_dict_ema'"
        " (choose it with --key state_dict_ema)",
    )
    assert_same(opened(tmp_path / "a.pt", "state_dict_ema"), module_state(1))


@pytest.mark.parametrize(
    ("content", "root"),
    [
        ({"a": {"b": 1}, "my_weights": {"w": 0}}, "my_weights"),
        ({"model": {"state_dict": {"w": 0}, "optimizer": {"m": 0}}}, "model.state_dict"),
        ({"model": {"state_dict": {"w": 0}, "ema": {"w": 0}}}, "model.state_dict"),
        ({"ema": {"shadow_params": [0, 0]}}, "ema.shadow_params"),
        ({"net": {"backbone": {"w": 0}, "head": {"w": 0}}}, "net"),
        ({"net": {"backbone": {"w": 0}}}, "net"),
        ({"scaler.mean": 0, "optim_head.w": 0}, ""),
        ({"step": 0, "model": {"w": 0}}, "model"),
        ({"optimizer": {"m": 0}, "lr_scheduler": {"x": 0}, "w": 0}, ""),
    ],
)
def test_the_state_dict_is_found(tmp_path: Path, content: Any, root: str) -> None:
    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: filled(value) for name, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return torch.ones(2) if node == 0 else node

    assert saved(tmp_path / "a.pt", filled(content)).state.root_key == root


def test_flat_names_that_sound_like_an_optimizer_are_kept(tmp_path: Path) -> None:
    state = {
        "scaler.mean": torch.ones(1, 2),
        "optimizer_head.w": torch.ones(2),
        "amp": torch.ones(3),
    }
    assert_same(saved(tmp_path / "a.pt", state), state)


def test_nested_parts_get_dotted_names_and_the_rest_is_listed(tmp_path: Path) -> None:
    state = {"enc": {"w": torch.ones(2)}, "stack": [torch.ones(1), torch.ones(3)], "note": "x"}
    checkpoint = saved(tmp_path / "a.pt", {"model": state, "optimizer": {"m": torch.ones(9)}})
    assert list(checkpoint.tensors) == ["enc.w", "stack.0", "stack.1"]
    assert checkpoint.state.non_tensors == ("note",)


def test_a_pickled_module_reads_as_its_state_dict(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    module.register_buffer("passing", torch.zeros(5), persistent=False)
    for content in (module, {"model": module, "epoch": 1}):
        checkpoint = saved(tmp_path / "a.pt", content)
        assert_same(checkpoint, dict(module.state_dict()))
        assert checkpoint.state.other_entries[-1] == "class torch.nn.modules.container.Sequential"


def test_a_module_with_protocol_4_hides_its_passing_buffers_too(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    module.register_buffer("passing", torch.zeros(5), persistent=False)
    checkpoint = saved(tmp_path / "a.pt", module, pickle_protocol=4)
    assert_same(checkpoint, dict(module.state_dict()))


def test_data_parallel_prefixes_stay(tmp_path: Path) -> None:
    state = torch.nn.DataParallel(torch.nn.Linear(3, 2)).state_dict()
    assert list(saved(tmp_path / "a.pt", {"state_dict": state}).tensors) == [
        "module.weight",
        "module.bias",
    ]


ODD = [
    {"rng_state": torch.get_rng_state()},
    {"optimizer": {"exp_avg": torch.ones(3)}},
    {"optimizers": [{"m": torch.ones(3)}]},
    {"scheduler": {"base": torch.ones(3)}},
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("more", ODD, ids=lambda more: next(iter(more)))
def test_training_state_beside_flat_weights_is_left_out(
    tmp_path: Path, more: Any, legacy: bool
) -> None:
    state = {"w": torch.ones(3)}
    content = {**state, **more}
    assert_same(saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=not legacy), state)


def test_keys_of_any_kind_are_names(tmp_path: Path) -> None:
    keys = ["w", ("a", 1), 5, None, 1 << 40, 0.5, (1 << 40, ("b",))]
    names = ["w", "(a, 1)", "5", "None", "1099511627776", "0.5", "(1099511627776, (b))"]
    checkpoint = saved(tmp_path / "a.pt", {key: torch.ones(1) for key in keys})
    assert list(checkpoint.tensors) == names


def test_keys_that_become_one_name_are_refused(tmp_path: Path) -> None:
    for number in (0, 1 << 40):
        with pytest.raises(InputError, match=f"two tensors are called '{number}'"):
            saved(tmp_path / "a.pt", {number: torch.ones(1), str(number): torch.ones(1)})


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path: Path, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(4), torch.ones(2)], layout=layout)
    with pytest.raises(InputError, match="'q' is a nested tensor"):
        saved(tmp_path / "a.pt", {"w": torch.ones(3), "q": nested})


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


def test_tensors_in_objects_of_unknown_classes_are_told(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pt", {"w": torch.ones(3), "h": Holder(torch.ones(2))})
    assert checkpoint.state.notes == (
        "tensors inside 'h' are not averaged: swavg does not know its kind",
    )


def test_optimizer_state_is_not_averaged_even_if_asked_for(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    saved(tmp_path / "a.pt", {"w": torch.ones(2), "optimizer": optimizer.state_dict()})
    with pytest.raises(InputError, match="the state of an optimizer, which is not averaged"):
        opened(tmp_path / "a.pt", "optimizer")
