"""The commands as functions: each equals its running form, computed by torch."""

import itertools
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoints import load, run_request, save, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swavg
from swavg import Policy, Row, methods
from swavg.engine.recipe import recipe_of
from swavg.series import discover

RELAXED = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def run_of(folder, steps, dtype=torch.float64):
    """Checkpoints of a run at ``steps``; their states."""
    states = [state(step, dtype) for step in steps]
    for step, tensors in zip(steps, states, strict=True):
        save(folder / f"step-{step}.safetensors", tensors)
    return states


def moving(states, decays):
    """The EMA in its running form, started from the first."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for tensors, decay in zip(states[1:], decays, strict=True):
        for name in average:
            average[name] = decay * average[name] + (1 - decay) * tensors[name].double()
    return average


def fresh(folder):
    """A folder of its own: an example may be tried twice."""
    return Path(tempfile.mkdtemp(dir=folder))


def assert_close(path, expected, **tolerance):
    found = load(path)
    for name in ("body.weight", "body.bias", "head.weight"):
        torch.testing.assert_close(found[name].double(), expected[name], **tolerance)


@given(decay=st.floats(0, 0.99), steps=st.sets(st.integers(1, 500), min_size=2, max_size=6))
@RELAXED
def test_an_ema_equals_its_running_form(tmp_path, decay, steps):
    folder = fresh(tmp_path)
    steps = sorted(steps)
    states = run_of(folder, steps)
    series = discover([folder])
    per_checkpoint = folder / "out-a.st"
    run_request(methods.ema(series, methods.Smoothing(decay), policy=Policy()), per_checkpoint)
    assert_close(per_checkpoint, moving(states, [decay] * (len(steps) - 1)))
    per_step = folder / "out-b.st"
    by_step = methods.Smoothing(decay, per_step=True)
    run_request(methods.ema(series, by_step, policy=Policy()), per_step)
    gaps = [decay ** (b - a) for a, b in itertools.pairwise(steps)]
    assert_close(per_step, moving(states, gaps))


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("debias", [False, True])
def test_an_ema_that_is_resumed_equals_one_done_at_once(tmp_path, per_step, debias):
    run_of(tmp_path / "run", [10, 20, 50, 60, 90])
    how = methods.Smoothing(0.95, per_step, debias)
    series = discover([tmp_path / "run"])
    run_request(methods.ema(series, how, policy=Policy()), tmp_path / "whole.st")
    early = discover([tmp_path / "run" / f"step-{step}.safetensors" for step in (10, 20, 50)])
    run_request(methods.ema(early, how, policy=Policy()), tmp_path / "early.st")
    # All of the series is given; what the EMA holds already is left out by its step.
    request = methods.ema(series, how, resume=tmp_path / "early.st", policy=Policy())
    assert [Path(path).name for path in request.inputs] == [
        "early.st", "step-60.safetensors", "step-90.safetensors"
    ]  # fmt: skip
    assert request.notes == ("left out 3 up to step 50, which the EMA holds already",)
    run_request(request, tmp_path / "late.st")
    assert_close(tmp_path / "late.st", load(tmp_path / "whole.st"), rtol=1e-12, atol=1e-13)
    recipes = [recipe_of(tmp_path / f"{name}.st") for name in ("late", "whole")]
    assert [recipe["n"] for recipe in recipes] == [5, 5]
    assert [recipe["step"] for recipe in recipes] == [90, 90]
    if debias:
        assert math.isclose(recipes[0]["mass"], recipes[1]["mass"])


def test_a_warmed_up_ema_can_be_resumed(tmp_path):
    run_of(tmp_path / "run", [1, 2, 3, 4, 5])
    how = methods.Smoothing(0.9, warmup="tensorflow")
    series = discover([tmp_path / "run"])
    run_request(methods.ema(series, how, policy=Policy()), tmp_path / "whole.st")
    early = discover([tmp_path / "run" / f"step-{step}.safetensors" for step in (1, 2)])
    run_request(methods.ema(early, how, policy=Policy()), tmp_path / "early.st")
    late = methods.ema(series, how, policy=Policy(), resume=tmp_path / "early.st")
    run_request(late, tmp_path / "late.st")
    assert_close(tmp_path / "late.st", load(tmp_path / "whole.st"), rtol=1e-12, atol=1e-13)


def test_resuming_with_another_decay_or_from_something_else_is_refused(tmp_path):
    run_of(tmp_path / "run", [1, 2])
    series = discover([tmp_path / "run"])
    run_request(methods.ema(series, methods.Smoothing(0.9), policy=Policy()), tmp_path / "ema.st")
    resume = {"resume": tmp_path / "ema.st", "policy": Policy()}
    with pytest.raises(swavg.RequestError, match=r"made with decay 0\.9, not 0\.8"):
        methods.ema(series, methods.Smoothing(0.8), **resume)
    with pytest.raises(swavg.RequestError, match="No checkpoint is later than step 2"):
        methods.ema(series, methods.Smoothing(0.9), **resume)
    with pytest.raises(swavg.InputError, match="is no ema that swavg wrote"):
        methods.ema(series, methods.Smoothing(0.9), resume=series.paths[0], policy=Policy())


@given(count=st.integers(1, 4), more=st.integers(1, 3))
@RELAXED
def test_a_running_average_equals_the_mean_of_all(tmp_path, count, more):
    folder = fresh(tmp_path)
    states = run_of(folder, range(1, count + more + 1), torch.float32)
    paths = [folder / f"step-{step}.safetensors" for step in range(1, count + more + 1)]
    average = folder / "avg.st"
    swavg.average(paths[:count], output=average, policy=Policy(dtype="float32"))
    for number, path in enumerate(paths[count:]):
        after = folder / f"avg-{number}.st"
        run_request(methods.update(average, [path], policy=Policy()), after)
        average = after
    expected = {
        name: sum(each[name].double() for each in states) / len(states) for name in states[0]
    }
    assert_close(average, expected, rtol=1e-6, atol=1e-7)
    assert recipe_of(average)["n"] == count + more


def test_a_running_average_of_bfloat16_checkpoints_is_kept_in_float32(tmp_path):
    run_of(tmp_path, [1, 2, 3], torch.bfloat16)
    paths = [tmp_path / f"step-{step}.safetensors" for step in (1, 2, 3)]
    swavg.average(paths[:2], output=tmp_path / "avg.st")
    request = methods.update(tmp_path / "avg.st", paths[2:], policy=Policy())
    run_request(request, tmp_path / "new.st")
    assert load(tmp_path / "new.st")["body.weight"].dtype == torch.float32


def test_an_average_of_unknown_count_needs_the_count(tmp_path):
    states = run_of(tmp_path, [1, 2])
    paths = [tmp_path / f"step-{step}.safetensors" for step in (1, 2)]
    with pytest.raises(swavg.InputError, match="does not say of how many"):
        methods.update(paths[0], [paths[1]], policy=Policy())
    policy = Policy(dtype="float64")
    run_request(methods.update(paths[0], [paths[1]], count=3, policy=policy), tmp_path / "o.st")
    expected = {name: (3 * states[0][name] + states[1][name]) / 4 for name in states[0]}
    assert_close(tmp_path / "o.st", expected)


def test_a_window_that_slides_equals_the_mean_of_what_is_in_it(tmp_path):
    states = run_of(tmp_path, [1, 2, 3, 4, 5])
    paths = [tmp_path / f"step-{step}.safetensors" for step in (1, 2, 3, 4, 5)]
    wide = Policy(dtype="float64")
    swavg.average(paths[:3], output=tmp_path / "avg.st", policy=wide)
    request = methods.slide(tmp_path / "avg.st", paths[3:5], paths[0:2], policy=wide)
    run_request(request, tmp_path / "moved.st")
    expected = {name: sum(each[name].double() for each in states[2:]) / 3 for name in states[0]}
    assert_close(tmp_path / "moved.st", expected, rtol=1e-12, atol=1e-13)
    assert recipe_of(tmp_path / "moved.st")["n"] == 3


def test_the_window_between_two_running_averages_is_the_mean_of_what_lies_between(tmp_path):
    states = run_of(tmp_path, range(1, 7))
    paths = [tmp_path / f"step-{step}.safetensors" for step in range(1, 7)]
    wide = Policy(dtype="float64")
    swavg.average(paths[:2], output=tmp_path / "start.st", policy=wide)
    swavg.average(paths, output=tmp_path / "end.st", policy=wide)
    for counts in (None, (2, 6)):
        out = tmp_path / f"window-{counts is None}.st"
        run_request(
            methods.window(tmp_path / "start.st", tmp_path / "end.st", counts=counts, policy=wide),
            out,
        )
        expected = {name: sum(s[name].double() for s in states[2:]) / 4 for name in states[0]}
        assert_close(out, expected, rtol=1e-12, atol=1e-13)


def test_posthoc_at_a_stored_profile_is_that_snapshot(tmp_path):
    run_of(tmp_path, [100, 200, 300])
    series = discover([tmp_path])
    outs = [tmp_path / "same.out", tmp_path / "other.out"]
    run_request(methods.posthoc(series, [0.1, 0.2], policy=Policy(), profiles=[0.1]), *outs)
    last = load(tmp_path / "step-300.safetensors")
    assert_close(outs[0], {name: tensor.double() for name, tensor in last.items()})
    assert recipe_of(outs[1])["profile"]["sigma_rel"] == 0.2
    # What came out says of which profile it is, and serves as a snapshot in its turn.
    assert recipe_of(outs[1])["step"] == 300


def test_posthoc_before_the_end_leaves_later_snapshots_out(tmp_path):
    run_of(tmp_path, [100, 200, 300])
    request = methods.posthoc(
        discover([tmp_path]), [0.1], policy=Policy(), profiles=[0.05], at_step=200
    )
    assert request.rows[0].members == (0, 1)
    (report,) = run_request(request, tmp_path / "o.st")
    assert report.recipe["inputs"] == ["step-100.safetensors", "step-200.safetensors"]


def test_posthoc_needs_profiles_and_steps(tmp_path):
    run_of(tmp_path, [100, 200])
    with pytest.raises(swavg.InputError, match="profiles="):
        methods.posthoc(discover([tmp_path]), [0.1], policy=Policy())
    with pytest.raises(swavg.RequestError, match="3 profiles for 2 snapshots"):
        methods.posthoc(discover([tmp_path]), [0.1], policy=Policy(), profiles=[0.1] * 3)


def test_a_sweep_gives_what_each_recipe_gives_alone(tmp_path):
    states = run_of(tmp_path / "run", range(100, 1001, 100))
    texts = ["uniform:last=3", "uniform:from-step=500,to-step=700", "ema:decay=0.8,last=4",
             "ema:half-life=200steps"]  # fmt: skip
    specs = [methods.sweep_spec(text) for text in texts]
    outs = [tmp_path / f"{spec.name}.st" for spec in specs]
    assert outs[0].name == "uniform-last-3.st"
    run_request(methods.sweep(discover([tmp_path / "run"]), specs, policy=Policy()), *outs)

    def mean(chosen):
        return {name: sum(s[name].double() for s in chosen) / len(chosen) for name in states[0]}

    near = {"rtol": 1e-12, "atol": 1e-13}
    assert_close(outs[0], mean(states[-3:]), **near)
    assert_close(outs[1], mean(states[4:7]), **near)
    assert_close(outs[2], moving(states[-4:], [0.8] * 3), **near)
    assert_close(outs[3], moving(states, [2 ** (-100 / 200)] * 9), **near)


def test_a_sweep_has_only_the_inputs_that_its_averages_use(tmp_path):
    run_of(tmp_path / "run", range(1, 7))
    specs = [methods.sweep_spec(text) for text in ("uniform:last=2", "uniform:last=3")]
    request = methods.sweep(discover([tmp_path / "run"]), specs, policy=Policy())
    assert len(request.inputs) == 3
    assert [row.members for row in request.rows] == [(1, 2), (0, 1, 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("median:last=3", "there is no method 'median'"),
        ("uniform:decay=0.5", "'decay=0.5' is not understood"),
        ("uniform:last", "'last' is not understood"),
        ("ema:tail=3", "'tail=3' is not understood"),
        ("uniform:last=x", "'last=x' is no whole number"),
        ("uniform:last=0", "last=0 must be at least 1"),
    ],
)
def test_a_recipe_that_is_not_understood_says_which_part(text, said):
    with pytest.raises(swavg.RequestError, match=said):
        methods.sweep_spec(text)


def test_a_recipe_is_told_what_its_own_method_takes():
    with pytest.raises(swavg.RequestError) as caught:
        methods.sweep_spec("uniform:decay=0.5")
    assert caught.value.hint == (
        "A uniform recipe takes last, from-step, to-step, every, best, metric, mode, at-most."
    )
    with pytest.raises(swavg.RequestError, match="there is no method 'mean'"):
        methods.sweep_spec("mean:half=1")


def test_a_recipe_that_finds_too_few_names_itself(tmp_path):
    run_of(tmp_path / "run", [1, 2])
    series, specs = discover([tmp_path / "run"]), [methods.sweep_spec("uniform:last=5")]
    with pytest.raises(swavg.RequestError, match=r"Recipe 'uniform:last=5'.*2"):
        methods.sweep(series, specs, policy=Policy())


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("2000steps", (1, None), (2000.0, "steps")),
        ("3checkpoints", (1, 2), (3.0, "checkpoints")),
        ("3 ckpts", (1, 2), (3.0, "checkpoints")),
        ("2e3", (1, 2), (2000.0, "steps")),
        ("4", (1, None), (4.0, "checkpoints")),
        ("1epochs", (1, 2), (1.0, "steps")),
        ("0.5 epoch", (1, 2), (0.5, "steps")),
    ],
)
def test_amounts_say_or_imply_their_unit(text, steps, expected):
    assert methods.amount(text, steps) == expected


@pytest.mark.parametrize("text", ["", "steps", "3 apples", "nan", "1e"])
def test_amounts_that_are_none_are_refused(text):
    with pytest.raises(swavg.RequestError, match="is no number of steps or checkpoints"):
        methods.amount(text, (1, 2))


def test_an_ema_needs_exactly_one_of_its_measures():
    with pytest.raises(swavg.RequestError, match="Give one of"):
        methods.smoothing((1, 2))
    with pytest.raises(swavg.RequestError, match="Give one of"):
        methods.smoothing((1, 2), decay=0.5, span="3")
    assert methods.smoothing((1, 2), half_life="1steps") == methods.Smoothing(0.5, per_step=True)
    assert methods.smoothing((1, 2), span="3checkpoints") == methods.Smoothing(0.5)


def test_the_recipe_in_a_pt_is_found_as_well(tmp_path):
    for index in (1, 2, 3):
        torch.save(state(index), tmp_path / f"{index}.pt")
    swavg.average([tmp_path / "1.pt", tmp_path / "2.pt"], output=tmp_path / "avg.pt")
    assert recipe_of(tmp_path / "avg.pt")["n"] == 2
    request = methods.update(tmp_path / "avg.pt", [tmp_path / "3.pt"], policy=Policy())
    run_request(request, tmp_path / "new.pt")
    found = torch.load(tmp_path / "new.pt", weights_only=True)
    expected = sum(state(i)["body.bias"].double() for i in (1, 2, 3)) / 3
    torch.testing.assert_close(found["body.bias"].double(), expected, rtol=1e-6, atol=1e-7)


def test_a_path_given_twice_counts_twice_also_in_a_sweep(tmp_path):
    one = save(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    two = save(tmp_path / "b.safetensors", {"x": torch.full((3,), 4.0)})
    specs = [methods.sweep_spec(text) for text in ("uniform", "ema:decay=0.5", "uniform:last=2")]
    request = methods.sweep(discover([one, one, two]), specs, policy=Policy())
    assert [row.members for row in request.rows] == [(0, 1, 2), (0, 1, 2), (0, 2)]
    run_request(request, *(tmp_path / name for name in ("m.st", "e.st", "l.st")))
    assert load(tmp_path / "m.st")["x"].tolist() == [2.0] * 3
    assert load(tmp_path / "e.st")["x"].tolist() == [2.5] * 3


def test_unlike_outputs_are_published_together_or_not_at_all(tmp_path):
    bad = {"w": torch.tensor([float("nan")]), "x": torch.ones(1)}
    paths = [save(tmp_path / "1.safetensors", bad)]
    paths += [save(tmp_path / f"{i}.safetensors", {"w": torch.ones(1)}) for i in (2, 3)]
    rows = [Row((0.5, 0.5), (1, 2)), Row((1 / 3,) * 3, (0, 1, 2))]
    outputs = [tmp_path / "a.st", tmp_path / "b.st"]
    plan = swavg.prepare(paths, rows, outputs, Policy(strict=False))
    with pytest.raises(swavg.NumericsError, match="is NaN"):
        swavg.execute(plan)
    assert not list(tmp_path.glob("*.st"))


def test_a_debiased_ema_of_one_checkpoint_can_be_resumed_by_step(tmp_path):
    run_of(tmp_path / "run", [100, 200, 300])
    how = methods.Smoothing(0.99, per_step=True, debias=True)
    series = discover([tmp_path / "run"])
    run_request(methods.ema(series, how, policy=Policy()), tmp_path / "whole.st")
    early = discover([tmp_path / "run" / "step-100.safetensors"])
    run_request(methods.ema(early, how, policy=Policy()), tmp_path / "early.st")
    late = methods.ema(series, how, policy=Policy(), resume=tmp_path / "early.st")
    run_request(late, tmp_path / "late.st")
    assert_close(tmp_path / "late.st", load(tmp_path / "whole.st"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "odd",
    [{"decay": "0.9"}, {"step": "100"}, {"mass": None}, {"n": True}, {"n": -1}, {"n": 2.5}],
)
def test_a_recipe_with_odd_values_is_refused_and_not_believed(tmp_path, odd):
    recipe = {"method": "ema", "n": 2, "decay": 0.9, "per_step": False, "step": 2} | odd
    path = save(tmp_path / "e.safetensors", state(1), {"swavg": json.dumps(recipe)})
    run_of(tmp_path / "run", [3])
    series = discover([tmp_path / "run"])
    with pytest.raises(swavg.InputError, match="is no ema that swavg wrote"):
        methods.ema(series, methods.Smoothing(0.9), policy=Policy(), resume=path)


def test_steps_are_not_taken_for_epochs():
    with pytest.raises(swavg.RequestError, match="the checkpoints count epochs"):
        methods.smoothing((1, 2), half_life="2000steps", counting="epoch")
    with pytest.raises(
        swavg.RequestError, match="is in epochs, but the checkpoints count steps"
    ) as caught:
        methods.smoothing((1, 2), half_life="2epochs")
    assert caught.value.hint == "Write 2checkpoints, or how many steps these are."


def test_a_half_life_in_epochs_is_one_of_checkpoints_that_count_epochs():
    smoothing = methods.smoothing((1, 3), half_life="2epochs", counting="epoch")
    assert smoothing == methods.smoothing((1, 3), half_life="2", counting="epoch")
    assert smoothing.weights_at((1, 3)) == pytest.approx((0.5, 0.5))


def test_the_recipe_of_a_folder_of_bin_files_is_found(tmp_path):
    for index in (1, 2):
        (tmp_path / f"{index}").mkdir()
        torch.save(state(index), tmp_path / f"{index}" / "pytorch_model.bin")
    swavg.average([tmp_path / "1", tmp_path / "2"], output=tmp_path / "avg")
    assert recipe_of(tmp_path / "avg")["n"] == 2
