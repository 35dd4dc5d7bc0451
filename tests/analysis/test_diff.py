"""Comparing two checkpoints: keys, shapes, dtypes and values."""

import math

import make
import numpy as np
import pytest
import torch
from checkpoints import save, state
from test_memory import MIB, PROMISE, sparse

from swavg.analysis import Mismatch, chunks, diff
from swavg.dtypes import BY_NAME, BY_SAFETENSORS

DTYPES = [getattr(torch, name) for name, dtype in BY_NAME.items() if dtype.bits >= 8]


def both(folder, a, b):
    """A safetensors file of each; their paths."""
    return save(folder / "a.safetensors", a), save(folder / "b.safetensors", b)


def distance(folder, a, b):
    (found,) = diff(*both(folder, {"w": a}, {"w": b})).distances
    return found


def test_a_checkpoint_does_not_differ_from_itself(tmp_path):
    found = diff(*both(tmp_path, state(1), state(1)))
    assert found.same
    assert (found.matching, found.identical) == (4, 4)
    assert (found.total.relative_distance, found.total.cosine, found.total.differing) == (0, 1, 0)


ONES, TWOS = torch.ones(2), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    ("a", "b", "only_in_a", "only_in_b", "mismatches"),
    [
        ({"x": ONES, "y": ONES}, {"y": ONES}, ("x",), (), ()),
        ({"y": ONES}, {"y": ONES, "z": ONES}, (), ("z",), ()),
        ({"x": ONES}, {"z": ONES}, ("x",), ("z",), ()),
        (
            {"x": ONES},
            {"x": torch.ones(3)},
            (),
            (),
            (Mismatch("x", ("float32", "float32"), ((2,), (3,))),),
        ),
        (
            {"x": ONES},
            {"x": ONES.half()},
            (),
            (),
            (Mismatch("x", ("float32", "float16"), ((2,), (2,))),),
        ),
        (
            {"x": torch.tensor(1)},
            {"x": torch.tensor([1.0])},
            (),
            (),
            (Mismatch("x", ("int64", "float32"), ((), (1,))),),
        ),
        ({"module.x": ONES}, {"x": ONES}, (), (), ()),
        ({"module._orig_mod.x.y": ONES}, {"_orig_mod.x.y": ONES}, (), (), ()),
        ({"module.x": ONES, "x": ONES}, {"x": ONES}, ("module.x",), (), ()),
    ],
)
def test_names_shapes_and_dtypes_that_differ(tmp_path, a, b, only_in_a, only_in_b, mismatches):
    found = diff(*both(tmp_path, a, b), values=False)
    assert (found.only_in_a, found.only_in_b) == (only_in_a, only_in_b)
    assert found.mismatches == mismatches
    assert found.same is (False if only_in_a or only_in_b or mismatches else None)


def test_wrappers_do_not_count_but_are_said(tmp_path):
    found = diff(*both(tmp_path, {"module.x.w": ONES, "module.y": ONES}, {"x.w": ONES, "y": ONES}))
    assert found.same
    assert found.notes == ("a.safetensors: 'module.' in 2 names does not count",)


def test_a_missing_name_that_is_tied_to_one_present_is_explained(tmp_path):
    shared = torch.ones(3)
    torch.save({"embed": shared, "head": shared}, tmp_path / "a.pt")
    found = diff(tmp_path / "a.pt", save(tmp_path / "b.safetensors", {"embed": shared}))
    assert found.only_in_a == ("head",)
    assert "'head', which b.safetensors lacks, is tied to 'embed', which it has" in found.notes


