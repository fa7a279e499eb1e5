"""Chains: methods between the stages of one run, what each left, resumption, and what cannot follow what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import distillation, logged, resumed_beside_another

import tinybert_jax as tb
from tinybert_jax.models.parameters import encoder_macs
from tinybert_jax.training.chain import check_compression
from tinybert_jax.training.inputs import load_inputs

PRUNE = tb.Prune(0.6, uniform=True, rounds=1)


def stage(*methods: Any, steps: int = 6) -> tb.Stage:
    return tb.Stage("prediction", max_steps=steps, learning_rate=1e-3, evaluate_every=3, compression=methods)


def chain_of(teacher: Path, reviews: Path, *stages: tb.Stage, **changes: Any) -> tb.Experiment:
    return dataclasses.replace(distillation(teacher, teacher, reviews), stages=stages, **changes)


@pytest.mark.long
def test_a_chain_trains_after_every_method_and_says_what_each_left(
    teacher: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = chain_of(
        teacher, reviews, stage(PRUNE), stage(tb.LowRank(0.6, 0.5)), stage(tb.Share(1), tb.Quantize(4))
    )
    result = tb.run(experiment, tmp_path / "run")
    config, params = tb.load_hf(result.directory)
    assert (config.weight_bits, config.layer_groups) == (4, 1)
    assert config.ranks.key > 0
    whole = tb.load_hf(teacher)
    assert encoder_macs(config, params, 9.0) < 0.6 * encoder_macs(*whole, 9.0)
    links = ["whole", "prune", "1-prediction", "low_rank", "2-prediction", "share", "quantize", "3-prediction"]
    card = (result.directory / "README.md").read_text()
    rows = card.split("## Compression")[1].split("## Recipe")[0].strip().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == links
    assert rows[0] == "| after | accuracy | kept | parameters | encoder's multiply-adds |"
    assert f"{result.scores['accuracy']:.4f}" in rows[-1]
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("after ")] == [
        f"after {name}" for name in links
    ]
    assert [line["stage"] for line in logged(tmp_path / "run") if "dev/accuracy" in line][::2] == [
        "1-prediction",
        "2-prediction",
        "3-prediction",
    ]


@pytest.mark.slow
def test_a_chain_that_breaks_off_resumes_to_the_same_bits_also_in_a_population(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = chain_of(teacher, reviews, stage(PRUNE), stage(tb.LowRank(0.6), tb.Quantize()), checkpoint_every=2)
    weights = (tb.run(alone, tmp_path / "alone").directory / "model.safetensors").read_bytes()

    def breaks(log: Any, step: int) -> bool:
        return bool(log._speed._stage == "2-prediction" and step == 5)

    files = resumed_beside_another(alone, tmp_path / "both", breaks, monkeypatch)
    assert files[0] == weights
    assert files[1] != weights


@pytest.mark.slow
def test_what_was_pruned_in_training_is_cut_out_before_the_next_method(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    experiment = chain_of(teacher, reviews, stage(tb.GradualPrune(0.4), steps=30), stage(tb.LowRank(0.7)))
    config, params = tb.load_hf(tb.run(experiment, tmp_path / "run").directory)
    whole = tb.load_hf(teacher)
    assert config.intermediate_size < whole[0].intermediate_size or config.num_attention_heads < 4
    assert encoder_macs(config, params, 9.0) < 0.4 * encoder_macs(*whole, 9.0)
    members = [dataclasses.replace(experiment, seed=seed, data_seed=0) for seed in range(4)]
    with pytest.raises(tb.InputError, match="what is pruned in training leaves members of a population unlike"):
        tb.run_population(members, tmp_path / "members")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((stage(tb.LowRank(0.5)), stage(PRUNE)), "prune cannot follow low_rank: put it before, or leave one out"),
        ((stage(tb.Sparse(0.5), tb.LowRank(0.5)),), "low_rank cannot follow sparse: leave one out"),
        ((stage(), stage(tb.Share(3))), "3 groups do not divide 4 layers"),
        ((stage(tb.Quantize()), stage(tb.Quantize(4))), "quantize cannot follow quantize"),
        ((stage(tb.GradualPrune(0.5), tb.Share(1), steps=20),), "'share' cannot stand behind 'gradual_prune', which"),
        ((stage(tb.GradualPrune(0.5)),), "'gradual_prune' acts while its stage trains, in at least 10 steps"),
        ((stage(), stage(tb.Vocabulary())), "'vocabulary' changes the tokens"),
        ((stage(tb.Share(1)), stage(tb.Sparse(pattern="2:5"))), "pattern 2:5: 5 does not divide the 32 of query"),
    ],
)
def test_what_cannot_follow_what_is_refused_before_anything_is_computed(
    stages: tuple[tb.Stage, ...], message: str, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.run(chain_of(teacher, reviews, *stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_members_are_unlike_only_where_a_method_follows_what_was_pruned(teacher: Path, reviews: Path) -> None:
    alone, pruned = stage(tb.GradualPrune(0.5), steps=20), stage(tb.GradualPrune(0.5), tb.Quantize(), steps=20)
    inputs = load_inputs(chain_of(teacher, reviews, pruned))
    check_compression(chain_of(teacher, reviews, pruned, stage()), inputs, members=3)
    with pytest.raises(tb.InputError, match="what is pruned in training leaves members of a population unlike"):
        check_compression(chain_of(teacher, reviews, alone, stage(tb.Sparse(0.5))), inputs, members=3)
