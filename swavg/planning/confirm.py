"""Whether what is no plain weight matters: small reads that tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from swavg.errors import MismatchError
from swavg.formats.checkpoint import Checkpoint, Columns
from swavg.planning.adapters import SETTINGS, json_of, settings_of
from swavg.planning.match import by_canonical_name
from swavg.planning.not_plain import MERGE, Finding, codes_of, holds_codes, is_code, not_plain
from swavg.planning.policy import Policy
from swavg.storage.sources import Pool

_BEGIN = 4096
"""Bytes at which codes and masks are compared."""
_STEP = 1 << 20


def check_plain(
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
    averaged: Callable[[str], bool],
    *,
    exact: bool = False,
) -> list[str]:
    """What may make an average useless, in words; MismatchError for what certainly does.

    ``averaged`` tells of a canonical name whether it is to be averaged; ``exact``: low-rank
    factors are not (:mod:`swavg.planning.lora`). Raises InputError too.
    """
    warnings = []
    findings = not_plain(checkpoints, shown, averaged)
    if exact:
        findings = [each for each in findings if each.kind not in ("alpha", "rank", "factors")]
    if not any(finding.kind == "codes" for finding in findings):
        findings += _declared(checkpoints, averaged)
    for finding in confirmed(findings, checkpoints, shown):
        if finding.level == "refuse":
            raise MismatchError(f"{finding.message}.", hint=finding.hint)
        warnings.append(f"{finding.message}. {finding.hint}")
    return warnings


def check_copied(checkpoint: Checkpoint, policy: Policy) -> None:
    """MismatchError if codes or their scales would get another dtype."""
    if policy.dtype != "keep" and holds_codes(checkpoint):
        raise MismatchError(
            f"{checkpoint.path} holds quantised weights: dtype={policy.dtype} would change what"
            " belongs together.",
            hint="Leave dtype= out: all bytes then stay as they are.",
        )


_DECLARES = ("quantization_config", "compression_config", "quantization")
"""Fields of config.json that say that weights are codes."""


def _declared(
    checkpoints: Sequence[Checkpoint], averaged: Callable[[str], bool]
) -> Iterator[Finding]:
    """The refusal of codes that no name tells, in checkpoints whose config.json says that they are
    quantised."""
    for checkpoint in checkpoints:
        columns = checkpoint.tensors.columns
        codes = [is_code(dtype) and math.prod(shape) > 1 for dtype, shape, _ in columns.forms]
        if len(checkpoints) < 2 or not any(codes):
            continue
        config = json_of(checkpoint, "config.json") or {}
        declared = json_of(checkpoint, "hf_quant_config.json") is not None
        # Of a model of several, each has its own.
        configs = [config, *(each for each in config.values() if isinstance(each, dict))]
        if declared or any(each.get(key) for each in configs for key in _DECLARES):
            short = by_canonical_name(columns.names)
            numbers = {name: number for number, name in enumerate(columns.names)}
            names = [
                name
                for name, own in short.items()
                if codes[columns.form[numbers[own]]] and averaged(name)
            ]
            if names:
                yield codes_of(names)
            return


def confirmed(
    findings: Sequence[Finding], checkpoints: Sequence[Checkpoint], shown: Sequence[str]
) -> list[Finding]:
    """Those of the findings that matter, as far as small tensors and the settings of adapters
    tell: scales and masks that are the same in all do no harm. Raises InputError."""
    kept = []
    tables: dict[int, Mapping[str, int]] = {}
    with Pool() as pool:
        for finding in findings:
            if finding.whole or finding.begun:
                for checkpoint in checkpoints:
                    columns = checkpoint.tensors.columns
                    if id(columns) not in tables:
                        tables[id(columns)] = _numbers(columns)
                numbers = [tables[id(checkpoint.tensors.columns)] for checkpoint in checkpoints]
                if _equal(pool, checkpoints, numbers, finding.whole) and _equal(
                    pool, checkpoints, numbers, finding.begun, most=_BEGIN
                ):
                    continue
            kept.append(finding)
        if any(finding.kind == "factors" for finding in kept):
            kept = [*_settings_of(checkpoints, shown), *kept]
    return kept


def _numbers(columns: Columns) -> dict[str, int]:
    numbers = {name: number for number, name in enumerate(columns.names)}
    return {short: numbers[name] for short, name in by_canonical_name(columns.names).items()}


def _equal(
    pool: Pool,
    checkpoints: Sequence[Checkpoint],
    numbers: Sequence[Mapping[str, int]],
    names: Sequence[str],
    *,
    most: int | None = None,
) -> bool:
    """Whether the tensors, or their first ``most`` bytes, are the same in all checkpoints, of
    which ``numbers`` says where they are."""
    for name in names:
        if not all(name in each for each in numbers):
            return False
        tensors = [
            checkpoint.tensors.at(each[name])
            for checkpoint, each in zip(checkpoints, numbers, strict=True)
        ]
        spec = tensors[0].spec
        if any((each.spec.dtype, each.spec.shape) != (spec.dtype, spec.shape) for each in tensors):
            return False
        step = _STEP * 8 // spec.dtype.bits // 8 * 8
        stop = spec.numel if most is None else min(spec.numel, most * 8 // spec.dtype.bits // 8 * 8)
        for start in range(0, stop, step):
            end = min(start + step, stop)
            data = bytearray(spec.dtype.nbytes(end - start))
            for number, (checkpoint, tensor) in enumerate(zip(checkpoints, tensors, strict=True)):
                other = bytearray(len(data))
                checkpoint.read_into(tensor, start, end, memoryview(other), pool)
                if number and other != data:
                    return False
                data = other
    return True


def _settings_of(checkpoints: Sequence[Checkpoint], shown: Sequence[str]) -> Iterator[Finding]:
    """The refusal of adapters whose factors are scaled differently."""
    known = [
        (name, settings)
        for name, checkpoint in zip(shown, checkpoints, strict=True)
        for settings in settings_of(checkpoint)
    ]
    for place in dict.fromkeys(settings.place for _, settings in known):
        for setting in SETTINGS:
            first: dict[str, str] = {}
            for name, settings in known:
                if settings.place == place:
                    first.setdefault(json.dumps(settings.get(setting), sort_keys=True), name)
            if len(first) > 1:
                facts = " and ".join(f"{value} in {name}" for value, name in [*first.items()][:2])
                message = f"{place} differs: {setting} is {facts}"
                yield Finding("alpha", "refuse", message, MERGE)
                return