@pytest.mark.parametrize("step", [1 << 17, 64, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distances_of_every_dtype_are_those_of_torch_whatever_the_chunk(
    tmp_path, monkeypatch, dtype, step
):
    monkeypatch.setattr(chunks, "CHUNK", step)
    random = np.random.default_rng(5)
    pair = []
    for _ in "ab":
        whole = torch.from_numpy(random.integers(1, 60, (31, 2)).astype(np.float64))
        if dtype.is_complex:
            whole = torch.view_as_complex(whole)
        elif dtype == torch.bool:
            whole = whole > 20
        if dtype == torch.complex32:
            pair.append(torch.view_as_complex(torch.view_as_real(whole).half()))
        else:
            pair.append(whole.to(dtype))
    for name, tensor in zip("ab", pair, strict=True):
        torch.save({"w": tensor}, tmp_path / f"{name}.pt")
    (found,) = diff(tmp_path / "a.pt", tmp_path / "b.pt").distances
    a, b = (each.to(torch.complex128).reshape(-1) for each in pair)
    assert found.differing == int((a != b).sum())
    assert found.distance == pytest.approx(torch.linalg.norm(a - b).item(), rel=1e-13)
    relative = torch.linalg.norm(a - b) / torch.linalg.norm(a)
    assert found.relative_distance == pytest.approx(relative.item(), rel=1e-13)
    assert found.largest == pytest.approx((a - b).abs().max().item(), rel=1e-15)
    cosine = torch.vdot(a, b).real / torch.linalg.norm(a) / torch.linalg.norm(b)
    assert found.cosine == pytest.approx(cosine.item(), rel=1e-13)


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_distances_of_packed_floats_are_those_of_their_elements(tmp_path, monkeypatch, code):
    monkeypatch.setattr(chunks, "CHUNK", 11)
    random = np.random.default_rng(1)
    wide = []
    for name in "ab":
        data = bytes(random.integers(0, 256, 48, dtype=np.uint8))
        elements = 48 * 8 // BY_SAFETENSORS[code].bits
        packed = make.packed({"w": (code, [elements], data)})
        (tmp_path / f"{name}.safetensors").write_bytes(packed)
        wide.append(make.unpacked(data, code).astype(np.float64))
    a, b = wide
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    (found,) = diff(*paths).distances
    assert found.relative_distance == pytest.approx(
        np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-14
    )
    assert found.differing == np.count_nonzero(a != b)


def test_values_of_different_dtypes_are_compared_in_float64(tmp_path):
    a = torch.tensor([1.0, 0.1], dtype=torch.float64)
    found = diff(*both(tmp_path, {"w": a}, {"w": a.bfloat16()}))
    assert len(found.mismatches) == 1
    (each,) = found.distances
    assert each.differing == 1
    assert each.largest == abs(0.1 - torch.tensor(0.1).bfloat16().item())


def test_a_real_and_a_complex_tensor_are_compared_as_complex(tmp_path):
    found = distance(tmp_path, torch.tensor([3.0, 1.0]), torch.tensor([3 + 4j, 1 + 0j]))
    assert (found.differing, found.distance, found.largest) == (1, 4, 4)
    assert found.norms == pytest.approx((math.sqrt(10), math.sqrt(26)))


def test_large_integers_are_told_apart_exactly(tmp_path):
    a = torch.tensor([2**53, -(2**63), 5])
    found = distance(tmp_path, a, torch.tensor([2**53 + 1, 2**63 - 1, 5]))
    assert found.differing == 2
    assert found.largest == 2.0**64
    one = distance(tmp_path, a[:1], a[:1] + 1)
    assert (one.differing, one.largest, one.distance) == (1, 1, 1)


@pytest.mark.parametrize("step", [1 << 17, 2])
def test_nan_equals_nan_and_is_left_out_of_the_figures(tmp_path, monkeypatch, step):
    monkeypatch.setattr(chunks, "CHUNK", step)
    nan, inf = math.nan, math.inf
    a = torch.tensor([nan, nan, inf, inf, 3.0, 0.0, 4.0])
    b = torch.tensor([nan, 1.0, inf, -inf, 3.0, -0.0, 2.0])
    found = distance(tmp_path, a, b)
    assert (found.differing, found.nonfinite) == (3, 2)
    assert (found.distance, found.norms, found.largest) == (2, (5, math.sqrt(13)), 2)
    assert distance(tmp_path, a, a).differing == 0


def test_a_tensor_of_zeros_has_neither_relative_distance_nor_angle(tmp_path):
    found = distance(tmp_path, torch.zeros(3), torch.ones(3))
    assert (found.relative_distance, found.cosine, found.largest) == (None, None, 1)
    same = distance(tmp_path, torch.zeros(3), torch.zeros(3))
    assert (same.relative_distance, same.cosine, same.differing) == (0, None, 0)


@pytest.mark.parametrize("step", [1 << 17, 2])
def test_figures_whose_squares_leave_float64_are_infinite_zero_or_unknown(
    tmp_path, monkeypatch, step
):
    monkeypatch.setattr(chunks, "CHUNK", step)
    large = torch.tensor([3e200, 4e200, 1e200], dtype=torch.float64)
    found = distance(tmp_path, large, 2 * large)
    assert (found.distance, found.norms, found.largest) == (math.inf, (math.inf, math.inf), 4e200)
    assert (found.relative_distance, found.cosine) == (None, None)
    small = torch.tensor([3e-200, 4e-200, 1e-200], dtype=torch.float64)
    found = distance(tmp_path, small, 2 * small)
    assert (found.differing, found.distance, found.norms, found.largest) == (3, 0, (0, 0), 4e-200)
    assert (found.relative_distance, found.cosine) == (None, None)


def test_the_difference_of_the_largest_numbers_is_infinite(tmp_path):
    top = torch.tensor([1.7e308], dtype=torch.float64)
    found = distance(tmp_path, top, -top)
    assert (found.differing, found.largest, found.relative_distance) == (1, math.inf, None)


def test_empty_tensors_are_the_same(tmp_path):
    found = distance(tmp_path, torch.empty(0, 3), torch.empty(0, 3))
    assert (found.differing, found.elements, found.relative_distance) == (0, 0, 0)


def test_strides_do_not_matter(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"w": base.t()}, tmp_path / "a.pt")
    torch.save({"w": base.t().contiguous()}, tmp_path / "b.pt")
    assert diff(tmp_path / "a.pt", tmp_path / "b.pt").same


def test_the_farthest_come_first_and_steps_do_not_drown_the_total(tmp_path):
    a = {"near": ONES, "far": ONES, "same": ONES, "nan": ONES, "zero": 0 * ONES, "step": ONES.int()}
    b = a | {"near": 1.1 * ONES, "far": 3 * ONES, "nan": math.nan * ONES, "zero": ONES}
    found = diff(*both(tmp_path, a, b | {"step": 9000 * ONES.int()}))
    names = [each.name for each in found.distances]
    assert names == ["nan", "zero", "step", "far", "near", "same"]
    assert found.identical == 1
    assert found.total.elements == 10
    squares = 2 * (0.1**2 + 2**2 + 1)
    assert found.total.relative_distance == pytest.approx(math.sqrt(squares / 6), rel=1e-6)


def test_tied_tensors_count_once_in_the_total(tmp_path):
    for name, value in (("a", 1.0), ("b", 3.0)):
        shared = torch.full((2,), value)
        torch.save({"x": shared, "y": shared, "z": torch.ones(4)}, tmp_path / f"{name}.pt")
    found = diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert [each.name for each in found.distances] == ["x", "y", "z"]
    assert found.total.distance == pytest.approx(math.sqrt(8))
    assert found.total.elements == 6


@pytest.mark.slow
@pytest.mark.parametrize("codes", [("BF16", "BF16"), ("F32", "F16"), ("F64", "F64")])
def test_files_larger_than_the_promise_are_compared_within_it(tmp_path, codes):
    paths = []
    for name, code in zip("ab", codes, strict=True):
        itemsize = BY_SAFETENSORS[code].itemsize
        path = sparse(tmp_path / f"{name}.safetensors", [16 * MIB], code, itemsize)
        with open(path, "r+b") as file:
            file.seek(-itemsize, 2)
            file.write(bytes([1] * itemsize) if name == "a" else bytes(itemsize))
        paths.append(path)
    code = (
        "import sys\nfrom swavg.analysis import diff\n"
        "assert diff(*sys.argv[1:]).distances[0].differing == 1\n"
        "import re\nstatus = open('/proc/self/status').read()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])"
    )
    done = make.python(code, *paths)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 <= PROMISE
