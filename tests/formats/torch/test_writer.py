"""PyTorch files that are written: all else of a template is kept, and torch reads them."""

from __future__ import annotations

import argparse
import io
import os
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import planned, save
from torch_reading import DTYPES, of_bytes, raw

import swavg
from swavg import Policy, Row
from swavg.errors import OutputError, RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.storage.pool import Pool

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

PLAIN = Policy(weights_only=True)


def assert_same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """The checkpoint has just the tensors that torch has: names in order, shapes, dtypes, bytes."""
    assert list(checkpoint.tensors) == list(expected)
    with Pool() as pool:
        for name, tensor in expected.items():
            found = checkpoint.tensors[name]
            spec = found.spec
            assert (spec.shape, f"torch.{spec.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
            data = bytearray(spec.nbytes)
            checkpoint.read_into(found, 0, spec.numel, memoryview(data), pool)
            assert data == raw(tensor), name


class Unknown:
    """A class that the reader knows nothing of."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def saved(folder: Path, *contents: Any, suffix: str = ".pt", **options: Any) -> list[Path]:
    """A file of each, with the names 0.pt, 1.pt ..."""
    paths = [folder / f"{index}{suffix}" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        torch.save(content, path, **options)
    return paths


def averaged(paths: Sequence[Path], name: str = "out.pt", policy: Policy | None = None) -> Path:
    out = paths[0].parent / name
    swavg.average(paths, output=out, policy=policy)
    return out


def loaded(path: str | Path, *, mmap: bool = False, weights_only: bool = True) -> Any:
    return torch.load(path, weights_only=weights_only, mmap=mmap)


# With a template.


def trainer_file(path: Path, seed: int) -> Path:
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
    return path


def test_a_template_keeps_everything_but_the_averaged_tensors(tmp_path: Path) -> None:
    paths = [trainer_file(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    path = averaged(paths)
    first, last = (loaded(each, weights_only=False) for each in paths)
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
    old, new = zipfile.ZipFile(paths[1]), zipfile.ZipFile(path)
    assert new.testzip() is None
    assert new.namelist() == [*old.namelist(), "2/swavg.json"]
    for name in ("2/data.pkl", "2/version", "2/.data/serialization_id"):
        assert new.read(name) == old.read(name)


def test_the_recipe_of_an_averaged_template_is_replaced(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, {"w": torch.ones(3)})
    once = averaged([path], "once.pt")
    swavg.average([once, once], [0.25, 0.75], output=tmp_path / "twice.pt")
    archive = zipfile.ZipFile(tmp_path / "twice.pt")
    assert b'"weights": [0.25, 0.75]' in archive.read("0/swavg.json")
    assert archive.namelist().count("0/swavg.json") == 1


def test_many_views_in_one_storage_are_replaced_and_the_gaps_kept(tmp_path: Path) -> None:
    def content(scale: float) -> dict[str, Any]:
        flat = torch.arange(20.0) * scale
        views = {"a": flat[1:7].reshape(2, 3), "b": flat[8:14].reshape(3, 2).t(), "c": flat[15:16]}
        return {"state_dict": views, "flat": flat}

    out = loaded(averaged(saved(tmp_path, content(1.0), content(3.0))))
    # The gaps keep the template's three-fold values.
    kept = {0: 0.0, 7: 21.0, 14: 42.0, **{index: index * 3.0 for index in (16, 17, 18, 19)}}
    assert out["flat"].tolist() == [kept.get(index, index * 2.0) for index in range(20)]
    assert out["state_dict"]["b"].tolist() == [[16.0, 20.0, 24.0], [18.0, 22.0, 26.0]]


def test_inputs_that_lie_as_the_template_does_need_no_gathering(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).t()
    paths = saved(tmp_path, {"w": turned}, {"w": turned})
    plan = planned(paths, tmp_path / "out.pt")
    made = plan.entries.make(plan.checkpoints, 0)
    assert made.shape == (2, 3)
    assert [tensor.boxes[0].strides for tensor in made.tensors] == [None, None]


def test_a_source_of_another_order_is_gathered_into_the_templates(tmp_path: Path) -> None:
    square = torch.arange(6.0).reshape(2, 3)
    paths = saved(tmp_path, {"w": square.clone()}, {"w": square.t().contiguous().t()})
    plan = planned(paths, tmp_path / "out.pt")
    made = plan.entries.make(plan.checkpoints, 0)
    assert made.shape == (3, 2)
    assert [tensor.boxes[0].strides for tensor in made.tensors] == [(1, 3), None]
    swavg.execute(plan)
    out = loaded(tmp_path / "out.pt")
    assert torch.equal(out["w"], square)
    assert out["w"].stride() == (1, 2)


def test_tied_names_stay_one_tensor(tmp_path: Path) -> None:
    weights = [torch.full((2, 2), float(index)) for index in (0, 1)]
    paths = saved(tmp_path, *({"embed": weight, "head": weight} for weight in weights))
    for name, policy in (("like.pt", None), ("plain.pt", PLAIN)):
        out = loaded(averaged(paths, name, policy))
        assert out["embed"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert out["head"].data_ptr() == out["embed"].data_ptr()


BASE = torch.arange(9.0)


@pytest.mark.parametrize(
    ("state", "policy", "reason"),
    [
        ({"w": BASE[:4]}, {"dtype": "float16"}, "'w' is float32 there and becomes float16"),
        (
            {"w": BASE[:4], "v": BASE[4:8]},
            {"exclude": ("v",), "drop_excluded": True},
            "'v' is left out",
        ),
        (
            {"w": torch.zeros((4 << 20) + 2)[::2]},
            {},
            "'w' does not fill its part of the storage without gaps",
        ),
        (
            {"w": BASE, "v": BASE},
            {"exclude": ("v",)},
            None,
        ),
    ],
)
def test_a_template_that_cannot_be_kept_says_why(
    tmp_path: Path, state: dict[str, torch.Tensor], policy: Any, reason: str | None
) -> None:
    paths = saved(tmp_path, *({"state_dict": state, "epoch": epoch} for epoch in (1, 2)))
    report = swavg.average(paths, output=tmp_path / "out.pt", policy=Policy(**policy))
    out = loaded(tmp_path / "out.pt")
    if reason is None:
        assert (report.notes, out["epoch"]) == ((), 2)
        return
    assert report.notes == (
        f"'epoch' of 1.pt left out: the output is a bare state dict ({reason})",
    )
    assert set(out) == set(state) - set(policy.get("exclude", ()))


LOOSE: dict[str, Any] = {
    "gaps": lambda flat: {"w": flat[::2]},
    "columns": lambda flat: {"q": flat.view(3, 4)[:, :2], "k": flat.view(3, 4)[:, 2:]},
    "repeated": lambda flat: {"w": flat[:4].as_strided((2, 2), (3, 0))},
    "overlapping": lambda flat: {"w": flat[:5], "v": flat[3:9], "apart": flat[9:]},
    "overlapping, inside too": lambda flat: {"w": flat[:5], "in": flat[1:3], "v": flat[3:]},
    "an integer among them": lambda flat: {"w": flat[::3], "n": torch.arange(3)[::2]},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("views", LOOSE.values(), ids=LOOSE)
def test_views_that_overlap_or_leave_gaps_are_written_in_place(
    tmp_path: Path, views: Any, zipped: bool
) -> None:
    inputs = [torch.randn(12, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    paths = saved(
        tmp_path,
        *({"state_dict": views(flat), "epoch": epoch} for epoch, flat in enumerate(inputs)),
        _use_new_zipfile_serialization=zipped,
    )
    report = swavg.average(paths, output=tmp_path / "out.pt")
    out = loaded(tmp_path / "out.pt")
    assert (report.notes, out["epoch"]) == ((), 2)
    if zipped:
        assert zipfile.ZipFile(tmp_path / "out.pt").testzip() is None
    expected = views((sum(flat.double() for flat in inputs) / 3).float())
    for name, tensor in out["state_dict"].items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.stride() == expected[name].stride()
    # What lies between them is the last input's.
    storage = next(iter(out["state_dict"].values())).untyped_storage()
    assert len(storage) == 48


def test_repeated_elements_that_are_no_longer_the_same(tmp_path: Path) -> None:
    apart, repeated = torch.arange(3.0), torch.ones(1).expand(3)
    paths = saved(tmp_path, *({"sd": {"w": w}, "epoch": 1} for w in (apart, repeated)))
    report = swavg.average(paths, output=tmp_path / "out.pt")
    assert "'w' shares a part of its bytes among its elements" in report.notes[-1]
    assert loaded(tmp_path / "out.pt")["w"].tolist() == [0.5, 1, 1.5]


VIEWS: dict[str, Any] = {
    "slices of one": lambda flat: {"qkv": flat.view(3, 4), "q": flat[:4], "v": flat[8:]},
    "another shape of all": lambda flat: {
        "w": flat.view(3, 4),
        "flat": flat,
        "t": flat.view(3, 4).T,
    },
    "with gaps, inside": lambda flat: {"even": flat[::2], "all": flat},
    "repeated, inside": lambda flat: {"all": flat, "row": flat[4:5].expand(3)},
}


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_views_of_a_part_of_another_tensor_get_its_average(tmp_path: Path, views: Any) -> None:
    inputs = [torch.randn(12, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    paths = saved(
        tmp_path,
        *({"state_dict": views(flat), "epoch": epoch} for epoch, flat in enumerate(inputs)),
    )
    report = swavg.average(paths, output=tmp_path / "out.pt")
    out = loaded(tmp_path / "out.pt")
    assert (report.notes, out["epoch"]) == ((), 2)
    mean = (sum(flat.double() for flat in inputs) / 3).float()
    expected = views(mean)
    for name, tensor in out["state_dict"].items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("first", "policy"),
    [
        # Apart in the first input, and not the same.
        ({"all": torch.zeros(8), "part": torch.full((4,), 9.0)}, {}),
        (None, {"exclude": ("part",)}),
        (None, {"exclude": ("all",)}),
    ],
)
def test_views_that_are_made_otherwise_than_what_they_are_in_are_written_apart(
    tmp_path: Path, first: Any, policy: Any
) -> None:
    flats = [torch.zeros(8), torch.ones(8)]
    contents = [{"all": flat, "part": flat[:4]} for flat in flats]
    contents[0] = first or contents[0]
    paths = saved(tmp_path, *({"state_dict": content, "epoch": 1} for content in contents))
    report = swavg.average(paths, output=tmp_path / "out.pt", policy=Policy(**policy))
    out = loaded(tmp_path / "out.pt")
    assert "shares a part of its bytes" in report.notes[-1]
    excluded = policy.get("exclude", ())
    assert out["all"].tolist() == [1.0 if "all" in excluded else 0.5] * 8
    assert out["part"].tolist() == [5.0 if first else 1.0 if "part" in excluded else 0.5] * 4


def test_a_tie_of_the_template_that_does_not_hold_makes_a_bare_state_dict(tmp_path: Path) -> None:
    apart = {"state_dict": {"w": BASE.clone(), "v": BASE + 1}, "epoch": 1}
    tied = {"state_dict": {"w": BASE, "v": BASE}, "epoch": 2}
    paths = saved(tmp_path, apart, tied)
    report = swavg.average(paths, output=tmp_path / "out.pt")
    assert "'v' is tied to 'w' there, and no longer the same" in report.notes[0]
    assert loaded(tmp_path / "out.pt")["v"].tolist() == (BASE + 0.5).tolist()


def test_a_template_of_another_format_makes_a_bare_state_dict(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", {"w": torch.ones(3)})
    swavg.average([path], output=tmp_path / "out.pt")
    assert type(loaded(tmp_path / "out.pt")) is OrderedDict


def test_tensors_copied_from_the_template_stay_raw(tmp_path: Path) -> None:
    views = {"w": BASE[:5], "v": BASE[3:], "s": BASE[::2]}
    states = ({"state_dict": {**views, "x": torch.ones(2) * n}, "epoch": n} for n in (1.0, 2.0))
    path = averaged(saved(tmp_path, *states), policy=Policy(include=("x",)))
    out = loaded(path)
    assert out["epoch"] == 2
    assert out["state_dict"]["x"].tolist() == [1.5, 1.5]
    for name, view in views.items():
        assert raw(out["state_dict"][name]) == raw(view)
        assert out["state_dict"][name].stride() == view.stride()


def test_another_alignment_of_the_template_is_kept(tmp_path: Path) -> None:
    from torch.utils.serialization import config

    with config.patch("save.storage_alignment", 4096):
        paths = saved(tmp_path, {"w": torch.ones(3), "v": torch.ones(5)})
    out = swavg.open_checkpoint(averaged(paths))
    assert [out.tensors[name].boxes[0].offset % 4096 for name in out] == [0, 0]
    assert out.read("v").tolist() == [1.0] * 5


def test_a_template_in_a_sweep_is_that_of_its_own_row(tmp_path: Path) -> None:
    contents = ({"state_dict": {"w": torch.ones(2) * n}, "epoch": n} for n in range(3))
    paths = saved(tmp_path, *contents)
    rows = [Row((0.5, 0.5), (0, 1)), Row((0.5, 0.5), (1, 2))]
    outputs = [tmp_path / "a.pt", tmp_path / "b.pt"]
    swavg.execute(swavg.prepare(paths, rows, outputs))
    assert [loaded(path)["epoch"] for path in outputs] == [1, 2]
    assert [loaded(path)["state_dict"]["w"].tolist() for path in outputs] == [[0.5] * 2, [1.5] * 2]


# A bare state dict.


def plain(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    return averaged(saved(folder, state), policy=PLAIN)


def test_every_dtype_shape_and_name_is_read_back_by_torch(tmp_path: Path) -> None:
    state = {str(dtype): of_bytes(dtype, 6).reshape(2, 3) for dtype in DTYPES}
    state |= {f"scalar {dtype}": of_bytes(dtype, 1).reshape(()) for dtype in DTYPES}
    state |= {f"empty {dtype}": of_bytes(dtype, 0).reshape(0, 300, 70000) for dtype in DTYPES}
    state |= {"schicht.größe.重み": torch.arange(300.0), "": torch.ones(1, 1, 1, 1, 1)}
    state["turned"] = torch.arange(6.0).reshape(2, 3).t()
    (path,) = saved(tmp_path, state)
    swavg.average([path], output=tmp_path / "out.pt", policy=PLAIN)
    out = loaded(tmp_path / "out.pt")
    assert type(out) is OrderedDict
    assert list(out) == list(state)
    for name, tensor in out.items():
        assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)
        assert raw(tensor) == raw(state[name]), name
        assert tensor.is_contiguous()
    assert_same(swavg.open_checkpoint(tmp_path / "out.pt"), out)
    assert list(loaded(tmp_path / "out.pt", mmap=True)) == list(state)
    assert zipfile.ZipFile(tmp_path / "out.pt").testzip() is None


def test_a_tie_that_safetensors_left_out_becomes_one_tensor_again(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    tied = {"embed": weight, "other": torch.ones(2), "head": weight}
    (path,) = saved(tmp_path, tied)
    other = save(tmp_path / "a.safetensors", {"embed": weight, "other": torch.ones(2)})
    swavg.average([path, other], output=tmp_path / "out.pt")
    out = loaded(tmp_path / "out.pt")
    assert out["head"].data_ptr() == out["embed"].data_ptr()
    assert swavg.open_checkpoint(tmp_path / "out.pt").ties == (("embed", "head"),)


def test_a_dtype_that_torch_lacks_is_refused(tmp_path: Path) -> None:
    import make

    (tmp_path / "a.safetensors").write_bytes(
        make.packed({"w": ("F4", (4,), b"ab"), "x": ("F32", (1,), bytes(4))})
    )
    with pytest.raises(RequestError, match=r"^'w': torch files have no dtype float4_e2m1fn$"):
        planned([tmp_path / "a.safetensors"], tmp_path / "out.pt")


@pytest.mark.slow
def test_torch_finds_every_storage_where_it_computes_it(tmp_path: Path) -> None:
    # Three kinds of records: with and without a descriptor, and of odd sizes.
    state = {"w": torch.ones(3), "e": torch.ones(0), "v": torch.ones(9, dtype=torch.int8)}
    paths = saved(tmp_path, state)
    files = [averaged(paths, "like.pt"), averaged(paths, "plain.pt", PLAIN)]
    script = (
        "import sys, torch\n"
        "from torch.utils.serialization import config\n"
        "config.load.calculate_storage_offsets = True\n"
        "for path, mmap in ((p, m) for p in sys.argv[1:] for m in (False, True)):\n"
        "    state = torch.load(path, mmap=mmap, weights_only=True)\n"
        "    print([tensor.sum().item() for tensor in state.values()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *files],
        env={**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[3.0, 0.0, 9]\n" * 4, done.stderr


def test_a_tiny_file_has_these_bytes(tmp_path: Path) -> None:
    data = plain(tmp_path, {"w": torch.tensor([1.0, 2.0])}).read_bytes()
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.read("archive/data.pkl") == (
        b"\x80\x02ccollections\nOrderedDict\nq\x00)R("
        b"X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\nq\x01(("
        b"X\x07\x00\x00\x00storageq\x02ctorch\nFloatStorage\nq\x03X\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuq\x04K\x02tQK\x00K\x02\x85K\x01\x85\x89h\x00)RtRu."
    )
    assert [(i.filename, i.header_offset, i.file_size) for i in archive.infolist()][:-1] == [
        ("archive/data.pkl", 0, 148),
        ("archive/.format_version", 228, 1),
        ("archive/.storage_alignment", 337, 2),
        ("archive/byteorder", 466, 6),
        ("archive/data/0", 598, 8),
        ("archive/version", 728, 2),
    ]
    assert (
        data[598:728]
        == (
            b"PK\x03\x04\x14\x00\x08\x08\x00\x00\x00\x00\x21\x00" + bytes(12) + b"\x0e\x00\x3e\x00"
            b"archive/data/0FB\x3a\x00" + b"Z" * 58 + b"\x00\x00\x80?\x00\x00\x00@"
            b"PK\x07\x08" + struct.pack("<3I", archive.getinfo("archive/data/0").CRC, 8, 8)
        )[:130]
    )


def test_verify_notices_another_file(tmp_path: Path) -> None:
    one, other = saved(tmp_path, {"w": torch.ones(2)}, {"v": torch.ones(2)})
    for policy in (None, PLAIN):
        plan = planned([one], tmp_path / "out.pt", policy=policy, force=True)
        swavg.execute(plan)
        layout = plan.outputs[0].files[0].layout
        layout.verify(str(tmp_path / "out.pt"))
        with pytest.raises(OutputError, match=r"has other (tensors|records) than were planned"):
            layout.verify(str(other))
        (tmp_path / "short.pt").write_bytes((tmp_path / "out.pt").read_bytes()[:-1])
        with pytest.raises(OutputError, match="does not open"):
            layout.verify(str(tmp_path / "short.pt"))


# Legacy files.


def test_a_legacy_template_keeps_everything_but_the_averaged_tensors(tmp_path: Path) -> None:
    def content(scale: float) -> dict[str, Any]:
        flat = torch.arange(12.0) * scale
        return {
            "args": argparse.Namespace(lr=scale),
            "state_dict": {"a": flat[1:7].reshape(2, 3).t(), "b": torch.full((2,), scale)},
            "optimizer": {"m": torch.full((3,), scale)},
            "steps": torch.tensor(3),
        }

    paths = saved(tmp_path, content(1.0), content(3.0), _use_new_zipfile_serialization=False)
    path = averaged(paths)
    out = loaded(path, weights_only=False)
    assert out["state_dict"]["a"].tolist() == (torch.arange(12.0) * 2)[1:7].view(2, 3).t().tolist()
    assert out["state_dict"]["b"].tolist() == [2.0, 2.0]
    assert out["optimizer"]["m"].tolist() == [3.0, 3.0, 3.0]
    assert out["args"] == argparse.Namespace(lr=3.0)
    # Only the bytes of the two tensors differ from the template: 8 floats.
    old, new = paths[1].read_bytes(), path.read_bytes()
    changed = {at for at, (one, two) in enumerate(zip(old, new, strict=True)) if one != two}
    tensors = swavg.open_checkpoint(paths[1]).tensors.values()
    places = [(tensor.boxes[0].offset, tensor.spec.nbytes) for tensor in tensors]
    assert changed
    assert changed <= {at for offset, size in places for at in range(offset, offset + size)}


def test_a_legacy_template_that_cannot_be_kept_makes_a_bare_state_dict(tmp_path: Path) -> None:
    states = [{"state_dict": {"w": w}, "epoch": 1} for w in (BASE[:2], BASE[:1].expand(2))]
    paths = saved(tmp_path, *states, _use_new_zipfile_serialization=False)
    report = swavg.average(paths, output=tmp_path / "out.pt")
    assert "'w' shares a part of its bytes among its elements" in report.notes[0]
    assert zipfile.is_zipfile(tmp_path / "out.pt")
    assert loaded(tmp_path / "out.pt")["w"].tolist() == [0, 0.5]


def test_a_legacy_file_alone_comes_back_byte_for_byte(tmp_path: Path) -> None:
    state = {"w": torch.arange(4.0), "t": torch.arange(6.0).reshape(2, 3).t()}
    (path,) = saved(tmp_path, state, _use_new_zipfile_serialization=False)
    assert averaged([path]).read_bytes() == path.read_bytes()


def test_a_legacy_output_that_is_another_file_is_noticed(tmp_path: Path) -> None:
    states = {"w": torch.ones(2)}, {"v": torch.ones(2)}
    one, other = saved(tmp_path, *states, _use_new_zipfile_serialization=False)
    layout = planned([one], tmp_path / "out.pt").outputs[0].files[0].layout
    layout.verify(str(one))
    with pytest.raises(OutputError, match="has other pickles than its template"):
        layout.verify(str(other))


def test_reading_and_writing_never_imports_torch(tmp_path: Path) -> None:
    one, two = saved(tmp_path, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    old, new = saved(tmp_path, {"w": torch.ones(2)}, {"w": torch.ones(2)}, suffix=".pth",
                     _use_new_zipfile_serialization=False)  # fmt: skip
    script = (
        "import sys, swavg\n"
        "one, two, old, new, out = sys.argv[1:]\n"
        "swavg.average([one, two], output=out + '.pt')\n"
        "swavg.average([old, new], output=out + '.pth')\n"
        "swavg.average([old, two], output=out, policy=swavg.Policy(weights_only=True))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, one, two, old, new, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
