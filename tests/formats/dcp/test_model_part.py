"""Which of what a folder holds is the model."""

from __future__ import annotations

import time

import pytest

from swavg.errors import InputError
from swavg.formats.dcp.model_part import find_model
from swavg.formats.dcp.saved import Place, Saved, SavedTensor

ONE = SavedTensor("float32", (), ())
WEIGHT = SavedTensor("bfloat16", (2,), ())


def holding(*names, paths=None, objects=()):
    """A folder of these tensors; ``paths`` are the keys of some names."""
    place = Place(0, 0, 0)
    return Saved((), dict.fromkeys(names, ONE), dict.fromkeys(objects, place), paths or {})


def nested(*paths, objects=()):
    """A folder of tensors at these paths of keys."""
    named = {".".join(path): path for path in paths}
    return holding(*named, paths=named, objects=objects)


@pytest.mark.parametrize(
    ("saved", "key", "root", "names", "others"),
    [
        # Names with dots of their own are no nesting.
        (holding("model.embed.weight", "lm_head.weight"), None, "",
         ["model.embed.weight", "lm_head.weight"], ()),
        (nested(("model", "w"), ("optim", "state.w")), None, "model", ["w"], ("optim",)),
        (nested(("app", "model", "w"), ("app", "optim", "w")), None, "app.model", ["w"],
         ("app.optim",)),
        (nested(("net", "w"), ("lr_scheduler", "x")), None, "net", ["w"], ("lr_scheduler",)),
        (holding("w", "optimizer.state.w.exp_avg", "chained_0.optimizer.state.w"), None, "", ["w"],
         ("optimizer", "chained_0")),
        (holding("w", "optimus.w", "dataloader.dp_rank_0", "rng_state"), None, "",
         ["w", "optimus.w"], ("dataloader", "rng_state")),
        (nested(("model", "w"), ("ema", "w")), None, "model", ["w"], ("ema",)),
        (nested(("model", "w"), ("ema", "w")), "ema", "ema", ["w"], ("model",)),
        (nested(("a", "w"), ("b", "w")), "", "", ["a.w", "b.w"], ()),
        (nested(("model", "encoder", "w"), ("model", "decoder", "w")), None, "model",
         ["encoder.w", "decoder.w"], ()),
        # Modules of a model, one of which is called so.
        (nested(("model", "model", "w"), ("model", "head", "w")), None, "model",
         ["model.w", "head.w"], ()),
    ],
)  # fmt: skip
def test_the_model_is_found(saved, key, root, names, others):
    part = find_model("run", saved, key)
    assert (part.root_key, list(part.names), part.others) == (root, names, others)
    assert all(full.endswith(local) for local, full in part.names.items())


@pytest.mark.parametrize(
    ("name", "is_model"),
    [
        ("optimizer_head.weight", True),
        ("optim_net.w", True),
        ("rng_net.weight", True),
        ("dataloader.embed", True),
        ("optimizer.weight", False),
        ("optimizer_1.w", False),
        ("optimizer_states.0.w", False),
        ("optimizer_g.state.w.exp_avg", False),
        ("optimizer_g.param_groups.w.lr", False),
        ("optimizer/shard_0", False),
    ],
)
def test_floats_beside_the_weights_are_an_optimizers_or_weights(name, is_model):
    saved = Saved(
        (), {"w": WEIGHT, name: WEIGHT, "rng_state": SavedTensor("uint8", (9,), ())}, {}, {}
    )
    assert list(find_model("run", saved).names) == ["w", *[name] * is_model]


def test_weights_in_a_group_that_is_called_like_state_are_told():
    paths = {"model.w": ("model", "w"), "dataloader.w": ("dataloader", "w")}
    part = find_model("run", Saved((), dict.fromkeys(paths, WEIGHT), {}, paths))
    assert part.further == ("dataloader",)
    paths["of_me.w"] = ("of_me", *paths.pop("model.w")[1:])
    part = find_model("run", Saved((), dict.fromkeys(paths, WEIGHT), {}, paths))
    assert (part.root_key, part.further) == ("of_me", ("dataloader",))


MOMENTS = {
    ("opt", "state", "0", "exp_avg"): WEIGHT,
    ("opt", "param_groups", "0", "lr"): None,
}


