"""Names without a prefix, or with parts replaced, in inputs and outputs alike."""

import re

import pytest
import torch
from checkpoints import save
from command_line import done, swavg
from safetensors.torch import load_file, save_file

from swavg.errors import RequestError
from swavg.formats import open_checkpoint
from swavg.formats.tensors import Shared
from swavg.planning.rename import Rule, renamed, renamed_with_model, rules

BERT = ["embeddings.weight", "encoder.layer.0.weight", "pooler.weight"]
LLAMA = ["model.embed_tokens.weight", "model.layers.0.w", "lm_head.weight"]


def values(names, value, before=""):
    return {f"{before}{name}": torch.full((3,), float(value)) for name in names}


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("model.", "model.a.w", "a.w"),
        ("model", "model.a.w", "a.w"),
        ("model", "model_ema.a", "model_ema.a"),
        ("model.", "a.model.w", "a.model.w"),
        ("model.", "model.model.w", "model.w"),
        ("model.", "module.model.a.w", "a.w"),
        ("model.", "module._orig_mod.model.a.w", "a.w"),
        ("model.", "model.a._orig_mod.w", "a._orig_mod.w"),
        ("module.model.", "module.model.a", "a"),
        ("params/", "params/a/kernel", "a/kernel"),
        ("model.", "model.", "model."),
    ],
)
def test_a_prefix_is_taken_off(text, name, expected):
    assert Rule("strip_prefix", text).change()(name) == expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("gamma=weight", "norm.gamma", "norm.weight"),
        ("gamma=weight", "gamma", "weight"),
        ("gamma=weight", "gammas.gamma_0", "gammas.gamma_0"),
        ("a=b", "a.a.c.a", "b.b.c.b"),
        ("encoder.layer=blocks", "bert.encoder.layer.0.w", "bert.blocks.0.w"),
        ("encoder.layer=blocks", "bert.encoder.layers.0.w", "bert.encoder.layers.0.w"),
        ("layer=a.b", "layer.0", "a.b.0"),
        ("base_model=", "base_model.model.w", "model.w"),
        ("model=", "base.model.w", "base.w"),
        ("model.=bert.", "model.w", "bert.w"),
        ("w=", "w", "w"),
        (r"a=\1", "a.b", r"\1.b"),
        (".*=x", "a.b", "a.b"),
        ("/=.", "Dense_0/kernel/w", "Dense_0.kernel.w"),
        (":=_", "a:b.c:d", "a_b.c_d"),
        ("/=", "/", "/"),
    ],
)
def test_a_part_of_a_name_is_replaced(text, name, expected):
    assert Rule("rename", text).change()(name) == expected


@pytest.mark.parametrize(
    ("argument", "text"), [("rename", "a"), ("rename", "=b"), ("rename", ""), ("strip_prefix", "")]
)
def test_a_text_that_says_nothing_is_refused(argument, text):
    with pytest.raises(RequestError, match=argument):
        Rule(argument, text)


def opened(folder, *states):
    shared = Shared()
    paths = [save(folder / f"{number}.safetensors", each) for number, each in enumerate(states)]
    return [open_checkpoint(path, shared=shared) for path in paths]


def test_inputs_of_one_run_share_their_table_still(tmp_path):
    wrapped, bare = values(BERT, 0, "model."), values(BERT, 1)
    one, other, third = renamed(
        opened(tmp_path, wrapped, wrapped, bare), rules(strip_prefix=["model."])
    )
    assert one.tensors.columns is other.tensors.columns
    assert [one.renamed, other.renamed, third.renamed] == [True, True, False]
    assert sorted(one) == BERT
    assert one.read("pooler.weight").tolist() == [0, 0, 0]


