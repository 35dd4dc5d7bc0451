"""Whether what is no plain weight matters: small reads that tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from swavg.errors import MismatchError
from swavg.formats.checkpoint import Checkpoint, Columns
from swavg.planning.adapters import SETTINGS, Settings, json_of, settings_of
from swavg.planning.match import by_canonical_name
from swavg.planning.not_plain import MERGE, Finding, finding_of, holds_codes, is_code, not_plain
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
                yield finding_of("codes", names, begun=names)
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
                if finding.kind == "binary":
                    masks = [
                        name
                        for name in finding.whole
                        if _differ_as_masks(pool, checkpoints, numbers, name)
                    ]
                    kept += [finding_of("binary", masks)] if masks else []
                    continue
                if _equal(pool, checkpoints, numbers, finding.whole) and _equal(
                    pool, checkpoints, numbers, finding.begun, most=_BEGIN
                ):
                    continue
            kept.append(finding)
    factors = next((finding for finding in kept if finding.kind == "factors"), None)
    if factors is None:
        return kept
    settings = [settings_of(checkpoint) for checkpoint in checkpoints]
    hint = factors.hint if all(map(_are_plain, settings)) else MERGE
    adapted = ("alpha", "rank", "factors")
    kept = [replace(each, hint=hint) if each.kind in adapted else each for each in kept]
    return [*_differing(settings, shown, hint), *kept]


def _are_plain(settings: Sequence[Settings]) -> bool:
    """Whether settings say nothing but how a product is scaled."""
    try:
        for each in settings:
            each.check_plain()
    except ValueError:
        return False
    return True


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
                checkpoint.read_unchecked(tensor, start, end, memoryview(other), pool)
                if number and other != data:
                    return False
                data = other
    return True


def _differ_as_masks(
    pool: Pool,
    checkpoints: Sequence[Checkpoint],
    numbers: Sequence[Mapping[str, int]],
    name: str,
) -> bool:
    """Whether a float tensor holds zeros and ones alone in all checkpoints that have it, and not
    the same. The first bytes tell of most that it does not."""
    import numpy as np

    masks = [
        (checkpoint, checkpoint.tensors.at(own[name]))
        for checkpoint, own in zip(checkpoints, numbers, strict=True)
        if name in own
    ]
    numel = masks[0][1].spec.numel
    if any(not tensor.spec.dtype.floating or tensor.spec.numel != numel for _, tensor in masks):
        return False
    differ = False
    cuts = [0, *range(_BEGIN // 8, numel, _STEP // 8), numel]
    for start, stop in pairwise(cuts):
        first = None
        for checkpoint, tensor in masks:
            data = bytearray(tensor.spec.dtype.nbytes(stop - start))
            checkpoint.read_unchecked(tensor, start, stop, memoryview(data), pool)
            values = np.frombuffer(data, tensor.spec.dtype.numpy())
            ones = values == 1
            if not np.all(ones | (values == 0)):
                return False
            first = ones if first is None else first
            differ |= not np.array_equal(first, ones)
    return differ


def _differing(
    settings_of_each: Sequence[Sequence[Settings]], shown: Sequence[str], hint: str
) -> Iterator[Finding]:
    """The refusal of adapters whose factors are scaled differently."""
    known = [
        (name, settings)
        for name, own in zip(shown, settings_of_each, strict=True)
        for settings in own
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
                yield Finding("alpha", "refuse", message, hint)
                return
