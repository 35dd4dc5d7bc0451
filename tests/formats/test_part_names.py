"""Names of ranks and shards, and which of them are namesakes."""

import pytest

from swavg.formats.part_names import matched, part_mark, rank_mark, rank_of


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("consolidated.00.pth", "consolidated.00"),
        ("mp_rank_01/model_optim_rng.pt", "mp_rank_01"),
        ("mp_rank_00_003", "mp_rank_00_003"),
        ("layer_02-model_01-model_states.pt", "layer_02-model_01"),
        ("layer_0_expert_3_mp_rank_00_model_states.pt", "layer_0_expert_3mp_rank_00"),
        ("checkpoint_last-model_part-1-shard0.pt", "-model_part-1-shard0"),
        ("zero_pp_rank_1_mp_rank_00_model_states.pt", "zero_pp_rank_1mp_rank_00"),
        ("model.pt", ""),
        ("best_rank_1.pt", ""),
    ],
)
def test_marks_of_parts(name, mark):
    assert part_mark(name) == mark


def test_ranks_are_of_processes_only_beside_rank_0(tmp_path):
    for name in ("model_rank0.pt", "model_rank1.pt", "lora_rank8.pt"):
        (tmp_path / name).touch()
    assert rank_mark(str(tmp_path / "model_rank1.pt")) == "rank1"
    assert rank_mark(str(tmp_path / "lora_rank8.pt")) == ""
    assert rank_mark(str(tmp_path / "model.pt")) == ""
    assert rank_of("step_3_rank-12.pt") == 12


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([["a", "b"], ["b", "a"]], [["b", "a"], ["b", "a"]]),
        ([["s1-shard0.pt", "s1-shard1.pt"], ["s2-shard0.pt", "s2-shard1.pt"]],
         [["s1-shard0.pt", "s1-shard1.pt"], ["s2-shard0.pt", "s2-shard1.pt"]]),
        ([["enc_10.pt", "dec_10.pt"], ["dec_20.pt", "enc_20.pt"]],
         [["dec_10.pt", "enc_10.pt"], ["dec_20.pt", "enc_20.pt"]]),
        ([["step1_rank0.pt", "step1_rank1.pt"], ["step2_rank1.pt", "step2_rank0.pt"]],
         [["step1_rank1.pt", "step1_rank0.pt"], ["step2_rank1.pt", "step2_rank0.pt"]]),
        ([["a", "b"], ["a"]], None),
        ([["a", "b"], ["a", "c"]], None),
        ([["x-shard0.pt", "x-shard1.pt"], ["x-shard0.pt", "x-shard2.pt"]], None),
        ([["a1", "a2"], ["a3", "a4"]], None),
    ],
)  # fmt: skip
def test_namesakes_stand_beside_each_other(lists, expected):
    assert matched(lists) == expected
