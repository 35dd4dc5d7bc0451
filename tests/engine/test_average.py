"""The whole path as a library: values against torch."""

import itertools
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from checkpoints import load, planned, save, series, state

import swavg
from swavg import Policy, Resources
from swavg.engine.average import dry_run

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def reference(states, weights):
    """The weighted sum in float64, rounded to each tensor's dtype."""
    found = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            total = sum(w * s[name].double() for s, w in zip(states, weights, strict=True))
            found[name] = total.to(tensor.dtype)
        else:
            found[name] = states[-1][name]
    return found


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mean_of_two_equals_torch(tmp_path, dtype):
    states = [state(seed, dtype) for seed in (1, 2)]
    paths = [save(tmp_path / f"{i}.safetensors", s) for i, s in enumerate(states)]
    report = swavg.average(paths, output=tmp_path / "out.safetensors")
    assert_equal(load(tmp_path / "out.safetensors"), reference(states, [0.5, 0.5]))
    assert report.output == str(tmp_path / "out.safetensors")
    assert report.tensors["averaged"] == 3
    assert report.tensors["integer"] == 1


def test_given_weights_are_used_in_order_also_zero_and_negative_ones(tmp_path):
    states = [state(seed, torch.float64) for seed in (1, 2, 3)]
    paths = [save(tmp_path / f"{i}.safetensors", s) for i, s in enumerate(states)]
    swavg.average(paths, [1.5, 0, -0.5], output=tmp_path / "out.safetensors")
    found = load(tmp_path / "out.safetensors")
    for name in ("body.weight", "head.weight"):
        expected = 1.5 * states[0][name] + 0 * states[1][name] - 0.5 * states[2][name]
        assert torch.equal(found[name], expected)


@pytest.mark.parametrize(
    ("weights", "details", "said"),
    [
        (
            (0.01, 0.99),
            {},
            "is that of step-200.safetensors: with these weights the EMA of these 2",
        ),
        ((0.01, 0.99), {"decay": 0.01}, "with a decay of 0.01 per checkpoint the EMA of these 2"),
        ((0.1, 0.9), {"decay": 0.1}, None),
        ((1.0, -1.0), {}, None),
    ],
)
def test_a_row_called_ema_warns_of_weight_in_one_checkpoint(tmp_path, weights, details, said):
    paths = series(tmp_path, 2)
    row = swavg.Row(weights, (0, 1), method="ema", details=details)
    plan = swavg.prepare(paths, [row], [tmp_path / "o.safetensors"], Policy())
    told = [text for text in plan.warnings if "as good as a copy" in text]
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


