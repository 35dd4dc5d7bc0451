"""``--pool-batch-norm``: variances of a mixture, against an oracle and the data themselves."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from checkpoints import load, run_request, save
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import swavg
from swavg import Policy, Resources
from swavg.averaging import prepare, prepare_many
from swavg.errors import NumericsError, RequestError
from swavg.job import Wanted, run_together
from swavg.kernels.pooling import pooled_variance
from swavg.methods import update
from swavg.recipe import recipe_of

POOL = Policy(pool_batch_norm=True)


def statistics(seed, dtype=torch.float32, channels=5, spread=1.0, **more):
    """A layer with batch-norm, far from zero in some channels."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        "conv.weight": torch.randn(channels, 3, generator=generator),
        "bn.weight": torch.randn(channels, generator=generator),
        "bn.running_mean": 10 + spread * torch.randn(channels, generator=generator),
        "bn.running_var": torch.rand(channels, generator=generator) + 0.1,
        "bn.num_batches_tracked": torch.tensor(10 * seed),
        "top.running_var": torch.rand(channels, generator=generator) + 0.1,
    }
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in (made | more).items()
    }


def oracle(states, weights, name="bn"):
    """The mixture's variance in float64, rounded once."""
    means = [s[f"{name}.running_mean"].double() for s in states]
    variances = [s[f"{name}.running_var"].double() for s in states]
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    total = sum(
        w * (v + (m - mean) ** 2) for w, v, m in zip(weights, variances, means, strict=True)
    )
    return total


def files(folder, states, suffix=".safetensors"):
    paths = []
    for index, tensors in enumerate(states):
        paths.append(str(folder / f"{index}{suffix}"))
        if suffix == ".pt":
            torch.save({"model": tensors, "epoch": index}, paths[-1])
        else:
            save(paths[-1], tensors)
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, (0.5, 0.125, 0.375), (0, 1, 0)])
def test_the_variance_is_that_of_the_mixture_rounded_once(tmp_path, dtype, weights):
    states = [statistics(seed, dtype) for seed in (1, 2, 3)]
    swavg.average(files(tmp_path, states), weights, output=tmp_path / "out.st", policy=POOL)
    found = load(tmp_path / "out.st")
    wanted = oracle(states, weights or (1 / 3,) * 3)
    exact = {torch.float64: 1e-15, torch.float32: 6e-8, torch.float16: 5e-4, torch.bfloat16: 4e-3}
    torch.testing.assert_close(found["bn.running_var"].double(), wanted, rtol=exact[dtype], atol=0)
    assert found["bn.running_var"].dtype == dtype
    # Everything else is as without the option.
    swavg.average(files(tmp_path, states), weights, output=tmp_path / "plain.st")
    plain = load(tmp_path / "plain.st")
    assert not torch.equal(found["bn.running_var"], plain["bn.running_var"]) or weights == (0, 1, 0)
    for name in plain.keys() - {"bn.running_var"}:
        assert torch.equal(found[name], plain[name]), name


def test_it_is_the_variance_of_all_data_together_where_each_input_saw_as_many():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, 4, generator=generator).double() * k + 3 * k for k in (1, 2, 5)]
    found = pooled_variance(
        [part.var(0, correction=0).numpy() for part in parts],
        [part.mean(0).numpy() for part in parts],
        (1 / 3,) * 3,
        True,
    )
    whole = torch.cat(parts).var(0, correction=0).numpy()
    np.testing.assert_allclose(found, whole, rtol=1e-14)


