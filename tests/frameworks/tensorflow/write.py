"""Checkpoints of tiny models as TensorFlow writes them: write.py OUT.

Each folder is a run of one model with other weights; expected.npz has the model's own arrays under
CHECKPOINT/KEY (bfloat16 as float32).
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
expected = {}


def keep(prefix, arrays):
    """The arrays by key, read again by TensorFlow itself."""
    reader = tf.train.load_checkpoint(str(prefix))
    for key, array in arrays.items():
        found = reader.get_tensor(key)
        assert found.tobytes() == array.tobytes(), key
        if found.dtype == tf.bfloat16.as_numpy_dtype:
            found = found.astype(np.float32)
        expected[f"{prefix}/{key}"] = found


def keras_objects():
    """Keras 3: trainable weights under the optimizer's name, which is found first."""
    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(6, name="up"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="down", dtype="bfloat16"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    note = tf.Variable("first")
    return tf.train.Checkpoint(
        model=model, optimizer=model.optimizer, step=tf.Variable(0), note=note
    )


def keras_run():
    checkpoint = keras_objects()
    model = checkpoint.model
    manager = tf.train.CheckpointManager(checkpoint, "keras", max_to_keep=None)
    chance = np.random.default_rng(0)
    for number in range(1, 4):
        model.fit(chance.random((8, 4)), chance.random((8, 3)), epochs=2, verbose=0)
        checkpoint.step.assign_add(10)
        checkpoint.note.assign(f"after {number}")
        prefix = manager.save()
        trainable = [v for v in model.weights if v.trainable]
        arrays = {
            f"optimizer/_trainable_variables/{at}{SUFFIX}": variable.value.numpy()
            for at, variable in enumerate(trainable)
        }
        norm = model.get_layer("norm")
        place = f"model/_functional/_operations/2/moving_{{}}{SUFFIX}"
        arrays[place.format("mean")] = norm.moving_mean.numpy()
        arrays[place.format("variance")] = norm.moving_variance.numpy()
        keep(prefix, arrays)


def plain_objects():
    """Plain objects, with two optimizers under names of the user's, and every kind of dtype."""
    net = tf.Module()
    net.weight = tf.Variable(tf.zeros((5, 3)))
    net.half = tf.Variable(tf.zeros((4,), tf.float16))
    net.brain = tf.Variable(tf.zeros((2, 3), tf.bfloat16))
    net.double = tf.Variable(tf.zeros((), tf.float64))
    net.empty = tf.Variable(tf.zeros((0, 4)))
    net.count = tf.Variable(0, dtype=tf.int64)
    net.words = tf.Variable(["a", "", "long" * 50])
    head = tf.Module()
    head.bias = tf.Variable(tf.zeros((3,)))
    optimizers = [keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.1)]
    for optimizer, variables in zip(optimizers, ([net.weight], [head.bias]), strict=True):
        optimizer.build(variables)
    return tf.train.Checkpoint(
        net=net, head=head, net_optimizer=optimizers[0], head_optimizer=optimizers[1]
    )


def objects_run():
    checkpoint = plain_objects()
    net, head = checkpoint.net, checkpoint.head
    optimizers = [checkpoint.net_optimizer, checkpoint.head_optimizer]
    for number in (10, 20):
        chance = np.random.default_rng(number)
        arrays = {}
        for optimizer, variable in zip(optimizers, (net.weight, head.bias), strict=True):
            optimizer.apply([tf.constant(chance.random(variable.shape), tf.float32)], [variable])
        for owner, name in (
            ("net", "weight"), ("net", "half"), ("net", "brain"), ("net", "double"),
            ("net", "empty"), ("net", "count"), ("head", "bias"),
        ):  # fmt: skip
            variable = getattr(checkpoint, owner).__getattribute__(name)
            if name == "count":
                variable.assign(number)
            else:
                variable.assign(tf.cast(chance.normal(size=variable.shape), variable.dtype))
            arrays[f"{owner}/{name}{SUFFIX}"] = variable.numpy()
        net.words.assign([f"of {number}", "", "long" * number])
        keep(checkpoint.write(f"objects/model-{number}"), arrays)