def test_raw_and_normalized_weights(tmp_path):
    paths = series(tmp_path, 2)
    swavg.average(paths, [2, 2], output=tmp_path / "raw.safetensors", sum_to="raw")
    swavg.average(paths, [2, 2], output=tmp_path / "mean.safetensors", sum_to="normalize")
    raw, mean = load(tmp_path / "raw.safetensors"), load(tmp_path / "mean.safetensors")
    torch.testing.assert_close(raw["body.bias"], 4 * mean["body.bias"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_checkpoints_return_themselves_bit_for_bit(tmp_path, dtype):
    tensors = state(1, dtype)
    paths = [save(tmp_path / f"{i}.safetensors", tensors) for i in range(7)]
    swavg.average(paths, output=tmp_path / "out.safetensors")
    assert_equal(load(tmp_path / "out.safetensors"), tensors)


def test_the_same_call_gives_the_same_bytes(tmp_path):
    paths = series(tmp_path)
    for name in ("one", "two"):
        swavg.average(paths, output=tmp_path / f"{name}.safetensors")
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_recipe_is_in_the_metadata_and_the_templates_own_stays(tmp_path):
    first = save(tmp_path / "run" / "a.safetensors", state(1), {"epoch": "1"})
    last = save(tmp_path / "run" / "b.safetensors", state(2), {"epoch": "2", "format": "pt"})
    swavg.average([first, last], [0.25, 0.75], output=tmp_path / "out.safetensors")
    metadata = swavg.open_checkpoint(tmp_path / "out.safetensors").metadata
    assert metadata["epoch"] == "2"
    found = json.loads(metadata["swavg"])
    assert [entry.split()[1] for entry in found.pop("holds")] == ["a.safetensors", "b.safetensors"]
    assert found == {
        "method": "weighted",
        "inputs": ["a.safetensors", "b.safetensors"],
        "weights": [0.25, 0.75],
        "sizes": [os.path.getsize(path) for path in (first, last)],
        "epochs": [1, 2],
        "options": {},
        "version": swavg.__version__,
    }
    assert str(tmp_path) not in metadata["swavg"]


def test_inputs_of_the_same_name_are_told_apart_in_the_recipe(tmp_path):
    paths = [save(tmp_path / run / "model.safetensors", state(1)) for run in ("x", "y")]
    report = swavg.average(paths, output=tmp_path / "out.safetensors")
    assert [entry.name for entry in report.inputs] == ["x/model.safetensors", "y/model.safetensors"]


def test_integers_follow_the_policy_and_are_reported_where_they_differ(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.ones(2), "n": torch.tensor([i, 7])})
        for i in (4, 9, 6)
    ]
    expected = {"last": 6, "first": 4, "max": 9, "mean": 6}
    for rule, value in expected.items():
        out = tmp_path / f"{rule}.st"
        report = swavg.average(paths, output=out, policy=Policy(integers=rule))
        assert load(out)["n"].tolist() == [value, 7]
        assert report.differing_integers == ("n",)
    with pytest.raises(swavg.MismatchError, match=r"'n' \(int64\) differs"):
        swavg.average(paths, output=tmp_path / "e.st", policy=Policy(integers="error"))
    assert not (tmp_path / "e.st").exists()


@pytest.mark.parametrize(
    "integers",
    [
        torch.tensor([4, 7]), torch.tensor([[True, False]]), torch.arange(3000, dtype=torch.uint8),
        torch.tensor([2**40, 1, 2]), torch.full((2, 2), 3, dtype=torch.int16),
    ],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
)  # fmt: skip
def test_integers_that_differ_and_are_no_counters_are_an_error(tmp_path, integers):
    other = integers.clone()
    other.view(-1)[-1] = 1 - other.view(-1)[-1].int()
    paths = [
        save(tmp_path / f"{i}.safetensors",
             {"x": torch.ones(2), "count": torch.tensor(i), "one": torch.tensor([i]), "ids": ids})
        for i, ids in enumerate((integers, integers, other))
    ]  # fmt: skip
    out = tmp_path / "out.st"
    with pytest.raises(
        swavg.MismatchError, match=r"'ids' .* differs .*, and is no counter"
    ) as told:
        swavg.average(paths, output=out)
    assert "integers=last" in told.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{i}.safetensors" for i in (0, 1, 2)
    ]
    swavg.average(paths, output=out, policy=Policy(integers="last"))
    assert load(out)["ids"].tolist() == other.tolist()
    report = swavg.average(paths[:2], output=tmp_path / "two.st")
    assert report.differing_integers == ("count", "one")
    assert load(tmp_path / "two.st")["one"].tolist() == [1]


def test_pruning_masks_are_equal_or_refused_wherever_they_differ(tmp_path):
    def pruned(seed, mask):
        return {"fc.weight_orig": state(seed)["head.weight"][:2], "fc.weight_mask": mask}

    mask = torch.ones(3, 2000)
    mask[1] = 0
    other = mask.clone()
    other[2, -1] = 0
    paths = [
        save(tmp_path / f"{i}.safetensors", pruned(i, each))
        for i, each in enumerate((mask, mask, other))
    ]
    out = tmp_path / "out.st"
    swavg.average(paths[:2], output=out)
    assert load(out)["fc.weight_mask"].equal(mask)
    # Behind the first bytes, which are looked at before.
    with pytest.raises(swavg.MismatchError, match=r"'fc.weight_mask' differs .* pruning mask"):
        swavg.average(paths, output=tmp_path / "three.st")
    assert not (tmp_path / "three.st").exists()
    policy = Policy(exclude=("*mask",))
    swavg.average(paths, output=out, policy=policy, force=True)
    assert load(out)["fc.weight_mask"].equal(other)


