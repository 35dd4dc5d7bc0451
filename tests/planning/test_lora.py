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


@pytest.mark.parametrize("weights", [(0.5, 0.2, 0.3), (1.5, -0.75, 0.25), (0, 1, 0)])
def test_weights_may_be_anything(tmp_path, weights):
    configs = [BASE, {**BASE, "r": 2}, {**BASE, "lora_alpha": 3}]
    folders = [adapter(tmp_path / f"a{i}", config, i) for i, config in enumerate(configs)]
    swavg.average(folders, weights, output=tmp_path / "o", policy=EXACT)
    close(products(tmp_path / "o"), mean_of(folders, weights))
    assert opened(tmp_path / "o")[1]["r"] == 10


def test_exact_averages_can_be_averaged_again_and_one_adapter_is_itself(tmp_path):
    folders = [adapter(tmp_path / f"a{i}", BASE, i) for i in range(3)]
    swavg.average(folders[:2], output=tmp_path / "two", policy=EXACT)
    swavg.average(
        [tmp_path / "two", folders[2]], (2 / 3, 1 / 3), output=tmp_path / "o", policy=EXACT
    )
    close(products(tmp_path / "o"), mean_of(folders))
    swavg.average(folders[:1], output=tmp_path / "one", policy=EXACT)
    close(products(tmp_path / "one"), products(folders[0]))


def test_several_rows_have_the_ranks_of_their_own_members(tmp_path):
    folders = [adapter(tmp_path / f"a{i}", {**BASE, "r": i + 1}, i) for i in range(4)]
    rows = [swavg.Row((0.5, 0.5), (0, 1)), swavg.Row((0.25, 0.25, 0.5), (1, 2, 3))]
    outputs = [tmp_path / "first", tmp_path / "second"]
    swavg.execute(swavg.prepare(folders, rows, outputs, EXACT))
    close(products(outputs[0]), mean_of(folders[:2]))
    close(products(outputs[1]), mean_of(folders[1:], (0.25, 0.25, 0.5)))
    assert [opened(output)[1]["r"] for output in outputs] == [3, 9]


def test_factors_keep_every_bit_of_a_and_b_is_float32(tmp_path):
    folders = [
        adapter(tmp_path / "a0", BASE, 0, dtype=torch.bfloat16),
        adapter(tmp_path / "a1", BASE, 1, dtype=torch.bfloat16),
    ]
    swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    state, inputs = opened(tmp_path / "o")[0], [opened(folder)[0] for folder in folders]
    for module in MODULES:
        name = f"{PREFIX}{module}.lora_A.weight"
        assert state[name].equal(torch.cat([each[name] for each in inputs]))
        name = f"{PREFIX}{module}.lora_B.weight"
        # alpha / r is 2, and the weight 0.5.
        assert state[name].equal(torch.cat([each[name].float() for each in inputs], 1))
    mixed = adapter(tmp_path / "a2", BASE, 2, dtype=torch.float16)
    swavg.average([folders[0], mixed], output=tmp_path / "mixed", policy=EXACT)
    close(products(tmp_path / "mixed"), mean_of([folders[0], mixed]))


def test_a_module_that_some_lack_is_refused_or_adds_nothing(tmp_path):
    few = {name: MODULES[name] for name in ("layers.0.q", "q")}
    folders = [adapter(tmp_path / "a0", BASE, 0), adapter(tmp_path / "a1", BASE, 1, modules=few)]
    with pytest.raises(MismatchError, match=r"lora_A\.weight' is missing"):
        swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    lenient = Policy(lora="exact", strict=False)
    swavg.average(folders, output=tmp_path / "o", policy=lenient)
    whole, part = map(products, folders)
    expected = {name: (whole[name] + part.get(name, 0)) / 2 for name in whole}
    close(products(tmp_path / "o"), expected)
    assert opened(tmp_path / "o")[1]["target_modules"] == sorted(MODULES)


def test_chunks_workers_and_memory_do_not_change_a_bit(tmp_path):
    modules = {"big": (700, 900), "conv": (3, 5)}
    folders = [
        adapter(tmp_path / f"a{i}", {**BASE, "r": 40 + i}, i, modules=modules) for i in range(3)
    ]
    found = []
    for number, more in enumerate(({}, {"threads": 3, "processes": True}, {"device": "torch"})):
        resources = swavg.Resources(**more)
        swavg.average(folders, output=tmp_path / f"o{number}", policy=EXACT, resources=resources)
        found.append((tmp_path / f"o{number}" / "adapter_model.safetensors").read_bytes())
    assert found[1:] == found[:1] * 2
    close(products(tmp_path / "o0"), mean_of(folders))


