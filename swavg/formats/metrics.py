"""Names for what was measured of a checkpoint: it does not hold for an average of several."""

from __future__ import annotations

import re
from collections.abc import Mapping

LOWER = ("loss", "ppl", "perplexity", "error", "err", "wer", "cer", "ter", "eer", "nll", "mae",
         "mse", "rmse", "fid", "bpc", "bpb")  # fmt: skip
"""Words of metrics of which the lowest is best."""
HIGHER = ("acc", "accuracy", "top1", "top5", "bleu", "chrf", "rouge", "rougel", "f1", "auc",
          "auroc", "map", "miou", "iou", "dice", "psnr", "ssim", "precision", "recall", "reward",
          "mrr", "ndcg", "em", "score")  # fmt: skip
"""Words of metrics of which the highest is best."""

_WORDS = {*LOWER, *HIGHER, "metric", "metrics", "fitness", "prec"} - {"map", "em", "precision"}
_WHEN_MEASURED = {"map", "em", "precision"}
_MEASURED = {"val", "valid", "validation", "eval", "dev", "test", "best"}
_SETTINGS = {
    "weight", "weights", "scale", "scaler", "threshold", "type", "lambda", "coef", "factor",
    "fn", "func", "function", "reduction", "gamma", "alpha", "beta", "margin",
    "config", "cfg", "args", "opt", "options", "hparams", "hyper",
}  # fmt: skip


def is_metric(name: str) -> bool:
    """Whether a number of this name was measured: ``val_loss``, ``best_acc1``, ``metrics.top1``;
    not ``loss_weight`` or ``precision``."""
    parts = re.findall(r"[a-z]+\d*", name.lower())
    words = {*parts, *(part.rstrip("0123456789") for part in parts)}
    measured = words & _WHEN_MEASURED and words & _MEASURED
    return bool(words & _WORDS or measured) and not words & _SETTINGS


def metrics_among(scalars: Mapping[str, object]) -> list[str]:
    """The names of those plain values that are numbers, or their text, and metrics."""
    return [
        name for name, value in scalars.items() if is_metric(name) and number(value) is not None
    ]


def number(value: object) -> float | None:
    """``value`` as a float if it is a number (or the text of one), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