def test_with_weights_as_many_as_examples_it_is_theirs_together():
    parts = [
        torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).double() for n in (8, 24)
    ]
    found = pooled_variance(
        [part.var(0, correction=0).numpy() for part in parts],
        [part.mean(0).numpy() for part in parts],
        (0.25, 0.75),
        False,
    )
    np.testing.assert_allclose(found, torch.cat(parts).var(0, correction=0).numpy(), rtol=1e-14)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6), st.floats(-1e6, 1e6), st.integers(0, 1000)
        ),
        min_size=1,
        max_size=8,
    ),
    st.floats(-1e8, 1e8),
)  # fmt: skip
def test_it_equals_exact_arithmetic_and_is_never_negative(inputs, offset):
    total = sum(weight for _, _, weight in inputs)
    if total == 0:
        return
    variances = [np.array([v]) for v, _, _ in inputs]
    means = [np.array([m + offset]) for _, m, _ in inputs]
    weights = [weight / total for _, _, weight in inputs]
    exact = [Fraction(weight) for weight in weights]
    middle = sum(w * Fraction(float(m[0])) for w, m in zip(exact, means, strict=True))
    whole = sum(
        w * (Fraction(float(v[0])) + (Fraction(float(m[0])) - middle) ** 2)
        for w, v, m in zip(exact, variances, means, strict=True)
    )
    found = pooled_variance(variances, means, weights, False)
    assert found[0] >= 0
    np.testing.assert_allclose(found[0], float(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equal_inputs_return_their_own_variance_bit_for_bit(tmp_path, dtype):
    tensors = statistics(4, dtype)
    swavg.average(files(tmp_path, [tensors] * 7), output=tmp_path / "out.st", policy=POOL)
    found = load(tmp_path / "out.st")
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_large_means_do_not_swallow_small_variances(tmp_path):
    states = [
        statistics(i, **{"bn.running_mean": torch.full((5,), 4096.0 + 0.25 * i),
                         "bn.running_var": torch.full((5,), 1e-4)})
        for i in (0, 1)
    ]  # fmt: skip
    swavg.average(files(tmp_path, states), output=tmp_path / "out.st", policy=POOL)
    wanted = torch.full((5,), 1e-4).double() + 0.125**2
    assert torch.equal(load(tmp_path / "out.st")["bn.running_var"], wanted.float())


def test_a_running_average_goes_on_with_pooled_statistics(tmp_path):
    states = [statistics(seed, torch.float64) for seed in (1, 2, 3)]
    paths = files(tmp_path, states)
    swavg.average(paths[:2], output=tmp_path / "two.st", policy=POOL)
    policy = Policy(pool_batch_norm=True, dtype="float64")
    run_request(update(tmp_path / "two.st", paths[2:], policy=policy), tmp_path / "three.st")
    swavg.average(paths, output=tmp_path / "whole.st", policy=POOL)
    found, wanted = (load(tmp_path / f"{name}.st")["bn.running_var"] for name in ("three", "whole"))
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)


def test_a_sweep_pools_each_of_its_outputs(tmp_path):
    states = [statistics(seed) for seed in (1, 2, 3)]
    wanted = [
        Wanted(tmp_path / "all.st", (1 / 3,) * 3),
        Wanted(tmp_path / "ema.st", (0.25, 0.25, 0.5)),
        Wanted(tmp_path / "two.st", (0.5, 0.5), members=(1, 2)),
        Wanted(tmp_path / "one.st", (1.0,), members=(2,)),
    ]
    reports = run_together(prepare_many(files(tmp_path, states), wanted, policy=POOL))
    for each, report in zip(wanted, reports, strict=True):
        members = each.members or (0, 1, 2)
        own = [states[index] for index in members]
        found = load(each.output)
        value = oracle(own, each.weights).float()
        torch.testing.assert_close(found["bn.running_var"], value, rtol=6e-8, atol=0)
        assert report.tensors["pooled"] == (len(members) > 1)
        alone = tmp_path / "alone.st"
        swavg.average(
            [str(tmp_path / f"{index}.safetensors") for index in members],
            each.weights, output=alone, policy=POOL, force=True,
        )  # fmt: skip
        other = load(alone)
        assert all(torch.equal(other[name], found[name]) for name in found)


@pytest.mark.parametrize("memory", [400 << 10, None])
@pytest.mark.parametrize("processes", [False, True])
def test_neither_memory_nor_workers_change_a_bit(tmp_path, memory, processes):
    states = [statistics(seed, channels=50_000) for seed in (1, 2)]
    paths = files(tmp_path, states)
    swavg.average(paths, output=tmp_path / "one.st", policy=POOL, resources=Resources(threads=1))
    swavg.average(paths, output=tmp_path / "two.st", policy=POOL,
                  resources=Resources(threads=3, memory=memory, processes=processes))  # fmt: skip
    assert (tmp_path / "one.st").read_bytes() == (tmp_path / "two.st").read_bytes()
    value = oracle(states, (0.5, 0.5)).float()
    torch.testing.assert_close(load(tmp_path / "two.st")["bn.running_var"], value,
                               rtol=6e-8, atol=0)  # fmt: skip


def test_in_a_pt_file_it_lands_in_the_template(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(3))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model(torch.randn(9, 3) * seed + seed)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    swavg.average(files(tmp_path, states, ".pt"), output=tmp_path / "out.pt", policy=POOL)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["epoch"] == 1
    wanted = oracle(states, (0.5, 0.5), "0").float()
    torch.testing.assert_close(found["model"]["0.running_var"], wanted, rtol=6e-8, atol=0)


def test_strided_and_wrapped_tensors_are_pooled_too(tmp_path):
    states = [statistics(seed) for seed in (1, 2)]
    for index, tensors in enumerate(states):
        wide = torch.zeros(5, 3)
        wide[:, 1] = tensors["bn.running_var"]
        odd = {f"module.{k}": v for k, v in tensors.items()}
        if index == 0:
            odd["module.bn.running_var"] = wide[:, 1]
        torch.save(odd, tmp_path / f"{index}.pt")
    swavg.average([tmp_path / "0.pt", tmp_path / "1.pt"], output=tmp_path / "out.pt", policy=POOL)
    found = torch.load(tmp_path / "out.pt", weights_only=True)["module.bn.running_var"]
    torch.testing.assert_close(found, oracle(states, (0.5, 0.5)).float(), rtol=6e-8, atol=0)


def test_a_wider_output_is_rounded_to_that(tmp_path):
    states = [statistics(seed, torch.bfloat16) for seed in (1, 2)]
    policy = Policy(pool_batch_norm=True, dtype="float32")
    swavg.average(files(tmp_path, states), output=tmp_path / "out.st", policy=policy)
    found = load(tmp_path / "out.st")["bn.running_var"]
    assert torch.equal(found, oracle(states, (0.5, 0.5)).float())


@pytest.mark.parametrize(
    ("weights", "sum_to"), [((1.5, -0.5), "one"), ((1.0, 1.0), "raw"), ((0.25, 0.25), "raw")]
)
def test_weights_that_are_no_mixture_are_refused(tmp_path, weights, sum_to):
    paths = files(tmp_path, [statistics(seed) for seed in (1, 2)])
    with pytest.raises(RequestError, match=r"weights of a mixture, none negative and of sum 1"):
        prepare(paths, weights, output=tmp_path / "out.st", policy=POOL, sum_to=sum_to)
    # What is left out of the average needs no mixture.
    policy = Policy(pool_batch_norm=True, exclude=("*running_*",))
    swavg.average(paths, weights, output=tmp_path / "out.st", policy=policy, sum_to=sum_to)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(pool_batch_norm=True, exclude=("*running_mean",)),
        Policy(pool_batch_norm=True, include=("*running_var",)),
    ],
)
def test_a_variance_whose_mean_is_not_averaged_is_averaged_and_named(tmp_path, policy):
    states = [statistics(seed) for seed in (1, 2)]
    report = swavg.average(files(tmp_path, states), output=tmp_path / "out.st", policy=policy)
    found = load(tmp_path / "out.st")["bn.running_var"]
    mean = (states[0]["bn.running_var"].double() + states[1]["bn.running_var"].double()) / 2
    assert torch.equal(found, mean.float())
    assert any("not pooled: bn.running_var, as bn.running_mean" in note for note in report.notes)
    assert report.tensors["pooled"] == 0
    assert "bn.running_var" in report.running_statistics