FILES = {
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "lora_unet_{}.alpha"),
    "text encoder": (
        "lora_te_{}.lora_down.weight",
        "lora_te_{}.lora_up.weight",
        "lora_te_{}.alpha",
    ),
    "diffusers": ("unet.l.{}.lora.down.weight", "unet.l.{}.lora.up.weight", None),
    "linear layer": (
        "te.{}.lora_linear_layer.down.weight",
        "te.{}.lora_linear_layer.up.weight",
        None,
    ),
    "processor": (
        "u.{}.processor.to_q_lora.down.weight",
        "u.{}.processor.to_q_lora.up.weight",
        None,
    ),
    "alpha beside A": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", "unet.{}.alpha"),
    "embedding": ("te.{}.lora_embedding_A", "te.{}.lora_embedding_B", None),
}
SHAPES = {"0": ((16,), (8,)), "1": ((4, 3, 3), (5, 1, 1)), "2": ((4, 1, 1), (5, 1, 1))}
"""What follows the rank in the shape of the first factor, and surrounds it in the other's."""


def file_of(path, names, rank, alpha, seed, *, dtype=torch.float16):
    down, up, scale = names
    state = {}
    generator = torch.Generator().manual_seed(seed)
    for module, (inner, (rows, *kernel)) in SHAPES.items():
        own = rank + int(module)
        state[down.format(module)] = torch.randn(own, *inner, generator=generator).to(dtype)
        state[up.format(module)] = torch.randn(rows, own, *kernel, generator=generator).to(dtype)
        if scale:
            state[scale.format(module)] = torch.tensor(alpha, dtype=dtype)
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save(path, state, {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})
    return path


def products_of(path, names):
    state = torch.load(path) if path.suffix == ".pt" else load(path)
    found = {}
    for module in SHAPES:
        down, up = (state[name.format(module)] for name in names[:2])
        alpha = state[names[2].format(module)].item() if names[2] else down.shape[0]
        found[module] = alpha / down.shape[0] * dense(down, up)
    return found


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("names", FILES.values(), ids=FILES)
def test_other_names_and_convolutions(tmp_path, names, suffix):
    paths = [
        file_of(tmp_path / f"k{i}.{suffix}", names, rank, alpha, i)
        for i, (rank, alpha) in enumerate(((2, 1.0), (4, 4.0), (150, 150.0)))
    ]
    out = tmp_path / f"o.{suffix}"
    report = swavg.average(paths, output=out, policy=EXACT)
    all_products = [products_of(path, names) for path in paths]
    close(
        products_of(out, names),
        {module: sum(each[module] for each in all_products) / 3 for module in SHAPES},
    )
    told = "no adapter_config.json and no alpha"
    assert any(told in text for text in report.warnings) == ("embedding" in names[0])
    if suffix == "safetensors":
        metadata = swavg.open_checkpoint(out).metadata
        assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "162"


def test_floats_may_be_converted_but_an_alpha_is_exact(tmp_path):
    names = FILES["kohya"]
    paths = [file_of(tmp_path / f"{i}.safetensors", names, 171 + i, 1.0, i) for i in range(2)]
    policy = Policy(lora="exact", dtype="bfloat16")
    swavg.average(paths, output=tmp_path / "o.safetensors", policy=policy)
    state = load(tmp_path / "o.safetensors")
    assert {state[name.format(0)].dtype for name in names[:2]} == {torch.bfloat16}
    # bfloat16 has no 343.
    assert state[names[2].format(0)].item() == 343


def test_a_bias_of_the_second_factor_is_scaled_with_it(tmp_path):
    folders = []
    for i, alpha in enumerate((8, 2)):
        folders.append(adapter(tmp_path / f"a{i}", {**BASE, "lora_alpha": alpha}, i))
        state = load(folders[i] / "adapter_model.safetensors")
        state[f"{PREFIX}q.lora_B.bias"] = torch.full((5,), 1.0 + i)
        save(folders[i] / "adapter_model.safetensors", state)
    swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    found = opened(tmp_path / "o")[0][f"{PREFIX}q.lora_B.bias"]
    assert found.tolist() == [(2 * 1.0 + 0.5 * 2.0) / 2] * 5


