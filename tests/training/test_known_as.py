"""Models whose tensors have other names in the checkpoints that their library saves."""

import pytest
import torch
import transformers

import swavg
from swavg.errors import MismatchError
from swavg.training import apply_swa

VIT = {
    "image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 3, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


def vit(seed=0):
    torch.manual_seed(seed)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))


@pytest.fixture
def folders(tmp_path):
    """Two checkpoints as transformers saves them, under other names than the model's."""
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"checkpoint-{seed}")
        vit(seed).save_pretrained(paths[-1])
    renamed = set(swavg.open_checkpoint(paths[0])) - set(vit().state_dict())
    assert any("attention.attention.query" in name for name in renamed)
    return paths


def assert_mean(model):
    first, second = vit(1).state_dict(), vit(2).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


def test_the_average_of_what_transformers_saved_goes_into_the_model(folders):
    model = vit()
    apply_swa(model, folders)
    assert_mean(model)


def test_an_average_goes_into_the_model_that_transformers_loads(folders, tmp_path):
    swavg.average(folders, output=tmp_path / "mean")
    assert_mean(transformers.ViTForImageClassification.from_pretrained(tmp_path / "mean"))


def test_names_as_the_model_has_them_are_found_too(tmp_path):
    paths = [tmp_path / f"{seed}.pt" for seed in (1, 2)]
    for seed, path in enumerate(paths, 1):
        torch.save(vit(seed).state_dict(), path)
    model = torch.compile(vit(), backend="eager")
    apply_swa(model, paths)
    assert_mean(model._orig_mod)


def test_what_transformers_merges_or_splits_is_refused(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "moe")
    with pytest.raises(MismatchError, match="merged or split") as caught:
        apply_swa(model, [tmp_path / "moe"], strict=False)
    assert "from_pretrained" in caught.value.hint
    torch.save(model.state_dict(), tmp_path / "own.pt")
    apply_swa(model, [tmp_path / "own.pt"])
