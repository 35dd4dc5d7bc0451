"""Several outputs from one read: each the bits of its own run, all or nothing."""

import numpy as np
import pytest
import torch
from checkpoints import load, save, series, state

import swavg
from swavg import Policy
from swavg.averaging import prepare_many
from swavg.formats.files import FilePool
from swavg.job import Wanted, run_together

WEIGHTS = [
    ((0, 1, 2), (1 / 3, 1 / 3, 1 / 3)),
    ((1, 2), (0.5, 0.5)),
    ((0, 1, 2), (0.7, 0.4, -0.1)),
    ((2,), (1.0,)),
]


def wanted(folder, suffix):
    return [
        Wanted(folder / f"{index}{suffix}", weights, members)
        for index, (members, weights) in enumerate(WEIGHTS)
    ]


def alone(paths, index, out):
    members, weights = WEIGHTS[index]
    swavg.average([paths[i] for i in members], weights, output=out, geometry=False)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_output_has_the_bytes_of_its_own_run(tmp_path, dtype):
    paths = series(tmp_path / "in", dtype=dtype)
    (tmp_path / "out").mkdir()
    run_together(prepare_many(paths, wanted(tmp_path / "out", ".safetensors")))
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
    pairs = [Wanted(out / "a.pt", (0.5, 0.5), (0, 1)), Wanted(out / "b.pt", (0.5, 0.5), (1, 2))]
    run_together(prepare_many(paths, pairs))
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
    run_together(prepare_many(paths, wanted(out, "")))
    for index in range(len(WEIGHTS)):
        single = alone(paths, index, tmp_path / f"alone-{index}")
        for file in ("model.safetensors", "config.json"):
            assert (out / str(index) / file).read_bytes() == (single / file).read_bytes()


def test_each_input_is_read_once_however_many_outputs(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{i}.safetensors", {"x": torch.randn(10_000)}) for i in range(3)]
    asked = []
    read_into = FilePool.read_into

    def counted(self, file, offset, target):
        asked.append(len(target))
        read_into(self, file, offset, target)

    monkeypatch.setattr(FilePool, "read_into", counted)
    (tmp_path / "out").mkdir()
    jobs = prepare_many(paths, wanted(tmp_path / "out", ".safetensors"), geometry=False)
    run_together(jobs)
    assert sum(asked) == 3 * 40_000


def test_one_output_that_fails_leaves_none(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.full((4,), value)})
        for i, value in enumerate((1.0, 2.0, float("nan")))
    ]
    out = tmp_path / "out"
    out.mkdir()
    rows = [Wanted(out / "good.st", (0.5, 0.5), (0, 1)), Wanted(out / "bad.st", (0.5, 0.5), (1, 2))]
    with pytest.raises(swavg.NumericsError, match="is NaN"):
        run_together(prepare_many(paths, rows))
    assert list(out.iterdir()) == []


def test_a_nan_in_an_input_that_a_row_leaves_out_does_not_touch_it(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.full((4,), value)})
        for i, value in enumerate((1.0, 2.0, float("nan")))
    ]
    rows = [Wanted(tmp_path / f"{i}.st", (0.5, 0.5), (0, 1)) for i in range(2)]
    run_together(prepare_many(paths, rows))
    assert load(tmp_path / "1.st")["x"].tolist() == [1.5] * 4


def test_outputs_of_different_shape_are_run_one_after_the_other(tmp_path):
    one = save(tmp_path / "1.safetensors", state(1))
    two = save(tmp_path / "2.safetensors", state(2, extra=torch.ones(5)))
    rows = [Wanted(tmp_path / "a.st", (1.0,), (0,)), Wanted(tmp_path / "b.st", (0.5, 0.5), (0, 1))]
    jobs = prepare_many([one, two], rows, policy=Policy(strict=False))
    run_together(jobs)
    assert "extra" not in load(tmp_path / "a.st")
    assert torch.equal(load(tmp_path / "b.st")["extra"], torch.ones(5))


def test_outputs_that_fit_alone_but_not_together_are_refused_at_once(tmp_path, monkeypatch):
    paths = series(tmp_path / "in")
    (tmp_path / "out").mkdir()
    jobs = prepare_many(paths, wanted(tmp_path / "out", ".safetensors"))
    largest = max(job.output.size for job in jobs)
    facts = type("Facts", (), {"f_bavail": largest, "f_frsize": 1, "f_blocks": 1})
    monkeypatch.setattr("os.statvfs", lambda path: facts)
    with pytest.raises(swavg.OutputError, match="are free"):
        run_together(jobs)
    assert list((tmp_path / "out").iterdir()) == []


class TestGeometry:
    def report(self, tmp_path, tensors, **more):
        paths = [save(tmp_path / f"{i}.safetensors", t) for i, t in enumerate(tensors)]
        return swavg.average(paths, output=tmp_path / "out.safetensors", force=True, **more)

    def test_distances_and_cosines_are_those_of_the_whole_when_all_is_sampled(self, tmp_path):
        states = [{"x": torch.randn(500, generator=torch.Generator().manual_seed(i)) + 3}
                  for i in range(3)]  # fmt: skip
        report = self.report(tmp_path, states)
        rows = [each["x"].double().numpy() for each in states]
        average = np.mean(rows, axis=0)
        for entry, row in zip(report.inputs, rows, strict=True):
            distance = np.linalg.norm(row - average) / np.linalg.norm(average)
            cosine = row @ average / np.linalg.norm(row) / np.linalg.norm(average)
            assert entry.distance == pytest.approx(distance, rel=1e-6)
            assert entry.cosine == pytest.approx(cosine, rel=1e-6)
        assert report.warnings == ()

    def test_the_numbers_do_not_depend_on_chunks(self, tmp_path, monkeypatch):
        states = [{"x": torch.randn(70_000)} for _ in range(2)]
        before = self.report(tmp_path, states)
        monkeypatch.setattr("swavg.pieces._BLOCK", 1 << 14)
        after = self.report(tmp_path, states)
        assert [i.distance for i in before.inputs] == [i.distance for i in after.inputs]

    def test_an_identical_input_is_named(self, tmp_path):
        same = {"x": torch.randn(100) + 3}
        report = self.report(tmp_path, [same, same, {"x": same["x"] + 0.1 * torch.randn(100)}])
        assert report.warnings == ("1.safetensors looks identical to 0.safetensors",)

    def test_an_input_of_another_run_is_named(self, tmp_path):
        base = torch.randn(2000, generator=torch.Generator().manual_seed(0))
        near = [{"x": base + 0.05 * torch.randn(2000)} for _ in range(4)]
        other = {"x": torch.randn(2000, generator=torch.Generator().manual_seed(9))}
        report = self.report(tmp_path, [*near, other])
        assert len(report.warnings) == 1
        assert "4.safetensors points elsewhere" in report.warnings[0]

    def test_inputs_that_have_nothing_in_common_are_said(self, tmp_path):
        report = self.report(tmp_path, [{"x": torch.randn(3000)} for _ in range(2)])
        assert "hardly point the same way" in report.warnings[0]

    def test_a_far_one_of_the_same_direction_is_named(self, tmp_path):
        base = torch.randn(2000) + 3
        near = [{"x": base + 0.001 * torch.randn(2000)} for _ in range(5)]
        report = self.report(tmp_path, [*near, {"x": base * 1.2}])
        assert len(report.warnings) == 1
        assert "5.safetensors is far off" in report.warnings[0]

    def test_it_can_be_turned_off(self, tmp_path):
        report = self.report(tmp_path, [state(1), state(2)], geometry=False)
        assert [entry.distance for entry in report.inputs] == [None, None]
