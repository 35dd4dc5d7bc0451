"""Which folders are composites, going by names, and what their parts are."""

import pytest
from composites import deepspeed, llama, megatron, modules, pipeline, speechbrain, w, write

from swavg.errors import InputError
from swavg.formats.composite import as_composite, components, find_composite


@pytest.mark.parametrize(
    ("files", "parts", "left_out"),
    [
        (llama(0), ("consolidated.00.pth", "consolidated.01.pth"), ()),
        (megatron(0), ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"), ()),
        (
            megatron(0) | {"mp_rank_00/distrib_optim.pt": {}},
            ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"),
            ("mp_rank_00/distrib_optim.pt",),
        ),
        (
            deepspeed(0),
            ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
            ("zero_pp_rank_0_mp_rank_00_optim_states.pt",),
        ),
        (pipeline(0), ("unet", "vae"), ("all_in_one.safetensors",)),
        (modules(0), ("", "2_Dense"), ()),
        (
            speechbrain(0),
            (
                "brain.ckpt",
                "counter.ckpt",
                "model.ckpt",
                "normalizer.ckpt",
                "opt_class.ckpt",
            ),
            ("optimizer.ckpt",),
        ),
        (
            {"rank_0/model.pt": w(0), "rank_1/model.pt": w(1)},
            ("rank_0/model.pt", "rank_1/model.pt"),
            (),
        ),
    ],
)  # fmt: skip
def test_folders_that_are_known_for_their_parts(tmp_path, files, parts, left_out):
    found = find_composite(str(write(tmp_path / "a", files)))
    assert found is not None
    assert (found.parts, found.left_out) == (parts, left_out)


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": w(0), "config.json": "{}"},
        {"model.safetensors": w(0), "original/consolidated.00.pth": w(0)},
        {"model.safetensors": w(0), "global_step5/mp_rank_00_model_states.pt": w(0)},
        {"modules.json": [{"path": ""}, {"path": "2_Normalize"}], "model.safetensors": w(0)},
        {"modules.json": "no json", "model.safetensors": w(0)},
        {"step-1.pt": w(0), "step-2.pt": w(0)},
        {"best_rank_1.pt": w(0), "best_rank_2.pt": w(0)},
        {"lora_rank8.pt": w(0), "lora_rank16.pt": w(0)},
        {f"step{s}_rank{r}.pt": w(0) for s in (1, 2) for r in (0, 1)},
        {f"checkpoint_{e}-shard{r}.pt": w(0) for e in (1, 2) for r in (0, 1)},
        {"encoder.pt": w(0), "decoder.pt": w(0)},
    ],
)
def test_others_are_not(tmp_path, files):
    assert find_composite(str(write(tmp_path / "a", files))) is None


def test_components_are_all_that_may_hold_weights(tmp_path):
    folder = write(
        tmp_path / "a",
        {
            "encoder.pt": w(0),
            "ema/model.safetensors": w(0),
            "logs/events.pt": w(0),
            "rng_state.pth": {},
            "graph.onnx": "graph",
            "config.yaml": "a: 1",
            ".hidden.pt": w(0),
            "trainer_state.json": "{}",
        },
    )
    found = components(str(folder))
    assert found.parts == ("ema", "encoder.pt")
    assert [*found.side_files] == ["config.yaml"]
    assert found.left_out == ("graph.onnx", "logs", "rng_state.pth", "trainer_state.json")


def test_shards_without_an_index_are_no_parts(tmp_path):
    files = {f"model-0000{n}-of-00002.safetensors": w(n) for n in (1, 2)}
    with pytest.raises(InputError, match="no index"):
        as_composite(str(write(tmp_path / "a", files)))


def test_a_pipeline_in_the_cache_of_a_hub_is_the_snapshot_that_main_names(tmp_path):
    root = tmp_path / "models--org--x"
    snapshot = root / "snapshots" / "aaa"
    write(snapshot, pipeline(0))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("aaa")
    for found in (find_composite(str(root)), as_composite(str(root))):
        assert (found.path, found.parts) == (str(snapshot), ("unet", "vae"))
