"""torch zips: what we read is what torch reads, and torch reads what we write."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_files import DTYPES, assert_same, copy_task, mean_tasks, of_bytes, raw, written

from swavg.dtypes import BY_NAME
from swavg.errors import OutputError, RequestError
from swavg.formats.base import Extent, Task, Tensor, TensorSpec
from swavg.formats.torch_frames import Member, Placed, arranged, ending
from swavg.formats.torch_records import read_records
from swavg.formats.torch_zip import (
    TorchZipCheckpoint,
    lay_out_like,
    lay_out_plain,
    looks_like_torch_zip,
    open_torch_zip,
)

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Unknown:
    """A class that the reader knows nothing of."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def saved(path: Path, value: Any, **options: Any) -> TorchZipCheckpoint:
    torch.save(value, path, **options)
    return open_torch_zip(str(path))


def written_file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def loaded(path: str | Path, *, mmap: bool = False, weights_only: bool = True) -> Any:
    return torch.load(path, weights_only=weights_only, mmap=mmap)


def test_every_dtype_reads_as_torch_reads_it(tmp_path: Path) -> None:
    state = {str(dtype): of_bytes(dtype, 6).reshape(2, 3) for dtype in DTYPES}
    assert_same(saved(tmp_path / "a.pt", state), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_reads(tmp_path: Path, protocol: int) -> None:
    state = {"w": torch.arange(6.0), "b": torch.arange(3.0)}
    assert_same(saved(tmp_path / "a.pt", state, pickle_protocol=protocol), state)


def test_a_torch_zip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt", {"w": torch.zeros(1)})
    assert looks_like_torch_zip((tmp_path / "a.pt").read_bytes()[:64])
    assert not looks_like_torch_zip(b"\x80\x02\x8a\nl\xfc")


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
    strides = {name: tensor.extent.strides for name, tensor in checkpoint.tensors.items()}
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
    assert checkpoint.tensors["empty"].extent.nbytes == 0
    assert checkpoint.read("transposed").tolist() == base.reshape(4, 6).t().tolist()


def test_a_size_of_one_does_not_make_strides_differ(tmp_path: Path) -> None:
    data = torch.arange(6.0)
    state = {"plain": data.reshape(1, 6), "odd": data.as_strided((1, 6), (77, 1))}
    checkpoint = saved(tmp_path / "a.pt", state)
    assert checkpoint.tensors["odd"].extent == checkpoint.tensors["plain"].extent


def test_tied_names_share_an_extent(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"embed": weight, "head": weight, "other": weight.clone(), "turned": weight.t()}
    assert saved(tmp_path / "a.pt", state).ties == (("embed", "head"),)


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
    path = written_file(tmp_path / "b.pt", data.replace(b"X\x03\0\0\0cpu", b"X\x03\0\0\0hpu"))
    assert_same(open_torch_zip(path), state)


def test_ten_thousand_tensors_are_found_in_order(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    state = {f"layers.{index}.weight": weight[index % 4 :] for index in range(10_000)}
    checkpoint = saved(tmp_path / "a.pt", state)
    assert list(checkpoint) == list(state)
    assert checkpoint.tensors["layers.9999.weight"].spec.shape == (1,)


# Finding the state dict.


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
    assert checkpoint.root_key == "state_dict"
    assert checkpoint.other_entries == (
        "epoch", "global_step", "loss", "arch", "optimizer", "rng_state",
    )  # fmt: skip
    assert checkpoint.scalars == {
        "epoch": 3, "global_step": 1200, "loss": 0.5, "arch": "resnet",
    }  # fmt: skip
    assert checkpoint.notes == ()


def test_the_plain_weights_win_over_the_moving_average_with_a_note(tmp_path: Path) -> None:
    content = {"state_dict_ema": module_state(1), "state_dict": module_state()}
    checkpoint = saved(tmp_path / "a.pt", content)
    assert_same(checkpoint, module_state())
    assert checkpoint.notes == (
        "state dict found under 'state_dict'; there is also 'state_dict_ema'"
        " (choose it with --key state_dict_ema)",
    )
    path = str(tmp_path / "a.pt")
    assert_same(open_torch_zip(path, key="state_dict_ema"), module_state(1))


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

    assert saved(tmp_path / "a.pt", filled(content)).root_key == root


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
    assert list(checkpoint) == ["enc.w", "stack.0", "stack.1"]
    assert checkpoint.non_tensors == ("note",)


def test_a_pickled_module_reads_as_its_state_dict(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    module.register_buffer("passing", torch.zeros(5), persistent=False)
    for content in (module, {"model": module, "epoch": 1}):
        checkpoint = saved(tmp_path / "a.pt", content)
        assert_same(checkpoint, dict(module.state_dict()))
        assert checkpoint.other_entries[-1] == "class torch.nn.modules.container.Sequential"


def test_a_module_with_protocol_4_hides_its_passing_buffers_too(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    module.register_buffer("passing", torch.zeros(5), persistent=False)
    checkpoint = saved(tmp_path / "a.pt", module, pickle_protocol=4)
    assert_same(checkpoint, dict(module.state_dict()))


def test_data_parallel_prefixes_stay(tmp_path: Path) -> None:
    state = torch.nn.DataParallel(torch.nn.Linear(3, 2)).state_dict()
    assert list(saved(tmp_path / "a.pt", {"state_dict": state})) == [
        "module.weight",
        "module.bias",
    ]


# Writing with a template.


def trainer_file(path: Path, seed: int) -> TorchZipCheckpoint:
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    module = module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    content = {
        "hyper": argparse.Namespace(lr=0.1),
        "thing": Unknown(tag="kept"),
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "none": torch.zeros(0),
        "epoch": seed,
    }
    torch.save(content, path)
    return open_torch_zip(str(path))


def test_a_template_keeps_everything_but_the_averaged_tensors(tmp_path: Path) -> None:
    inputs = [trainer_file(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    layout = lay_out_like(inputs[1], 1, mean_tasks(inputs), "", b'{"swavg": 1}')
    assert not isinstance(layout, str)
    path = written_file(tmp_path / "out.pt", written(layout, inputs))
    layout.verify(path)

    first, last = (loaded(tmp_path / f"{seed}.pt", weights_only=False) for seed in (1, 2))
    for mmap in (False, True):
        out = loaded(path, mmap=mmap, weights_only=False)
        for name, tensor in out["state_dict"].items():
            one, two = first["state_dict"][name], last["state_dict"][name]
            floating = tensor.is_floating_point()
            mean = ((one.double() + two.double()) / 2).to(tensor.dtype) if floating else two
            assert torch.equal(tensor, mean), name
            assert tensor.stride() == two.stride(), name
        for index, moments in last["optimizer"]["state"].items():
            for what, tensor in moments.items():
                assert torch.equal(out["optimizer"]["state"][index][what], tensor)
        assert out["hyper"] == last["hyper"]
        assert out["thing"].tag == "kept"
    old, new = zipfile.ZipFile(tmp_path / "2.pt"), zipfile.ZipFile(path)
    assert new.testzip() is None
    assert new.namelist() == [*old.namelist(), "2/swavg.json"]
    assert new.read("2/swavg.json") == b'{"swavg": 1}'
    for name in ("2/data.pkl", "2/version", "2/.data/serialization_id"):
        assert new.read(name) == old.read(name)


def test_the_recipe_of_an_averaged_template_is_replaced(tmp_path: Path) -> None:
    inputs = [saved(tmp_path / "a.pt", {"w": torch.ones(3)})]
    for recipe in (b"first", b"second recipe"):
        layout = lay_out_like(inputs[0], 0, mean_tasks(inputs), "", recipe)
        assert not isinstance(layout, str)
        path = written_file(tmp_path / "out.pt", written(layout, inputs))
        inputs = [open_torch_zip(path)]
    archive = zipfile.ZipFile(path)
    assert archive.read("a/swavg.json") == b"second recipe"
    assert archive.namelist().count("a/swavg.json") == 1


def test_many_views_in_one_storage_are_replaced_and_the_gaps_kept(tmp_path: Path) -> None:
    def content(scale: float) -> dict[str, Any]:
        flat = torch.arange(20.0) * scale
        views = {"a": flat[1:7].reshape(2, 3), "b": flat[8:14].reshape(3, 2).t(), "c": flat[15:16]}
        return {"state_dict": views, "flat": flat}

    inputs = []
    for index, scale in enumerate((1.0, 3.0)):
        torch.save(content(scale), tmp_path / f"{index}.pt")
        inputs.append(open_torch_zip(str(tmp_path / f"{index}.pt")))
    layout = lay_out_like(inputs[1], 1, mean_tasks(inputs), "", None)
    assert not isinstance(layout, str)
    out = loaded(written_file(tmp_path / "out.pt", written(layout, inputs)))
    # The gaps keep the template's three-fold values.
    kept = {0: 0.0, 7: 21.0, 14: 42.0, **{index: index * 3.0 for index in (16, 17, 18, 19)}}
    expected = [kept.get(index, index * 2.0) for index in range(20)]
    assert out["flat"].tolist() == expected
    assert out["state_dict"]["b"].tolist() == [[16.0, 20.0, 24.0], [18.0, 22.0, 26.0]]
    # Sources that lie as the template does need no gathering.
    assert [s.extent.strides for t in layout.tasks for s in t.sources if t.name] == [None] * 6


def test_a_source_of_another_order_is_gathered_into_the_templates(tmp_path: Path) -> None:
    square = torch.arange(6.0).reshape(2, 3)
    plain = saved(tmp_path / "a.pt", {"w": square.clone()})
    turned = saved(tmp_path / "b.pt", {"w": square.t().contiguous().t()})
    layout = lay_out_like(turned, 1, mean_tasks([plain, turned]), "", None)
    assert not isinstance(layout, str)
    task = next(task for task in layout.tasks if task.name == "w")
    assert task.shape == (3, 2)
    assert [source.extent.strides for source in task.sources] == [(1, 3), None]
    out = loaded(written_file(tmp_path / "out.pt", written(layout, [plain, turned])))
    assert torch.equal(out["w"], square)


def test_one_task_is_enough_for_tied_names(tmp_path: Path) -> None:
    inputs = []
    for index in (0, 1):
        weight = torch.full((2, 2), float(index))
        inputs.append(saved(tmp_path / f"{index}.pt", {"embed": weight, "head": weight}))
    both = mean_tasks(inputs)
    for tasks in (both, both[:1]):
        layout = lay_out_like(inputs[1], 1, tasks, "", None)
        assert not isinstance(layout, str)
        out = loaded(written_file(tmp_path / "out.pt", written(layout, inputs)))
        assert out["embed"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert out["head"].data_ptr() == out["embed"].data_ptr()


def replaced(task: Task, **changes: Any) -> Task:
    from dataclasses import replace

    return replace(task, **changes)


def test_a_template_that_cannot_be_kept_says_why(tmp_path: Path) -> None:
    base = torch.arange(9.0)
    state = {"w": base[:4], "v": base[4:8]}
    checkpoint = saved(tmp_path / "a.pt", state)
    tasks = mean_tasks([checkpoint])

    def reason(tasks: list[Task], template: TorchZipCheckpoint = checkpoint) -> str:
        answer = lay_out_like(template, 1, tasks, "", None)
        assert isinstance(answer, str)
        return answer

    half = replaced(tasks[0], dtype=BY_NAME["float16"])
    assert reason([half, tasks[1]]) == "'w' is float32 there and becomes float16"
    assert reason([replaced(tasks[0], shape=(2, 2)), tasks[1]]) == "'w' has another shape there"
    assert reason(tasks[:1]) == "'v' is left out"
    assert reason([*tasks, replaced(tasks[0], name="x")]).startswith("'x' is not in ")

    holes = saved(tmp_path / "b.pt", {"w": base[::2]})
    assert "without gaps" in reason(mean_tasks([holes]), holes)
    repeats = saved(tmp_path / "c.pt", {"w": torch.arange(4.0).as_strided((2, 2), (3, 0))})
    assert "without gaps" in reason(mean_tasks([repeats]), repeats)
    overlap = saved(tmp_path / "d.pt", {"w": base[:5], "v": base[3:]})
    assert "shares a part of its bytes" in reason(mean_tasks([overlap]), overlap)
    tied = saved(tmp_path / "e.pt", {"w": base, "v": base})
    one, two = mean_tasks([tied])
    assert "no longer the same" in reason([one, replaced(two, weights=(2.0,))], tied)


def test_tensors_copied_from_the_template_stay_raw(tmp_path: Path) -> None:
    base = torch.arange(9.0)
    checkpoint = saved(tmp_path / "a.pt", {"w": base[:5], "v": base[3:], "s": base[::2]})
    tasks = [copy_task(name, checkpoint, name, 3) for name in checkpoint]
    layout = lay_out_like(checkpoint, 3, tasks, "", None)
    assert not isinstance(layout, str)
    assert {task.name for task in layout.tasks} == {""}
    out = loaded(written_file(tmp_path / "out.pt", written(layout, [checkpoint] * 4)))
    assert raw(out["s"]) == raw(base[::2])


def test_another_alignment_of_the_template_is_kept(tmp_path: Path) -> None:
    from torch.utils.serialization import config

    with config.patch("save.storage_alignment", 4096):
        torch.save({"w": torch.ones(3), "v": torch.ones(5)}, tmp_path / "a.pt")
    checkpoint = open_torch_zip(str(tmp_path / "a.pt"))
    assert checkpoint.alignment == 4096
    layout = lay_out_like(checkpoint, 0, mean_tasks([checkpoint]), "", b"{}")
    assert not isinstance(layout, str)
    out = open_torch_zip(written_file(tmp_path / "out.pt", written(layout, [checkpoint])))
    assert [t.extent.offset % 4096 for t in out.tensors.values()] == [0, 0]


# Writing a plain state dict.


def plain(path: Path, state: dict[str, torch.Tensor], ties: Any = ()) -> tuple[Any, str]:
    checkpoint = saved(path, state)
    tasks = [copy_task(name, checkpoint, name) for name in checkpoint]
    layout = lay_out_plain(tasks, ties, "", None)
    out = written_file(path.with_suffix(".out.pt"), written(layout, [checkpoint]))
    layout.verify(out)
    return loaded(out), out


def test_every_dtype_shape_and_name_is_read_back_by_torch(tmp_path: Path) -> None:
    state = {str(dtype): of_bytes(dtype, 6).reshape(2, 3) for dtype in DTYPES}
    state |= {f"scalar {dtype}": of_bytes(dtype, 1).reshape(()) for dtype in DTYPES}
    state |= {f"empty {dtype}": of_bytes(dtype, 0).reshape(0, 300, 70000) for dtype in DTYPES}
    state |= {"schicht.größe.重み": torch.arange(300.0), "": torch.ones(1, 1, 1, 1, 1)}
    state["turned"] = torch.arange(6.0).reshape(2, 3).t()
    out, path = plain(tmp_path / "a.pt", state)
    assert type(out) is OrderedDict
    assert list(out) == list(state)
    for name, tensor in out.items():
        assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)
        assert raw(tensor) == raw(state[name]), name
        assert tensor.is_contiguous()
    assert_same(open_torch_zip(path), out)
    assert list(loaded(path, mmap=True)) == list(state)
    assert zipfile.ZipFile(path).testzip() is None


def test_tied_names_share_a_storage_in_a_plain_file(tmp_path: Path) -> None:
    state = {"embed": torch.arange(4.0), "other": torch.ones(2), "head": torch.arange(4.0)}
    out, path = plain(tmp_path / "a.pt", state, [("embed", "head")])
    assert list(out) == ["embed", "other", "head"]
    assert out["head"].data_ptr() == out["embed"].data_ptr()
    assert out["head"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert open_torch_zip(path).ties == (("embed", "head"),)


def test_tied_names_without_a_task_follow_the_first(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pt", {"embed": torch.arange(4.0), "other": torch.ones(2)})
    tasks = [copy_task(name, checkpoint, name) for name in checkpoint]
    layout = lay_out_plain(tasks, [("embed", "head")], "", None)
    out = loaded(written_file(tmp_path / "out.pt", written(layout, [checkpoint])))
    assert list(out) == ["embed", "head", "other"]
    assert out["head"].data_ptr() == out["embed"].data_ptr()


def test_a_dtype_that_torch_lacks_is_refused() -> None:
    spec = TensorSpec("w", BY_NAME["float4_e2m1fn"], (4,))
    task = Task("w", "copy", spec.dtype, spec.shape, (0,), (Tensor(spec, Extent(0, 0, 2)),))
    with pytest.raises(RequestError, match=r"^'w': torch files have no dtype float4_e2m1fn$"):
        lay_out_plain([task], [], "", None)


def test_torch_finds_every_storage_where_it_computes_it(tmp_path: Path) -> None:
    # Three kinds of records: with and without a descriptor, and of odd sizes.
    state = {"w": torch.ones(3), "e": torch.ones(0), "v": torch.ones(9, dtype=torch.int8)}
    checkpoint = saved(tmp_path / "a.pt", state)
    tasks = mean_tasks([checkpoint])
    like = lay_out_like(checkpoint, 0, tasks, "", b"{}")
    assert not isinstance(like, str)
    plain_layout = lay_out_plain(tasks, (), "", b"{}")
    paths = [
        written_file(tmp_path / "like.pt", written(like, [checkpoint])),
        written_file(tmp_path / "plain.pt", written(plain_layout, [checkpoint])),
    ]
    script = (
        "import sys, torch\n"
        "from torch.utils.serialization import config\n"
        "config.load.calculate_storage_offsets = True\n"
        "for path, mmap in ((p, m) for p in sys.argv[1:] for m in (False, True)):\n"
        "    state = torch.load(path, mmap=mmap, weights_only=True)\n"
        "    print([tensor.sum().item() for tensor in state.values()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *paths],
        env={**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[3.0, 0.0, 9]\n" * 4, done.stderr


def test_the_chunks_do_not_change_the_bytes(tmp_path: Path) -> None:
    inputs = [trainer_file(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    layout = lay_out_like(inputs[1], 1, mean_tasks(inputs), "", b"{}")
    assert not isinstance(layout, str)
    # A layout may be planned in one process and written in another.
    again = pickle.loads(pickle.dumps(layout))
    assert written(layout, inputs, 3) == written(again, inputs, 100_000)


def test_a_tiny_file_has_these_bytes(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pt", {"w": torch.tensor([1.0, 2.0])})
    layout = lay_out_plain(mean_tasks([checkpoint]), (), "", b"{}")
    data = written(layout, [checkpoint])
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.read("archive/data.pkl") == (
        b"\x80\x02ccollections\nOrderedDict\nq\x00)R("
        b"X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\nq\x01(("
        b"X\x07\x00\x00\x00storageq\x02ctorch\nFloatStorage\nq\x03X\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuq\x04K\x02tQK\x00K\x02\x85K\x01\x85\x89h\x00)RtRu."
    )
    assert [(i.filename, i.header_offset, i.file_size) for i in archive.infolist()] == [
        ("archive/data.pkl", 0, 148),
        ("archive/.format_version", 228, 1),
        ("archive/.storage_alignment", 337, 2),
        ("archive/byteorder", 466, 6),
        ("archive/data/0", 598, 8),
        ("archive/version", 728, 2),
        ("archive/swavg.json", 850, 2),
    ]
    assert (
        data[598:728]
        == (
            b"PK\x03\x04\x14\x00\x08\x08\x00\x00\x00\x00\x21\x00" + bytes(12) + b"\x0e\x00\x3e\x00"
            b"archive/data/0FB\x3a\x00" + b"Z" * 58 + b"\x00\x00\x80?\x00\x00\x00@"
            b"PK\x07\x08" + struct.pack("<3I", archive.getinfo("archive/data/0").CRC, 8, 8)
        )[:130]
    )
    assert len(data) == layout.size


def test_verify_notices_another_file(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pt", {"w": torch.ones(2)})
    layout = lay_out_plain(mean_tasks([checkpoint]), (), "", None)
    saved(tmp_path / "other.pt", {"w": torch.ones(3)})
    with pytest.raises(OutputError, match="another 'w' than was planned"):
        layout.verify(str(tmp_path / "other.pt"))
    short = written_file(tmp_path / "short.pt", written(layout, [checkpoint])[:-1])
    with pytest.raises(OutputError, match="does not open"):
        layout.verify(short)


def sparse_archive(path: Path, members: tuple[Member, ...]) -> tuple[Placed, ...]:
    """An archive whose large members are holes; CRCs are left at 0."""
    placed = arranged(members)
    directory = b"".join(each.entry(0) for each in placed)
    with open(path, "wb") as file:
        for each in placed:
            file.seek(each.header)
            file.write(each.local + (each.member.body or b""))
            file.seek(each.start + each.member.size)
            file.write(each.descriptor(0))
        end = placed[-1].end
        file.seek(end)
        file.write(directory + ending(len(placed), end, len(directory)))
    return placed


def test_records_beyond_four_gibibytes_are_where_torch_computes_them(tmp_path: Path) -> None:
    from swavg.formats.files import InputFile
    from swavg.formats.torch_plain import state_dict_pickle

    big, small = (1 << 30) + 5, 3
    entries = [
        (TensorSpec("big", BY_NAME["float32"], (big,)), 0),
        (TensorSpec("small", BY_NAME["float32"], (small,)), 1),
        (TensorSpec("empty", BY_NAME["float32"], (0,)), 2),
        (TensorSpec("last", BY_NAME["float32"], (small,)), 3),
    ]
    body = state_dict_pickle(entries)
    members = (
        Member("archive/data.pkl", len(body), body),
        Member("archive/.format_version", 1, b"1"),
        Member("archive/.storage_alignment", 2, b"64"),
        Member("archive/byteorder", 6, b"little"),
        *(Member(f"archive/data/{key}", spec.nbytes) for spec, key in entries),
        Member("archive/version", 2, b"3\n"),
    )
    path = tmp_path / "big.pt"
    placed = sparse_archive(path, members)
    with open(path, "rb") as file:
        records = read_records(file.fileno(), InputFile.identify(str(path)))
    assert [(r.name, r.offset, r.size) for r in records] == [
        (each.member.name, each.start, each.member.size) for each in placed
    ]
    assert all(record.offset % 64 == 0 for record in records)
    infos = zipfile.ZipFile(path).infolist()
    assert [(i.header_offset, i.file_size) for i in infos] == [
        (each.header, each.member.size) for each in placed
    ]
    checkpoint = open_torch_zip(str(path))
    assert checkpoint.tensors["last"].extent.offset == placed[7].start > 1 << 32
    script = (
        "import sys, torch\n"
        "state = torch.load(sys.argv[1], mmap=True, weights_only=True)\n"
        "print([len(tensor) for tensor in state.values()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path)],
        env={**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"[{big}, 3, 0, 3]\n", done.stderr


def test_more_records_than_sixteen_bits_count(tmp_path: Path) -> None:
    from swavg.formats.files import InputFile

    members = tuple(Member(f"a/{index}", 0, b"") for index in range(70_000))
    sparse_archive(tmp_path / "many.pt", members)
    with open(tmp_path / "many.pt", "rb") as file:
        records = read_records(file.fileno(), InputFile.identify(str(tmp_path / "many.pt")))
    assert len(records) == len(zipfile.ZipFile(tmp_path / "many.pt").namelist()) == 70_000


def test_reading_and_writing_never_imports_torch(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt", {"w": torch.ones(2)})
    script = (
        "import sys\n"
        "from swavg.formats.torch_zip import open_torch_zip, lay_out_plain\n"
        "import swavg.formats.torch_legacy\n"
        "print(list(open_torch_zip(sys.argv[1])), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['w'] False\n"
