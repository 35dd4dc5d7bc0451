"""What is said of inputs and outputs before anything is averaged, where all of it may be well."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from swavg.engine.recipe import recorded_in
from swavg.errors import some
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.configuration import is_training_state
from swavg.formats.metrics import metrics_among
from swavg.formats.part_names import WEIGHTS
from swavg.planning.plan import Output
from swavg.planning.row import Row
from swavg.series.names import counts_of

_LISTED = 4


def warnings_of(row: Row, checkpoints: Sequence[Checkpoint], shown: Sequence[str]) -> Iterator[str]:
    """What may make a row useless: an average among its own inputs, a single input, NumPy arrays
    that are not averaged."""
    if row.copies:
        return
    if row.members and row.weights == (1.0,):
        yield f"one checkpoint: the average is a copy of {shown[row.members[0]]}"
    arrays = checkpoints[row.members[-1]].extras.arrays
    if arrays and len(row.members) > 1:
        listed = some([f"'{name}'" for name in arrays], _LISTED)
        yield (
            f"NumPy arrays in the state dict are not averaged, but those of"
            f" {shown[row.members[-1]]}, if they are in the output at all: {listed}. Make"
            " tensors of them first: torch.from_numpy"
        )
    if row.of_averages:
        return
    averages = [member for member in row.members if _is_average(checkpoints[member])]
    if len(averages) < len(row.members):
        for member in averages:
            yield (
                f"{shown[member]} is an average that swavg wrote, and counts as one checkpoint"
                " beside the others"
            )


_OTHER_FORM = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model|consolidated)[.-].*"
    r"|onnx.*|openvino.*|coreml.*|tflite.*|gguf.*|.*fp16.*"
)
"""Names of the same weights in another form, beside those that are averaged."""


def weights_lost(left_out: Sequence[str]) -> list[str]:
    """A warning of weights that lie beside those that are averaged, at the paths ``left_out``, and
    are in no output: of a head, say, or of another part of the model."""
    lost = [os.path.basename(path) for path in left_out if _holds_weights(path)]
    if not lost:
        return []
    listed = some(lost, _LISTED)
    return [
        f"neither averaged nor in the output, though there may be weights in them: {listed}."
        " Average them by themselves if they belong to the model"
    ]


def _holds_weights(path: str) -> bool:
    name = os.path.basename(path)
    if is_training_state(name) or _OTHER_FORM.fullmatch(name) or counts_of(name):
        return False
    if not os.path.isdir(path):
        return name.endswith(WEIGHTS)
    return any(
        file.endswith(WEIGHTS) and not is_training_state(file)
        for _, _, files in os.walk(path)
        for file in files
    )


def _is_average(checkpoint: Checkpoint) -> bool:
    if checkpoint.extras.recipe is None:
        return False
    made = recorded_in(checkpoint)
    return "inputs" in made and made.get("method") != "copy"


def metrics_kept(
    rows: Sequence[Row],
    outputs: Sequence[Output],
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
) -> list[str]:
    """What outputs have of metrics: those of the last input, whose objects they keep."""
    told: dict[str, None] = {}
    for row, output in zip(rows, outputs, strict=True):
        last = row.members[-1]
        found = metrics_among(checkpoints[last].extras.scalars)
        # Those of a callback of Lightning have its settings in their path.
        names = dict.fromkeys(name.rpartition(".")[2] for name in found)
        if names and any(file.layout.kept for file in output.files):
            listed = some([f"'{name}'" for name in names], _LISTED)
            told[f"metrics in it are those of {shown[last]}, the last input: {listed}"] = None
    return list(told)
