"""Arguments in messages become options."""

import pytest
from swavg.cli.arguments import as_options


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("last=0 must be at least 1.", "--last 0 must be at least 1."),
        ("Take what there is with at_most=True.", "Take what there is with --at-most."),
        ("Use sum_to='normalize' or sum_to='raw'.", "Use --normalize or --raw-weights."),
        ("Give mode='min' or mode='max'.", "Give --mode min or --mode max."),
        ("Give one of decay=, half_life= and span=.",
         "Give one of --decay, --half-life and --span."),
        ("A file of metrics with metrics_file=.", "A file of metrics with --metrics."),
        ("'uniform:last=5': epoch=3-best=2.ckpt", "'uniform:last=5': epoch=3-best=2.ckpt"),
    ],
)  # fmt: skip
def test_only_arguments_that_stand_alone_are_options(said, shown):
    assert as_options(said) == shown
