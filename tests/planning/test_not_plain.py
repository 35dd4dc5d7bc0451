"""What is no plain weight is refused or told; plain models never are."""

import json
import math

import pytest
import torch
from checkpoints import save

from swavg.dtypes import BY_NAME
from swavg.errors import MismatchError
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.tensors import TableBuilder
from swavg.planning.confirm import check_plain, confirmed
from swavg.planning.not_plain import not_plain


def checkpoint(tensors, path="m.safetensors", **extras):
    """A checkpoint of no bytes: ``{name: "dtype 4x3"}`` or names of float32 matrices."""
    if not isinstance(tensors, dict):
        tensors = dict.fromkeys(tensors, "float32 8x4")
    builder = TableBuilder()
    for name, form in tensors.items():
        dtype, _, shape = form.partition(" ")
        extents = tuple(int(extent) for extent in shape.split("x") if extent)
        builder.add(name, (BY_NAME[dtype], extents, None), 0)
    return Checkpoint(path, "safetensors", (), builder.build(), extras=Extras(**extras))


def findings(*tables, **more):
    found = not_plain([checkpoint(each) for each in tables], [f"m{i}" for i in range(9)], **more)
    return [(each.kind, each.level) for each in found]


def kinds(tensors, **more):
    return [kind for kind, _ in findings(tensors, tensors, **more)]


FP8 = "float8_e4m3fn 8x16"


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight": FP8, "a.scale_weight": "float32", "scaled_fp8": "float8_e4m3fn 0"},
        {"a.weight": FP8, "a.weight_scale": "float32 1", "a.input_scale": "float32 1"},
        {"a.weight": FP8, "a.weight_scale_inv": "float32 1x1"},
        {"a.weight": "int8 8x16", "a.weight_scale": "bfloat16 8x1"},
        {"experts.down_proj": FP8, "experts.down_proj_scale": "float32 2"},
        {"a.weight": "int8 8x4", "a.SCB": "float32 8", "a.weight_format": "uint8"},
        {
            "a.weight": "uint8 64x1",
            "a.weight.absmax": "uint8 2",
            "a.weight.quant_map": "float32 16",
            "a.weight.nested_absmax": "float32 1",
            "a.weight.nested_quant_map": "float32 256",
            "a.weight.quant_state.bitsandbytes__nf4": "uint8 90",
        },
        {
            "a.qweight": "int32 4x16",
            "a.qzeros": "int32 1x2",
            "a.scales": "float16 1x16",
            "a.g_idx": "int32 32",
        },
        {"a.weight_packed": "int32 16x4", "a.weight_scale": "bfloat16 16x1"},
        {"a.weight_packed": "uint8 16x4", "a.weight_scale": "float8_e4m3fn 16x1"},
        {"a.weight": "uint8 16x4", "a.weight_scale": FP8, "a.weight_scale_2": "float32"},
        {"a.weight._data": "int8 8x4", "a.weight._scale": "float32 8x1"},
        {"a.weight._data._data": "uint8 8x4", "a.weight._scale": "float32 8x1"},
        {"e.gate_up_proj_blocks": "uint8 2x8x1x16", "e.gate_up_proj_scales": "uint8 2x8x1"},
        {"a._weight_qdata": FP8, "a._weight_scale": "float32 8x1"},
        {"a.W_q": "uint8 8x4", "a.scale": "float16 8x1", "a.zero": "float16 8x1"},
        {"a.q_weight": "int32 8x4", "a.q_scale": "int32 8x1", "a.q_scale_max": "float16 8"},
        {"a.weight": "uint32 8x4", "a.scales": "float16 8x1", "a.biases": "float16 8x1"},
        {"a.codes": "int8 8x4x1", "a.codebooks": "float16 1x256x1x8"},
        {"weight": FP8, "weight_scale": "float32"},
        {"layers.0.attn.wq_a.weight": FP8, "layers.0.attn.wq_a.scale": "float32 1x1"},
        {"a.weight": FP8, "a.weights_scaling_factor": "float32"},
        {"a.weight": FP8, "a.weight.scale": "float32"},
        {"experts.w1": FP8, "experts.w1_scaling_factor": "float32"},
        {"a.weight": "int32 8x4", "a.scales_and_zeros": "bfloat16 1x8x2"},
        {"a.qweight": "int8 8x16", "a.wscales": "bfloat16 1x8"},
        {"a.weight": FP8, "a.weight_amax": "float32"},
        {"a.w1": FP8, "a.w1.s": "float32 8x1"},
        {"a.weight:qdata": FP8, "a.weight:scale": "float32 1"},
        {"a.weight": FP8, "a.descale": "float32"},
        {"a.weight_fp8": FP8, "a.fp8_scale": "float32 1"},
    ],
    ids=lambda tensors: " ".join(tensors)[:60],
)  # fmt: skip
def test_codes_with_scales_are_refused(tensors):
    assert findings(tensors, tensors) == [("codes", "refuse")]