def test_what_only_some_inputs_have_is_pooled_over_those(tmp_path):
    states = [statistics(seed) for seed in (1, 2, 3)]
    for name in ("bn.running_var", "bn.running_mean"):
        del states[0][name]
    policy = Policy(pool_batch_norm=True, strict=False, missing="average")
    report = swavg.average(
        files(tmp_path, states), (0.5, 0.125, 0.375), output=tmp_path / "out.st", policy=policy
    )
    wanted = oracle(states[1:], (0.25, 0.75)).float()
    found = load(tmp_path / "out.st")["bn.running_var"]
    torch.testing.assert_close(found, wanted, rtol=6e-8, atol=0)
    del states[1]["bn.running_mean"]
    swavg.average(files(tmp_path, states), output=tmp_path / "b.st", policy=policy)
    found = load(tmp_path / "b.st")["bn.running_var"]
    middle = (states[1]["bn.running_var"].double() + states[2]["bn.running_var"].double()) / 2
    torch.testing.assert_close(found, middle.float(), rtol=6e-8, atol=0)
    assert report.tensors["pooled"] == 1


def test_the_report_and_the_recipe_say_what_was_pooled(tmp_path):
    paths = files(tmp_path, [statistics(seed) for seed in (1, 2)])
    report = swavg.average(paths, output=tmp_path / "out.st", policy=POOL)
    assert report.tensors["pooled"] == 1
    entry = {"name": "bn.running_var", "how": "pooled",
             "why": "variance of the mixture, with bn.running_mean"}  # fmt: skip
    assert entry in report.treated
    # The mean of a pooled layer is the mixture's; a variance without a mean is averaged.
    assert report.running_statistics == ("top.running_var",)
    assert report.notes == (
        "not pooled: top.running_var, as top.running_mean is not averaged with it",
    )
    assert recipe_of(tmp_path / "out.st")["options"] == {"pool_batch_norm": True}


