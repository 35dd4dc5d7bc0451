"""Power-function EMA: its widths, its running form, and post-hoc synthesis."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swavg import weights
from swavg.errors import RequestError

GAMMAS = st.floats(0, 50)
GAMMA_05 = weights.gamma_from_sigma_rel(0.05)
GAMMA_10 = weights.gamma_from_sigma_rel(0.10)


def combined(found, values):
    return math.fsum(weight * value for weight, value in zip(found, values, strict=True))


def run(values, gamma):
    """The states of the running form after each of ``values``, updates counted from 1."""
    state, states = math.nan, []
    for t, value in enumerate(values, 1):
        decay = (1 - 1 / t) ** (gamma + 1)
        state = (0 if t == 1 else decay * state) + (1 - decay) * value
        states.append(state)
    return states


def random_walk(n, seed=5):
    return np.cumsum(np.random.default_rng(seed).standard_normal(n)).tolist()


def test_the_published_widths_have_their_published_exponents():
    assert math.isclose(GAMMA_05, 16.97, abs_tol=0.005)
    assert math.isclose(GAMMA_10, 6.94, abs_tol=0.005)


@given(st.floats(1e-4, 0.2886))
def test_the_exponent_is_the_largest_real_root_of_the_cubic(sigma_rel):
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    expected = max(root.real for root in roots if abs(root.imag) < 1e-6)
    found = weights.gamma_from_sigma_rel(sigma_rel)
    assert math.isclose(found, expected, rel_tol=1e-8, abs_tol=1e-8)


@given(st.floats(1e-3, 1e4))
def test_the_width_and_its_exponent_are_inverse(gamma):
    sigma_rel = weights.sigma_rel_from_gamma(gamma)
    assert math.isclose(weights.gamma_from_sigma_rel(sigma_rel), gamma, rel_tol=1e-9, abs_tol=1e-12)


@given(GAMMAS)
def test_the_width_is_the_standard_deviation_of_the_profile(gamma):
    at = (np.arange(100_000) + 0.5) / 100_000
    profile = (gamma + 1) * at**gamma / 100_000
    centre = np.sum(profile * at)
    deviation = math.sqrt(np.sum(profile * (at - centre) ** 2))
    assert math.isclose(weights.sigma_rel_from_gamma(gamma), deviation, rel_tol=1e-5)


def test_extreme_widths_do_not_overflow():
    assert math.isclose(weights.gamma_from_sigma_rel(1e-200), 1e200, rel_tol=1e-9)
    assert 0 < weights.gamma_from_sigma_rel(math.nextafter(12**-0.5, 0)) < 1e-14


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 12**-0.5, 0.289, 1, math.nan])
def test_a_width_that_no_profile_has_is_refused(sigma_rel):
    with pytest.raises(RequestError, match="relative width"):
        weights.gamma_from_sigma_rel(sigma_rel)


@given(st.integers(1, 10**9), GAMMAS)
def test_beta_has_the_value_of_the_formula(t, gamma):
    found = weights.beta(t, gamma)
    assert math.isclose(found, (1 - 1 / t) ** (gamma + 1), rel_tol=1e-9)
    assert 0 <= found < 1 or t > 10**7


def test_the_first_update_is_a_copy():
    assert weights.beta(1, 6.94) == 0


def test_the_profile_follows_the_power_of_the_step():
    n, gamma = 10_000, GAMMA_10
    found = weights.ema_with_decays([weights.beta(t, gamma) for t in range(2, n + 1)])
    middle = (np.arange(n) + 0.5) / n
    np.testing.assert_allclose(found[100:], ((gamma + 1) * middle**gamma / n)[100:], rtol=1e-3)


def test_exponent_zero_is_the_mean():
    found = weights.ema_with_decays([weights.beta(t, 0) for t in range(2, 8)])
    assert found == pytest.approx(weights.mean(7), rel=1e-14)


NODES, SHARES = np.polynomial.legendre.leggauss(200)


@given(st.floats(0.1, 100), GAMMAS, st.floats(0.1, 100), GAMMAS)
def test_the_inner_product_is_the_integral_of_the_product_of_the_profiles(ta, ga, tb, gb):
    # Gauss-Legendre integrates a polynomial of this degree to rounding; profiles are 0 after
    # their step. The scale of the profiles is in the logarithm, so that nothing overflows.
    end = min(ta, tb)
    at = end * (NODES + 1) / 2
    product = np.exp(
        math.log((ga + 1) / ta)
        + ga * np.log(at / ta)
        + math.log((gb + 1) / tb)
        + gb * np.log(at / tb)
    )
    integral = float(np.sum(SHARES * product) * end / 2)
    found = weights.inner_product(ta, ga, tb, gb)
    assert math.isclose(found, integral, rel_tol=1e-6, abs_tol=1e-300)


@given(st.floats(0.1, 100), GAMMAS, st.floats(0.1, 100), GAMMAS)
def test_the_inner_product_is_symmetric(ta, ga, tb, gb):
    one, other = weights.inner_product(ta, ga, tb, gb), weights.inner_product(tb, gb, ta, ga)
    assert math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-300)


def test_large_steps_and_exponents_do_not_overflow():
    assert weights.inner_product(1e300, 500, 1e-300, 500) == 0
    assert math.isclose(weights.inner_product(1e12, 1000, 1e12, 1000), 1001**2 / 2001 / 1e12)


SNAPSHOTS = [(step, gamma) for step in range(512, 4097, 512) for gamma in (GAMMA_05, GAMMA_10)]


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.12, 0.15])
@pytest.mark.parametrize("target_step", [4096, 3072])
def test_a_width_that_was_never_run_is_put_together_from_stored_ones(sigma_rel, target_step):
    values = random_walk(4096)
    states = {gamma: run(values, gamma) for gamma in (GAMMA_05, GAMMA_10)}
    target_gamma = weights.gamma_from_sigma_rel(sigma_rel)
    steps, gammas = zip(*SNAPSHOTS, strict=True)
    found = weights.posthoc(steps, gammas, target_step, target_gamma)
    snapshots = [states[gamma][step - 1] for step, gamma in SNAPSHOTS]
    direct = run(values, target_gamma)[target_step - 1]
    nearest = min(abs(snapshot - direct) for snapshot in snapshots)
    error = abs(combined(found, snapshots) - direct)
    assert error < 0.01 * np.std(values)
    assert error < 0.2 * nearest
    assert math.isclose(math.fsum(found), 1, rel_tol=1e-12)


def test_the_solution_is_the_least_squares_fit_of_the_profiles_up_to_its_sum():
    # The profiles on a fine grid, fitted without any of the formulas.
    gamma, cells = weights.gamma_from_sigma_rel(0.075), 40_960
    at = (np.arange(cells) + 0.5) * 4096 / cells

    def profile(step, exponent):
        return np.where(at < step, (exponent + 1) / step * (at / step) ** exponent, 0.0)

    columns = np.stack([profile(*snapshot) for snapshot in SNAPSHOTS], axis=1)
    fitted = np.linalg.lstsq(columns, profile(4096, gamma), rcond=None)[0]
    found = weights.posthoc(*zip(*SNAPSHOTS, strict=True), 4096, gamma)
    np.testing.assert_allclose(found, fitted / fitted.sum(), atol=2e-3)


def test_a_target_that_is_a_snapshot_is_that_snapshot_exactly():
    steps, gammas = zip(*SNAPSHOTS, strict=True)
    for index, (step, gamma) in enumerate(SNAPSHOTS):
        found = weights.posthoc(steps, gammas, step, gamma)
        assert found == tuple(float(place == index) for place in range(len(SNAPSHOTS)))


def test_a_target_a_hair_from_a_snapshot_is_almost_that_snapshot():
    steps, gammas = zip(*SNAPSHOTS, strict=True)
    found = weights.posthoc(steps, gammas, 4096, GAMMA_10 * (1 + 1e-9))
    assert found == pytest.approx([0] * 15 + [1], abs=1e-6)


def test_snapshots_after_the_target_step_get_weight_zero():
    steps, gammas = zip(*SNAPSHOTS, strict=True)
    found = weights.posthoc(steps, gammas, 2000, 10.0)
    used = [index for index, step in enumerate(steps) if step <= 2000]
    assert all(found[i] == 0 for i in range(len(steps)) if i not in used)
    alone = weights.posthoc([steps[i] for i in used], [gammas[i] for i in used], 2000, 10.0)
    assert tuple(found[i] for i in used) == alone
    assert math.isclose(math.fsum(found), 1, rel_tol=1e-12)


@given(st.floats(1e-6, 1e9), st.floats(0.03, 0.2))
def test_the_unit_of_the_steps_does_not_matter(unit, sigma_rel):
    steps, gammas = zip(*SNAPSHOTS, strict=True)
    gamma = weights.gamma_from_sigma_rel(sigma_rel)
    found = weights.posthoc([unit * step for step in steps], gammas, unit * 4096, gamma)
    expected = weights.posthoc(steps, gammas, 4096, gamma)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_order_of_the_snapshots_does_not_matter():
    steps, gammas = zip(*SNAPSHOTS, strict=True)
    found = weights.posthoc(steps, gammas, 4096, 10.0)
    turned = weights.posthoc(steps[::-1], gammas[::-1], 4096, 10.0)
    assert turned[::-1] == pytest.approx(found, rel=1e-9, abs=1e-12)


def test_one_snapshot_has_all_the_weight():
    assert weights.posthoc([100], [6.94], 120, 3.0) == (1.0,)


def test_a_run_of_many_snapshots_is_still_solved():
    steps = [1000 * (i // 2 + 1) for i in range(200)]
    gammas = [GAMMA_05, GAMMA_10] * 100
    found = weights.posthoc(steps, gammas, 100_000, 10.0)
    assert math.isclose(math.fsum(found), 1, rel_tol=1e-12)
    assert max(map(abs, found)) < 2


def test_snapshots_that_give_no_solution_are_refused():
    with pytest.raises(RequestError, match="same profile: step 200, gamma 6"):
        weights.posthoc([100, 200, 200], [6, 6, 6], 300, 5)
    with pytest.raises(RequestError, match="too alike"):
        weights.posthoc([100, 200, 200], [6, 6, 6 + 1e-12], 300, 5)
    with pytest.raises(RequestError, match=r"first snapshot is at step 100, after .* 50"):
        weights.posthoc([100, 200], [6, 6], 50, 5)
    with pytest.raises(RequestError, match="holds anything"):
        weights.posthoc([1], [6], 1e9, 500)
    with pytest.raises(RequestError, match="2 steps for 1 exponents"):
        weights.posthoc([100, 200], [6], 200, 5)
    with pytest.raises(RequestError, match="number of snapshots is 0"):
        weights.posthoc([], [], 200, 5)


def test_steps_and_exponents_out_of_range_are_refused():
    for call in (
        lambda: weights.beta(2, -0.5),
        lambda: weights.sigma_rel_from_gamma(-0.5),
        lambda: weights.beta(2, math.nan),
        lambda: weights.inner_product(1, 2, 3, math.inf),
        lambda: weights.posthoc([1], [1], 2, -1),
    ):
        with pytest.raises(RequestError, match="exponent gamma is"):
            call()
    with pytest.raises(RequestError, match="update 0"):
        weights.beta(0, 1)
    with pytest.raises(RequestError, match="step is 0"):
        weights.inner_product(0, 1, 1, 1)


def test_numpy_waits_for_the_post_hoc_solve():
    code = (
        "import sys\nfrom swavg import weights\n"
        "weights.gamma_from_sigma_rel(0.1), weights.beta(2, 3)\n"
        "assert 'numpy' not in sys.modules\n"
        "weights.posthoc([1, 2], [3, 3], 2, 4)\nassert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