PLAIN = {
    "llama": [
        "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_up_proj", "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight",
    ],
    "vision": [
        "cls_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.0.layer_scale.gamma",
        "blocks.0.gamma_1", "stages.0.layer_scale_parameter", "layers.0.attn.logit_scale",
        "encoder.layer.0.layer_scale1.lambda1", "encoder.layer.0.lambda_1", "blocks.0.attn.scale",
        "stages.0.blocks.0.token_mixer.0.scale_mul", "res_scale", "blocks.0.res_scale1.scale",
    ],
    "clip": ["logit_scale", "logit_bias", "visual.proj", "token_embedding.weight"],
    "diffusers": [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.0.resnets.0.time_emb_proj.weight", "scale_shift_table",
        "transformer_blocks.0.scale_shift_table", "adaln_single.linear.weight",
        "transformer_blocks.0.norm1.scale", "mid_block.attentions.0.mix_factor",
    ],
    "speech": [
        "encoder.pos_conv_embed.conv.weight_g", "encoder.pos_conv_embed.conv.weight_v",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder.layers.0.self_attn.pos_bias_u", "encoder.layers.0.self_attn.pos_bias_v",
        "encoders.0.self_attn.linear_pos.weight", "masked_spec_embed", "encoder.embed.0.alpha",
        "decoder.resblocks.0.activations.0.act.alpha", "flow.flows.0.m",
    ],
    "names like those of codes": [
        "alpha", "alpha_dropout.weight", "a.scales", "a.weight", "b.codebooks", "b.codes",
        "attn_mask", "layers.0.attn_mask", "a.weight_mask", "tokens_u", "relu.alpha",
        "exploration_A.weight", "exploration_B.weight", "embed_scale", "weight_scale.weight",
        "a.codebook.embed_avg", "log_scale", "weight_u", "block.lora_A.weight",
    ],
}  # fmt: skip


@pytest.mark.parametrize("names", PLAIN.values(), ids=PLAIN)
def test_plain_models_are_not_suspected(names):
    # Of masks, their values tell.
    assert {*kinds(names)} <= {"binary"}