def test_a_model_without_statistics_is_averaged_with_a_note(tmp_path):
    paths = files(tmp_path, [{"w": torch.ones(3)}, {"w": torch.zeros(3)}])
    report = swavg.average(paths, output=tmp_path / "out.st", policy=POOL)
    assert any("no batch-norm statistics to pool" in note for note in report.notes)
    assert load(tmp_path / "out.st")["w"].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bn.running_var": torch.tensor([1, 2, float("nan"), 1, 1])},
         r"1.safetensors: 'bn.running_var' at \[2\] is NaN"),
        ({"bn.running_mean": torch.tensor([1, 2, 3, float("inf"), 1])}, "'bn.running_mean'.* is"),
        ({"bn.running_var": torch.tensor([1, -9.0, 1, 1, 1])},
         r"'bn.running_var' at \[1\]: the variance is -.*as an input has a negative one"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_variance_are_refused(tmp_path, changed, said):
    same = {"bn.running_mean": torch.zeros(5)}
    paths = files(tmp_path, [statistics(1, **same), statistics(2, **(same | changed))])
    with pytest.raises(NumericsError, match=said):
        swavg.average(paths, output=tmp_path / "out.st", policy=POOL)
    assert not (tmp_path / "out.st").exists()


def test_an_overflow_of_the_dtype_is_refused(tmp_path):
    far = {"bn.running_mean": torch.full((5,), 60000.0)}
    paths = files(tmp_path, [statistics(1, torch.float16), statistics(2, torch.float16, **far)])
    with pytest.raises(NumericsError, match=r"'bn.running_var' at \[0\]: the sum .* overflows"):
        swavg.average(paths, output=tmp_path / "out.st", policy=POOL)