def test_a_prefix_of_the_model_itself_stays_where_others_have_it_twice(tmp_path):
    wrapped, bare = values(LLAMA, 0, "model."), values(LLAMA, 1)
    for order in ((wrapped, bare), (bare, wrapped), (bare, bare, wrapped)):
        found = renamed(opened(tmp_path, *order), rules(strip_prefix=["model."]))
        assert [set(each) for each in found] == [set(LLAMA)] * len(order)
    # All have it: all lose it.
    found = renamed(opened(tmp_path, wrapped, wrapped), rules(strip_prefix=["model."]))
    assert set(found[0]) == set(LLAMA)


def test_a_models_names_follow_once(tmp_path):
    follow = rules(strip_prefix="model.")
    first = renamed(opened(tmp_path, values(["model.a"], 0, "model.")), follow)
    names, again = renamed_with_model(("model.model.a", "b"), first, follow)
    assert names == ("model.a", "b")
    assert list(again[0]) == ["model.a"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"strip_prefix": ["modle."]}, "begins no name of any input", "Did you mean 'model.'?"),
        ({"strip_prefix": ["zzz"]}, "begins no name of any input", "Prefixes are 'model.'"),
        ({"rename": ["poolr=a"]}, "is no part of any name", "Did you mean 'pooler'?"),
        ({"rename": ["pooler=b", "pooler=c"]}, "is no part of any name", ""),
        (
            {"rename": ["pooler=embeddings"]},
            "makes 'model.embeddings.weight' and 'model.pooler.weight' one name",
            "",
        ),
    ],
)
def test_what_changes_nothing_or_loses_a_name_is_refused(tmp_path, options, message, hint):
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        renamed(opened(tmp_path, values(BERT, 0, "model.")), rules(**options))
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("order", [("bare", "wrapped"), ("wrapped", "bare")])
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("model.", "model."),
        ("module.model.", "model."),
        ("a.encoder.", "a.encoder."),
        ("_orig_mod.transformer.", "transformer."),
    ],
)
def test_inputs_with_and_without_a_prefix_average_to_names_without(tmp_path, order, before, said):
    states = {"bare": values(BERT, 1), "wrapped": values(BERT, 3, before)}
    for name, each in states.items():
        torch.save(each, tmp_path / f"{name}.pt")
    paths = [f"{name}.pt" for name in order]
    failed = swavg("average", *paths, "-o", "o.pt", cwd=tmp_path)
    assert failed.returncode == 3
    assert f"all 3 names of bare.pt are in wrapped.pt under '{said}'" in failed.stderr
    option = re.search(r"--strip-prefix \S+", failed.stderr)[0].split()
    done("average", *paths, "-o", "o.pt", *option, cwd=tmp_path)
    made = torch.load(tmp_path / "o.pt")
    assert list(made) == BERT
    assert all(torch.equal(tensor, torch.full((3,), 2.0)) for tensor in made.values())


def test_three_inputs_under_three_prefixes(tmp_path):
    for name, before in (("a", "model."), ("b", "bert."), ("c", "")):
        save(tmp_path / f"{name}.safetensors", values(BERT, len(before), before))
    paths = [f"{name}.safetensors" for name in "abc"]
    for order in (paths, paths[::-1], paths[:2]):
        failed = swavg("average", *order, "-o", "o.safetensors", cwd=tmp_path)
        options = [
            word
            for text in re.findall(r"--strip-prefix \S+", failed.stderr)
            for word in text.split()
        ]
        assert sorted(options[1::2]) == ["bert.", "model."]
        done("average", *order, "-o", "o.safetensors", "--force", *options, cwd=tmp_path)
        expected = sum({"a": 6, "b": 5, "c": 0}[path[0]] for path in order) / len(order)
        made = load_file(tmp_path / "o.safetensors")
        assert sorted(made) == BERT
        assert made["pooler.weight"].tolist() == pytest.approx([expected] * 3)


