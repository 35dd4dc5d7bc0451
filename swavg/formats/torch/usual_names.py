"""The names that trainers give to the entries of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence

from swavg.errors import InputError, quoted
from swavg.formats.torch.objects import Refused, View

# Where trainers put the weights, in order of preference: plain ones, then moving averages.
PLAIN = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "params", "generator",
    "weights", "model_state", "model_dict", "net_state_dict", "network_state_dict", "params_dict",
)  # fmt: skip
EMA = (
    "state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "model_ema_state_dict",
    "params_ema", "g_ema", "G_ema", "shadow_params", "shadow", "averaged_model", "swa_model",
    "model_avg",
)  # fmt: skip
CALLBACKS = "callbacks"
"""Where Lightning keeps what callbacks have to say, among which averages may be."""
# What is never the weights: dictionaries of these names, and tensors that hold a generator's state.
_NEVER = re.compile(
    r"(.*_)?(optim|optims|optimi[sz]ers?|sched|schedulers?|scaler|amp|rng|callbacks|loops|hparams"
    r"|hyper_?parameters|config|cfg|args)(_?states?)?(_?dicts?)?_?\d*",
    re.IGNORECASE,
)
_RANDOM = re.compile(r"(.*_)?rng(_states?)?(_.*)?", re.IGNORECASE)
_MAX_PATTERN = 256
_LISTED = 8


def several(path: str, names: Sequence[str]) -> InputError:
    """The error of a file or folder in which state dicts of all these names could be meant."""
    return InputError(
        path,
        f"several state dicts could be meant: {quoted((name[:60] for name in names), _LISTED)}",
        hint=f"Choose one with key={names[0]}, or all with key=''.",
    )


def also_there(root_key: str, others: Sequence[str]) -> tuple[str, ...]:
    """Notes that a state dict was found there, though the others could be meant."""
    return tuple(
        f"state dict found under '{root_key}'; there is also '{name}' (choose it with --key {name})"
        for name in others[:_LISTED]
    )


def is_never(name: object, node: object) -> bool:
    """Whether an entry at the top level is none of the weights, going by its name."""
    if not isinstance(name, str) or len(name) > _MAX_PATTERN:
        return False
    if isinstance(node, (View, Refused)):
        return "rng" in name.lower() and _RANDOM.fullmatch(name) is not None
    return _NEVER.fullmatch(name) is not None


def is_weight(name: object, node: object) -> bool:
    """Whether an entry at the top level is a tensor with dimensions."""
    return (
        isinstance(node, Refused) or (isinstance(node, View) and bool(node.size))
    ) and not is_never(name, node)
