"""What products of low-rank factors are scaled by: PEFT's adapter_config.json, and what diffusers
writes into the header of a file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from swavg.errors import InputError, MismatchError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.configuration import small_json

CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"
"""Of diffusers, in a header: JSON of ``transformer.lora_alpha`` and so on."""

SETTINGS: Mapping[str, object] = {
    "lora_alpha": 8,
    "r": 8,
    "use_rslora": False,
    "alpha_pattern": {},
    "rank_pattern": {},
}
"""The settings that scale a product, and what PEFT takes where they are not said."""

_PEFT = "base_model.model."
"""In front of the names of modules in PEFT's files."""
_OTHER = ("use_dora", "use_qalora", "target_parameters")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways to begin that take something from the model's own weights, by the rank."""


class Settings(NamedTuple):
    """Of the modules whose names begin with ``prefix``: where they stand, and what they are."""

    place: str
    prefix: str
    values: Mapping[str, object]

    def get(self, name: str) -> object:
        """One of :data:`SETTINGS`."""
        value = self.values.get(name)
        value = SETTINGS[name] if value is None else value
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def scale(self, module: str, rank: int) -> float:
        """What PEFT multiplies the product of a module's factors by. ValueError if it is none."""
        name = module.removeprefix(self.prefix).removeprefix(_PEFT)
        pattern = self.get("alpha_pattern")
        own = _looked_up(pattern, name) if isinstance(pattern, dict) else None
        alpha = self.get("lora_alpha") if own is None else own
        # Neither NaN nor an integer that is no float.
        if not isinstance(alpha, (int, float)) or not abs(alpha) < 1e300:
            raise ValueError(f"{self.place}: lora_alpha is {alpha!r:.40}")
        return alpha / (math.sqrt(rank) if self.get("use_rslora") else rank)

    def check_plain(self) -> None:
        """ValueError if what the factors do is not their scaled product alone."""
        kind = self.values.get("peft_type")
        if kind not in (None, "LORA"):
            raise ValueError(f"{self.place}: peft_type is {kind}")
        for name in _OTHER:
            if self.values.get(name):
                raise ValueError(f"{self.place}: {name} is set")
        begun = self.values.get("init_lora_weights")
        if isinstance(begun, str) and begun.startswith(_CHANGES_BASE):
            raise ValueError(f"{self.place}: init_lora_weights={begun} changes the model itself")

    def renewed(self, ranks: Mapping[str, int], *, retarget: bool) -> dict[str, object]:
        """The settings of factors of these ranks, by module, whose products are scaled by 1;
        ``retarget``: not the same modules as before."""
        own = {
            name.removeprefix(self.prefix).removeprefix(_PEFT): rank
            for name, rank in ranks.items()
            if name.startswith(self.prefix)
        }
        # Of two names, one of which ends with the other, PEFT takes the first that fits.
        pattern = dict(sorted(own.items(), key=lambda item: -len(item[0])))
        pattern = pattern if len(set(own.values())) > 1 else {}
        rank = max(own.values(), default=8)
        targets = {"target_modules": sorted(own), "layers_to_transform": None} if retarget else {}
        return {
            **self.values,
            **targets,
            "r": rank,
            "lora_alpha": rank,
            "use_rslora": False,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
        }


def _looked_up(pattern: Mapping[str, object], module: str) -> object:
    """The value for a module, whose name the keys match from the end, as PEFT does."""
    for key, value in pattern.items():
        # Such expressions can take for ever.
        if re.search(r"\)[*+{?]", key) or len(re.findall(r"[*+{]", key)) > 3:
            raise ValueError(f"alpha_pattern has the key {key[:80]!r}, which is not understood")
        try:
            if re.match(rf"(?:.*\.)?(?:{key})$", module):
                return value
        except (re.error, OverflowError, RecursionError):
            continue
    return pattern.get(module)


def settings_of(checkpoint: Checkpoint) -> tuple[Settings, ...]:
    """The settings of an adapter; none where it has none."""
    config = json_of(checkpoint, CONFIG)
    if config is not None:
        return (Settings(CONFIG, "", config),)
    try:
        content = json.loads(checkpoint.metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError):
        return ()
    parts: dict[str, dict[str, object]] = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        part, _, setting = name.partition(".")
        parts.setdefault(part, {})[setting] = value
    return tuple(Settings(f"{HEADER} of {part}", f"{part}.", each) for part, each in parts.items())


def as_header(settings: Mapping[str, Mapping[str, object]]) -> str:
    """What diffusers writes of settings, by prefix."""
    flat = {prefix + name: each for prefix, own in settings.items() for name, each in own.items()}
    return json.dumps(flat, indent=2)


def check_readable(checkpoint: Checkpoint, settings: tuple[Settings, ...]) -> None:
    """InputError for an adapter_config.json that says nothing; MismatchError for one that lies
    beside a file, and would not be written."""
    folder = os.path.dirname(checkpoint.path)
    path = checkpoint.extras.side_files.get(CONFIG)
    if path is not None and not settings:
        raise InputError(path, "is no JSON object, and says what the factors are scaled by")
    if path is None and any(each.place == CONFIG for each in settings):
        raise MismatchError(
            f"{checkpoint.path} is scaled by what {CONFIG} beside it says.",
            hint=f"Give the folder that holds both: {folder or '.'}",
        )


def json_of(checkpoint: Checkpoint, name: str) -> Mapping[str, object] | None:
    """What stands in this JSON file of a folder, or beside a file; None if nothing."""
    beside = os.path.join(os.path.dirname(checkpoint.path), name)
    try:
        content = small_json(checkpoint.extras.side_files.get(name, beside))
    except InputError:
        return None
    return content if isinstance(content, dict) else None