@pytest.mark.parametrize(
    "tensors",
    [
        {"bn.running_mean": "float32 4", "bn.num_batches_tracked": "int64"},
        {"logit_scale": "float32", "embeddings.position_ids": "int64 1x512"},
        # fp8 without scales: cast, not quantised.
        {"double_blocks.0.img_mod.lin.weight": FP8, "final.norm.scale": "bfloat16 8"},
        {"a.in_proj_weight": FP8, "a.in_proj_bias": "float32 8", "a.bias_k": "float32 1"},
        {"gamma": FP8, "gamma_1": FP8, "pos": FP8, "pos_embed": "bfloat16 80x16"},
        {"steps": "int64", "steps_scale": "float32"},
        {"a.weight": "bfloat16 8x4", "a.weight_scale": "float32"},
        {"relative_position_index": "int64 49x49", "attn.scale": "float32 1"},
        # A network with quantisation in training, whose observers have seen nothing.
        {
            "fc.weight": "float32 4x4", "fc.bias": "float32 4",
            "fc.activation_post_process.min_val": "float32 0",
            "fc.activation_post_process.max_val": "float32 0",
            "fc.activation_post_process.scale": "float32 1",
            "fc.activation_post_process.zero_point": "int32 1",
        },
        {"w": "float32 0", "other": "float32 0x3"},
        {"a.weight": "float32 0", "b.weight": "float32 4", "c.weight": "float32 4x4"},
        # fp8 experts whose biases are wider
        {"experts.down_proj": FP8, "experts.down_proj_bias": "bfloat16 8"},
    ],
    ids=lambda tensors: " ".join(tensors)[:60],
)  # fmt: skip
def test_plain_tensors_of_other_dtypes_and_shapes_are_not_suspected(tensors):
    assert kinds(tensors) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["base_model.model.l.lora_A.weight", "base_model.model.l.lora_B.weight"], ["factors"]),
        (["l.lora_A.default.weight", "l.lora_B.default.weight"], ["factors"]),
        (["lora_A_block.q.lora_A.weight", "lora_A_block.q.lora_B.weight"], ["factors"]),
        (["e.lora_embedding_A", "e.lora_embedding_B"], ["factors"]),
        (["l.processor.to_q_lora.down.weight", "l.processor.to_q_lora.up.weight"], ["factors"]),
        (["l.qkv_lora1.down.weight", "l.qkv_lora1.up.weight"], ["factors"]),
        (["l.lora_a.weight", "l.lora_b.weight"], ["factors"]),
        (["l.lokr_w1_a", "l.lokr_w1_b", "l.lokr_w2"], ["factors"]),
        (
            [f"l.lora_kqv_adapter.linear_{end}.weight" for end in ("in", "out")],
            ["factors"],
        ),
        (["l.vera_lambda_b", "l.vera_lambda_d"], ["factors"]),
        ([f"lycoris_l.{each}.weight" for each in ("a1", "a2", "b1", "b2")], ["factors"]),
        (["base_model.model.l.oft_R.weight", "n.weight"], ["rotations"]),
        (["oft_unet_l.oft_blocks", "oft_unet_l.alpha"], ["rotations"]),
        (["l.boft_R", "l.boft_s"], ["rotations"]),
        (["l.lokr_w1", "l.lokr_w2_a", "l.lokr_w2_b"], ["factors"]),
        (["l.hada_w1_a", "l.hada_w1_b", "l.hada_w2_a", "l.hada_w2_b"], ["factors"]),
        (
            ["lora_unet_l.lora_down.weight", "lora_unet_l.lora_up.weight", "lora_unet_l.alpha"],
            ["alpha", "factors"],
        ),
        (["conv.weight_orig", "conv.weight_u", "conv.weight_v"], ["spectral"]),
        (
            [
                f"conv.parametrizations.weight.{name}" for name in ("original", "0._u", "0._v")
            ],
            ["spectral"],
        ),
        (["fc.weight_orig", "fc.weight_mask"], ["mask"]),
    ],
    ids=lambda value: value[0] if len(value) > 1 else "",
)  # fmt: skip
def test_factors_vectors_and_masks_are_told(names, expected):
    assert kinds(names) == expected
    assert kinds([f"module.{name}" for name in names]) == expected


@pytest.mark.parametrize(
    ("names", "exact"),
    [
        (["l.lora_A.weight", "l.lora_B.weight"], True),
        (["l.lora_down.weight", "l.lora_up.weight", "l.alpha"], True),
        (["l.lora_A.weight", "l.lora_B.weight", "l.lora_magnitude_vector.weight"], False),
        (["l.lora_down.weight", "l.lora_up.weight", "l.dora_scale"], False),
        (["l.hada_w1_a", "l.hada_w1_b", "l.hada_w2_a", "l.hada_w2_b"], False),
        (["l.lokr_w1", "l.lokr_w2"], False),
        (["l.lora_a.weight", "l.lora_b.weight"], False),
        (["l.lora_A.weight", "l.lora_B.weight", "m.lokr_w1", "m.lokr_w2"], False),
    ],
)
def test_the_exact_average_is_offered_where_it_can_be(names, exact):
    hints = {each.hint for each in not_plain([checkpoint(names)] * 2, "ab")}
    assert all(("lora=exact" in hint) is exact for hint in hints)
    assert hints


def test_factors_of_other_ranks_are_refused():
    one, other = (
        {"l.lora_A.weight": f"float32 {rank}x16", "l.lora_B.weight": f"float32 8x{rank}"}
        for rank in (4, 8)
    )
    assert ("rank", "refuse") in findings(one, other)


