"""Whether TensorFlow reads what swavg wrote: read.py PATH EXPECTED.npz.

PATH is a folder; EXPECTED has the model's arrays by key (bfloat16 as float32). They are compared as
TensorFlow's reader gives them, and all is restored into the objects, or the graph, that wrote it.
"""

import sys

import numpy as np
import tensorflow as tf
from write import SUFFIX, keras_objects, lists_objects, plain_objects, saver_graph, three_devices


def restored(prefix, reader):
    """Restore a checkpoint as its own program would; the arrays that a graph then holds."""
    shapes = reader.get_variable_to_shape_map()
    if "net/table" not in shapes:
        own = {"step": keras_objects, "rng/_state_var": lists_objects}
        made = (make for name, make in own.items() if f"{name}{SUFFIX}" in shapes)
        next(made, plain_objects)().read(prefix).assert_existing_objects_matched()
        return {}
    v1 = tf.compat.v1
    # In other parts than it was trained in.
    with tf.Graph().as_default(), v1.Session() as session:
        names, _, _ = saver_graph(shapes["net/table"], v1.fixed_size_partitioner(2))
        v1.train.Saver().restore(session, prefix)
        return session.run(names)


def main():
    three_devices()
    prefix = tf.train.latest_checkpoint(sys.argv[1])
    reader = tf.train.load_checkpoint(prefix)
    expected = dict(np.load(sys.argv[2]))
    arrays = restored(prefix, reader)
    for key, array in expected.items():
        for found in (reader.get_tensor(key), arrays.get(key)):
            if found is not None and found.astype(array.dtype).tobytes() != array.tobytes():
                sys.exit(f"{key}: {found} is not {array}")
    for key in reader.get_variable_to_shape_map():
        # A wrong checksum is an error.
        reader.get_tensor(key)


if __name__ == "__main__":
    main()
