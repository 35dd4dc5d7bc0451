"""Several outputs from one read: each the bits of its own run, all or nothing."""

import pytest
import torch
from checkpoints import load, save, series, state

import swavg
from swavg import Policy, Row
from swavg.storage.pool import Pool

WEIGHTS = [
    ((0, 1, 2), (1 / 3, 1 / 3, 1 / 3)),
    ((1, 2), (0.5, 0.5)),
    ((0, 1, 2), (0.7, 0.4, -0.1)),
    ((2,), (1.0,)),
]


def prepared(paths, folder, suffix="", **more):
    """A plan of all rows, each to a file of its number."""
    rows = [Row(weights, members) for members, weights in WEIGHTS]
    outputs = [folder / f"{index}{suffix}" for index in range(len(rows))]
    return swavg.prepare(paths, rows, outputs, **more)


def execute(paths, rows, outputs, policy=None):
    """Rows of weights and members, to these outputs."""
    made = [Row(weights, members) for weights, members in rows]
    return swavg.execute(swavg.prepare(paths, made, outputs, policy))


def alone(paths, index, out):
    members, weights = WEIGHTS[index]
    swavg.average([paths[i] for i in members], weights, output=out, distances=False)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_output_has_the_bytes_of_its_own_run(tmp_path, dtype):
    paths = series(tmp_path / "in", dtype=dtype)
    (tmp_path / "out").mkdir()
    swavg.execute(prepared(paths, tmp_path / "out", ".safetensors"))
    for index in range(len(WEIGHTS)):
        single = alone(paths, index, tmp_path / f"alone-{index}.safetensors")
        together = tmp_path / "out" / f"{index}.safetensors"
        assert together.read_bytes() == single.read_bytes()


def test_pt_outputs_keep_the_rest_of_their_own_last_input(tmp_path):
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.pt")
        torch.save({"state_dict": state(index), "epoch": index}, paths[-1])
    out = tmp_path / "out"
    out.mkdir()
    rows = [((0.5, 0.5), (0, 1)), ((0.5, 0.5), (1, 2))]
    execute(paths, rows, [out / "a.pt", out / "b.pt"])
    for name, members in (("a", (0, 1)), ("b", (1, 2))):
        single = tmp_path / f"{name}.pt"
        swavg.average([paths[i] for i in members], output=single)
        assert (out / f"{name}.pt").read_bytes() == single.read_bytes()
        assert torch.load(single)["epoch"] == members[-1]


def test_folders_are_written_side_by_side(tmp_path):
    from safetensors.torch import save_file

    paths = []
    for index in range(3):
        folder = tmp_path / f"in-{index}"
        folder.mkdir()
        save_file(state(index), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(f'{{"i": {index}}}')
        paths.append(folder)
    out = tmp_path / "out"
    out.mkdir()
    swavg.execute(prepared(paths, out))
    for index in range(len(WEIGHTS)):
        single = alone(paths, index, tmp_path / f"alone-{index}")
        for file in ("model.safetensors", "config.json"):
            assert (out / str(index) / file).read_bytes() == (single / file).read_bytes()


def test_each_input_is_read_once_however_many_outputs(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{i}.safetensors", {"x": torch.randn(10_000)}) for i in range(3)]
    asked = []
    read_into = Pool.read_into

    def counted(self, source, offset, out):
        asked.append(len(out))
        read_into(self, source, offset, out)

    (tmp_path / "out").mkdir()
    plan = prepared(paths, tmp_path / "out", ".safetensors", distances=False)
    monkeypatch.setattr(Pool, "read_into", counted)
    reports = swavg.execute(plan)
    assert sum(asked) == 3 * 40_000
    assert [report.read for report in reports] == [3 * 40_000, 0, 0, 0]


def test_one_output_that_fails_leaves_none(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.full((4,), value)})
        for i, value in enumerate((1.0, 2.0, float("nan")))
    ]
    out = tmp_path / "out"
    out.mkdir()
    rows = [((0.5, 0.5), (0, 1)), ((0.5, 0.5), (1, 2))]
    with pytest.raises(swavg.NumericsError, match="is NaN"):
        execute(paths, rows, [out / "good.st", out / "bad.st"])
    assert list(out.iterdir()) == []


def test_a_nan_in_an_input_that_a_row_leaves_out_does_not_touch_it(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.full((4,), value)})
        for i, value in enumerate((1.0, 2.0, float("nan")))
    ]
    rows = [((0.5, 0.5), (0, 1)), ((0.5, 0.5), (0, 1))]
    execute(paths, rows, [tmp_path / "0.st", tmp_path / "1.st"])
    assert load(tmp_path / "1.st")["x"].tolist() == [1.5] * 4


def test_outputs_need_not_have_the_same_tensors(tmp_path):
    one = save(tmp_path / "1.safetensors", state(1))
    two = save(tmp_path / "2.safetensors", state(2, extra=torch.ones(5)))
    rows = [((1.0,), (0,)), ((0.5, 0.5), (0, 1))]
    execute([one, two], rows, [tmp_path / "a.st", tmp_path / "b.st"], Policy(strict=False))
    assert "extra" not in load(tmp_path / "a.st")
    assert torch.equal(load(tmp_path / "b.st")["extra"], torch.ones(5))


def test_outputs_that_fit_alone_but_not_together_are_refused_at_once(tmp_path, monkeypatch):
    paths = series(tmp_path / "in")
    (tmp_path / "out").mkdir()
    plan = prepared(paths, tmp_path / "out", ".safetensors")
    largest = max(output.size for output in plan.outputs)
    facts = type("Facts", (), {"f_bavail": largest, "f_frsize": 1, "f_blocks": 1})
    monkeypatch.setattr("os.statvfs", lambda path: facts)
    with pytest.raises(swavg.OutputError, match="are free"):
        swavg.execute(plan)
    assert list((tmp_path / "out").iterdir()) == []
