"""Regions that hold a part of their tensor, as a rank of a sharded model does."""

from dataclasses import replace

import pytest
from checkpoints import load, series
from plans import close, open_sinks, results_of

import swavg
from swavg.engine.executors import part


@pytest.mark.parametrize("cut", [8, 36, 100, 1 << 20])
@pytest.mark.parametrize("rows", [(0, 2), (2, 5), (6, 7), (3, 3)])
def test_a_region_may_hold_some_elements_of_its_tensor(cut, rows, tmp_path):
    paths = series(tmp_path / "run")
    plan = swavg.prepare(
        paths, [swavg.Row((1 / 3,) * 3, (0, 1, 2))], [tmp_path / "a"], distances=False
    )
    (output,) = plan.outputs
    (file,) = output.files
    names = [file.layout.specs.names[number] for number in file.tensors]
    region = names.index("body.weight")
    begin, end = 5 * rows[0], 5 * rows[1]
    file = replace(file, parts={region: (begin, end)})
    plan = replace(plan, outputs=(replace(output, files=(file,)),), cut=cut)
    sinks = open_sinks(plan, tmp_path)
    written = sum(result.written for result in results_of(plan, part(0, 1), sinks))
    close(sinks)
    data = (tmp_path / "0-0").read_bytes()
    swavg.average(paths, output=tmp_path / "whole.safetensors")
    whole = load(tmp_path / "whole.safetensors")
    assert written == sum(t.nbytes for t in whole.values()) - 4 * (35 - (end - begin))
    for number, name in enumerate(names):
        expected = whole[name].view(-1)
        if number == region:
            expected = expected[begin:end]
        offset = file.offsets[number]
        assert data[offset:][: expected.nbytes] == expected.numpy().tobytes(), name
