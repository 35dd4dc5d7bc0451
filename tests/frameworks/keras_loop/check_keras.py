"""EMA, SWA and callbacks in the loop of Keras and TensorFlow: pytest check_keras.py."""

import doctest
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import swavg.integrations.keras
from swavg.errors import MismatchError, RequestError
from swavg.integrations.keras import EMA, SWA, EMACallback, SnapshotCallback, SWACallback
from swavg.series.names import read_name
from swavg.weights import WARMUPS, warmup_decay

# Of NumPy's __array__, in Keras.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 12
RNG = np.random.default_rng(0)
PATH = [RNG.normal(size=(3, 2)).astype("float32") for _ in range(STEPS + 1)]
"""A trajectory: the values of a variable before the first step, and after each."""
X = RNG.normal(size=(32, 4)).astype("float32")
Y = RNG.normal(size=(32, 1)).astype("float32")


def walk(variable, after_step, path=PATH):
    for t, value in enumerate(path[1:], 1):
        variable.assign(value)
        after_step(t)


def in_graph(act):
    """``act(step)`` in one tf.function, whose step is a tensor."""
    compiled = tf.function(act, input_signature=[tf.TensorSpec((), tf.int64)])
    return lambda t: compiled(tf.constant(t, tf.int64))


def as_is(act):
    return act


EACH_WAY = pytest.mark.parametrize("way", [as_is, in_graph])
EACH_KIND = pytest.mark.parametrize("kind", [keras.Variable, tf.Variable])


def ema_of(path, decays):
    average = path[0].astype("float64")
    for value, decay in zip(path[1:], decays, strict=True):
        average = average + (1 - decay) * (value - average)
    return average


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-7)


def model_of(*, statistics=True, dtype=None, seed=1):
    keras.utils.set_random_seed(seed)
    inner = [layers.BatchNormalization(dtype=dtype), layers.Dropout(0.1)] if statistics else []
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, dtype=dtype), *inner, layers.Dense(1, dtype=dtype)]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def fit(model, callbacks, epochs=2, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options)


class Recorded(keras.callbacks.Callback):
    """The weights after each batch, and in each evaluation."""

    def on_train_begin(self, logs=None):
        self.path, self.evaluated = [self.model.get_weights()], []

    def on_train_batch_end(self, batch, logs=None):
        self.path.append(self.model.get_weights())

    def on_test_batch_end(self, batch, logs=None):
        self.evaluated.append(self.model.get_weights())


# ---- The same numbers as others.


