"""Whether what is no plain weight matters: small reads that tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from swavg.errors import MismatchError
from swavg.formats.checkpoint import Checkpoint
from swavg.planning.adapters import SETTINGS, Settings, json_of, settings_of
from swavg.planning.findings import MERGE, OF_FACTORS, Finding, finding_of
from swavg.planning.match import distinct_tables, numbered
from swavg.planning.not_plain import holds_codes, is_code, not_plain, spread_over_ranks
from swavg.planning.policy import Policy
from swavg.planning.same import STEP, InCheckpoint, same_elements
from swavg.storage.pool import Pool

_BEGIN = 4096
"""Bytes at which codes and masks are compared."""


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
        findings = [each for each in findings if each.kind not in OF_FACTORS]
    if not any(finding.kind == "codes" for finding in findings):
        findings += _declared(checkpoints, averaged)
    for finding in confirmed(findings, checkpoints, shown):
        if finding.level == "refuse":
            raise MismatchError(f"{finding.message}.", hint=finding.hint)
        warnings.append(f"{finding.message}. {finding.hint}")
    return warnings


def check_copied(checkpoint: Checkpoint, policy: Policy) -> None:
    """MismatchError if its weights are elsewhere, or codes or their scales would get another
    dtype."""
    if (finding := spread_over_ranks(checkpoint)) is not None:
        raise MismatchError(f"{finding.message}.", hint=finding.hint)
    if policy.dtype != "keep" and holds_codes(checkpoint):
        raise MismatchError(
            f"{checkpoint.path} holds quantised weights, and dtype={policy.dtype} would change what"
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
            names = [
                name
                for name, number in numbered(checkpoint.tensors).items()
                if codes[columns.form[number]] and averaged(name)
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
    tables, table_of = distinct_tables(checkpoints)
    by_names = any(finding.whole or finding.begun for finding in findings)
    numbers = list(map(numbered, tables)) if by_names else []

    def having(name: str) -> list[InCheckpoint]:
        return [
            (checkpoint, checkpoint.tensors.at(numbers[place][name]))
            for checkpoint, place in zip(checkpoints, table_of, strict=True)
            if name in numbers[place]
        ]

    def same(pool: Pool, names: Sequence[str], most: int | None = None) -> bool:
        found = map(having, names)
        return all(
            len(each) == len(checkpoints) and same_elements(pool, each, most=most) for each in found
        )

    with Pool() as pool:
        for finding in findings:
            if finding.kind == "binary":
                masks = [name for name in finding.whole if _differ_as_masks(pool, having(name))]
                kept += [finding_of("binary", masks)] if masks else []
            elif not (
                (finding.whole or finding.begun)
                and same(pool, finding.whole)
                and same(pool, finding.begun, _BEGIN)
            ):
                kept.append(finding)
    factors = next((finding for finding in kept if finding.kind == "factors"), None)
    if factors is None:
        return kept
    settings = [settings_of(checkpoint) for checkpoint in checkpoints]
    hint = factors.hint if all(map(_are_plain, settings)) else MERGE
    kept = [replace(each, hint=hint) if each.kind in OF_FACTORS else each for each in kept]
    return [*_differing(settings, shown, hint), *kept]


def _are_plain(settings: Sequence[Settings]) -> bool:
    """Whether settings say nothing but how a product is scaled."""
    try:
        for each in settings:
            each.check_plain()
    except ValueError:
        return False
    return True


def _differ_as_masks(pool: Pool, masks: Sequence[InCheckpoint]) -> bool:
    """Whether a float tensor holds zeros and ones alone in all checkpoints that have it, and not
    the same. The first bytes tell of most that it does not."""
    import numpy as np

    numel = masks[0][1].spec.numel
    if any(not tensor.spec.dtype.floating or tensor.spec.numel != numel for _, tensor in masks):
        return False
    differ = False
    cuts = [0, *range(_BEGIN // 8, numel, STEP // 8), numel]
    for start, stop in pairwise(cuts):
        first = None
        for checkpoint, tensor in masks:
            data = checkpoint.read_range(tensor, start, stop, pool)
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