def test_what_diffusers_writes_into_the_header_is_obeyed_and_made_anew(tmp_path):
    names = ("transformer.l.{}.lora_A.weight", "transformer.l.{}.lora_B.weight", None)
    paths = []
    for i, (rank, alpha) in enumerate(((2, 1), (4, 16))):
        paths.append(file_of(tmp_path / f"k{i}.safetensors", names, rank, alpha, i))
        pattern = {f"l.{module}": rank + int(module) for module in SHAPES}
        header = {"r": rank, "lora_alpha": alpha, "rank_pattern": pattern, "alpha_pattern": {}}
        text = json.dumps({f"transformer.{name}": value for name, value in header.items()})
        save(paths[i], load(paths[i]), {"lora_adapter_metadata": text})
    with pytest.raises(MismatchError, match="lora_adapter_metadata of transformer differs"):
        swavg.average(paths, output=tmp_path / "o.safetensors")
    out = tmp_path / "o.safetensors"
    report = swavg.average(paths, output=out, policy=EXACT)
    assert report.warnings == ()
    settings = json.loads(swavg.open_checkpoint(out).metadata["lora_adapter_metadata"])
    config = {name.removeprefix("transformer."): value for name, value in settings.items()}
    found, state = {}, load(out)
    expected = {}
    for module in SHAPES:
        down, up = (state[name.format(module)] for name in names[:2])
        assert down.shape[0] == peft_rank(config, f"l.{module}")
        found[module] = peft_scale(config, f"l.{module}", down.shape[0]) * dense(down, up)
        one, other = (products_of(path, names)[module] for path in paths)
        rank = int(module)
        expected[module] = (one * 1 / (2 + rank) + other * 16 / (4 + rank)) / 2
    close(found, expected)


