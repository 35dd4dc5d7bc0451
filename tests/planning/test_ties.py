"""Ties that no file declares: a name that one input leaves out, with the bytes of another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import swavg
from swavg.formats import open_checkpoint
from swavg.planning.match import SideBySide


def values(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (6, 4)), generator=generator)


def found(folder, *states):
    for number, state in enumerate(states):
        save(folder / str(number), {name: tensor.clone() for name, tensor in state.items()})
    opened = [open_checkpoint(folder / str(number)) for number in range(len(states))]
    return [set(group) for group in SideBySide(opened).found]


def test_a_name_left_out_is_tied_to_what_has_its_bytes(tmp_path):
    e, f = values(0), values(1)
    whole, once = {"embed": e, "head": e, "x": values(2)}, {"embed": f, "x": values(3)}
    assert found(tmp_path, whole, once) == [{"embed", "head"}]
    assert found(tmp_path, once, whole, once) == [{"embed", "head"}]
    assert found(tmp_path, whole, whole) == []


def test_t5_writes_one_of_four_names(tmp_path):
    names = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    four = {f"{name}.weight": values(0) for name in names}
    for name in names:
        assert found(tmp_path, four, {f"{name}.weight": values(1)}) == [set(four)]
    one, other = {f"{names[0]}.weight": values(1)}, {f"{names[3]}.weight": values(2)}
    assert found(tmp_path, one, other, four) == [set(four)]
    # Nothing says that they are one.
    assert found(tmp_path, one, other) == []


def test_the_biases_of_berts_head(tmp_path):
    bias = values(0, 5)
    both = {"cls.predictions.bias": bias, "cls.predictions.decoder.bias": bias, "a.bias": bias}
    left = {"cls.predictions.bias": values(1, 5), "a.bias": values(2, 5)}
    assert found(tmp_path, both, left) == [set(both) - {"a.bias"}]


def test_constants_are_tied_where_they_are_called_embedding_and_head(tmp_path):
    ones, zeros = torch.ones(3), torch.zeros(3)
    both = {"shared.weight": ones, "lm_head.weight": ones, "norm.weight": ones}
    once = {"shared.weight": zeros, "norm.weight": zeros}
    assert found(tmp_path, both, once) == [{"shared.weight", "lm_head.weight"}]
    assert found(tmp_path, both, {"shared.weight": zeros, "lm_head.weight": ones}) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": torch.ones(6, 4), "b": torch.ones(6, 4)}, {"a": values(1)}),
        ({"a": torch.zeros(2000), "b": torch.zeros(2000)}, {"a": values(1, 2000)}),
        ({"a.weight": values(0, 8), "b.weight": values(0, 8)}, {"a.weight": values(1, 8)}),
        ({"a": torch.arange(9).view(3, 3), "b": torch.arange(9).view(3, 3)}, {"a": values(1)}),
        ({"a": values(0), "b": values(0).view(4, 6)}, {"a": values(1)}),
        ({"a": values(0), "b": values(0).double()}, {"a": values(1)}),
        ({"a": values(0), "b": values(1)}, {"a": values(1)}),
        ({"a": values(0), "b": values(0)}, {"c": values(1)}),
    ],
    ids=["ones", "zeros", "norms", "integers", "shapes", "dtypes", "others", "elsewhere"],
)
def test_what_is_alike_without_being_tied(tmp_path, one, other):
    assert found(tmp_path, one, other) == []


def test_every_input_that_has_both_must_agree(tmp_path):
    tied, untied = {"a": values(0), "b": values(0)}, {"a": values(1), "b": values(2)}
    assert found(tmp_path, tied, untied, {"a": values(3)}) == []


def test_partners_that_differ_where_the_name_is_missing_leave_it_open(tmp_path):
    alike = {"a": values(0), "b": values(0), "head": values(0)}
    assert found(tmp_path, alike, {"a": values(1), "b": values(2)}) == []
    # With another input that tells which.
    known = {"a": values(3), "b": values(4), "head": values(4)}
    assert found(tmp_path, alike, {"a": values(1), "b": values(2)}, known) == [{"b", "head"}]


def test_the_end_of_long_tensors_counts(tmp_path):
    long = values(0, 1, 300_000)
    other = long.clone()
    other[0, -1] += 1
    assert found(tmp_path, {"emb": long, "b": long}, {"emb": other}) == [{"emb", "b"}]
    assert found(tmp_path, {"emb": long, "b": other}, {"emb": long}) == []


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    whole=st.lists(st.booleans(), min_size=2, max_size=4).filter(any),
    strict=st.booleans(),
    suffixes=st.lists(st.sampled_from([".pt", ".safetensors"]), min_size=4, max_size=4),
)
def test_the_heads_of_an_average_equal_its_embedding(tmp_path, whole, strict, suffixes):
    paths, embeddings = [], []
    for number, has_head in enumerate(whole):
        embeddings.append(values(number))
        state = {"embed.weight": embeddings[-1], "norm.weight": values(9, 4)}
        if has_head:
            state["lm_head.weight"] = embeddings[-1].clone()
        path = Path(tmp_path / f"{number}{suffixes[number]}")
        if path.suffix == ".pt":
            torch.save(state, path)
        else:
            save(path, state)
        paths.append(path)
    out = tmp_path / "out.safetensors"
    report = swavg.average(paths, output=out, policy=swavg.Policy(strict=strict), force=True)
    made = load_file(out)
    mean = np.mean([np.float64(each.numpy()) for each in embeddings], axis=0, dtype=np.float64)
    np.testing.assert_array_equal(made["embed.weight"].numpy(), mean.astype(np.float32))
    assert ("lm_head.weight" in made) == whole[-1]
    if whole[-1]:
        assert torch.equal(made["lm_head.weight"], made["embed.weight"])
    assert any("tied" in note for note in report.notes) == (not all(whole))


def folder(path, config, **tensors):
    path.mkdir()
    named = {f"model.{name}" if name != "lm_head" else name: t for name, t in tensors.items()}
    save(path / "model.safetensors", {f"{name}.weight": tensor for name, tensor in named.items()})
    (path / "config.json").write_text(config)
    return path


TIED = '{"tie_word_embeddings": true}'


def test_an_untied_head_is_averaged_by_itself_and_told_if_the_config_says_tied(tmp_path):
    tied = folder(tmp_path / "tied", TIED, embed_tokens=values(0), lm_head=values(0))
    untied = folder(tmp_path / "untied", TIED, embed_tokens=values(1), lm_head=values(2))
    report = swavg.average([untied, tied], output=tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    expected = (values(2).double() + values(0).double()) / 2
    assert torch.equal(made["lm_head.weight"], expected.float())
    (warning,) = [text for text in report.warnings if "tie_word_embeddings" in text]
    assert warning.startswith("untied: config.json says")


@pytest.mark.parametrize("config", ["{}", '{"tie_word_embeddings": false}', "[]", "{", "\x00"])
def test_a_config_that_does_not_say_tied_is_no_matter(tmp_path, config):
    paths = [
        folder(tmp_path / name, config, embed_tokens=values(1), lm_head=values(2))
        for name in ("a", "b")
    ]
    assert not [w for w in swavg.average(paths, output=tmp_path / "o").warnings if "tie" in w]


@pytest.mark.parametrize(
    ("whole", "once"),
    [
        ({"layers.0.w": 0, "layers.1.w": 1, "layers.2.w": 0}, ("layers.0.w", "layers.1.w")),
        ({"encoder_q.w": 0, "encoder_k.w": 0}, ("encoder_q.w",)),
        ({"q_net.w": 0, "q_net_target.w": 0}, ("q_net.w",)),
        ({"tok_embed.0.w": 0, "tok_embed.1.w": 0}, ("tok_embed.0.w",)),
    ],
    ids=["repeated layers", "momentum encoder", "target network", "numbered"],
)
def test_copies_of_weights_are_no_ties(tmp_path, whole, once):
    state = {name: values(seed) for name, seed in whole.items()}
    assert found(tmp_path, state, {name: values(9) for name in once}) == []
