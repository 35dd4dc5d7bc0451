"""Messages of the library in the words of the command line: ``at_most=True`` is ``--at-most``."""

from __future__ import annotations

import re

_NAMES = ("at_most", "best", "count", "counts", "debias", "decay", "every", "from_step",
          "half_life", "last", "metric", "metrics_file", "missing", "mode", "per_step", "profiles",
          "span", "sum_to", "to_step", "warmup")  # fmt: skip
_SPECIAL = {"metrics_file": "--metrics", "profiles": "--profile",
            "sum_to='normalize'": "--normalize", "sum_to='raw'": "--raw-weights"}  # fmt: skip
_ARGUMENT = re.compile(rf"(?<![^\s(])({'|'.join(_NAMES)})=('\w*'|[\w.+-]*\w)?")


def as_options(text: str) -> str:
    """``text`` with its arguments (``name=value``, or ``name=`` alone) as options."""

    def option(match: re.Match[str]) -> str:
        if match[0] in _SPECIAL:
            return _SPECIAL[match[0]]
        name = _SPECIAL.get(match[1], f"--{match[1].replace('_', '-')}")
        return name if match[2] in (None, "True") else f"{name} {match[2].strip(chr(39))}"

    return _ARGUMENT.sub(option, text)
