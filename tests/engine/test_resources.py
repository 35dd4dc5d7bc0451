"""How many workers there are and how large their blocks: within the memory, or refused."""

import tracemalloc

import pytest
import torch
from checkpoints import planned, save, series

import swavg
from swavg import Policy, Resources, Row
from swavg.engine.compute import run_task
from swavg.engine.resources import DEFAULT_MEMORY, Needs, processors, sizes
from swavg.engine.workers import tools_of

MIB = 1 << 20
CONSTANT = 2 * MIB
"""What a worker takes whatever its blocks: places of the sample, parts of what is converted."""


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
    assert scarce.elements == ample.elements * 3 // 4
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "policy", "rows", "device"),
    [
        (torch.bfloat16, Policy(), 1, "cpu"),
        (torch.float32, Policy(), 3, "cpu"),
        (torch.float32, Policy(dtype="bfloat16"), 1, "cpu"),
        (torch.float8_e4m3fn, Policy(), 2, "cpu"),
        (torch.int64, Policy(integers="mean"), 1, "cpu"),
        (torch.int8, Policy(integers="max"), 1, "cpu"),
        (torch.float32, Policy(), 3, "torch"),
    ],
)
@pytest.mark.parametrize("lies", ["packed", "turned"])
def test_a_worker_takes_no_more_than_is_counted(tmp_path, dtype, policy, rows, device, lies):
    """The buffers, and all that is allocated on the way."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for index in range(3):
        tensor = torch.randint(-50, 50, (1200, 1300), generator=generator).to(dtype)
        # Turned in one only: what is written in another order is read as it lies.
        tensor = tensor.t().contiguous().t() if lies == "turned" and index == 1 else tensor
        inputs.append(tmp_path / f"{index}.pt")
        torch.save({"w": tensor}, inputs[-1])
    made = [Row(weights, (0, 1, 2)) for weights in [(0.5, 0.25, 0.25), (0.2,) * 3, (1 / 3,) * 3]]
    outputs = [tmp_path / f"out{row}.pt" for row in range(rows)]
    plan = swavg.prepare(inputs, made[:rows], outputs, policy)
    resources = Resources(threads=1, memory=8 * MIB, device=device)
    counted = sizes(plan, resources, forked=False)
    make = tools_of(plan, counted, resources)
    sinks = [[Discards() for _ in output.files] for output in plan.outputs]
    with make() as warm:
        run_task(plan, 0, warm, sinks)
    tracemalloc.start()
    try:
        with make() as tools:
            for number in plan.tasks():
                run_task(plan, number, tools, sinks)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= counted.memory + CONSTANT


class Discards:
    """A sink that takes anything."""

    forks, fds = True, ()

    def pwrite(self, offset, data):
        pass
