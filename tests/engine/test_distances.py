"""How far inputs lie from the average, and what is said of those that look wrong."""

import numpy as np
import pytest
import torch
from checkpoints import planned, save, state

import swavg
from swavg import Resources


def report(tmp_path, tensors, **more):
    paths = [save(tmp_path / f"{i}.safetensors", t) for i, t in enumerate(tensors)]
    return swavg.average(paths, output=tmp_path / "out.safetensors", force=True, **more)


def test_distances_and_cosines_are_those_of_the_whole_when_all_is_sampled(tmp_path):
    states = [{"x": torch.randn(500, generator=torch.Generator().manual_seed(i)) + 3}
              for i in range(3)]  # fmt: skip
    found = report(tmp_path, states)
    rows = [each["x"].double().numpy() for each in states]
    average = np.mean(rows, axis=0)
    for entry, row in zip(found.inputs, rows, strict=True):
        distance = np.linalg.norm(row - average) / np.linalg.norm(average)
        cosine = row @ average / np.linalg.norm(row) / np.linalg.norm(average)
        assert entry.relative_distance == pytest.approx(distance, rel=1e-6)
        assert entry.cosine == pytest.approx(cosine, rel=1e-6)
    assert found.warnings == ()


def test_the_numbers_depend_neither_on_chunks_nor_on_workers(tmp_path):
    states = [{"x": torch.randn(70_000), "y": torch.randn(3000)} for _ in range(2)]
    paths = [save(tmp_path / f"{i}.safetensors", t) for i, t in enumerate(states)]
    found = []
    for cut, resources in ((1 << 30, Resources(threads=1)), (1000, Resources(threads=3)),
                           (70_000, Resources(threads=2, memory=1 << 19))):  # fmt: skip
        plan = planned(paths, tmp_path / "out.safetensors", cut=cut, force=True)
        (made,) = swavg.execute(plan, resources)
        found.append([(entry.relative_distance, entry.cosine) for entry in made.inputs])
    assert found[0] == found[1] == found[2]


def test_an_identical_input_is_named(tmp_path):
    same = {"x": torch.randn(100) + 3}
    found = report(tmp_path, [same, same, {"x": same["x"] + 0.1 * torch.randn(100)}])
    assert found.warnings == ("1.safetensors looks identical to 0.safetensors",)


def test_an_input_of_another_run_is_named(tmp_path):
    base = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    near = [{"x": base + 0.05 * torch.randn(2000)} for _ in range(4)]
    other = {"x": torch.randn(2000, generator=torch.Generator().manual_seed(9))}
    found = report(tmp_path, [*near, other])
    assert len(found.warnings) == 1
    assert "4.safetensors points elsewhere" in found.warnings[0]


def test_one_of_next_to_no_weight_does_no_harm_wherever_it_lies(tmp_path):
    base = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    for seed in range(10):
        save(tmp_path / f"{seed}.safetensors", {"x": base + seed / 1000})
    save(tmp_path / "other.safetensors", {"x": -base})
    paths = sorted(tmp_path.iterdir())
    for weight, said in ((0.001, 0), (0.02, 1)):
        weights = [(1 - weight) / 10] * 10 + [weight]
        found = swavg.average(paths, weights, output=tmp_path / "out" / "a.pt", force=True)
        assert len(found.warnings) == said


def test_many_of_another_run_are_named_in_one_line(tmp_path):
    base = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    found = report(tmp_path, [{"x": base}] * 12 + [{"x": -base * n} for n in range(1, 5)])
    (warning,) = (text for text in found.warnings if "identical" not in text)
    assert warning.startswith("4 inputs point elsewhere: 12.safetensors, 13.safetensors and 2 more")


def test_inputs_that_have_nothing_in_common_are_said(tmp_path):
    found = report(tmp_path, [{"x": torch.randn(3000)} for _ in range(2)])
    assert "hardly point the same way" in found.warnings[0]


def test_a_far_one_of_the_same_direction_is_named(tmp_path):
    base = torch.randn(2000) + 3
    near = [{"x": base + 0.001 * torch.randn(2000)} for _ in range(5)]
    found = report(tmp_path, [*near, {"x": base * 1.2}])
    assert len(found.warnings) == 1
    assert "5.safetensors is far off" in found.warnings[0]


def test_it_can_be_turned_off(tmp_path):
    found = report(tmp_path, [state(1), state(2)], distances=False)
    assert [entry.relative_distance for entry in found.inputs] == [None, None]