@pytest.mark.parametrize(
    ("config", "names", "said"),
    [
        ({"use_dora": True}, {}, "use_dora is set"),
        ({"peft_type": "LOHA"}, {}, "peft_type is LOHA"),
        ({"target_parameters": ["experts"]}, {}, "target_parameters is set"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa_niter_4 changes the model itself"),
        ({"lora_alpha": "much"}, {}, "lora_alpha is 'much'"),
        ({"lora_alpha": 10**400}, {}, "lora_alpha is 1000000"),
        ({"alpha_pattern": {"(a+)+b": 3}}, {}, "is not understood"),
        ({"alpha_pattern": {".*.*.*.*x": 3}}, {}, "is not understood"),
        ({}, {"q.lora_magnitude_vector": (5,)}, "lora_magnitude_vector' is no factor"),
        ({}, {"q.dora_scale": (5, 1)}, "dora_scale' is no factor"),
        ({}, {"q.hada_w1_a": (5, 1)}, "hada_w1_a' is no factor"),
        ({}, {"q.lokr_w1": (5, 1)}, "lokr_w1' is no factor"),
        ({}, {"q.lora_mid.weight": (4, 4, 3, 3)}, "lora_mid.weight' is no factor"),
        ({}, {"z.lora_A.weight": (4, 4)}, "lora_A.weight' has no other factor"),
        ({}, {"z.lora_B.weight": (4, 4)}, "lora_B.weight' is no factor"),
        ({}, {"z.lora_A.weight": (4, 4), "z.lora_B.weight": (4, 2)}, r"are \[4, 4\] and \[4, 2\]"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path, config, names, said):
    folders = [adapter(tmp_path / f"a{i}", BASE | config, i) for i in range(2)]
    for folder in folders:
        path = folder / "adapter_model.safetensors"
        save(path, load(path) | {name: torch.ones(shape) for name, shape in names.items()})
    with pytest.raises(MismatchError, match=said) as told:
        swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    assert told.value.hint == "Merge each into its model first, and average the models."


def test_what_would_lose_the_scale_is_refused(tmp_path):
    folders = [adapter(tmp_path / f"a{i}", BASE, i) for i in range(2)]
    files = [folder / "adapter_model.safetensors" for folder in folders]
    with pytest.raises(MismatchError, match=r"is scaled by what adapter_config.json beside it"):
        swavg.average(files, output=tmp_path / "o", policy=EXACT)
    with pytest.raises(RequestError, match=r"needs adapter_config.json beside it"):
        swavg.average(folders, output=tmp_path / "o.safetensors", policy=EXACT)
    policy = Policy(lora="exact", exclude=("*.q.*",))
    with pytest.raises(RequestError, match="takes whole adapters"):
        swavg.average(folders, output=tmp_path / "o", policy=policy)
    (folders[1] / "adapter_config.json").write_text("{")
    with pytest.raises(swavg.InputError, match="says what the factors are scaled by"):
        swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    (folders[1] / "adapter_config.json").unlink()
    with pytest.raises(MismatchError, match=r"Some of the adapters have an adapter_config.json"):
        swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    plain = save(tmp_path / "plain.safetensors", {"w": torch.ones(2)})
    with pytest.raises(MismatchError, match="has no low-rank factors"):
        swavg.average([plain, plain], output=tmp_path / "o.st", policy=EXACT)


def test_shards_stay_shards(tmp_path):
    folders = [adapter(tmp_path / f"a{i}", {**BASE, "r": i + 2}, i) for i in range(2)]
    expected = mean_of(folders)
    for folder in folders:
        state = load(folder / "adapter_model.safetensors")
        (folder / "adapter_model.safetensors").unlink()
        names = sorted(state)
        homes = {}
        for number, part in enumerate((names[:4], names[4:]), 1):
            shard = f"adapter_model-0000{number}-of-00002.safetensors"
            save(folder / shard, {name: state[name] for name in part})
            homes |= dict.fromkeys(part, shard)
        index = {"metadata": {}, "weight_map": homes}
        (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "o"
    swavg.average(folders, output=out, policy=EXACT)
    shards = sorted(out.glob("adapter_model-*.safetensors"))
    assert len(shards) == 2
    state = {name: tensor for shard in shards for name, tensor in load(shard).items()}
    save(out / "adapter_model.safetensors", state)
    close(products(out), expected)


def test_settings_need_not_be_said_and_are_compared_by_what_they_are(tmp_path):
    folders = [adapter(tmp_path / f"a{i}", BASE, i) for i in range(2)]
    text = json.dumps({"r": 4, "lora_alpha": 8.0, "use_rslora": None, "revision": "main"})
    (folders[1] / "adapter_config.json").write_text(text)
    swavg.average(folders, output=tmp_path / "mean")
    swavg.average(folders, output=tmp_path / "o", policy=EXACT)
    close(products(tmp_path / "o"), mean_of(folders))
    # PEFT's own alpha is 8.
    (folders[1] / "adapter_config.json").write_text('{"r": 4}')
    swavg.average(folders, output=tmp_path / "o", policy=EXACT, force=True)
    close(products(tmp_path / "o"), mean_of(folders))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_names_match_whatever_wrapped_them(tmp_path, wrapper):
    names = FILES["alpha beside A"]
    wrapped = [None if name is None else wrapper + name for name in names]
    # A module of the model that is called so itself: wrappers inside names then count.
    more = {"unet.a.module.b": torch.ones(2), "unet.a.b": torch.ones(2)}
    products = []
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, (path, own) in enumerate(zip(paths, (names, wrapped, names), strict=True)):
        file_of(path, own, 2 + i, 3.0, i)
        products.append(products_of(path, own))
        save(path, load(path) | (more if wrapper == "module." else {}))
    swavg.average(paths, output=tmp_path / "o.safetensors", policy=EXACT)
    expected = {module: sum(each[module] for each in products) / 3 for module in SHAPES}
    close(products_of(tmp_path / "o.safetensors", names), expected)


def test_what_lies_around_factors_in_a_file_is_left_out_with_the_reason(tmp_path):
    paths = []
    for i in (1, 2):
        state = {"l.lora_A.weight": torch.ones(i, 4), "l.lora_B.weight": torch.ones(3, i)}
        torch.save({"epoch": 3, "model": {"net": state}}, tmp_path / f"{i}.pt")
        paths.append(tmp_path / f"{i}.pt")
    report = swavg.average(paths, output=tmp_path / "o.pt", policy=EXACT)
    assert (
        "'epoch' of 2.pt left out: the output is a bare state dict (shapes of tensors change)"
        in report.notes
    )
    assert torch.load(tmp_path / "o.pt")["l.lora_A.weight"].shape == (3, 4)
