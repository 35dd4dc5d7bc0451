"""What a checkpoint lists, and which of it is the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.orbax.tree import Item, Leaf, leaves_in, model_of

ITEM = Item("/x", True, False, True)


def leaves(names):
    return [Leaf(tuple(name.split(".")), ITEM, name, "jax.Array") for name in names.split()]


@pytest.mark.parametrize(
    ("names", "root", "taken", "candidates"),
    [
        # A train state of Flax, as one item or below one.
        ("step params.a.w opt_state.0.mu.a.w", "", "params.a.w", ""),
        ("params.w batch_stats.m ema_params.w step", "", "params.w batch_stats.m", "ema_params"),
        ("state.step state.params.w state.opt_state.mu", "state", "state.params.w", ""),
        ("model.params.w model.opt_state.mu config.lr data.0", "model", "model.params.w", ""),
        # Parameters by themselves, also where layers have names of collections further down.
        ("up.kernel up.bias", "", "up.kernel up.bias", ""),
        ("a.b.params.w a.c", "", "a.b.params.w a.c", ""),
        # nnx: a model beside its optimizer, with streams of random numbers.
        ("model.l.kernel optimizer.mu step", "model", "model.l.kernel", ""),
        ("l.kernel rngs.default.key", "", "l.kernel", ""),
        ("model", "", "model", ""),
    ],
)
def test_the_model_is_found(names, root, taken, candidates):
    model = model_of("x", leaves(names), None)
    assert ".".join(model.root) == root
    assert [leaf.stored for leaf in model.leaves] == taken.split()
    assert list(model.candidates) == candidates.split()
    assert {leaf.stored for leaf in (*model.leaves, *model.rest)} == set(names.split())


def test_of_several_models_one_is_to_be_chosen():
    several = leaves("gen.params.w gen.opt_state.w disc.params.w")
    with pytest.raises(InputError, match="holds several models: 'gen', 'disc'") as caught:
        model_of("x", several, None)
    assert caught.value.hint == "Choose one with key=gen."
    assert [leaf.stored for leaf in model_of("x", several, "gen").leaves] == ["gen.params.w"]
    assert len(model_of("x", several, "").leaves) == 3


def test_nothing_but_the_state_of_training_is_no_model():
    with pytest.raises(InputError, match="holds no arrays that could be a model"):
        model_of("x", leaves("opt_state.mu step"), None)


def entry(*keys, kind="jax.Array"):
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys],
        "value_metadata": {"value_type": kind, "skip_deserialize": False},
    }


def listed(folder: Path, *entries, **more):
    tree = {str(number): each for number, each in enumerate(entries)}
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": tree, **more}))
    return folder


@pytest.mark.parametrize(
    "name", ["../w", "a/../../w", "/etc/w", "a//w", "w\0", "a" * 5000, "", "."]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="which is no plain name"):
        open_checkpoint(listed(tmp_path, entry(name), use_ocdbt=False))


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has two arrays that are called 'a\.b'"):
        open_checkpoint(listed(tmp_path, entry("a", "b"), entry("a.b")))


def test_what_is_empty_is_no_array(tmp_path):
    listed(tmp_path, entry("a", kind="None"), entry("b", kind="Dict"), entry("c"))
    assert [leaf.stored for leaf in leaves_in(str(tmp_path))] == ["c"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"tree_metadata": 3}', '{"tree_metadata": {"a": {}}}', "[" * 100_000,
     '{"tree_metadata": {"a": {"key_metadata": [{"key": "a"}], "value_metadata": []}}}',
     '{"a": ' * 5000, "\udcff", '{"tree_metadata": {"a": 1, "a": 2}}'],
)  # fmt: skip
def test_what_lists_no_arrays_is_refused(tmp_path, text):
    (tmp_path / "_METADATA").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"does not list arrays as Orbax does|is there twice"):
        open_checkpoint(tmp_path)


def test_a_list_that_would_take_all_memory_is_refused(tmp_path):
    (tmp_path / "_METADATA").write_text("[" + "{}," * 2_000_000 + "0]")
    with pytest.raises(InputError, match="more arrays than a checkpoint could hold"):
        open_checkpoint(tmp_path)
    with (tmp_path / "_METADATA").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="more arrays than a checkpoint could hold"):
        open_checkpoint(tmp_path)


def test_a_step_without_arrays_is_refused(tmp_path):
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "config").mkdir()
    with pytest.raises(InputError, match="no item lists its arrays"):
        open_checkpoint(tmp_path)
