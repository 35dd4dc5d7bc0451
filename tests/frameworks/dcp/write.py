"""Distributed checkpoints of one tiny model, written by each trainer's own saver on two ranks.

python write.py OUT
"""

import logging
import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

RANKS = 2


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
        self.down = nn.Linear(3, 1)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        return self.down(self.up(x.to(torch.bfloat16)).float())


def trained(seed, *, momentum=0.0):
    """The model after a step, sharded over all ranks, and its optimizer."""
    torch.manual_seed(seed)
    model = Tiny()
    model.count.fill_(seed)
    mesh = init_device_mesh("cpu", (RANKS,))
    for module in (model.up, model.down, model):
        fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


class State:
    """What a trainer asks for its state."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        raise NotImplementedError


def plain(out, step):
    model, optimizer = trained(step, momentum=0.9)
    state = {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(state, checkpoint_id=out / f"plain-{step}")
    return model, f"plain-{step}"


def application(out, step):
    model, _ = trained(step)
    dcp.save({"app": {"model": get_model_state_dict(model)}}, checkpoint_id=out / f"app-{step}")
    return model, f"app-{step}"


def torchtitan(out, step):
    from torchtitan.components.checkpoint import CheckpointManager

    model, optimizer = trained(step)
    # With names instead of numbers.
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    progress = {
        "step": torch.tensor(step, dtype=torch.int32),
        "ntokens_seen": torch.tensor(step * 100),
    }
    manager = CheckpointManager(
        CheckpointManager.Config(
            enable=True,
            interval=1,
            folder="torchtitan",
            keep_latest_k=0,
            last_save_model_only=False,
        ),
        dataloader=State({"dp_rank_0": b"position"}),
        model_parts=[model],
        optimizers=State(get_optimizer_state_dict(model, optimizer, options=flat)),
        lr_schedulers=State({"last_epoch": step}),
        states={"train_state": State(progress)},
        sd_adapter=None,
        base_folder=str(out),
    )
    manager.save(step)
    return model, f"torchtitan/step-{step}"


def lightning(out, step):
    from lightning.pytorch.strategies import FSDPStrategy

    model, optimizer = trained(step)
    name = f"lightning/epoch=0-step={step}.ckpt"
    strategy = SimpleNamespace(
        broadcast=lambda value: value, global_rank=dist.get_rank(), _state_dict_type="sharded"
    )
    checkpoint = {
        "epoch": 0,
        "global_step": step,
        "state_dict": get_model_state_dict(model),
        "optimizer_states": [get_optimizer_state_dict(model, optimizer)],
        "hyper_parameters": {"width": 3},
    }
    FSDPStrategy.save_checkpoint(strategy, checkpoint, out / name)
    return model, name


def olmo(out, step):
    from olmo_core.distributed.checkpoint import save_model_and_optim_state

    model, optimizer = trained(step)
    folder = out / f"olmo/step{step}"
    save_model_and_optim_state(str(folder / "model_and_optim"), model, optimizer)
    if dist.get_rank() == 0:
        (folder / ".metadata.json").write_text('{"version": "v2"}')
        (folder / "train").mkdir()
        torch.save({"global_step": step}, folder / "train/rank0.pt")
    return model, f"olmo/step{step}"


def accelerate(out, step):
    from accelerate.utils import fsdp_utils
    from torch.distributed.fsdp import StateDictType

    model, optimizer = trained(step)
    folder = out / f"accelerate/checkpoint-{step}"
    plugin = SimpleNamespace(
        state_dict_type=StateDictType.SHARDED_STATE_DICT,
        fsdp_version=2,
        state_dict_config=SimpleNamespace(offload_to_cpu=False, rank0_only=False),
        optim_state_dict_config=None,
        cpu_offload=False,
    )
    process = SimpleNamespace(
        process_index=dist.get_rank(), num_processes=RANKS, wait_for_everyone=dist.barrier
    )
    # Its own asks for an Accelerator.
    fsdp_utils.logger = logging.getLogger("accelerate")
    fsdp_utils.save_fsdp_model(plugin, process, model, str(folder))
    fsdp_utils.save_fsdp_optimizer(plugin, process, optimizer, model, str(folder))
    if dist.get_rank() == 0:
        torch.save({"last_epoch": step}, folder / "scheduler.bin")
    return model, f"accelerate/checkpoint-{step}"


def megatron(out, step):
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    # It asks for a device even where there is none.
    torch.cuda.synchronize, torch.cuda.current_device = lambda *_: None, lambda: "cpu"
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(RANKS, create_gloo_process_groups=True)
    model, _ = trained(step)
    rank = dist.get_rank()
    whole = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    state = {"iteration": step, "args": SimpleNamespace(lr=0.1)}
    for name, value in whole.items():
        if name == "up.weight":
            # By columns, as a row-parallel layer.
            part = value.chunk(RANKS, 1)[rank].contiguous()
            state[name] = ShardedTensor.from_rank_offsets(name, part, (1, rank, RANKS))
        else:
            state[name] = ShardedTensor.from_rank_offsets(name, value, replica_id=rank)
    key = "optimizer.state.exp_avg.up.weight"
    part = torch.full((3, 2), float(rank))
    state[key] = ShardedTensor.from_rank_offsets(key, part, (1, rank, RANKS))
    state["extra"] = ShardedObject("up._extra_state", None, (1,), (0,), replica_id=rank)
    folder = out / f"megatron/iter_{step:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(state, str(folder), ("torch_dist", 1))
    return model, f"megatron/iter_{step:07d}"


def shards(out, step):
    model, _ = trained(step)
    state = get_model_state_dict(model)
    folder = out / f"shards/step-{step}"
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(state, storage_writer=writer)
    return model, f"shards/step-{step}"


def main(out, rank):
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    expected = {}
    for save in (plain, application, torchtitan, lightning, olmo, accelerate, megatron, shards):
        for step in (10, 20):
            model, name = save(out, step)
            for key, value in model.state_dict().items():
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value
                # NumPy has no bfloat16.
                whole = whole.detach().float() if whole.is_floating_point() else whole
                expected[f"{name}/{key}"] = whole.numpy().copy()
            dist.barrier()
    if rank == 0:
        np.savez(out / "expected.npz", **expected)
        (out / "store").unlink()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 3:
        main(target, int(sys.argv[2]))
    target.mkdir(parents=True, exist_ok=True)
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(target), str(rank)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        for rank in range(RANKS)
    ]
    codes = [process.wait() for process in started]
    for process in started:
        # Megatron's writers outlive it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    sys.exit(max(codes, key=abs))