def test_weights_that_zero_3_left_empty_are_refused():
    tensors = {f"layers.{i}.weight": "bfloat16 0" for i in range(7)}
    assert kinds(tensors | {"norm.weight": "bfloat16 4", "rope.inv_freq": "float32 4"}) == ["empty"]
    few = {"w": "float16 0", "buf": "float32 3"}
    saved = [checkpoint(few, others=("ds_version", "param_shapes")) for _ in "ab"]
    assert [each.kind for each in not_plain(saved, "ab")] == ["empty"]
    # Of ZeRO-0 to 2 the model is whole.
    whole = few | {"w": "float16 3", "fc.weight": "float16 3", "buf": "float32 0"}
    saved = [checkpoint(whole, others=("ds_version", "param_shapes")) for _ in "ab"]
    assert not_plain(saved, "ab") == []


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"layers.0.w": "float32 4", "layers.1.w": "float32 0"}, ["hollow"]),
        ({"layers.0.w": "float32 2x4", "layers.12.w": "float16 0x4"}, ["hollow"]),
        ({"norm.bias": "float32 4", "norm.weight": "float32 0", "a": "float32 3"}, ["hollow"]),
        ({"norm.weight": "float32 4", "norm.bias": "float32 0"}, ["hollow"]),
        ({"cache": "float32 0", "norm.weight": "float32 4"}, []),
        ({"layers.0.w": "float32 0", "layers.1.w": "float32 0", "a": "float32 3"}, []),
        ({"layers.0.n": "int64 4", "layers.1.n": "int64 0"}, []),
    ],
)
def test_empty_tensors_are_told_where_others_say_that_they_have_elements(tensors, expected):
    assert kinds(tensors) == expected


def test_one_checkpoint_is_as_it_is():
    assert findings({"a.weight": FP8, "a.weight_scale": "float32"}) == []


def test_what_is_not_averaged_is_not_suspected():
    tensors = {"a.qweight": "int32 4x16", "a.scales": "float16 1x16", "norm.weight": "float16 4"}
    assert kinds(tensors, averaged=lambda name: name == "norm.weight") == []
    assert kinds(tensors, averaged=lambda name: name != "a.qweight") == ["codes"]


def test_a_finding_names_a_tensor_and_counts_the_others():
    tensors = {}
    for i in range(3):
        tensors |= {f"module.{i}.weight": FP8, f"module.{i}.weight_scale": "float32"}
    (finding,) = not_plain([checkpoint(tensors), checkpoint(tensors)], "ab")
    assert "quantised" in finding.message
    assert "'0.weight' and 2 more" in finding.message


