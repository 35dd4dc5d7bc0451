"""The exact average of adapters, against the dense products of their factors."""

import json
import math
import re

import pytest
import torch
from checkpoints import load, save

import swavg
from swavg import Policy
from swavg.errors import MismatchError, RequestError

EXACT = Policy(lora="exact")
PREFIX = "base_model.model."


def dense(down, up):
    """The product of two factors, as one matrix or kernel."""
    down, up = down.double(), up.double()
    if down.ndim == 2:
        return up @ down
    return torch.einsum("or,rikl->oikl", up.flatten(1), down)


def peft_scale(config, module, rank):
    """What PEFT multiplies a product by."""
    patterns = config.get("alpha_pattern") or {}
    matched = [key for key in patterns if re.match(rf"(.*\.)?({key})$", module)]
    alpha = patterns[matched[0]] if matched else config.get("lora_alpha", 8)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def peft_rank(config, module):
    patterns = config.get("rank_pattern") or {}
    matched = [key for key in patterns if re.match(rf"(.*\.)?({key})$", module)]
    return patterns[matched[0]] if matched else config["r"]


MODULES = {"layers.0.q": (6, 8), "layers.1.q": (6, 8), "q": (5, 4), "layers.0.mlp": (3, 6)}
"""Rows and columns of each weight."""


def adapter(folder, config, seed, *, suffix="safetensors", dtype=torch.float32, modules=MODULES):
    """An adapter as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (rows, columns) in modules.items():
        rank = peft_rank(config, module)
        for name, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            tensor = torch.randn(shape, generator=generator)
            state[f"{PREFIX}{module}.lora_{name}.weight"] = tensor.to(dtype)
    state[f"{PREFIX}head.weight"] = torch.randn(4, generator=generator)
    folder.mkdir()
    if suffix == "bin":
        torch.save(state, folder / "adapter_model.bin")
    else:
        save(folder / "adapter_model.safetensors", state)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def opened(folder):
    """Tensors and settings of an adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if (folder / "adapter_model.bin").exists():
        return torch.load(folder / "adapter_model.bin"), config
    return load(folder / "adapter_model.safetensors"), config


def products(folder):
    """What an adapter adds to each weight, as PEFT would load it."""
    state, config = opened(folder)
    found = {}
    for name, down in state.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix(PREFIX).split(".lora_A.")[0]
        assert down.shape[0] == peft_rank(config, module)
        scale = peft_scale(config, module, down.shape[0])
        found[module] = scale * dense(down, state[name.replace("lora_A", "lora_B")])
    return found


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert (found[name] - want).norm() <= 1e-6 * want.norm(), name


def mean_of(folders, weights=None):
    weights = weights or [1 / len(folders)] * len(folders)
    all_products = [products(folder) for folder in folders]
    return {
        module: sum(w * each[module] for w, each in zip(weights, all_products, strict=True))
        for module in all_products[0]
    }


BASE = {"r": 4, "lora_alpha": 8, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "others",
    [
        [{}],
        [{"lora_alpha": 32}, {"lora_alpha": 1.5}],
        [{"r": 3}, {"r": 1, "lora_alpha": 2}],
        [{"use_rslora": True}],
        [{"rank_pattern": {"q": 2}}, {"rank_pattern": {"layers.0.q": 5, "mlp": 1}}],
        [{"alpha_pattern": {r"layers\.\d.q": 3}}, {"alpha_pattern": {"q": 16}, "r": 2}],
        [{"use_rslora": True, "rank_pattern": {"layers.1.q": 9}, "alpha_pattern": {"mlp": 5}}],
    ],
    ids=str,
)
def test_the_average_of_products_is_that_of_the_dense_ones(tmp_path, others, suffix):
    configs = [BASE, *({**BASE, **each} for each in others)]
    folders = [
        adapter(tmp_path / f"a{i}", config, i, suffix=suffix) for i, config in enumerate(configs)
    ]
    report = swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    close(products(tmp_path / "o"), mean_of(folders))
    state, config = opened(tmp_path / "o")
    assert config["use_rslora"] is False
    assert config["r"] == config["lora_alpha"]
    heads = [opened(folder)[0][f"{PREFIX}head.weight"] for folder in folders]
    assert torch.allclose(state[f"{PREFIX}head.weight"], sum(heads) / len(heads))
    assert report.recipe["options"] == {"lora": "exact"}
    assert any("lora: exact" in note for note in report.notes)
