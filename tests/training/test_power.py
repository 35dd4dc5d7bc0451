"""PowerEMA: the profiles of the paper, and snapshots from which the command line makes others."""

import io
import subprocess
import sys

import pytest
import torch
from checkpoints import load
from torch import nn
from training_models import assert_same, network, one_thread, snapshot, wander

from swavg import weights
from swavg.engine.recipe import recipe_of
from swavg.errors import MismatchError, OutputError, RequestError
from swavg.series import discover
from swavg.training.power import PowerEMA
from swavg.training.snapshot import save_snapshot


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def test_each_profile_is_its_running_form():
    model = nn.Linear(3, 2).double()
    power = PowerEMA(model, (0.05, 0.2))
    taken = []
    wander(model, 9, lambda: (power.update(), taken.append(snapshot(model))))
    for index, gamma in enumerate(power.gammas):
        decays = [weights.beta(t, gamma) for t in range(2, 10)]
        numbers = weights.ema_with_decays(decays)
        for name, found in power.averaged(index).items():
            expected = sum(w * state[name] for w, state in zip(numbers, taken, strict=True))
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_the_first_update_is_a_copy():
    model = network()
    power = PowerEMA(model)
    wander(model, 1, power.update)
    for index in (0, 1):
        assert_same(power.averaged(index), snapshot(model))


def test_the_command_line_makes_other_widths_of_the_snapshots(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    power = PowerEMA(model, (0.05, 0.1))
    direct = PowerEMA(model, (0.07, 0.15))
    written = []

    def after():
        power.update()
        direct.update()
        if power.num_updates % 25 == 0:
            written.extend(power.save(tmp_path / "snapshots"))

    wander(model, 200, after)
    assert written[0].name == "sigma-0.05-step-25.safetensors"
    assert len(written) == 16
    profile = recipe_of(written[-1])["profile"]
    assert profile == {"sigma_rel": 0.1, "gamma": power.gammas[1]}

    options = ["--sigma-rel", "0.1", "--sigma-rel", "0.07", "--sigma-rel", "0.15"]
    folder = str(tmp_path / "out")
    ran = subprocess.run(
        [sys.executable, "-m", "swavg", "posthoc", str(tmp_path / "snapshots"), *options,
         "-d", folder, "-q"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    made = {
        width: load(tmp_path / "out" / f"posthoc-{width}.safetensors")
        for width in (0.1, 0.07, 0.15)
    }
    # The width of the snapshots is the average itself.
    assert_same(dict(sorted(made[0.1].items())), dict(sorted(power.averaged(1).items())))
    spread = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for index, width in enumerate((0.07, 0.15)):
        for name, found in direct.averaged(index).items():
            error = (made[width][name] - found).norm() / (spread[name] - found).norm()
            assert error < 0.05, (width, name, error)
    # Each is nearer to the one tracked at its width than to the other.
    for index, width in enumerate((0.07, 0.15)):
        found, other = direct.averaged(index), direct.averaged(1 - index)
        for name in found:
            own = (made[width][name] - found[name]).norm()
            assert own < 0.2 * (made[width][name] - other[name]).norm()


def test_snapshots_carry_their_step_and_are_not_overwritten(tmp_path):
    model = network().to(torch.bfloat16)
    power = PowerEMA(model, (0.1,))
    with pytest.raises(RequestError, match="No update was made yet"):
        power.save(tmp_path)
    wander(model, 2, power.update)
    (path,) = power.save(tmp_path, step=1024)
    assert [snapshot.step for snapshot in discover([tmp_path]).snapshots] == [1024]
    assert load(path)["0.weight"].dtype == torch.float32
    wander(model, 1, power.update)
    with pytest.raises(OutputError, match="exists"):
        power.save(tmp_path, step=1024)
    power.save(tmp_path, step=1024, force=True)


def test_a_profile_is_applied_and_taken_back():
    model = network()
    power = PowerEMA(model)
    wander(model, 3, power.update)
    own, wide = snapshot(model), power.averaged(1)
    with power.applied(1):
        assert_same(snapshot(model), wide)
        for act in (power.update, power.applied(0).__enter__):
            with pytest.raises(RequestError, match="has the averaged weights now"):
                act()
    assert_same(snapshot(model), own)


def test_resuming_equals_no_interruption():
    model = network()
    power = PowerEMA(model)
    wander(model, 3, power.update)
    buffer = io.BytesIO()
    torch.save(power.state_dict(), buffer)
    buffer.seek(0)
    then = snapshot(model)
    wander(model, 3, power.update, seed=8)

    other = network(4)
    other.load_state_dict(then)
    resumed = PowerEMA(other)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    wander(other, 3, resumed.update, seed=8)
    for index in (0, 1):
        assert_same(resumed.averaged(index), power.averaged(index))


def test_misuse_is_told():
    model = network()
    with pytest.raises(RequestError, match="sigma_rel is empty"):
        PowerEMA(model, ())
    with pytest.raises(RequestError, match="a width twice"):
        PowerEMA(model, (0.1, 0.1))
    with pytest.raises(RequestError, match=r"relative width 0\.3 is not in"):
        PowerEMA(model, (0.3,))
    power = PowerEMA(model)
    with pytest.raises(RequestError, match=r"widths \(0\.05, 0\.1\), not \(0\.2,\)"):
        PowerEMA(model, (0.2,)).load_state_dict(power.state_dict())
    with pytest.raises(MismatchError, match=r"has no '0\.bias'"):
        PowerEMA(nn.Linear(2, 2)).load_state_dict(power.state_dict())


def test_a_state_that_does_not_fit_changes_no_profile():
    model = network()
    power = PowerEMA(model)
    wander(model, 3, power.update)
    before = power.averaged(0)
    state = PowerEMA(network(4)).state_dict()
    state["averages"][1] = {**state["averages"][1], "4.bias": torch.zeros(9)}
    with pytest.raises(MismatchError, match=r"'4\.bias' is \[9\] in it and \[3\]"):
        power.load_state_dict(state)
    assert_same(power.averaged(0), before)
    assert power.num_updates == 3


def test_a_resumed_run_saves_its_steps_again_and_nothing_else(tmp_path):
    model = network()
    power = PowerEMA(model)
    wander(model, 3, power.update)
    first = [path.read_bytes() for path in power.save(tmp_path)]
    resumed = PowerEMA(model)
    resumed.load_state_dict(power.state_dict())
    assert [path.read_bytes() for path in resumed.save(tmp_path)] == first
    path = power.save(tmp_path)[0]
    save_snapshot(path, model, step=3, force=True)
    with pytest.raises(OutputError, match="exists already"):
        power.save(tmp_path)
    power.save(tmp_path, force=True)