PARTS = [
    ("m/consolidated.00.pth", "m/consolidated.01.pth"),
    ("m/model-00001-of-00002.safetensors", "m/model-00002-of-00002.safetensors"),
    ("s/mp_rank_00_model_states.pt", "s/mp_rank_01_model_states.pt"),
    ("s/zero_pp_rank_0_mp_rank_00_model_states.pt", "s/zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ("i/mp_rank_00_000/model_optim_rng.pt", "i/mp_rank_00_001/model_optim_rng.pt"),
    ("i/tp_rank_00_pp_rank_000/model.pt", "i/tp_rank_01_pp_rank_000/model.pt"),
    ("s/layer_01-model_00-model_states.pt", "s/layer_02-model_00-model_states.pt"),
    ("c/checkpoint_last-model_part-0.pt", "c/checkpoint_last-model_part-1.pt"),
    ("c/checkpoint_last-shard0.pt", "c/checkpoint_last-shard1.pt"),
]


@pytest.mark.parametrize(("one", "other"), PARTS)
def test_parts_of_one_checkpoint_are_refused(one, other):
    weights = ["a.weight"]
    (finding,) = not_plain([checkpoint(weights, one), checkpoint(weights, other)], [one, other])
    assert (finding.kind, finding.level) == ("parts", "refuse")
    assert finding.message.startswith(f"{one} and {other} are parts")


@pytest.mark.parametrize(("one", "other"), PARTS)
def test_the_same_part_of_two_checkpoints_may_be_averaged(one, other):
    paths = [f"run1/{one}", f"run2/{one}"]
    assert not_plain([checkpoint(["a.weight"], path) for path in paths], paths) == []


@pytest.mark.parametrize(
    "names",
    [
        ("step_rank_1.pt", "step_rank_2.pt"),
        ("lora-rank8.safetensors", "lora-rank16.safetensors"),
        ("checkpoint-1000/model.safetensors", "checkpoint-2000/model.safetensors"),
        ("epoch-1-of-3.pt", "epoch-2-of-3.pt"),
        ("consolidated.safetensors", "old.safetensors"),
        ("layer_1-model_1.pt", "layer_2-model_1.pt"),
    ],
)
def test_numbers_of_other_things_are_no_parts(names):
    assert not_plain([checkpoint(["a.weight"], name) for name in names], names) == []


def test_shards_are_refused_with_the_folder_to_give():
    paths = [f"run/m/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (finding,) = not_plain([checkpoint(["a.weight"], path) for path in paths], paths)
    assert "run/m" in finding.hint


def matters(folder, *states):
    """The kinds of what matters in files of these tensors."""
    paths = [save(folder / f"{i}.safetensors", state) for i, state in enumerate(states)]
    opened = [open_checkpoint(path) for path in paths]
    return [each.kind for each in confirmed(not_plain(opened, paths), opened, paths)]


def test_fp8_of_one_scale_may_be_averaged(tmp_path):
    def state(scale, seed):
        weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
        return {"a.weight": weight.to(torch.float8_e4m3fn), "a.weight_scale": torch.tensor(scale)}

    assert matters(tmp_path, state(0.5, 0), state(0.5, 1)) == []
    assert matters(tmp_path, state(0.5, 0), state(0.5, 1), state(0.25, 1)) == ["codes"]


def test_integer_codes_must_be_the_same_too(tmp_path):
    one = {"a.qweight": torch.ones(4, 8, dtype=torch.int32), "a.scales": torch.ones(1, 8)}
    assert matters(tmp_path, one, one) == []
    assert matters(tmp_path, one, one | {"a.qweight": 2 * one["a.qweight"]}) == ["codes"]
    assert matters(tmp_path, one, {f"module.{name}": one[name] for name in one}) == []


@pytest.mark.parametrize("bits", [4, 6])
def test_codes_narrower_than_a_byte_are_compared(tmp_path, bits):
    import make

    code = {4: "F4", 6: "F6_E2M3"}[bits]
    opened = []
    for i in range(2):
        path = tmp_path / f"{i}.safetensors"
        scale = (f"{code}", [8], bytes([i] * bits))
        path.write_bytes(make.packed({"w": (code, [8], bytes(bits)), "w_scale": scale}))
        opened.append(open_checkpoint(path))
    assert [each.kind for each in confirmed(not_plain(opened, "ab"), opened, "ab")] == ["codes"]


def test_a_scale_that_one_checkpoint_lacks_matters(tmp_path):
    weight = torch.ones(2, 8).to(torch.float8_e4m3fn)
    one = {"a.weight": weight, "a.weight_scale": torch.tensor(1.0)}
    assert matters(tmp_path, one, {"a.weight": weight}) == ["codes"]


def test_large_scales_are_compared_to_their_end(tmp_path):
    weight = torch.ones(2, 8).to(torch.float8_e4m3fn)
    scale = torch.ones(1 << 19)
    other = scale.clone()
    other[-1] = 2
    states = [{"a.weight": weight, "a.weight_scale": each} for each in (scale, scale, other)]
    assert matters(tmp_path, *states[:2]) == []
    assert matters(tmp_path, *states) == ["codes"]


def test_one_alpha_and_one_mask_do_no_harm(tmp_path):
    lora = {"l.lora_down.weight": torch.ones(2, 4), "l.lora_up.weight": torch.ones(4, 2)}
    one, four = (lora | {"l.alpha": torch.tensor(alpha)} for alpha in (1.0, 4.0))
    assert matters(tmp_path, one, one) == ["factors"]
    assert matters(tmp_path, one, four) == ["alpha", "factors"]
    pruned = {"fc.weight_orig": torch.ones(4), "fc.weight_mask": torch.ones(4)}
    assert matters(tmp_path, pruned, pruned) == []
    assert matters(tmp_path, pruned, pruned | {"fc.weight_mask": torch.eye(2)[0].repeat(2)}) == [
        "mask"
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["fc.mask", "fc.weight_mask", "masks.0", "mask_1", "masks.fc.weight"]
)
def test_masks_of_zeros_and_ones_are_the_same_or_refused(tmp_path, name, dtype):
    mask = torch.ones(400, 2000)
    mask[:, ::2] = 0
    pruned = {"fc.weight": torch.ones(4), name: mask.to(dtype)}
    other = mask.clone()
    other[-1, -1] = 0
    assert matters(tmp_path, pruned, pruned) == []
    assert matters(tmp_path, pruned, pruned | {name: other.to(dtype)}) == ["binary"]


@pytest.mark.parametrize(
    "values", [[0.0, -math.inf, 0.0], [0.0, 0.5, 1.0], [0.0, -10000.0, 0.0], [0.0, 1.0, math.nan]]
)
def test_other_masks_are_averaged(tmp_path, values):
    one, other = ({"mask": torch.tensor(each)} for each in (values, [0.0, 1.0, 0.0]))
    assert matters(tmp_path, one, other) == []


def test_masks_that_differ_are_named_alone(tmp_path):
    one = {name: torch.ones(3) for name in ("a.mask", "b.mask", "c.mask")}
    paths = [
        save(tmp_path / f"{i}.safetensors", each)
        for i, each in enumerate((one, one | {"b.mask": torch.zeros(3)}))
    ]
    opened = [open_checkpoint(path) for path in paths]
    with pytest.raises(
        MismatchError, match=r"masks of zeros and ones differ.*: 'b.mask'\."
    ) as told:
        check_plain(opened, paths, lambda name: True)
    assert "exclude='*mask*'" in told.value.hint
    assert check_plain(opened, paths, lambda name: "mask" not in name) == []


@pytest.mark.parametrize("given", ["folders", "files"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_alpha": 32}, "lora_alpha is 8 in a0 and 32 in a1"),
        ({"use_rslora": True}, "use_rslora is false in a0 and true in a1"),
        ({"alpha_pattern": {"q": math.inf}}, "alpha_pattern is {} in a0 and"),
        ({"target_modules": ["k"], "base_model_name_or_path": "elsewhere"}, None),
        ({"lora_alpha": 8.0, "rank_pattern": {}, "alpha_pattern": None}, None),
        ({"rank_pattern": {"q": 4}}, "rank_pattern is {} in a0 and"),
    ],
)
def test_adapters_whose_settings_differ_are_refused(tmp_path, given, settings, said):
    state = {"l.lora_A.weight": torch.ones(4, 8), "l.lora_B.weight": torch.ones(8, 4)}
    common = {"r": 4, "lora_alpha": 8, "use_rslora": False, "alpha_pattern": {}}
    paths = []
    for name, config in (("a0", common), ("a1", common | settings)):
        path = save(tmp_path / name / "adapter_model.safetensors", state)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        paths.append(tmp_path / name if given == "folders" else path)
    opened = [open_checkpoint(path) for path in paths]
    shown = ["a0", "a1"]
    found = confirmed(not_plain(opened, shown), opened, shown)
    assert [each.kind for each in found] == (["factors"] if said is None else ["alpha", "factors"])
    assert said is None or said in found[0].message


def test_the_exact_average_is_not_offered_for_what_settings_say_is_no_lora(tmp_path):
    state = {"l.lora_A.weight": torch.ones(4, 8), "l.lora_B.weight": torch.ones(8, 4)}
    hints = []
    for settings in ({}, {"use_dora": True}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4} | settings))
        paths = [save(tmp_path / name, state) for name in ("a.safetensors", "b.safetensors")]
        opened = [open_checkpoint(path) for path in paths]
        (found,) = confirmed(not_plain(opened, paths), opened, paths)
        hints.append("lora=exact" in found.hint)
    assert hints == [True, False]


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_broken_adapter_config_says_nothing(tmp_path, text):
    state = {"l.lora_A.weight": torch.ones(4, 8), "l.lora_B.weight": torch.ones(8, 4)}
    (tmp_path / "adapter_config.json").write_text(text)
    assert matters(tmp_path, state, state) == ["factors"]


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"quantization_config": {"quant_method": "torchao"}}, torch.int8),
        ({"quantization_config": {"quant_method": "vptq"}}, torch.uint16),
        ({"text_config": {"quantization_config": {"quant_method": "eetq"}}}, torch.uint8),
        ({"quantization_config": {"quant_method": "fp8"}}, torch.float8_e4m3fn),
    ],
)
def test_codes_that_no_name_tells_are_known_by_the_config(tmp_path, config, dtype):
    paths = []
    for i in range(2):
        state = {"l.packed": torch.full((4,), 1 + i).to(dtype), "l.norm": torch.ones(2)}
        paths.append(tmp_path / f"m{i}")
        save(paths[-1] / "model.safetensors", state)
        (paths[-1] / "config.json").write_text(json.dumps(config))
    opened = [open_checkpoint(path) for path in paths]
    with pytest.raises(MismatchError, match=r"quantised weights .*'l.packed'"):
        check_plain(opened, ["m0", "m1"], lambda name: True)
    # Codes that are the same in all, none, and such as are not averaged do no harm.
    assert check_plain(opened[:1] * 2, ["m0", "m0"], lambda name: True) == []
    assert check_plain(opened, ["m0", "m1"], lambda name: name != "l.packed") == []
    (paths[0] / "config.json").write_text("{}")
    (paths[1] / "config.json").write_text('{"quantization_config": null}')
    assert check_plain(opened, ["m0", "m1"], lambda name: True) == []
