"""NumPy arrays in PyTorch files: averaged as tensors are, and written as NumPy arrays again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import done, swavg

import swavg as library
from swavg import Policy, Resources, Row
from swavg.engine.average import execute, prepare
from swavg.errors import InputError, MismatchError, NumericsError
from swavg.formats import open_checkpoint
from swavg.formats.tensors import Shared

FILES = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


def save(path: Path, content: object, *, protocol: int = 2, legacy: bool = False) -> Path:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return path


def saved(folder: Path, *contents: object, **options: Any) -> list[Path]:
    return [save(folder / f"{i}.pt", each, **options) for i, each in enumerate(contents)]


def averaged(
    paths: list[Path], output: str = "out.pt", weights: list[float] | None = None, **policy: Any
) -> Any:
    out = paths[0].parent / output
    library.average(paths, weights, output=out, policy=Policy(**policy))
    return torch.load(out, weights_only=False)


def random(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of all kinds whose bytes are all sorts of bytes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((7, 5))
    return {
        "half": x.astype("f2"),
        "single": x.astype("f4"),
        "double": x,
        "complex": x.astype("c8"),
        "complex128": x + 1j * x[::-1],
        "fortran": np.asfortranarray(x),
        "view": x[::2, ::-1],
        "three": np.asfortranarray(rng.standard_normal((2, 3, 4))),
        "scalar": np.array(x[0, 0]),
        "empty": np.zeros((0, 3)),
        "large": rng.standard_normal(50_000).astype("f4"),
    }


def as_tensors(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@FILES
@PROTOCOLS
@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_arrays_have_the_bits_that_tensors_would_have(
    tmp_path: Path, protocol: int, legacy: bool, weights: list[float] | None
) -> None:
    contents = [{"model": {"w": torch.full((2,), float(i)), **random(i)}} for i in range(3)]
    paths = saved(tmp_path, *contents, protocol=protocol, legacy=legacy)
    (tmp_path / "tensors").mkdir()
    others = saved(tmp_path / "tensors", *({"model": as_tensors(random(i))} for i in range(3)))
    found, expected = averaged(paths, weights=weights), averaged(others, weights=weights)
    assert list(found["model"]) == ["w", *expected["model"]]
    for name, tensor in expected["model"].items():
        array = found["model"][name]
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (tensor.numpy().dtype, tuple(tensor.shape))
        assert array.tobytes() == tensor.numpy().tobytes(), name
    assert found["model"]["fortran"].flags.f_contiguous
    # An average can be averaged.
    again = averaged([tmp_path / "out.pt", tmp_path / "out.pt"], "again.pt")
    assert all(np.array_equal(again["model"][n], found["model"][n]) for n in random(0))


@PROTOCOLS
def test_a_zip_is_whole_and_all_else_is_kept(tmp_path: Path, protocol: int) -> None:
    def content(value: float) -> object:
        shared = np.full(3, value)
        return {
            "epoch": value,
            "optimizer": {"state": {0: {"m": np.full(3, value)}}, "param_groups": []},
            "model": {"w": torch.full((2,), value), "a": shared, "tied": shared, "n": np.int64(7)},
            "random": ("MT19937", np.arange(624, dtype="u4") + int(value), 624),
        }

    paths = saved(tmp_path, content(1.0), content(2.0), protocol=protocol)
    found = averaged(paths)
    assert zipfile.ZipFile(tmp_path / "out.pt").testzip() is None
    assert (found["epoch"], found["optimizer"]["state"][0]["m"].tolist()) == (2, [2, 2, 2])
    assert found["random"][1][0] == 2
    model = found["model"]
    assert model["a"].tolist() == [1.5, 1.5, 1.5]
    assert model["tied"] is model["a"]
    assert (type(model["n"]), model["w"].tolist()) == (np.int64, [1.5, 1.5])


def test_torch_reads_them_without_code_too(tmp_path: Path) -> None:
    averaged(saved(tmp_path, *({"w": torch.ones(2), "a": np.full(3, float(i))} for i in (1, 2))))
    rebuild = np.zeros(1).__reduce__()[0]
    safe = [rebuild, np.ndarray, np.dtype, type(np.dtype("f8"))]
    with torch.serialization.safe_globals(safe):
        found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["a"].tolist() == [1.5, 1.5, 1.5]


@FILES
def test_equal_arrays_keep_the_bytes_of_the_file(tmp_path: Path, legacy: bool) -> None:
    paths = saved(
        tmp_path,
        *({"w": torch.full((2,), float(i)), "a": np.arange(9) / 7} for i in range(2)),
        legacy=legacy,
    )
    averaged(paths)
    if legacy:
        new, old = (path.read_bytes()[:-8] for path in (tmp_path / "out.pt", paths[1]))
    else:
        new, old = (
            zipfile.ZipFile(path).read("1/data.pkl") for path in (tmp_path / "out.pt", paths[1])
        )
    assert new == old


@FILES
@PROTOCOLS
def test_other_formats_get_tensors(tmp_path: Path, protocol: int, legacy: bool) -> None:
    contents = [{"w": torch.ones(2), "a": {"mean": np.full((2, 3), i, "f4")}} for i in range(2)]
    paths = saved(tmp_path, *contents, protocol=protocol, legacy=legacy)
    library.average(paths, output=tmp_path / "out.safetensors")
    assert (open_checkpoint(tmp_path / "out.safetensors").read("a.mean") == 0.5).all()
    found = averaged(paths, weights_only=True)
    assert torch.equal(found["a.mean"], torch.full((2, 3), 0.5))


@pytest.mark.parametrize(
    "held",
    [
        lambda i: {"norm": {"mean": np.full((2, 2), i, "f8"), "count": 5}},
        lambda i: {"means": [np.full(3, i, "f4"), np.full(2, i, "f4")]},
    ],
    ids=["dictionary", "list"],
)
def test_containers_of_arrays_are_part_of_the_state_dict(
    tmp_path: Path, held: Callable[[int], dict[str, Any]]
) -> None:
    paths = saved(tmp_path, *({"model": {"w": torch.ones(2), **held(i)}} for i in range(2)))
    found = averaged(paths)["model"]
    array = found["norm"]["mean"] if "norm" in found else found["means"][1]
    assert (array == 0.5).all()


@FILES
def test_a_file_of_arrays_alone(tmp_path: Path, legacy: bool) -> None:
    paths = saved(tmp_path, *({"a": np.full(3, i, "f4")} for i in range(2)), legacy=legacy)
    assert averaged(paths)["a"].tolist() == [0.5, 0.5, 0.5]
    nested = [{"model": {"layer": {"a": np.full(3, i, "f4")}}, "epoch": i} for i in range(2)]
    found = averaged(saved(tmp_path, *nested, legacy=legacy), "nested.pt")
    assert (found["model"]["layer"]["a"][0], found["epoch"]) == (0.5, 1)


def test_integers_follow_their_rule(tmp_path: Path) -> None:
    def paths(*arrays: object) -> list[Path]:
        return saved(tmp_path, *({"w": torch.ones(2), "n": array} for array in arrays))

    counters = paths(np.array([3]), np.array([5]))
    report = library.average(counters, output=tmp_path / "out.pt")
    assert report.differing_integers == ("n",)
    assert torch.load(tmp_path / "out.pt", weights_only=False)["n"] == 5
    assert averaged(counters, "mean.pt", integers="mean")["n"] == 4
    differing = paths(np.array([3, 4]), np.array([5, 6]))
    with pytest.raises(MismatchError, match=r"'n' \(int64 \[2\]\) differs"):
        averaged(differing, "no.pt")
    assert averaged(differing, "max.pt", integers="max")["n"].tolist() == [5, 6]


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    paths = saved(
        tmp_path, *({"w": torch.ones(2), "a": np.array([1, x])} for x in (2.0, float("nan")))
    )
    with pytest.raises(NumericsError, match=r"1.pt: 'a' at \[1\] is NaN"):
        averaged(paths)
    assert not (tmp_path / "out.pt").exists()
    report = library.average(paths, output=tmp_path / "o.pt", policy=Policy(allow_nonfinite=True))
    assert report.nonfinite == ("a",)


def test_what_some_inputs_lack_is_refused(tmp_path: Path) -> None:
    paths = saved(tmp_path, {"w": torch.ones(2), "a": np.ones(2)}, {"w": torch.ones(2)})
    with pytest.raises(MismatchError, match="'a' is missing"):
        averaged(paths)


def test_globs_and_dtypes(tmp_path: Path) -> None:
    paths = saved(tmp_path, *({"w": torch.ones(2), "a": np.full(2, i, "f4")} for i in (1, 2)))
    assert averaged(paths, exclude=("a",))["a"].tolist() == [2, 2]
    # In another dtype it has another place.
    found = averaged(paths, "wide.pt", dtype="float64")["a"]
    assert torch.equal(found, torch.full((2,), 1.5, dtype=torch.float64))


def test_what_is_not_averaged_is_named(tmp_path: Path) -> None:
    def content(i: int) -> object:
        return {
            "w": torch.ones(2),
            "objects": np.array([None, i]),
            "big": np.full((1 << 17) + 1, i, "f8"),
            "endian": np.full(2, i, ">f4"),
            "byte": np.array([True]),
            "records": np.zeros(2, [("x", "f4")]),
            "just": np.full(1 << 17, i / 3, "f8"),
        }

    run = done("average", *saved(tmp_path, content(0), content(1)), "-o", "o.pt", cwd=tmp_path)
    told = " ".join(run.stderr.split())
    assert "in the output at all: 'objects', 'big', 'endian', 'byte' and 1 more." in told
    found = torch.load(tmp_path / "o.pt", weights_only=False)
    assert (found["big"][0], found["just"][-1]) == (1, 1 / 6)


@PROTOCOLS
def test_in_every_state_dict_of_a_file(tmp_path: Path, protocol: int) -> None:
    def part(i: int) -> dict[str, object]:
        return {"w": torch.full((3,), float(i)), "mean": np.full(2, float(i))}

    contents = ({"model": part(i), "ema": part(10 + i)} for i in range(2))
    found = averaged(saved(tmp_path, *contents, protocol=protocol))
    assert (found["model"]["mean"][0], found["ema"]["mean"][0]) == (0.5, 10.5)


def test_several_outputs_of_one_read(tmp_path: Path) -> None:
    paths = saved(tmp_path, *({"w": torch.ones(2), "a": np.full(2, float(i))} for i in range(3)))
    rows = [Row((0.25, 0.75), (0, 1)), Row((0.5, 0.5), (1, 2))]
    outputs = [tmp_path / "one.pt", tmp_path / "two.pt"]
    execute(prepare(paths, rows, outputs))
    found = [torch.load(path, weights_only=False)["a"][0] for path in outputs]
    assert found == [0.75, 1.5]


def test_checksums_hold(tmp_path: Path) -> None:
    paths = saved(tmp_path, *({"w": torch.ones(2), "a": np.full(9, i / 7)} for i in range(2)))
    library.average(paths, output=tmp_path / "o.pt", resources=Resources(check_crc=True))


def test_inspect_and_diff_treat_them_as_tensors(tmp_path: Path) -> None:
    paths = saved(tmp_path, *({"w": torch.ones(2), "a": np.full(9, i / 7)} for i in range(2)))
    tensors = {
        each["name"]: each
        for each in json.loads(done("inspect", paths[0], "--json").stdout)["tensors"]
    }
    assert tensors["a"]["shape"] == [9]
    run = swavg("diff", *paths)
    assert (run.returncode, "1 tensor identical, 1 differ" in run.stdout) == (3, True)


@FILES
def test_many_near_each_other_are_read_at_once(tmp_path: Path, legacy: bool) -> None:
    contents = [
        {"w": torch.ones(2), **{f"a{n}": np.full(n + 1, n + i / 2) for n in range(300)}}
        for i in range(2)
    ]
    paths = saved(tmp_path, *contents, legacy=legacy)
    found = averaged(paths)
    for n in range(300):
        assert (found[f"a{n}"] == n + 0.25).all()
    checkpoint = open_checkpoint(paths[1])
    assert (checkpoint.read("a299") == 299.5).all()


@PROTOCOLS
@pytest.mark.parametrize("other", [(3,), (3, 1)], ids=["tied", "of another shape"])
def test_arrays_that_share_their_bytes(
    tmp_path: Path, protocol: int, other: tuple[int, ...]
) -> None:
    class Shares:
        """Makes an array of another one's bytes."""

        def __init__(self, data: bytes, shape: tuple[int, ...]) -> None:
            self.data, self.shape = data, shape

        def __reduce__(self) -> tuple[Any, ...]:
            make, args = np.zeros(2, "f4").__reduce__()[:2]
            return make, args, (1, self.shape, np.dtype("f4"), False, self.data)

    def content(i: int) -> object:
        data = np.full(3, i + 1 / 3, "f4").tobytes()
        return {"w": torch.ones(2), "a": Shares(data, (3,)), "b": Shares(data, other)}

    found = averaged(saved(tmp_path, content(0), content(1), protocol=protocol))
    assert found["a"].shape == (3,)
    assert found["b"].shape == other
    assert found["a"].sum() == found["b"].sum() == pytest.approx(2.5)


@PROTOCOLS
def test_checkpoints_of_one_run_lie_alike(tmp_path: Path, protocol: int) -> None:
    def content(i: int) -> object:
        whole = torch.full((6,), float(i))
        return {"whole": whole, "part": whole[2:5], "a": np.full(9, i / 7), "epoch": i}

    paths = saved(tmp_path, {"model": content(0)}, {"model": content(1)}, protocol=protocol)
    shared = Shared()
    tables = [open_checkpoint(path, shared=shared).tensors for path in paths]
    assert tables[0].columns is tables[1].columns
    # So a view inside of another tensor stays one.
    found = averaged(paths)["model"]
    assert (found["part"][0], found["a"][0], found["epoch"]) == (0.5, 1 / 14, 1)


def test_a_file_that_changed_is_an_error(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, {"w": torch.ones(2), "a": np.full(3, 1 / 7)})
    checkpoint = open_checkpoint(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\xc2\x92", b"\xff\xff"))
    with pytest.raises(InputError, match="changed while it was read"):
        checkpoint.read("a")
    with pytest.raises(InputError, match="its pickle cannot be read"):
        open_checkpoint(path)