def test_the_state_of_an_optimizer_is_refused_by_its_content(tmp_path):
    adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    for name in ("a.pt", "b.pt"):
        torch.save(adam, tmp_path / name)
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    with pytest.raises(swavg.InputError, match=r"a.pt: holds the state of an optimizer"):
        swavg.average(paths, output=tmp_path / "out.pt")
    # Beside weights it is left alone.
    torch.save({"model": {"w": torch.ones(2)}, **adam}, tmp_path / "c.pt")
    swavg.average([tmp_path / "c.pt"] * 2, output=tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt")["state"][0]["exp_avg"].tolist() == [1, 1]


SPECTRAL = {
    "torch": ("conv.weight_orig", "conv.weight_u", "conv.weight_v"),
    "before": ("conv.weight_bar", "conv.weight_u", "conv.weight_v"),
    "parametrized": [f"conv.parametrizations.weight.{n}" for n in ("original", "0._u", "0._v")],
    "biggan": ("conv.weight", "conv.u0", "conv.sv0"),
}


@pytest.mark.parametrize("names", SPECTRAL.values(), ids=SPECTRAL)
def test_vectors_of_spectral_norm_are_the_last_inputs_bit_for_bit(tmp_path, names):
    states = [{name: torch.randn(4, 4) for name in names} for _ in range(3)]
    paths = [save(tmp_path / f"{i}.safetensors", each) for i, each in enumerate(states)]
    report = swavg.average(paths, output=tmp_path / "out.st", distances=False)
    found = load(tmp_path / "out.st")
    for name in names[1:]:
        assert found[name].equal(states[-1][name])
    assert torch.allclose(found[names[0]], sum(each[names[0]] for each in states) / 3)
    (warning,) = report.warnings
    assert "One forward pass of the average in training mode" in warning


def test_weight_norm_and_other_names_are_averaged(tmp_path):
    names = ("conv.weight_g", "conv.weight_v", "attn.pos_bias_u", "attn_mask", "u0")
    paths = [
        save(tmp_path / f"{i}.safetensors", {name: torch.full((2,), float(i)) for name in names})
        for i in (1, 2)
    ]
    swavg.average(paths, output=tmp_path / "out.st")
    found = load(tmp_path / "out.st")
    assert [found[name].tolist() for name in names] == [[1.5, 1.5]] * len(names)


def test_identical_integers_and_bools_are_copied_whatever_the_policy(tmp_path):
    tensors = {"x": torch.ones(2), "n": torch.tensor([2**62]), "b": torch.tensor([True, False])}
    paths = [save(tmp_path / f"{i}.safetensors", tensors) for i in range(2)]
    out = tmp_path / "out.safetensors"
    report = swavg.average(paths, output=out, policy=Policy(integers="error"))
    assert_equal(load(out), tensors)
    assert report.differing_integers == ()


def test_nan_is_refused_with_the_tensor_the_place_and_the_input(tmp_path):
    tensors = state(2)
    tensors["head.weight"][1, 3] = float("nan")
    paths = [
        save(tmp_path / "good.safetensors", state(1)),
        save(tmp_path / "bad.safetensors", tensors),
    ]
    out = tmp_path / "out.safetensors"
    with pytest.raises(swavg.NumericsError) as caught:
        swavg.average(paths, output=out)
    assert caught.value.message == "bad.safetensors: 'head.weight' at [1, 3] is NaN."
    assert not out.exists()
    report = swavg.average(paths, output=out, policy=Policy(allow_nonfinite=True))
    assert torch.isnan(load(out)["head.weight"][1, 3])
    assert torch.isfinite(load(out)["head.weight"]).sum() == 20
    assert len(report.nonfinite) == 1


def test_an_overflow_of_the_output_dtype_offers_a_wider_one(tmp_path):
    paths = [save(tmp_path / f"{i}.safetensors", {"x": torch.tensor([1.0, 7e4])}) for i in range(2)]
    out = tmp_path / "out.safetensors"
    with pytest.raises(swavg.NumericsError, match=r"overflows float16.*dtype=float32"):
        swavg.average(paths, output=out, policy=Policy(dtype="float16"))
    assert not out.exists()


def test_a_float32_overflow_is_found_too(tmp_path):
    paths = [save(tmp_path / f"{i}.st", {"x": torch.tensor([3e38])}) for i in range(2)]
    with pytest.raises(swavg.NumericsError, match=r"6e\+38 overflows float32.*dtype=float64"):
        swavg.average(paths, [1, 1], output=tmp_path / "out.safetensors", sum_to="raw")


def test_float16_sums_do_not_overflow_on_the_way(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.tensor([60000.0]).half()}) for i in range(4)
    ]
    swavg.average(paths, output=tmp_path / "out.safetensors")
    assert load(tmp_path / "out.safetensors")["x"].item() == 60000


