"""Which leaves of a tree of JAX are the model's: by their names, and by what they hold."""

from __future__ import annotations

import pytest

from swavg.formats.train_state import training_leaves

SCALARS = {"count", "total", "step", "key"}
"""The last names of what is no weight."""


def model(names):
    paths = [tuple(name.split(".")) for name in names.split()]
    beside = training_leaves(
        paths, lambda numbers: any(paths[number][-1] not in SCALARS for number in numbers)
    )
    return " ".join(name for number, name in enumerate(names.split()) if number not in beside)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Names of training with weights below are modules.
        ("up.w emab.w ema_net.w lr_net.w", "up.w emab.w ema_net.w lr_net.w"),
        ("up.w tx.w opt.w metrics.w", "up.w tx.w opt.w metrics.w"),
        ("up.w net.ema_net.w", "up.w net.ema_net.w"),
        ("emab.w", "emab.w"),
        # Moments and copies lie under the names of parameters.
        ("up.w opt.0.mu.up.w opt.0.count", "up.w"),
        ("up.w ema.up.w", "up.w"),
        ("up.w tx.inner.0.nu.up.w", "up.w"),
        ("up.w metrics.loss.total rngs.default.key dropout.rngs.key step", "up.w"),
        ("up.w opt.0.mu opt.0.nu opt.1.count", "up.w"),
        ("params.w tx.0.trace.odd lora.mu.w", "params.w"),
        ("params.w lora.mu.a", "params.w lora.mu.a"),
        # Some names are no model's in any case.
        ("up.w opt_state.0.odd optimizer.odd optim_state.odd cache.odd", "up.w"),
        ("opt_state.odd", ""),
        # Keras 3, by its OrbaxCheckpoint.
        ("it.trainable_variables.m.up it.non_trainable_variables.drop.seed_generator_state"
         " it.optimizer_variables.adam.m_up_momentum it.metrics_variables.loss.total",
         "it.trainable_variables.m.up"),
        # Collections beside params are the model's, unless they copy it.
        ("params.w lora.a quant.q batch_stats.m", "params.w lora.a quant.q batch_stats.m"),
        ("params.up.w target_params.up.w polyak.up.w", "params.up.w"),
        ("params.up.w opt_state.0.mu.up.w config.count history.loss.total", "params.up.w"),
        ("state.params.w state.lora.a state.opt_state.mu.w", "state.params.w state.lora.a"),
        ("state.params.w dataset.key extra.count", "state.params.w"),
        # Of several models each has its own.
        ("actor.params.w actor.opt_state.mu.w critic.params.v critic.batch_stats.m",
         "actor.params.w critic.params.v critic.batch_stats.m"),
        ("params.batch_stats.w batch_stats.w", "params.batch_stats.w batch_stats.w"),
    ],
)  # fmt: skip
def test_the_model_is_told_from_training(names, expected):
    assert model(names) == expected