class Lists(keras.Model):
    """Layers that TensorFlow reaches only through the optimizers that train them."""

    def __init__(self):
        super().__init__()
        self.stem = keras.layers.Dense(4)
        self.blocks = [keras.layers.Dense(4), (keras.layers.Dense(4),)]
        self.heads = {"a": keras.layers.Dense(1)}
        self.d_opt = keras.optimizers.SGD(0.1, momentum=0.9)
        self.g_opt = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1))

    def call(self, x):
        for layer in (self.stem, self.blocks[0], self.blocks[1][0], self.heads["a"]):
            x = layer(x)
        return x


def lists_objects():
    net = Lists()
    net(np.ones((1, 3)))
    net.d_opt.build(net.heads["a"].trainable_variables)
    net.g_opt.build(net.trainable_variables[:6])
    return tf.train.Checkpoint(net=net, rng=tf.random.Generator.from_seed(1))


def lists_run():
    for number in (1, 2):
        keras.utils.set_random_seed(number)
        checkpoint = lists_objects()
        net, chance = checkpoint.net, np.random.default_rng(number)
        for optimizer, variables in (
            (net.d_opt, net.trainable_variables[6:]),
            (net.g_opt, net.trainable_variables[:6]),
        ):
            optimizer.apply([tf.constant(chance.random(v.shape), tf.float32) for v in variables])
        checkpoint.rng.normal((number,))
        prefix = checkpoint.write(f"lists/ckpt-{number}")
        keep(prefix, dict(zip(LIST_KEYS, (v.numpy() for v in net.weights), strict=True)))


LIST_KEYS = tuple(
    f"net/{place}{SUFFIX}"
    for place in (
        "stem/_kernel",
        "stem/bias",
        *(f"g_opt/_trainable_variables/{at}" for at in range(2, 6)),
        *(f"d_opt/_trainable_variables/{at}" for at in range(2)),
    )
)


def saver_graph(shape, partitioner):
    """TensorFlow 1: variables by name, of which one is partitioned if that is asked for."""
    v1 = tf.compat.v1
    start = v1.random_normal_initializer()
    with v1.variable_scope("net"):
        with tf.device("/cpu:0"):
            table = v1.get_variable("table", shape, initializer=start, partitioner=partitioner)
        with tf.device("/cpu:1"):
            bias = v1.get_variable("bias", [5], initializer=start)
    with tf.device("/cpu:2"):
        other = v1.get_variable("other", [2, 2], initializer=start)
    whole = [tf.convert_to_tensor(variable) for variable in (table, bias, other)]
    loss = sum(v1.reduce_sum(tensor**2) for tensor in whole)
    step = v1.train.get_or_create_global_step()
    train = v1.train.AdamOptimizer(0.1).minimize(loss, global_step=step)
    return dict(zip(("net/table", "net/bias", "other"), whole, strict=True)), step, train


def saver_run(folder, sharded, partitioner, shape):
    """Saver; in several data files if asked for."""
    v1 = tf.compat.v1
    # Of several data files each is moved into it.
    Path(folder).mkdir()
    for number in (100, 200):
        with tf.Graph().as_default(), v1.Session() as session:
            v1.set_random_seed(number)
            names, step, train = saver_graph(shape, partitioner)
            saver = v1.train.Saver(sharded=sharded, max_to_keep=None)
            session.run(v1.global_variables_initializer())
            session.run(train)
            session.run(step.assign(number))
            prefix = saver.save(
                session,
                f"{folder}/model.ckpt",
                global_step=number,
                write_meta_graph=False,
            )
            keep(prefix, session.run(names))


def three_devices():
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
    )


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    # The files hold the paths that they were given.
    os.chdir(out)
    keras.utils.set_random_seed(0)
    three_devices()
    keras_run()
    objects_run()
    lists_run()
    v1 = tf.compat.v1
    saver_run("saver", False, None, [7, 3])
    saver_run("sharded", True, v1.fixed_size_partitioner(3), [67, 2])
    saver_run("columns", False, v1.fixed_size_partitioner(2, axis=1), [2, 130])
    np.savez_compressed("expected.npz", **expected)


if __name__ == "__main__":
    main()