def test_a_mask_of_minus_infinity_that_all_share_survives(tmp_path):
    mask = torch.full((4, 4), float("-inf")).triu(1)
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.ones(2) * i, "mask": mask}) for i in (1, 2)
    ]
    swavg.average(paths, [1.5, -0.5], output=tmp_path / "out.safetensors")
    assert torch.equal(load(tmp_path / "out.safetensors")["mask"], mask)


def test_a_nan_times_weight_zero_is_a_nan(tmp_path):
    paths = [
        save(tmp_path / f"{i}.safetensors", {"x": torch.tensor([value])})
        for i, value in enumerate((1.0, float("nan")))
    ]
    with pytest.raises(swavg.NumericsError, match=r"1\.safetensors: 'x' at \[0\] is NaN"):
        swavg.average(paths, [1, 0], output=tmp_path / "out.safetensors")


@pytest.mark.parametrize("wanted", ["float32", "float64", "float16", "bfloat16"])
def test_the_output_dtype_is_rounded_to_once(tmp_path, wanted):
    states = [state(seed) for seed in (1, 2, 3)]
    paths = [save(tmp_path / f"{i}.safetensors", s) for i, s in enumerate(states)]
    swavg.average(paths, output=tmp_path / "out.safetensors", policy=Policy(dtype=wanted))
    found = load(tmp_path / "out.safetensors")
    exact = sum(s["body.weight"].double() for s in states) / 3
    assert found["body.weight"].dtype == getattr(torch, wanted)
    if wanted in ("float32", "float64"):
        assert torch.equal(found["body.weight"], exact.to(getattr(torch, wanted)))
    else:
        error = (found["body.weight"].double() - exact).abs()
        ulp = 2.0 ** (torch.floor(torch.log2(exact.abs())) - (10 if wanted == "float16" else 7))
        assert (error <= ulp / 2).all()


def test_complex_tensors_are_averaged_by_their_parts(tmp_path):
    tensors = [torch.randn(5, dtype=torch.complex64) for _ in range(2)]
    paths = [save(tmp_path / f"{i}.safetensors", {"c": t}) for i, t in enumerate(tensors)]
    swavg.average(paths, output=tmp_path / "out.safetensors")
    exact = sum(t.to(torch.complex128) for t in tensors) / 2
    assert torch.equal(load(tmp_path / "out.safetensors")["c"], exact.to(torch.complex64))


def test_a_scalar_an_empty_tensor_and_one_checkpoint_alone(tmp_path):
    tensors = {"s": torch.tensor(3.0), "e": torch.zeros(0, 4), "x": torch.ones(3)}
    path = save(tmp_path / "a.safetensors", tensors)
    swavg.average([path], output=tmp_path / "out.safetensors")
    assert_equal(load(tmp_path / "out.safetensors"), tensors)


