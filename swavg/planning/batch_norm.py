"""Which tensors are statistics of batch-norm layers, by the names that each framework gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from swavg.formats.tensors import Shape

TORCH = (".running_var", ".running_mean")
"""What the names end with that PyTorch gives, for which ``swavg bn`` recomputes them."""
_OTHERS = re.compile(
    # Keras and TensorFlow; Flax.
    r"(?:^|[./_])moving_(?:mean|variance)(?::0)?(?:/\.ATTRIBUTES/VARIABLE_VALUE)?$"
    r"|(?:^|[./])batch_stats[./](?:.*[./])?(?:mean|var)(?:\.value)?$"
)
_NUMBERED = re.compile(r"(.*(?:^|/)([^/]+))/vars/(\d+)$")
"""A variable of a layer in Keras' files of weights."""
_KERAS_LAYER = re.compile(r"(?:sync_?)?batch_?norm")
_KERAS_VARIABLES = 4
"""Of a batch-norm layer: gamma, beta, and the statistics, the last two."""


def running_statistics(names: Sequence[str], shapes: Sequence[Shape]) -> Iterator[int]:
    """The places of those that are statistics, in no order."""
    layers: dict[tuple[str, str], dict[int, int]] = {}
    for place, name in enumerate(names):
        if name.endswith(TORCH) or (
            # Quicker than to search in all.
            ("moving_" in name or "batch_stats" in name) and _OTHERS.search(name)
        ):
            yield place
        elif "/vars/" in name and (numbered := _NUMBERED.match(name)):
            layer, called, number = numbered.groups()
            layers.setdefault((layer, called), {})[int(number)] = place
    for (_, called), places in layers.items():
        own = [places[number] for number in sorted(places)]
        same = len({shapes[place] for place in own}) == 1 and len(shapes[own[0]]) == 1
        # A layer that has a name of the user's is told by what it has.
        if same and (_KERAS_LAYER.match(called) or len(own) == _KERAS_VARIABLES):
            yield from own[-2:]
