"""State dicts that are not just names and tensors."""

import pytest
import torch

import swavg
from swavg.errors import InputError, MismatchError, RequestError

ODD = [
    {"rng_state": torch.get_rng_state()},
    {"optimizer": {"exp_avg": torch.ones(3)}},
    {"optimizers": [{"m": torch.ones(3)}]},
    {"scheduler": {"base": torch.ones(3)}},
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("more", ODD, ids=lambda more: next(iter(more)))
def test_training_state_beside_flat_weights_is_kept(tmp_path, more, legacy):
    paths = []
    for i in (1, 2):
        paths.append(tmp_path / f"{i}.pt")
        torch.save({"w": torch.full((3,), float(i)), **more}, paths[-1],
                   _use_new_zipfile_serialization=not legacy)  # fmt: skip
    swavg.average(paths, output=tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["w"].tolist() == [1.5] * 3
    name = next(iter(more))
    assert str(found[name]) == str(more[name])


def saved(folder, *states):
    paths = []
    for i, state in enumerate(states):
        paths.append(folder / f"{i}.pt")
        torch.save(state, paths[-1])
    return paths


def test_keys_of_any_kind_are_names(tmp_path):
    def state(value):
        return {"w": torch.full((2,), value), ("a", 1): torch.full((1,), value),
                5: torch.full((1,), value), None: torch.full((1,), value)}  # fmt: skip

    paths = saved(tmp_path, state(1.0), state(2.0))
    swavg.average(paths, output=tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert {key: value.tolist()[0] for key, value in found.items()} == dict.fromkeys(state(0), 1.5)
    swavg.average(paths, output=tmp_path / "out.safetensors")
    names = {"w", "(a, 1)", "5", "None"}
    assert set(swavg.open_checkpoint(tmp_path / "out.safetensors").keys()) == names


def test_keys_that_become_one_name_are_refused(tmp_path):
    paths = saved(tmp_path, {0: torch.ones(1), "0": torch.ones(1)})
    with pytest.raises(InputError, match="two tensors are called '0'"):
        swavg.open_checkpoint(paths[0])


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path, layout):
    nested = torch.nested.nested_tensor([torch.ones(4), torch.ones(2)], layout=layout)
    paths = saved(tmp_path, {"w": torch.ones(3), "q": nested})
    with pytest.raises(InputError, match="'q' is a nested tensor"):
        swavg.open_checkpoint(paths[0])


class Holder:
    def __init__(self, value):
        self.value = value


def test_tensors_in_objects_of_unknown_classes_are_told(tmp_path):
    paths = saved(tmp_path, *({"w": torch.ones(3), "h": Holder(torch.ones(2))} for _ in range(2)))
    report = swavg.average(paths, output=tmp_path / "out.pt")
    assert report.notes == (
        "tensors inside 'h' are not averaged: swavg does not know its kind",
    )  # fmt: skip


def test_optimizer_state_is_not_averaged_even_if_asked_for(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    paths = saved(tmp_path, {"w": torch.ones(2), "optimizer": optimizer.state_dict()})
    with pytest.raises(InputError, match="the state of an optimizer, which is not averaged"):
        swavg.open_checkpoint(paths[0], key="optimizer")


@pytest.mark.parametrize("missing", ["keep", "drop", "average"])
@pytest.mark.parametrize("dtype", ["keep", "float16"])
def test_nothing_in_common_is_an_error_whatever_becomes_of_the_rest(tmp_path, missing, dtype):
    paths = saved(tmp_path, {"x": torch.ones(1)}, {"x": torch.ones(1), "z": torch.ones(1)},
                  {"y": torch.ones(1)})  # fmt: skip
    policy = swavg.Policy(strict=False, missing=missing, dtype=dtype)
    with pytest.raises(MismatchError, match="no tensor in common"):
        swavg.average(paths, output=tmp_path / "out.pt", policy=policy)


def test_copies_into_another_dtype_count_as_copies(tmp_path):
    paths = saved(tmp_path, *({"x": torch.ones(1), "y": torch.ones(1)} for _ in range(2)))
    policy = swavg.Policy(exclude=("y",), dtype="float16")
    report = swavg.average(paths, output=tmp_path / "out.pt", policy=policy)
    assert (report.tensors["averaged"], report.tensors["copied"]) == (1, 1)
    assert report.not_averaged[0]["reason"] == "copied from 1.pt, as float16"


def test_the_library_refuses_what_it_would_misread(tmp_path):
    paths = saved(tmp_path, {"ab": torch.ones(1), "cd": torch.ones(1)})
    with pytest.raises(RequestError, match="exclude is one string"):
        swavg.Policy(exclude="cd")
    with pytest.raises(RequestError, match="The inputs are one path"):
        swavg.average(str(paths[0]), output=tmp_path / "out.pt")
    with pytest.raises(swavg.OutputError, match="has a NUL byte"):
        swavg.average(paths, output=f"{tmp_path}/a\0b.pt")
    report = swavg.average(paths, output=f"{tmp_path}/bytes.pt".encode())
    assert report.output == f"{tmp_path}/bytes.pt"


def test_a_complex_number_is_no_scalar_of_a_file(tmp_path):
    content = {"w": torch.ones(3), "z": torch.ones(1, dtype=torch.complex64), "epoch": 3}
    (path,) = saved(tmp_path, content)
    assert swavg.open_checkpoint(path).extras.scalars == {"epoch": 3}
