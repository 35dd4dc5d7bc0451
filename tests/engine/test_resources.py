"""How many workers there are and how large their blocks: within the memory, or refused."""

import pytest
import torch
from checkpoints import planned, save, series

import swavg
from swavg import Policy, Resources, Row
from swavg.engine.resources import DEFAULT_MEMORY, Needs, processors, sizes

MIB = 1 << 20


@pytest.fixture
def plan(tmp_path):
    return planned(series(tmp_path), tmp_path / "out.safetensors")


def chosen(plan, *, forked=False, **resources):
    return sizes(plan, Resources(**resources), forked=forked)


def test_the_memory_is_kept(plan):
    for memory in (MIB, 4 * MIB, 64 * MIB):
        assert chosen(plan, memory=memory).memory <= memory


def test_too_little_memory_is_refused_with_the_least_that_does(plan):
    with pytest.raises(swavg.RequestError, match=r"too little: at least [\d,]+ are") as caught:
        chosen(plan, memory=1000)
    least = int(caught.value.message.split("at least ")[1].split()[0].replace(",", ""))
    assert chosen(plan, memory=least).workers == 1
    with pytest.raises(swavg.RequestError):
        chosen(plan, memory=least - 1)


def test_by_default_there_is_a_worker_for_each_processor_up_to_eight(plan):
    assert Resources().workers == min(8, processors())
    assert chosen(plan).memory <= DEFAULT_MEMORY


def test_more_workers_may_use_more_memory(plan):
    many = chosen(plan, threads=64, forked=True)
    assert many.workers > 8
    assert many.memory <= DEFAULT_MEMORY + 56 * 4 * MIB


def test_less_than_one_worker_is_refused(plan):
    with pytest.raises(swavg.RequestError, match="threads is at least 1"):
        chosen(plan, threads=0)


def test_smaller_blocks_go_before_fewer_workers(plan):
    ample = chosen(plan, threads=4, memory=256 * MIB)
    scarce = chosen(plan, threads=4, memory=ample.memory - 1)
    assert ample.workers == scarce.workers == 4
    assert ample.elements == 2 * scarce.elements
    assert chosen(plan, threads=4, memory=4 * MIB).workers < 4


def test_what_entries_need_follows_from_their_dtypes(tmp_path):
    def needs(dtype, rows=1, policy=None, **more):
        path = save(tmp_path / "in.safetensors", {"x": torch.ones(4, dtype=dtype)})
        made = [Row((1.0,), (0,))] * rows
        outputs = [tmp_path / f"{row}.safetensors" for row in range(rows)]
        return Needs.of(swavg.prepare([path], made, outputs, policy))

    assert needs(torch.bfloat16) == Needs(2, 4, 2, 1, False)
    assert needs(torch.float32) == Needs(4, 8, 4, 1, False)
    assert needs(torch.complex64) == Needs(4, 8, 4, 1, False)
    assert needs(torch.bfloat16, policy=Policy(dtype="float64")) == Needs(2, 4, 8, 1, False)
    assert needs(torch.float16, rows=3) == Needs(2, 4, 2, 3, False)


def test_what_lies_apart_is_gathered(tmp_path):
    for index, turned in enumerate((False, True)):
        weight = torch.ones(4, 6)
        torch.save({"w": weight.t().contiguous().t() if turned else weight}, tmp_path / f"{index}")
    plan = planned([tmp_path / "0", tmp_path / "1"], tmp_path / "out.pt")
    assert Needs.of(plan).gathers
