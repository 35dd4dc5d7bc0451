"""Statistics of batch-norm layers by name, as PyTorch, Keras, TensorFlow and Flax call them."""

import pytest

from swavg.planning.batch_norm import running_statistics

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
STATISTICS = [
    "bn.running_mean",
    "net.bn.running_var",
    f"model/_operations/2/moving_mean{VALUE}",
    f"model/bn/moving_variance{VALUE}",
    "resnet/bn_1/moving_variance",
    "bn/moving_mean:0",
    "moving_mean",
    "batch_normalization/sequential/batch_normalization/moving_mean",
    "batch_stats.norm.mean",
    "batch_stats.block.0.norm.var",
    "state.batch_stats.norm.var.value",
]
OTHERS = [
    "running_mean",
    "bn.weight",
    "bn/moving_mean_scale",
    "removing_mean",
    "params.norm.mean",
    "batch_stats.norm.count",
    "norm.var",
    "stats/vars/0/x",
]


@pytest.mark.parametrize("name", STATISTICS + OTHERS)
def test_names_tell(name):
    found = list(running_statistics(["w", name], [(3,), (3,)]))
    assert found == ([1] if name in STATISTICS else [])


@pytest.mark.parametrize(
    ("layer", "shapes", "expected"),
    [
        ("layers/batch_normalization", [(3,)] * 4, (2, 3)),
        ("layers/batch_normalization_12", [(3,)] * 2, (0, 1)),
        ("model/layers/block/sync_batch_normalization", [(3,)] * 3, (1, 2)),
        # Of a user's own name, that of an attribute.
        ("block/norm", [(3,)] * 4, (2, 3)),
        ("block/norm", [(3,)] * 2, ()),
        ("layers/group_normalization", [(3,)] * 2, ()),
        ("layers/four_of_others", [(3,), (3,), (3,), (4,)], ()),
        ("layers/four_matrices", [(3, 3)] * 4, ()),
        ("layers/four_numbers", [()] * 4, ()),
    ],
)
def test_variables_of_keras_have_numbers(layer, shapes, expected):
    names = [f"{layer}/vars/{at}" for at in range(len(shapes))]
    assert sorted(running_statistics(names, shapes)) == list(expected)
