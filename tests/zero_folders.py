"""Folders as DeepSpeed's ZeRO writes them, made with torch alone, and joined again."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch.nn.functional import pad


def zero_folder(
    path, masters=None, *, stage=3, ranks=2, frozen=None, buffers=None, ties=None, groups=None,
    change=lambda name, content: None, **client,
):  # fmt: skip
    """A folder of the float32 ``masters``, in one group or the ``groups`` of names; ``frozen``
    weights, ``buffers``, and ``ties`` of further names. ``change`` may spoil what is saved in the
    file of a name, and ``client`` stands at the top of the model file. The path."""
    path, masters = Path(path), dict(masters or {})
    path.mkdir(parents=True)
    frozen, buffers, ties = frozen or {}, buffers or {}, ties or {}
    groups = [list(masters)] if groups is None else groups
    parameters = masters | frozen
    module = parameters | {alias: parameters[name] for alias, name in ties.items()}
    if stage == 3:
        module = dict.fromkeys(module, torch.zeros(0))
    model = {
        "module": OrderedDict(module | buffers),
        "buffer_names": list(buffers),
        "optimizer": None,
        "param_shapes": [OrderedDict((n, masters[n].shape) for n in names) for names in groups],
        "frozen_param_shapes": {n: t.shape for n, t in frozen.items()} if stage > 1 else None,
        "shared_params": ties,
        "global_steps": 7,
        **client,
    }
    for rank in range(ranks):
        if stage == 3:
            flats = [
                torch.cat([_piece(masters[n], rank, ranks) for n in ns]) for ns in groups if ns
            ]
        else:
            flats = [_stretch([masters[n] for n in names], rank, ranks) for names in groups]
        name = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        state = {"zero_stage": stage, "partition_count": ranks, name: flats}
        _save(path, f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", change,
              {"optimizer_state_dict": state})  # fmt: skip
        if rank == 0 or stage == 3:
            pieces = {n: _piece(t, rank, ranks) if stage == 3 else t for n, t in frozen.items()}
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            _save(path, f"{prefix}mp_rank_00_model_states.pt", change,
                  {**model, "frozen_param_fragments": pieces if stage > 1 else None})  # fmt: skip
    return path


def _save(path, name, change, content):
    change(name, content)
    torch.save(content, path / name)


def _piece(tensor, rank, ranks):
    each = -(-tensor.numel() // ranks)
    flat = pad(tensor.reshape(-1), (0, each * ranks - tensor.numel()))
    return flat[rank * each : (rank + 1) * each].clone()


def _stretch(tensors, rank, ranks):
    """Padding is of the last rank, whose file is without it."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    each = -(-flat.numel() // (2 * ranks)) * 2
    return flat[rank * each : (rank + 1) * each].clone()


def joined(path):
    """The tensors of a folder that :func:`zero_folder` made of one group, as zero_to_fp32 joins
    them: all in memory."""
    load = lambda name: torch.load(Path(path) / name)  # noqa: E731
    ranks = len(list(Path(path).glob("*optim_states.pt")))
    states = [
        load(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        for rank in range(ranks)
    ]
    stage_3 = states[0]["zero_stage"] == 3
    prefix = "zero_pp_rank_{}_" if stage_3 else ""
    models = [load((prefix + "mp_rank_00_model_states.pt").format(r)) for r in range(ranks)]
    found = {name: models[0]["module"][name] for name in models[0]["buffer_names"]}
    start = 0
    for name, shape in models[0]["param_shapes"][0].items():
        count = -(-shape.numel() // ranks) if stage_3 else shape.numel()
        if stage_3:
            rows = [state["fp32_flat_groups"][0] for state in states]
            flat = torch.cat([row[start : start + count] for row in rows])
        else:
            row = torch.cat([state["single_partition_of_fp32_groups"][0] for state in states])
            flat = row[start : start + count]
        start += count
        found[name] = flat[: shape.numel()].view(shape)
    for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
        flat = torch.cat([each["frozen_param_fragments"][name] for each in models])
        found[name] = flat[: shape.numel()].view(shape)
    return found | {alias: found[name] for alias, name in models[0]["shared_params"].items()}
