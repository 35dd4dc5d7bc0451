"""Whether torch, and OLMo-core or Megatron-LM where it is theirs, load what swavg wrote.

    python read.py PATH EXPECTED.npz

EXPECTED has the model's arrays by name; bfloat16 as float32.
"""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

INNER = ("model_and_optim", "pytorch_model_fsdp_0", "")


def by_torch(folder, expected):
    """The tensors of these names, whatever is in front of them."""
    tensors = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    found = {}
    for prefix in ("", "model.", "app.model."):
        if all(prefix + name in tensors for name in expected):
            state = {
                prefix + name: torch.zeros(tensors[prefix + name].size,
                                           dtype=tensors[prefix + name].properties.dtype)
                for name in expected
            }  # fmt: skip
            dcp.load(state, checkpoint_id=folder)
            found = {name: state[prefix + name] for name in expected}
            break
    return found


def by_safetensors(file, expected):
    return {name: tensor for name, tensor in load_file(file).items() if name in expected}


def by_megatron(folder, expected):
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import ShardedTensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.cuda.synchronize, torch.cuda.current_device = lambda *_: None, lambda: "cpu"
    parallel_state.initialize_model_parallel(1, create_gloo_process_groups=True)
    tensors = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: ShardedTensor.from_rank_offsets(
            name, torch.zeros(tensors[name].size, dtype=tensors[name].properties.dtype)
        )
        for name in expected
    }
    return dist_checkpointing.load(state, str(folder))


def by_olmo(folder, expected):
    from olmo_core.distributed.checkpoint import load_keys

    keys = [f"model.{name}" for name in expected]
    return dict(zip(expected, load_keys(str(folder), keys), strict=True))


def main(path, expected):
    warnings.filterwarnings("ignore")
    if path.is_file():
        # Of shards, which are written as one safetensors file.
        folder, readers = path, [by_safetensors]
    else:
        folder = next(path / name for name in INNER if (path / name / ".metadata").exists())
        readers = [by_torch]
        if (path / "common.pt").exists():
            readers.append(by_megatron)
        if folder.name == "model_and_optim":
            readers.append(by_olmo)
    for reader in readers:
        found = reader(folder, expected)
        for name, array in expected.items():
            value = found[name].detach()
            value = value.float() if value.is_floating_point() else value
            if not np.array_equal(value.numpy(), array):
                print(f"{reader.__name__}: {name} differs")
                return 1
        print(f"{reader.__name__}: {len(expected)} tensors are equal")
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), dict(np.load(sys.argv[2])))
    sys.stdout.flush()
    os._exit(code)