def test_averages_of_pt_and_safetensors_of_the_same_values_agree(tmp_path):
    states = [state(seed) for seed in (1, 2)]
    for index, tensors in enumerate(states):
        save(tmp_path / f"{index}.safetensors", tensors)
        torch.save({"state_dict": tensors, "epoch": index}, tmp_path / f"{index}.pt")
    st_paths = sorted(tmp_path.glob("*.safetensors"))
    pt_paths = sorted(tmp_path.glob("*.pt"))
    swavg.average(st_paths, output=tmp_path / "out.safetensors")
    swavg.average(pt_paths, output=tmp_path / "out.pt")
    swavg.average([st_paths[0], pt_paths[1]], output=tmp_path / "mixed.safetensors")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["epoch"] == 1
    expected = reference(states, [0.5, 0.5])
    assert_equal(found["state_dict"], expected)
    assert_equal(load(tmp_path / "out.safetensors"), expected)
    assert_equal(load(tmp_path / "mixed.safetensors"), expected)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(6, 4)
        self.head = torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_are_averaged_once_and_stay_tied_in_a_pt(tmp_path):
    for index in range(2):
        model = Tied()
        torch.nn.init.constant_(model.embed.weight, 2.0 + 2 * index)
        torch.save(model.state_dict(), tmp_path / f"{index}.pt")
    paths = sorted(tmp_path.glob("*.pt"))
    report = swavg.average(paths, output=tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (found["embed.weight"] == 3).all()
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert report.ties == (("embed.weight", "head.weight"),)
    swavg.average(paths, output=tmp_path / "out.safetensors")
    both = load(tmp_path / "out.safetensors")
    assert torch.equal(both["embed.weight"], both["head.weight"])
    assert (both["head.weight"] == 3).all()
    swavg.average(paths, output=tmp_path / "one.safetensors", policy=Policy(drop_ties=True))
    assert list(load(tmp_path / "one.safetensors")) == ["embed.weight"]


def test_a_tie_that_another_input_breaks_is_no_tie(tmp_path):
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    apart = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apart["head.weight"] += 1
    save(tmp_path / "apart.safetensors", apart)
    paths = [tmp_path / "tied.pt", tmp_path / "apart.safetensors"]
    report = swavg.average(paths, output=tmp_path / "out.safetensors")
    found = load(tmp_path / "out.safetensors")
    assert report.ties == ()
    torch.testing.assert_close(found["head.weight"], found["embed.weight"] + 0.5)


def test_tensors_of_different_memory_layout_are_averaged_by_index(tmp_path):
    for index, memory in enumerate((torch.contiguous_format, torch.channels_last)):
        weight = torch.randn(8, 6, 5, 7, generator=torch.Generator().manual_seed(index))
        torch.save({"w": weight.to(memory_format=memory)}, tmp_path / f"{index}.pt")
    paths = sorted(tmp_path.glob("*.pt"))
    loaded = [torch.load(path)["w"] for path in paths]
    expected = (sum(each.double() for each in loaded) / 2).float()
    for name in ("out.pt", "out.safetensors"):
        swavg.average(paths, output=tmp_path / name)
    assert torch.equal(torch.load(tmp_path / "out.pt")["w"], expected)
    assert torch.equal(load(tmp_path / "out.safetensors")["w"], expected)


def test_a_report_and_a_plan_are_plain_values(tmp_path):
    plan = planned(series(tmp_path), tmp_path / "out.safetensors")
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.rows == plan.rows
    assert (copy.policy, copy.recipes, copy.notes) == (plan.policy, plan.recipes, plan.notes)
    assert list(map(copy.task, copy.tasks())) == list(map(plan.task, plan.tasks()))
    (before,) = dry_run(plan, Resources())
    assert before.seconds is None
    (after,) = swavg.execute(copy)
    assert after.seconds is not None
    assert json.loads(json.dumps(after.to_json()))["tensors"]["averaged"] == 3
    assert Path(after.output).stat().st_size == before.written


def test_a_plan_writes_nothing_and_is_done_as_often_as_asked(tmp_path):
    plan = planned(series(tmp_path / "in"), tmp_path / "out.safetensors", force=True)
    assert not (tmp_path / "out.safetensors").exists()
    swavg.execute(plan)
    first = (tmp_path / "out.safetensors").read_bytes()
    swavg.execute(plan)
    assert (tmp_path / "out.safetensors").read_bytes() == first


def test_progress_ends_with_all_bytes_read(tmp_path):
    seen = []
    swavg.average(series(tmp_path), output=tmp_path / "out.safetensors", on_progress=seen.append)
    assert seen[-1].read == seen[-1].total > 0
    assert all(a.read <= b.read for a, b in itertools.pairwise(seen))
