"""Writes ZeRO folders of stages 1, 2 and 3 into OUT, and what is in them into OUT/expected.npz.

DeepSpeed is installed with DS_BUILD_OPS=0 and --no-build-isolation; processes talk by gloo.
"""

import os
import socket
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import numpy as np
import torch
from torch import nn

VARIANTS = {
    # Stage, ranks, dtype, steps that are saved, settings.
    "stage-1": (1, 2, "fp32", (4,), {}),
    "stage-2": (2, 3, "bf16", (2,), {"parameter_alignment": True, "round_robin_gradients": True}),
    "stage-3": (3, 2, "bf16", (2, 4), {"sub_group_size": 40}),
}


class Model(nn.Module):
    """Weights of uneven sizes in two groups, frozen ones, buffers, and a tie."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.frozen = nn.Linear(5, 3, bias=False)
        self.up = nn.Linear(5, 11)
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.head = nn.Linear(11, 5, bias=False)
        self.tied = nn.Linear(5, 7, bias=False)
        self.tied.weight = self.embed.weight
        self.frozen.weight.requires_grad_(False)
        self.register_buffer("mean", torch.linspace(0, 1, 5))
        self.register_buffer("cache", torch.ones(3), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens):
        hidden = self.embed(tokens)
        hidden = hidden + self.frozen(hidden).sum(-1, keepdim=True)
        self.seen += 1
        self.mean.mul_(0.9).add_(hidden.detach().mean(0) * 0.1)
        hidden = self.head(torch.relu(self.up(hidden))) * self.scale
        return self.tied(hidden).float().pow(2).mean()


def train(rank, out, name, port):
    stage, world, dtype, saved, settings = VARIANTS[name]
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import deepspeed

    deepspeed.init_distributed("gloo")
    torch.manual_seed(stage)
    model = Model()
    trained = [each for each in model.parameters() if each.requires_grad]
    matrices = [each for each in trained if each.ndim > 1]
    others = [each for each in trained if each.ndim < 2]
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10, **settings},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if dtype == "bf16":
        config["bf16"] = {"enabled": True}
    optimizer = torch.optim.SGD([{"params": matrices}, {"params": others}], lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(1, max(saved) + 1):
        torch.manual_seed(100 * rank + step)
        engine.backward(engine(torch.randint(0, 7, (4,))))
        engine.step()
        if step in saved:
            engine.save_checkpoint(str(out / name), client_state={"epoch": step // 2})
    torch.distributed.destroy_process_group()


def main(out):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    expected = {}
    for name, (stage, world, _, saved, _) in VARIANTS.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(train, (out, name, port), nprocs=world)
        for script in ("zero_to_fp32.py", "zero_to_torch.py"):
            (out / name / script).unlink(missing_ok=True)
        for step in saved:
            folder = out / name / f"global_step{step}"
            state = dict(get_fp32_state_dict_from_zero_checkpoint(str(out / name), folder.name))
            if stage == 1:
                # It leaves frozen weights out there.
                whole = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)
                state = whole["module"] | state
            for text, tensor in state.items():
                tensor = tensor.detach()
                wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
                expected[f"{name}/{folder.name}/{text}"] = wide.numpy()
    np.savez_compressed(out / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