def test_a_lightning_file_becomes_a_bare_state_dict_and_says_so(tmp_path):
    for number in range(2):
        state = {"state_dict": values(BERT, number, "model."), "epoch": number}
        torch.save(state, tmp_path / f"{number}.ckpt")
    made = done("average", "0.ckpt", "1.ckpt", "-o", "o.ckpt", "--strip-prefix=model", cwd=tmp_path)
    assert "'epoch' of 1.ckpt left out: the output is a bare state dict" in made.stderr
    assert list(torch.load(tmp_path / "o.ckpt")) == BERT
    # A template without the prefix stays as it is.
    torch.save({"model": values(BERT, 5), "epoch": 7}, tmp_path / "bare.pt")
    done("average", "0.ckpt", "bare.pt", "-o", "p.pt", "--strip-prefix=model", cwd=tmp_path)
    kept = torch.load(tmp_path / "p.pt")
    assert kept["epoch"] == 7
    assert kept["model"]["pooler.weight"].tolist() == [2.5] * 3


def test_a_head_behind_the_prefix_is_left_to_lenient(tmp_path):
    torch.save(values(BERT, 0), tmp_path / "ft.pt")
    torch.save(values(BERT, 1, "bert.") | values(["cls.weight"], 5), tmp_path / "pre.pt")
    command = ["average", "ft.pt", "pre.pt", "-o", "o.pt", "--strip-prefix", "bert."]
    assert "'cls.weight' is missing; pre.pt has it" in swavg(*command, cwd=tmp_path).stderr
    done(*command, "--lenient", cwd=tmp_path)
    made = torch.load(tmp_path / "o.pt")
    assert {name: tensor[0].item() for name, tensor in made.items()} == {
        **dict.fromkeys(BERT, 0.5),
        "cls.weight": 5,
    }


def test_lenient_inputs_with_a_name_in_common_are_warned_of_their_prefix(tmp_path):
    save(tmp_path / "a.safetensors", values([*BERT, "head"], 0))
    save(tmp_path / "b.safetensors", values(BERT, 1, "bert.") | values(["head"], 1))
    made = done("average", "a.safetensors", "b.safetensors", "--lenient", cwd=tmp_path)
    said = " ".join(made.stderr.split())
    assert "warning 3 of 4 names of a.safetensors are in b.safetensors under 'bert.'" in said
    assert "Use --strip-prefix bert. to match" in said


def test_a_sharded_folder_keeps_its_shape(tmp_path):
    for number in range(2):
        folder = tmp_path / f"m{number}"
        folder.mkdir()
        state = values(BERT, number, "model.")
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        homes = dict(zip(state, [names[0], *names[1:] * 2], strict=True))
        for shard in names:
            own = {name: tensor for name, tensor in state.items() if homes[name] == shard}
            save_file(own, folder / shard)
        index = {"metadata": {}, "weight_map": homes}
        (folder / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    done("average", "m0", "m1", "-o", "out", "--strip-prefix", "model.", cwd=tmp_path)
    assert sorted(load_file(tmp_path / "out" / names[0])) == BERT[:1]
    assert load_file(tmp_path / "out" / names[1])["pooler.weight"].tolist() == [0.5] * 3
    assert sorted(open_checkpoint(tmp_path / "out")) == BERT


def test_renaming_makes_names_of_two_libraries_one(tmp_path):
    save(tmp_path / "a.safetensors", {"norm.gamma": torch.zeros(3), "norm.beta": torch.ones(3)})
    save(tmp_path / "b.safetensors", {"norm.weight": torch.ones(3), "norm.bias": torch.ones(3)})
    done("average", "a.safetensors", "b.safetensors", "-o", "o.safetensors",
         "--rename", "gamma=weight", "--rename", "beta=bias", cwd=tmp_path)  # fmt: skip
    made = load_file(tmp_path / "o.safetensors")
    assert {name: tensor.tolist() for name, tensor in made.items()} == {
        "norm.weight": [0.5] * 3,
        "norm.bias": [1.0] * 3,
    }
