"""``swavg convert``."""

from __future__ import annotations

import click

from swavg.cli.averaging import Run, averaging_command, output_path
from swavg.cli.executing import execute_and_report
from swavg.planning.policy import Policy

# It does not average: there is nothing to match, to choose or to measure.
_WITHOUT = (
    "strict", "missing", "mixed_dtypes", "include", "exclude", "drop_excluded", "integers", "lora",
    "accumulate", "digest", "distances", "card", "if_stale",
)  # fmt: skip


@averaging_command(without=_WITHOUT)
@click.argument("checkpoint", metavar="IN", type=click.Path())
@click.argument("output", metavar="OUT", type=click.Path())
def convert(checkpoint: str, output: str, policy: Policy, run: Run) -> None:
    """Write a checkpoint in another format, streamed in constant memory.

    The format is that of OUT's suffix (.safetensors, .pt, .npz, ...), or --format: dcp, tensorflow.
    Bytes of tensors stay as they are, NaN and codes too, unless --dtype changes floats. What is
    no tensor is kept where the format can hold it, and named where it cannot.

    \b
    swavg convert a.pt converted.safetensors
    swavg convert a.safetensors resharded --format dcp
    swavg convert model.safetensors out/ --max-shard-size 5GB
    swavg convert a.safetensors half.safetensors --dtype bfloat16
    """
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    from swavg import methods

    execute_and_report(methods.convert(checkpoint, policy=policy), [path], run)