@EACH_KIND
@EACH_WAY
@pytest.mark.parametrize("counted", [False, True])
def test_an_ema_is_tensorflows(kind, way, counted):
    ours, theirs = kind(PATH[0]), tf.Variable(PATH[0])
    count = tf.Variable(0)
    reference = tf.train.ExponentialMovingAverage(0.9, num_updates=count if counted else None)
    reference.apply([theirs])  # makes the average
    reference.average(theirs).assign(PATH[0])
    ema = EMA([ours], 0.9, warmup="tensorflow" if counted else None)
    act = way(lambda t: ema.update())

    def after(t):
        count.assign(t)
        theirs.assign(PATH[t])
        reference.apply([theirs])
        act(t)

    walk(ours, after)
    assert ema.num_updates == STEPS
    close(ema.averaged()[0], reference.average(theirs).numpy())


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_an_ema_is_that_of_keras_optimizers(momentum):
    model = model_of(statistics=False)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum)
    model.compile(optimizer, "mse")
    # Theirs begins with a copy of the weights after the first step.
    ema = EMACallback(lambda t: 0.0 if t == 1 else momentum)
    taken = []

    class Take(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            taken[:] = [np.array(v) for v in optimizer._model_variables_moving_average]

    fit(model, [ema, Take()], epochs=3)
    for ours, theirs in zip(ema.ema.averaged(), taken, strict=True):
        close(ours, theirs)


@EACH_WAY
@pytest.mark.parametrize("name", [*WARMUPS])
def test_warmups_are_those_of_the_command_line(way, name):
    variable = keras.Variable(PATH[0])
    options = {"inverse-gamma": {"power": 0.7, "gamma": 2.0}, "yolo": {"tau": 5.0}}.get(name, {})
    ema = EMA([variable], 0.8, warmup=name, warmup_options=options)
    walk(variable, way(lambda t: ema.update()))
    first = 0 if name == "inverse-gamma" else 1
    decays = [warmup_decay(name, t + first, 0.8, **options) for t in range(STEPS)]
    close(ema.averaged()[0], ema_of(PATH, decays))


@EACH_WAY
def test_a_decay_may_be_a_function_of_t(way):
    variable = tf.Variable(PATH[0])
    ema = EMA([variable], lambda t: 1 - 1 / (t + 1))
    walk(variable, way(lambda t: ema.update()))
    # The mean of all, as it happens.
    close(ema.averaged()[0], np.mean(PATH, axis=0, dtype="float64"))
    wrong = EMA([variable], lambda t: 0.5 * t)
    act = way(lambda t: wrong.update())
    variable.assign(PATH[0])
    act(1)
    act(2)  # a decay of 1
    with pytest.raises((RequestError, tf.errors.InvalidArgumentError), match="decay"):
        act(3)
    close(wrong.averaged()[0], (PATH[0] + PATH[-1].astype("float64")) / 2)


@EACH_WAY
@pytest.mark.parametrize("warmup", [None, "yolo"])
def test_a_decay_that_is_set_is_that_of_the_next_update(way, warmup):
    variable = tf.Variable(PATH[0])
    ema = EMA([variable], 0.5, warmup=warmup)
    decays = [(0.5, 0.9, 1.0, 0.0, 0.9)[t % 5] for t in range(STEPS)]
    act = way(lambda t: ema.update())

    def after(t):
        if warmup is None:
            ema.decay = decays[t - 1]
        else:
            ema.decay = 0.9 if t > 4 else 0.5
            decays[t - 1] = warmup_decay(warmup, t, ema.decay)
        act(t)

    walk(variable, after)
    close(ema.averaged()[0], ema_of(PATH, decays))
    with pytest.raises(RequestError, match="decay"):
        ema.decay = 90
    assert ema.decay < 1


def test_a_function_that_is_compiled_cannot_be_replaced_but_may_return_a_variable():
    variable, decay = tf.Variable(PATH[0]), tf.Variable(0.5)
    ema = EMA([variable], lambda t: decay)
    ema.decay = lambda t: decay + 0.0
    act = in_graph(lambda t: ema.update())
    variable.assign(PATH[1])
    act(1)
    with pytest.raises(RequestError, match=r"compiled into a tf\.function"):
        ema.decay = 0.9
    decay.assign(0.75)
    variable.assign(PATH[2])
    act(2)
    close(ema.averaged()[0], ema_of(PATH[:3], [0.5, 0.75]))


@EACH_WAY
def test_jumping_steps_count_crossings(way):
    variable = keras.Variable(PATH[0])
    ema = EMA([variable], 0.5, every=3)
    act = way(lambda t: ema.update(t))
    for t in (0, 2, 7, 8, 9):
        variable.assign(PATH[t])
        act(t)
    assert ema.num_updates == 2
    assert ema.steps == 9
    close(ema.averaged()[0], ema_of([PATH[0], PATH[7], PATH[9]], [0.5, 0.5]))
    with pytest.raises((RequestError, tf.errors.InvalidArgumentError), match="must increase"):
        act(9)


@EACH_WAY
@EACH_KIND
def test_swa_is_the_mean_from_start_on_at_every_kth_step(way, kind):
    variable = kind(PATH[0])
    swa = SWA([variable], start=4, every=2)
    walk(variable, way(lambda t: swa.step()))
    assert (swa.n, swa.steps) == (4, 12)
    close(swa.averaged()[0], np.mean([PATH[t] for t in (6, 8, 10, 12)], axis=0, dtype="float64"))
    with swa.swapped():
        close(variable.numpy(), swa.averaged()[0])
    np.testing.assert_array_equal(variable.numpy(), PATH[12])


def test_graph_and_eager_agree_to_the_bit():
    found = []
    for way in (as_is, in_graph):
        variable = tf.Variable(PATH[0])
        ema = EMA([variable], 0.97)
        walk(variable, way(lambda t, ema=ema: ema.update()))
        found.append(ema.averaged()[0])
    np.testing.assert_array_equal(*found)


def test_a_training_step_may_be_compiled_with_xla():
    variable = tf.Variable(PATH[0])
    ema = EMA([variable], 0.9, warmup="inverse-gamma")
    step = tf.function(lambda: ema.update(), jit_compile=True)
    walk(variable, lambda t: step())
    decays = [warmup_decay("inverse-gamma", t, 0.9) for t in range(STEPS)]
    close(ema.averaged()[0], ema_of(PATH, decays))


# ---- What is averaged.


def test_half_precision_has_float32_averages():
    model = model_of(dtype="bfloat16")
    kernel = model.layers[0].kernel
    before = np.array(kernel).astype("float32")
    ema = EMA(model, 0.999)
    kernel.assign(before + 1)
    ema.update()
    values = ema.averaged()
    assert {value.dtype for value in values} == {np.dtype("float32")}
    now = np.array(kernel).astype("float32")
    close(values[0], before + 0.001 * (now - before))
    with ema.applied():
        assert kernel.dtype == "bfloat16"
        np.testing.assert_array_equal(np.array(kernel), values[0].astype(np.array(kernel).dtype))
    np.testing.assert_array_equal(np.array(kernel).astype("float32"), now)


def test_statistics_are_copied_and_seeds_and_integers_left():
    model = model_of()
    count = tf.Variable(3)
    ema = EMA([*model.variables, count], 0.5)
    own = [np.array(v) for v in model.variables]
    for v in model.weights:
        v.assign(v + 1)
    count.assign(7)
    ema.update()
    seeds = [id(v) for v in model.variables if "seed" in v.name]
    assert seeds
    for v, before, average in zip(model.variables, own, ema.averaged(), strict=False):
        if id(v) in seeds:
            np.testing.assert_array_equal(average, before)
        else:
            close(average, before + (0.5 if v.trainable else 1))
    with ema.applied():
        assert count.numpy() == 7


def test_what_is_all_frozen_is_copied():
    variable = tf.Variable(PATH[0], trainable=False)
    ema = EMA([variable], 0.5)
    variable.assign(PATH[1])
    ema.update()
    np.testing.assert_array_equal(ema.averaged()[0], PATH[1])


def test_frozen_weights_are_copied_until_they_are_trained_and_averaged_from_then_on():
    model = model_of(statistics=False)
    first = model.layers[0]
    first.trainable = False
    ema = EMA(model, 0.5)
    first.kernel.assign(first.kernel + 1)
    ema.update()
    copied = np.array(first.kernel)
    np.testing.assert_array_equal(ema.averaged()[0], copied)
    first.trainable = True
    first.kernel.assign(first.kernel + 1)
    ema.update()
    close(ema.averaged()[0], copied + 0.5)
    first.trainable = False
    first.kernel.assign(first.kernel + 1)
    ema.update()
    close(ema.averaged()[0], copied + 1.25)


def test_complex_variables_are_averaged():
    variable = tf.Variable([1 + 1j, 2], dtype=tf.complex64)
    ema = EMA([variable], 0.5)
    variable.assign([3 + 3j, 0])
    ema.update()
    np.testing.assert_array_equal(ema.averaged()[0], [2 + 2j, 1])


# ---- Showing.


def test_the_model_has_the_average_and_then_its_own():
    model = model_of()
    ema = EMA(model, 0.5)
    fit(model, [])
    ema.update()
    own, averages = model.get_weights(), ema.averaged()
    ema.apply_shadow()
    for found, expected in zip(model.get_weights(), averages, strict=True):
        np.testing.assert_array_equal(found, expected)
    for act in (ema.update, ema.apply_shadow, ema.register, EMA(model, 0.9).update):
        with pytest.raises(RequestError, match="Restore"):
            act()
    with pytest.raises(RequestError, match="Restore"):
        EMA(model, 0.9).apply_shadow()
    ema.state_dict()
    ema.restore()
    for found, expected in zip(model.get_weights(), own, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(RequestError, match="nothing to restore"):
        ema.restore()


def test_a_compiled_update_is_refused_while_the_average_is_applied():
    variable = tf.Variable(PATH[0])
    ema = EMA([variable], 0.5)
    step = in_graph(lambda t: ema.update())
    step(1)
    with ema.applied(), pytest.raises(tf.errors.InvalidArgumentError, match="averaged weights"):
        step(2)
    step(2)
    assert ema.num_updates == 2
    late = EMA([variable], 0.5)
    step = in_graph(lambda t: late.update())
    # It is traced here, where AutoGraph may turn an error into one of its own.
    with ema.applied(), pytest.raises(Exception, match="averaged weights"):
        step(3)
    step(3)
    assert late.num_updates == 1


def test_a_compiled_update_is_refused_while_another_average_is_applied():
    variable, apart = tf.Variable(PATH[0]), tf.Variable(PATH[0])
    shown = EMA([variable], 0.5)
    others = [EMA([variable], 0.5), SWA([variable])]
    elsewhere = EMA([apart], 0.5)
    steps = [tf.function(each.update) for each in (*others, elsewhere)]
    with shown.applied():
        others.append(EMA([variable], 0.5))
        steps.append(tf.function(others[-1].update))
        for step in steps[:2] + steps[3:]:
            with pytest.raises(tf.errors.InvalidArgumentError, match="averaged weights"):
                step()
        steps[2]()  # of another variable
    for step in steps:
        step()
    assert [others[0].num_updates, others[1].n, others[2].num_updates] == [1, 1, 1]
    assert elsewhere.num_updates == 2
    shown.apply_shadow()
    shown.hand_over()
    steps[0]()
    with pytest.raises(tf.errors.InvalidArgumentError, match="averaged weights"):
        tf.function(shown.update)()


def test_training_within_the_block_is_noticed_and_recomputed_statistics_stay():
    model = model_of()
    ema = EMA(model, 0.5)
    own = model.get_weights()
    with pytest.raises(RequestError, match="changed while"), ema.applied():
        fit(model, [])
    for found, expected in zip(model.get_weights(), own, strict=True):
        np.testing.assert_array_equal(found, expected)
    with ema.applied():
        model(X, training=True)
        recomputed = np.array(model.layers[1].moving_mean)
    assert not np.array_equal(recomputed, own[4])
    np.testing.assert_array_equal(ema.averaged()[4], recomputed)
    np.testing.assert_array_equal(model.layers[1].moving_mean, own[4])


def test_an_error_in_the_block_is_the_one_that_is_seen():
    variable = tf.Variable(PATH[0])
    ema = EMA([variable], 0.5)

    def evaluate():
        with ema.applied():
            variable.assign(PATH[1])
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        evaluate()
    np.testing.assert_array_equal(variable.numpy(), PATH[0])
    assert not ema.is_applied


def test_a_model_that_is_not_built_or_changed_is_refused():
    with pytest.raises(RequestError, match="Build the model first"):
        EMA(keras.Sequential([layers.Dense(1)]))
    model = model_of(statistics=False)
    ema = EMA(model)
    model.add(layers.Dense(2))
    with pytest.raises(RequestError, match=r"register\(\)"):
        ema.update()
    ema.register()
    ema.update()
    assert len(ema.averaged()) == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda v: EMA(v, 1.5),
        lambda v: EMA(v, 0.9, warmup="none such"),
        lambda v: EMA(v, 0.9, warmup="yolo", warmup_options={"gamma": 1.0}),
        lambda v: EMA(v, 0.9, warmup_options={"gamma": 1.0}),
        lambda v: EMA(v, 0.9, every=0),
        lambda v: EMA(0.9, model_of()),
        lambda v: EMACallback(0.9).load_state_dict("ema.npz"),
        lambda v: EMA(v, 0.9).update("1"),
        lambda v: SWA(v, -1),
        lambda v: SWA(v, 3).swap(),
        lambda v: SWA(v, 3).averaged(),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(RequestError):
        make([tf.Variable(1.0)])


# ---- State.


@pytest.mark.parametrize("make", [lambda v: EMA(v, 0.9, warmup="yolo"), lambda v: SWA(v, 2, 2)])
def test_a_run_goes_on_to_the_bit_from_an_npz(make, tmp_path):
    def act(average):
        return average.step if isinstance(average, SWA) else average.update

    whole, first = tf.Variable(PATH[0]), tf.Variable(PATH[0])
    one = make([whole])
    walk(whole, lambda t: act(one)())
    early = make([first])
    walk(first, lambda t: act(early)(), PATH[:6])
    np.savez(tmp_path / "average.npz", **early.state_dict())
    second = tf.Variable(PATH[5])
    late = make([second])
    late.load_state_dict(np.load(tmp_path / "average.npz"))
    walk(second, lambda t: act(late)(), PATH[5:])
    np.testing.assert_array_equal(one.averaged()[0], late.averaged()[0])
    ours, theirs = one.state_dict(), late.state_dict()
    assert len(ours) == len(theirs)
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours if "/" not in k)


def test_a_state_is_of_its_model_and_other_settings_are_told():
    state = EMA(model_of(), 0.9).state_dict()
    with pytest.warns(UserWarning, match=r"decay 0\.9; it goes on with 0\.99"):
        EMA(model_of(), 0.99).load_state_dict(state)
    with pytest.raises(MismatchError, match="it has 8 variables, the model 4"):
        EMA(model_of(statistics=False), 0.9).load_state_dict(state)
    with pytest.raises(MismatchError, match=r"\[3, 2\].*\[2, 3\]"):
        EMA([tf.Variable(PATH[0].T)]).load_state_dict(EMA([tf.Variable(PATH[0])]).state_dict())
    with pytest.raises(RequestError, match="no state dict of SWA"):
        SWA(model_of()).load_state_dict(state)


def test_averages_are_saved_with_tensorflows_checkpoint(tmp_path):
    model = model_of()
    ema = EMA(model, 0.9)
    fit(model, [])
    ema.update()
    prefix = tf.train.Checkpoint(model=model, averages=ema.variables).save(str(tmp_path / "ckpt"))
    other = model_of(seed=2)
    late = EMA(other, 0.9)
    checkpoint = tf.train.Checkpoint(model=other, averages=late.variables)
    checkpoint.restore(prefix).assert_existing_objects_matched()
    assert late.num_updates == 1
    for ours, theirs in zip(ema.averaged(), late.averaged(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# ---- Callbacks.


def test_validation_sees_the_average_and_training_its_own():
    ema, recorded = EMACallback(0.9), Recorded()
    model, plain = model_of(), model_of()
    alone = Recorded()
    fit(plain, [alone], validation_data=(X, Y))
    fit(model, [ema, recorded], validation_data=(X, Y))
    for ours, theirs in zip(recorded.path[-1], alone.path[-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kernels = [weights[0] for weights in recorded.path]
    assert len(kernels) == 9
    average = ema_of(kernels, [0.9] * 8)
    close(ema.ema.averaged()[0], average)
    close(recorded.evaluated[-1][0], average)
    scores = [model.evaluate(X, Y, verbose=0, callbacks=c) for c in ([ema], [])]
    with ema.ema.applied():
        assert scores[0] == model.evaluate(X, Y, verbose=0)
    assert scores[0] != scores[1]


def test_an_accumulated_step_is_one_update():
    model = model_of()
    model.compile(keras.optimizers.SGD(0.05, gradient_accumulation_steps=2), "mse")
    ema = EMACallback(0.9)
    fit(model, [ema], epochs=3)
    assert ema.ema.num_updates == 6


def test_several_steps_at_once_are_told():
    model = model_of()
    model.compile("sgd", "mse", steps_per_execution=2)
    ema = EMACallback(0.9)
    with pytest.warns(UserWarning, match="steps_per_execution is 2"):
        fit(model, [ema])
    assert ema.ema.num_updates == 4


class Stepping(keras.Model):
    """A model whose training step has the update in it."""

    def __init__(self):
        super().__init__()
        self.net = model_of(statistics=False)
        self.net.build((None, 4))

    def call(self, x, training=False):
        return self.net(x, training=training)

    def train_step(self, data):
        logs = super().train_step(data)
        self.ema.update()
        return logs


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_training_step_of_fit_updates_for_each_of_several_steps(at_once):
    kernels = []
    for steps in (1, at_once):
        model, recorded = Stepping(), Recorded()
        model.compile(keras.optimizers.SGD(0.05), "mse", steps_per_execution=steps)
        model.ema = EMA(model.net, 0.9)
        fit(model, [recorded])
        kernels = kernels or [weights[0] for weights in recorded.path]
    assert model.ema.num_updates == 8
    close(model.ema.averaged()[0], ema_of(kernels, [0.9] * 8))


def test_a_fit_goes_on_to_the_bit(tmp_path):
    through, ema = model_of(statistics=False), EMACallback(0.9, warmup="tensorflow", every=3)
    fit(through, [ema], epochs=4)
    early, first = model_of(statistics=False), EMACallback(0.9, warmup="tensorflow", every=3)
    fit(early, [first], epochs=2)
    early.save(tmp_path / "model.keras")
    np.savez(tmp_path / "ema.npz", **first.state_dict())
    late = keras.models.load_model(tmp_path / "model.keras")
    second = EMACallback(0.9, warmup="tensorflow", every=3)
    second.load_state_dict(np.load(tmp_path / "ema.npz"))
    fit(late, [second], epochs=4, initial_epoch=2)
    assert ema.ema.num_updates == second.ema.num_updates == 5
    for ours, theirs in zip(ema.ema.averaged(), second.ema.averaged(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_model_ends_with_the_mean_of_the_epochs_after_the_first():
    model, recorded, swa = model_of(statistics=False), Recorded(), SWACallback(1)
    fit(model, [swa, recorded], epochs=3)
    mean = np.mean([recorded.path[t][0] for t in (8, 12)], axis=0, dtype="float64")
    assert swa.swa.n == 2
    close(model.get_weights()[0], mean)
    swa.swa.swap()
    np.testing.assert_array_equal(model.get_weights()[0], recorded.path[-1][0])
    swa.swa.swap()
    fit(model, [swa, recorded], epochs=1)
    assert swa.swa.n == 3


def test_steps_are_averaged_from_a_step_on_and_batch_norm_is_told():
    model, recorded, swa = model_of(), Recorded(), SWACallback(3, every=2)
    with pytest.warns(UserWarning, match="batch-norm statistics"):
        fit(model, [swa, recorded])
    mean = np.mean([recorded.path[t][0] for t in (5, 7)], axis=0, dtype="float64")
    close(model.get_weights()[0], mean)
    with pytest.warns(UserWarning, match="Nothing was averaged: averaging starts after epoch 9"):
        fit(model, [SWACallback(9)])


class Stopped(keras.callbacks.Callback):
    """Saves an average after each epoch, and fails at a step."""

    def __init__(self, averaging, path, step):
        super().__init__()
        self.averaging, self.path, self.step = averaging, path, step

    def on_epoch_end(self, epoch, logs=None):
        np.savez(self.path, **self.averaging.state_dict())

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise KeyboardInterrupt


def average_of(callback):
    return callback.ema if isinstance(callback, EMACallback) else callback.swa


EACH_CALLBACK = pytest.mark.parametrize(
    "make",
    [
        lambda: EMACallback(0.9),
        lambda: SWACallback(1, swap=False),
        lambda: SWACallback(2, every=3, swap=False),
    ],
)


def interrupted(make, folder, save_freq="epoch"):
    """A run of which a backup and the averages are left."""
    averaging = make()
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=save_freq)
    stopped = Stopped(averaging, folder / "average.npz", 11)
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(statistics=False), [averaging, backup, stopped], epochs=4)
    return keras.callbacks.BackupAndRestore(folder / "backup", save_freq=save_freq)


@EACH_CALLBACK
def test_a_backup_goes_on_to_the_bit_with_the_average_that_was_saved(make, tmp_path):
    whole, averaging, model = make(), make(), model_of(statistics=False)
    fit(model, [whole], epochs=4)
    backup = interrupted(make, tmp_path)
    averaging.load_state_dict(np.load(tmp_path / "average.npz"))
    fit(model_of(statistics=False), [averaging, backup], epochs=4)
    for ours, theirs in zip(
        average_of(averaging).averaged(), average_of(whole).averaged(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@EACH_CALLBACK
def test_a_backup_without_its_average_is_told(make, tmp_path):
    backup = interrupted(make, tmp_path)
    with pytest.warns(UserWarning, match="without the average of before: a new one starts"):
        fit(model_of(statistics=False), [make(), backup], epochs=4)


def test_a_backup_with_the_average_of_another_step_is_told(tmp_path):
    ema, backup = EMACallback(0.9), interrupted(lambda: EMACallback(0.9), tmp_path, save_freq=3)
    ema.load_state_dict(np.load(tmp_path / "average.npz"))
    with pytest.warns(UserWarning, match="average is of step 8, and the model at step 9"):
        fit(model_of(statistics=False), [ema, backup], epochs=4)


def test_training_in_between_is_told_and_another_optimizer_is_not():
    ema, model = EMACallback(0.9), model_of(statistics=False)
    fit(model, [ema], epochs=1)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    fit(model, [ema], epochs=1)
    assert (ema.ema.num_updates, ema.ema.steps) == (8, 8)
    fit(model, [], epochs=1)
    with pytest.warns(UserWarning, match="average is of step 4, and the model at step 8"):
        fit(model, [ema], epochs=1)


def test_the_best_checkpoint_has_the_training_weights_and_the_best_snapshot_the_average(tmp_path):
    model, ema, recorded = model_of(), EMACallback(0.9), Recorded()
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True
    )
    snapshots = SnapshotCallback(tmp_path / "snapshots", ema=ema)
    losses = fit(model, [ema, best, snapshots, recorded], epochs=3, validation_data=(X, Y)).history[
        "val_loss"
    ]
    epoch = int(np.argmin(losses))
    other = loaded(tmp_path / "best.weights.h5", model_of(seed=3))
    for found, expected in zip(other.get_weights(), recorded.path[4 * epoch + 4], strict=True):
        np.testing.assert_array_equal(found, expected)
    (name,) = (n for n in os.listdir(tmp_path / "snapshots") if f"epoch={epoch + 1}-" in n)
    loaded(tmp_path / "snapshots" / name, other)
    assert other.evaluate(X, Y, verbose=0) == pytest.approx(losses[epoch], rel=1e-6)


def test_early_stopping_restores_training_weights_and_a_mean_that_comes_after_it_stays():
    def stopping():
        # The loss falls, so that the first epoch is the best.
        return keras.callbacks.EarlyStopping(patience=0, mode="max", restore_best_weights=True)

    model, ema, recorded = model_of(statistics=False), EMACallback(0.9), Recorded()
    fit(model, [ema, stopping(), recorded], epochs=4, validation_data=(X, Y))
    assert len(recorded.path) == 9
    np.testing.assert_array_equal(model.get_weights()[0], recorded.path[4][0])
    close(ema.ema.averaged()[0], ema_of([weights[0] for weights in recorded.path], [0.9] * 8))
    model, swa, recorded = model_of(statistics=False), SWACallback(0), Recorded()
    fit(model, [stopping(), swa, recorded], epochs=4, validation_data=(X, Y))
    mean = np.mean([recorded.path[t][0] for t in (4, 8)], axis=0, dtype="float64")
    close(model.get_weights()[0], mean)
    swa.swa.swap()
    np.testing.assert_array_equal(model.get_weights()[0], recorded.path[4][0])


def test_mixed_precision_trains_with_an_average():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, ema = model_of(), EMACallback(0.9)
        fit(model, [ema], validation_data=(X, Y))
    finally:
        keras.config.set_dtype_policy("float32")
    assert {value.dtype for value in ema.ema.averaged()} == {np.dtype("float32")}
    assert ema.ema.num_updates > 0


def loaded(path, model):
    model.load_weights(path)
    return model


def step_of(name):
    return read_name(name).counts["step"]


def test_snapshots_are_named_by_step_and_what_their_weights_were_measured_at(tmp_path):
    model, ema = model_of(), EMACallback(0.9)
    kinds = {
        "own": SnapshotCallback(tmp_path / "own"),
        "averages": SnapshotCallback(tmp_path / "averages", ema=ema),
        "steps": SnapshotCallback(tmp_path / "steps", every=3, ema=ema),
    }
    history = fit(model, [ema, *kinds.values()], epochs=3, validation_data=(X, Y)).history
    names = {kind: sorted(os.listdir(tmp_path / kind), key=step_of) for kind in kinds}
    assert names["own"] == [f"epoch={n}-step={4 * n}.weights.h5" for n in (1, 2, 3)]
    facts = [read_name(name) for name in names["averages"]]
    assert [fact.counts for fact in facts] == [{"epoch": n, "step": 4 * n} for n in (1, 2, 3)]
    losses = [fact.metrics["val_loss"] for fact in facts]
    np.testing.assert_allclose(losses, history["val_loss"], rtol=1e-7)
    # Step 12 ends an epoch.
    assert list(map(step_of, names["steps"])) == [3, 6, 9, 12]
    measured = [read_name(name).metrics for name in names["steps"]]
    assert measured == [{}, {}, {}, facts[-1].metrics]
    other = loaded(tmp_path / "averages" / names["averages"][-1], model_of(seed=3))
    for found, expected in zip(other.get_weights(), ema.ema.averaged(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert other.evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-6)


def test_snapshots_of_an_average_that_the_fit_does_not_keep_are_refused(tmp_path):
    model, ema = model_of(), EMACallback(0.9)
    snapshots = SnapshotCallback(tmp_path, ema=ema)
    with pytest.raises(RequestError, match="not one of the callbacks of this fit"):
        fit(model, [snapshots])
    fit(model, [snapshots, ema], epochs=1)
    assert len(list(tmp_path.iterdir())) == 1
    # Its average is that of the fit before.
    with pytest.raises(RequestError, match="not one of the callbacks of this fit"):
        fit(model, [snapshots])


def test_what_an_earlier_run_left_of_a_step_is_never_touched(tmp_path):
    fit(model_of(seed=1), [SnapshotCallback(tmp_path)], epochs=1, validation_data=(X, Y))
    (name,) = os.listdir(tmp_path)
    kept = (tmp_path / name).read_bytes()
    with pytest.warns(UserWarning, match="No snapshot of step 4 was saved: epoch=1-step=4"):
        fit(model_of(seed=2), [SnapshotCallback(tmp_path)], epochs=1, validation_data=(X, Y))
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == kept


def test_a_step_that_the_same_callback_saves_again_has_one_snapshot(tmp_path):
    callback = SnapshotCallback(tmp_path)
    callback.set_model(model_of())
    callback.on_train_begin()
    for loss in (2.0, 1.0):
        callback.on_epoch_begin(0)
        callback.on_epoch_end(0, {"val_loss": loss})
    assert os.listdir(tmp_path) == ["epoch=1-step=0-val_loss=1.weights.h5"]


def test_float_names_have_no_exponent(tmp_path):
    callback = SnapshotCallback(tmp_path)
    callback.set_model(model_of())
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0, {"val_loss": 1.25e-7, "val_top-5": 1e8, "loss": 1.0})
    (name,) = os.listdir(tmp_path)
    assert name == "epoch=1-step=0-val_loss=0.000000125-val_top_5=100000000.weights.h5"
    assert read_name(name).metrics["val_loss"] == 1.25e-7


# Keras shuffles no Dataset, and says so.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.parametrize("documented", [swavg.integrations.keras, EMA, SWA])
def test_the_examples_of_docstrings_run(documented, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = model_of(statistics=False)
    given = {name: getattr(swavg.integrations.keras, name) for name in ("EMA", "SWA")}
    given |= {
        "model": model, "batches": [(X, Y)] * 1050,
        "data": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        "train": lambda batch: None, "evaluate": lambda model: None,
    }  # fmt: skip
    examples = doctest.DocTestParser().get_examples(documented.__doc__)
    assert examples
    for example in examples:
        exec(compile(example.source, "example", "exec"), given)