@pytest.mark.parametrize(
    ("held", "root", "names", "others"),
    [
        ({("model", "w"): WEIGHT, ("epoch",): ONE, ("losses",): WEIGHT, **MOMENTS}, "model",
         ["w"], {"epoch", "losses", "opt"}),
        ({("policy", "w"): WEIGHT, ("step",): ONE, **MOMENTS}, "policy", ["w"], {"step", "opt"}),
        ({("w",): WEIGHT, **MOMENTS}, "", ["w"], {"opt"}),
        # Composer
        ({("state", "model", "w"): WEIGHT, ("state", "metrics", "acc"): ONE,
          **{("state", "optimizers", "Adam", *keys[1:]): of for keys, of in MOMENTS.items()}},
         "state.model", ["w"], {"state.metrics", "state.optimizers"}),
        # Names that a model of its own has.
        ({("model", "state.w"): WEIGHT, ("model", "v"): WEIGHT}, "model", ["state.w", "v"], set()),
        # Several models.
        ({("actor", "w"): WEIGHT, ("critic", "w"): WEIGHT, ("step",): ONE, **MOMENTS}, "",
         ["actor.w", "critic.w", "step"], {"opt"}),
        ({("model_0", "w"): WEIGHT, ("model_1", "w"): WEIGHT}, "", ["model_0.w", "model_1.w"],
         set()),
        # One for each parameter.
        ({("net", "w"): WEIGHT, ("o", "w", "state.w.exp_avg"): WEIGHT,
          ("o", "w", "param_groups.w.lr"): None}, "net", ["w"], {"o"}),
    ],
)  # fmt: skip
def test_neither_optimizers_nor_what_counts_are_the_model(held, root, names, others):
    paths = {".".join(keys): keys for keys in held}
    tensors = {".".join(keys): of for keys, of in held.items() if of is not None}
    objects = {name: Place(0, 0, 0) for name in paths.keys() - tensors.keys()}
    part = find_model("run", Saved((), tensors, objects, paths))
    assert (part.root_key, list(part.names), set(part.others)) == (root, names, others)


def test_an_optimizers_moments_are_taken_where_they_are_asked_for():
    paths = {".".join(keys): keys for keys in MOMENTS}
    tensors = {"opt.state.0.exp_avg": WEIGHT}
    objects = {"opt.param_groups.0.lr": Place(0, 0, 0)}
    saved = Saved((), tensors, objects, paths)
    assert list(find_model("run", saved, "opt").names) == ["state.0.exp_avg"]
    with pytest.raises(InputError, match="holds no tensors of a model"):
        find_model("run", saved)


def test_keys_without_end_take_no_time():
    paths = {str(n): (*["state"] * 1000, str(n)) for n in range(2000)}
    started = time.process_time()
    part = find_model("run", Saved((), dict.fromkeys(paths, WEIGHT), {}, paths))
    assert len(part.names) == 2000
    assert time.process_time() - started < 2


def test_another_state_dict_is_told():
    part = find_model("run", nested(("model", "w"), ("ema", "w")))
    assert part.notes == (
        "state dict found under 'model'; there is also 'ema' (choose it with --key ema)",
    )


def test_what_layers_keep_besides_weights_is_no_tensor_of_the_model():
    part = find_model("run", holding("w", "w._extra_state", objects=("up._extra_state/shard_0",)))
    assert list(part.names) == ["w"]
    assert part.objects == ("w._extra_state", "up._extra_state/shard_0")


@pytest.mark.parametrize(
    ("saved", "key", "problem"),
    [
        (nested(("a", "w"), ("b", "w")), None, "several state dicts could be meant: 'a', 'b'"),
        (Saved((), {"a": WEIGHT, "b": WEIGHT}, {}, {"a": ("a", "x"), "b": ("replay", "x")}), None,
         "several state dicts could be meant: 'a', 'replay'"),
        (nested(("optim", "w")), None, "holds no tensors of a model"),
        (nested(("model", "w")), "ema", "has no 'ema'"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(saved, key, problem):
    with pytest.raises(InputError, match=problem):
        find_model("run", saved, key)
