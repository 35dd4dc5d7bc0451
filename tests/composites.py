"""Folders of parts, written and read with the reference libraries."""

import json
from pathlib import Path

import torch
from checkpoints import save


def write(folder, files):
    """Files by name: tensors in the format of the suffix, text, JSON, or any object in a .pt; the
    folder."""
    folder = Path(folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save(path, content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            torch.save(content, path)
    return folder


def w(value, key=None):
    """A state dict of one tensor, below ``key``."""
    tensors = {"w": torch.full((3,), float(value))}
    return tensors if key is None else {key: tensors, "iteration": 7}


def values(folder):
    """The names of all files below a folder; of weights with their first value."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = _value(path)
    return found


def _value(path):
    from swavg.errors import InputError
    from swavg.formats import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
    except InputError:
        return path.read_bytes()[:9]
    return float(checkpoint.read(next(iter(checkpoint)))[0])


def llama(i):
    return {
        "consolidated.00.pth": w(10 * i),
        "consolidated.01.pth": w(10 * i + 1),
        "params.json": '{"a": 1}',
        "tokenizer.model": "pieces",
    }


def megatron(i):
    return {f"mp_rank_0{rank}/model_optim_rng.pt": w(10 * i + rank, "model") for rank in (0, 1)}


def deepspeed(i):
    ranks = {f"mp_rank_0{rank}_model_states.pt": w(10 * i + rank, "module") for rank in (0, 1)}
    return ranks | {"zero_pp_rank_0_mp_rank_00_optim_states.pt": {"x": 1}}


def pipeline(i):
    return {
        "model_index.json": {
            "_class_name": "Pipeline",
            "unet": ["diffusers", "U"],
            "vae": ["diffusers", "V"],
            "tokenizer": ["transformers", "T"],
            "safety_checker": [None, None],
        },
        "unet/diffusion_pytorch_model.safetensors": w(i),
        "unet/config.json": '{"a": 1}',
        "vae/diffusion_pytorch_model.bin": w(100 + i),
        "tokenizer/vocab.txt": "words",
        "all_in_one.safetensors": w(7),
        "README.md": "read me",
    }


def modules(i):
    return {
        "modules.json": [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}],
        "model.safetensors": w(i),
        "config.json": '{"a": 1}',
        "1_Pooling/config.json": '{"b": 1}',
        "2_Dense/model.safetensors": w(50 + i),
        "2_Dense/config.json": '{"c": 1}',
        "onnx/model.onnx": "graph",
    }


def speechbrain(i):
    return {
        "model.ckpt": w(i),
        "normalizer.ckpt": {"count": i, "glob_mean": torch.full((2,), 20.0 + i)},
        "optimizer.ckpt": {"state": {}, "param_groups": []},
        "opt_class.ckpt": {
            "state": {0: {"exp_avg": torch.ones(2)}},
            "param_groups": [{"params": [0]}],
        },
        "brain.ckpt": "loss: 1\n",
        "counter.ckpt": str(i + 1),
        "CKPT.yaml": f"# yamllint\nWER: {9 - i}\nend-of-epoch: true\nunixtime: 17000{i}.5\n",
    }
