"""What plain values say of a checkpoint, whatever file they come from."""

import json

import pytest

from swavg.series.inside import facts_of, metrics_by_epoch

SAID = [
    ({"global_step": 300, "epoch": 3}, {"step": 300, "epoch": 3}, {}),
    ({"step": "200"}, {"step": 200}, {}),
    ({"step": 1.5, "epoch": -1, "iteration": 7.0}, {"step": 7}, {}),
    ({"global_step": True, "metric": False}, {}, {}),
    ({"val_loss": 0.5, "other": 3}, {}, {"val_loss": 0.5}),
    # timm
    ({"epoch": 9, "metric": 72.0, "metrics.top1": 72.0}, {"epoch": 9}, {"metric": 72, "top1": 72}),
    # Lightning
    (
        {"callbacks.MC{'a.b'}.monitor": "val_loss", "callbacks.MC{'a.b'}.current_score": 0.25},
        {},
        {"val_loss": 0.25},
    ),
    ({"callbacks.a.monitor": "x", "callbacks.b.current_score": 1.0}, {}, {}),
    # fairseq
    (
        {
            "extra_state.val_loss": 3.0,
            "extra_state.train_iterator.epoch": 1,
            "optimizer_history.-1.num_updates": 800,
        },
        {"step": 800, "epoch": 1},
        {"val_loss": 3.0},
    ),
    # A snapshot of swavg.training
    ({"step": "5", "metrics": '{"acc": 0.5, "odd": []}'}, {"step": 5}, {"acc": 0.5}),
    ({"metrics": "[1]"}, {}, {}),
    ({"metrics": "[" * 100_000}, {}, {}),
]


@pytest.mark.parametrize(("scalars", "counts", "metrics"), SAID)
def test_counts_and_metrics_are_known_by_the_names_that_projects_give_them(
    scalars, counts, metrics
):
    facts = facts_of(scalars)
    assert (dict(facts.counts), dict(facts.metrics)) == (counts, metrics)
    assert not facts.averaged


def test_the_recipe_of_an_average_wins_over_what_its_last_input_said():
    recipe = json.dumps({"method": "ema", "step": 400, "metrics": {"acc": 0.5}})
    facts = facts_of({"step": "300", "metrics": '{"acc": 0.1}'}, recipe)
    assert (dict(facts.counts), dict(facts.metrics)) == ({"step": 400}, {"acc": 0.5})
    assert facts.averaged


def test_a_recipe_that_cannot_be_read_still_says_that_it_is_an_average():
    for recipe in ("", "[1]", "[" * 100_000):
        assert facts_of({"step": 1}, recipe).averaged


def test_what_a_reporter_has_seen_comes_by_epoch():
    scalars = {"reporter.stats.3.valid.acc": 0.5, "reporter.stats.x.valid.acc": 1.0, "epoch": 3}
    assert metrics_by_epoch(scalars) == {3: {"valid.acc": 0.5}}
