"""Single weights become zero: which, what the others become, where zeros stay, and what is written of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FEW_MODELS, TINY, distillation, rest_long

import tinybert_jax as tb
from tinybert_jax.compression import sparse as module
from tinybert_jax.compression.low_rank import factorise
from tinybert_jax.compression.prune import prune
from tinybert_jax.compression.sparse import kernels_of, sparse, sparse_kernel, with_kernels
from tinybert_jax.compression.table import check_methods
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.export.export import program
from tinybert_jax.models.sample import Sample

FIXTURES = TINY.parent
CRITERIA = ["sparsegpt", "wanda", "magnitude"]


def correlated(inputs: int, outputs: int, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, i], which a quarter as many numbers nearly decide, of unlike sizes; and a kernel [i, o]."""
    random = np.random.default_rng(0)
    x = random.normal(size=(tokens, inputs // 4)) @ random.normal(size=(inputs // 4, inputs))
    x = (x + random.normal(size=x.shape)) * np.exp(random.normal(size=inputs))[None]
    return x, random.normal(size=(inputs, outputs)).astype(np.float32)


def rows(config: tb.BertConfig, count: int = 40) -> Tokens:
    """Rows of 4 to 10 tokens, without labels."""
    random = np.random.default_rng(0)
    lengths = random.integers(4, 11, count)
    ids = random.integers(5, config.vocab_size, lengths.sum()).astype(np.int32)
    offsets, labels = np.append(0, np.cumsum(lengths)), np.full(count, -1, np.int32)
    return Tokens(ids, offsets, lengths.astype(np.int32), labels, "rows", config.pad_token_id)


def shares(params: Any) -> list[float]:
    """The share of zeros in each dense matrix."""
    return [float((matrix == 0).mean()) for stack in kernels_of(params).values() for matrix in np.asarray(stack)]


def reference(settings: tb.Sparse, kernel: np.ndarray, moment: np.ndarray, block: int) -> np.ndarray:
    """SparseGPT as its theory says it: when an input of an output is removed, the inputs after it change as optimal
    brain surgery says, by the inverse of the part of the Hessian that belongs to them.
    """
    hessian = 2 * moment + module.DAMPING * np.diag(2 * moment).mean() * np.eye(len(moment))
    inverses = [np.linalg.inv(hessian[i:, i:]) for i in range(len(moment))]
    costs = np.array([inverse[0, 0] for inverse in inverses])[:, None]
    weights, removed = kernel.astype(np.float64), np.zeros(kernel.shape, bool)
    kept, group = settings.group
    for i in range(len(weights)):
        if group and i % group == 0:
            for output in range(weights.shape[1]):
                scores = (np.square(weights) / costs)[i : i + group, output]
                removed[i + np.argsort(scores)[: group - kept], output] = True
        elif not group and i % block == 0:
            scores = (np.square(weights) / costs)[i : i + block]
            for place in np.argsort(scores, axis=None)[: round(settings.share * scores.size)]:
                removed[i + place // scores.shape[1], place % scores.shape[1]] = True
        for output in np.flatnonzero(removed[i]):
            weights[i:, output] -= weights[i, output] / inverses[i][0, 0] * inverses[i][:, 0]
            weights[i, output] = 0
    return weights


@pytest.mark.parametrize("block", [8, 12, 128])
@pytest.mark.parametrize(
    "settings", [tb.Sparse(0.5), tb.Sparse(0.8), tb.Sparse(pattern="2:4"), tb.Sparse(pattern="1:3")]
)
def test_sparsegpt_is_optimal_brain_surgery_input_by_input(
    settings: tb.Sparse, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    x, kernel = correlated(24, 7)
    expected = reference(settings, kernel, x.T @ x, block)
    np.testing.assert_allclose(sparse_kernel(settings, kernel, x.T @ x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [tb.Sparse(0.5), tb.Sparse(0.7), tb.Sparse(pattern="2:4")])
def test_sparsegpt_changes_outputs_less_than_wanda_and_wanda_less_than_magnitude(settings: tb.Sparse) -> None:
    x, kernel = correlated(48, 20)
    errors = []
    for criterion in CRITERIA:
        one = dataclasses.replace(settings, criterion=criterion)
        errors.append(np.square(x @ (kernel - sparse_kernel(one, kernel, x.T @ x))).sum())
    assert errors[0] < 0.5 * errors[1]
    assert errors[1] < 0.3 * errors[2]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("pattern", "kept", "size"), [("2:4", 2, 4), ("1:2", 1, 2), ("5:6", 5, 6), ("7:240", 7, 240)])
def test_a_pattern_is_exact(criterion: Any, pattern: str, kept: int, size: int) -> None:
    x, kernel = correlated(240, 5)
    result = sparse_kernel(tb.Sparse(pattern=pattern, criterion=criterion), kernel, x.T @ x)
    assert ((result.reshape(-1, size, 5) != 0).sum(axis=1) == kept).all()


def test_a_share_is_of_the_outputs_for_wanda_and_of_the_matrix_for_the_others() -> None:
    x, kernel = correlated(20, 10)
    kernel *= np.linspace(0.1, 2, 10, dtype=np.float32)[None]
    counts = {
        criterion: (sparse_kernel(tb.Sparse(0.4, criterion=criterion), kernel, x.T @ x) == 0).sum(axis=0)
        for criterion in ("sparsegpt", "wanda", "magnitude")
    }
    assert (counts["wanda"] == 8).all()
    assert counts["sparsegpt"].sum() == counts["magnitude"].sum() == 80
    assert counts["magnitude"][0] > counts["magnitude"][-1]
    kernel = np.array([[1.0, -3.0], [2.0, 0.5]], np.float32)
    smallest = sparse_kernel(tb.Sparse(0.5, criterion="magnitude"), kernel, np.eye(2))
    assert smallest.tolist() == [[0.0, -3.0], [2.0, 0.0]]
    weighted = sparse_kernel(tb.Sparse(0.5, criterion="wanda"), kernel, np.diag([25.0, 1.0]))
    assert weighted.tolist() == [[1.0, -3.0], [0.0, 0.0]]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_what_is_zero_stays_zero_and_does_not_count(criterion: Any, pattern: str | None) -> None:
    x, kernel = correlated(40, 10)
    kernel[3] = 0
    kernel[:, 4] = 0
    kernel[10:20, 5:] = 0
    free = kernel != 0
    result = sparse_kernel(tb.Sparse(pattern=pattern, criterion=criterion), kernel, x.T @ x)
    assert not result[~free].any()
    if pattern is None:
        assert abs((result[free] == 0).mean() - 0.5) < 0.02
    else:
        assert ((result.reshape(-1, 4, 10) != 0).sum(axis=1) <= 2).all()
        assert (result[12:16, :4] != 0).sum() == 8  # zeros elsewhere take no place
    untouched = sparse_kernel(tb.Sparse(0.0, criterion=criterion), kernel, x.T @ x)
    if criterion != "sparsegpt":
        np.testing.assert_array_equal(untouched, kernel)
    else:
        np.testing.assert_allclose(untouched, kernel, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_inputs_that_say_little_are_no_trouble(tokens: int) -> None:
    """Fewer tokens than inputs, inputs that are always 0, and inputs that are one another's copies."""
    x, kernel = correlated(40, 10, tokens)
    x[:, 7] = 0
    x[:, 9] = x[:, 8]
    for settings in (tb.Sparse(), tb.Sparse(pattern="2:4")):
        result = sparse_kernel(settings, kernel, x.T @ x)
        assert np.isfinite(result).all()
        assert not result[7].any()
        if tokens:
            assert (result == 0).mean() == 0.5
            assert result[8:10].any()


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        *rest_long(
            [(path.name, "sparsegpt") for path in sorted(FIXTURES.glob("tiny-*")) if "mobilebert" not in path.name],
            [(name, "sparsegpt") for name in FEW_MODELS],
        ),
        ("tiny-bert", "wanda"),
        ("tiny-bert", "magnitude"),
    ],
)
def test_every_family_and_head_keeps_all_but_its_dense_layers(name: str, criterion: Any) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    settings, examples = tb.Sparse(0.5, criterion=criterion), rows(config)
    same, result = sparse(settings, config, params, examples)
    assert same == config
    assert shares(result) == pytest.approx([0.5] * len(shares(result)), abs=0.07)  # rounded in each output of wanda
    jax.tree.map(
        np.testing.assert_array_equal, with_kernels(result, kernels_of(params)), params
    )  # the rest is as it was
    again = sparse(settings, config, params, examples)[1]
    jax.tree.map(np.testing.assert_array_equal, again, result)
    inputs = [jnp.asarray(array) for array in examples.batch(np.arange(4), 10)[:3]]
    assert np.isfinite(program(config, result)(result, *inputs)).all()


def test_each_layer_is_pruned_for_the_inputs_that_it_then_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last dense layer come from the sparse layers before it."""
    config, params = tb.load_hf(TINY)
    examples, seen = rows(config), []
    kernel_of = module.sparse_kernel

    def spy(settings: tb.Sparse, kernel: np.ndarray, moment: np.ndarray) -> np.ndarray:
        seen.append((kernel, moment))
        return kernel_of(settings, kernel, moment)

    monkeypatch.setattr(module, "sparse_kernel", spy)
    result = sparse(tb.Sparse(), config, params, examples)[1]
    assert len(seen) == 6 * config.num_hidden_layers
    sample = Sample.take([examples.batch(np.arange(40), 10)])
    last: dict[str, np.ndarray] = {}

    def read(site: Any) -> Any:
        last[site.name] = site.inputs
        return site.dense

    module.walk(config, result, sample, read)
    x = last["output"].astype(np.float64)
    np.testing.assert_allclose(seen[-1][1], x.T @ x, rtol=1e-4, atol=1e-4)


def test_layers_that_share_parameters_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    config, params = tb.load_hf(FIXTURES / "tiny-albert")
    examples, moments = rows(config), []
    sample, inputs = Sample.take([examples.batch(np.arange(40), 10)]), []

    def read(site: Any) -> Any:
        if site.name == "query" and site.layer < 2:
            inputs.append(site.inputs.astype(np.float64))
        return site.dense

    module.walk(*module.unshared(config, params), sample, read)
    monkeypatch.setattr(module, "sparse_kernel", lambda settings, kernel, moment: moments.append(moment) or kernel)
    sparse(tb.Sparse(), config, params, examples)
    assert len(moments) == 12
    np.testing.assert_allclose(moments[0], sum(x.T @ x for x in inputs), rtol=1e-4, atol=1e-4)


def test_a_model_without_heads_and_units_becomes_sparse_in_what_is_left() -> None:
    config, params = tb.load_hf(TINY)
    labelled = dataclasses.replace(rows(config), labels=np.arange(40, dtype=np.int32) % 3)
    smaller, pruned = prune(tb.Prune(0.5, rounds=1), config, params, labelled)
    before = kernels_of(pruned)
    for path, after in kernels_of(sparse(tb.Sparse(), smaller, pruned, labelled)[1]).items():
        free = before[path] != 0
        assert not after[~free].any()
        for i, kernel in enumerate(after):
            if free[i].any():
                assert (kernel[free[i]] == 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_zeros_stay_zeros_in_training_in_a_population_and_after_a_stop(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    stages = (
        tb.Stage("transformer", max_steps=6, learning_rate=1e-3),
        tb.Stage("prediction", max_steps=20, learning_rate=1e-3, evaluate_every=10),
    )
    experiment = distillation(teacher, teacher, reviews, stages=stages, compression=(tb.Sparse(0.6),))
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.9
    source, methods = tb.DataSource(data=str(reviews)), experiment.compression
    chain = tb.compress(str(teacher), "classification", source, methods, tmp_path / "alone", max_length=16)
    assert chain[1].note.startswith("60.0% of the weights of the encoder's dense layers are zero; smaller when packed")
    before, after = (kernels_of(tb.load_hf(path)[1]) for path in (tmp_path / "alone", result.directory))
    for path, kernel in before.items():
        np.testing.assert_array_equal(after[path] == 0, kernel == 0)
        assert (after[path] != kernel).any()
    described = json.loads((tmp_path / "run/experiment.json").read_text())["experiment"]["stages"][0]["compression"]
    assert described == [{"name": "sparse", "share": 0.6, "pattern": None, "criterion": "sparsegpt", "rows": 512}]

    weights = (result.directory / "model.safetensors").read_bytes()
    both = tb.run_population([experiment, dataclasses.replace(experiment, seed=1, data_seed=0)], tmp_path / "both")
    files = [(member.directory / "model.safetensors").read_bytes() for member in both]
    assert files[0] == weights != files[1]
    assert shares(tb.load_hf(both[1].directory)[1]) == shares(tb.load_hf(result.directory)[1])

    (last,) = (tmp_path / "run/checkpoints/2-prediction").glob("20*")  # as if the run had been killed before it
    shutil.rmtree(last)
    shutil.rmtree(result.directory)
    again = tb.run(experiment, tmp_path / "run", resume=True)
    assert (again.directory / "model.safetensors").read_bytes() == weights

    kept = distillation(teacher, result.directory, reviews, stages=stages[1:], compression=(tb.Sparse(0.0),))
    assert shares(tb.load_hf(tb.run(kept, tmp_path / "kept").directory)[1]) == shares(tb.load_hf(result.directory)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.0}, "share is 1.0; it must be in"),
        ({"share": -0.1}, "share is -0.1"),
        ({"share": float("nan")}, "share is nan"),
        ({"rows": 0}, "rows is 0"),
        ({"pattern": "4:2"}, "pattern is '4:2'; give N:M with 0 < N < M"),
        ({"pattern": "0:4"}, "pattern is '0:4'"),
        ({"pattern": "half"}, "pattern is 'half'"),
        ({"pattern": "2:4", "share": 0.7}, "share is 0.7 and pattern '2:4': give one of the two"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.Sparse(**changes)


def test_a_pattern_that_does_not_fit_the_matrices_is_refused() -> None:
    config, params = tb.load_hf(TINY)
    with pytest.raises(tb.InputError, match="pattern 2:5: 5 does not divide the 24 of query"):
        sparse(tb.Sparse(pattern="2:5"), config, params, rows(config))
    with pytest.raises(tb.InputError, match="pattern 2:5: 5 does not divide the 24 of query"):
        check_methods((tb.Share(1), tb.Sparse(pattern="2:5")), config, "sequence")  # before anything is computed


def test_no_more_zeros_leaves_every_model_as_it_is() -> None:
    config, params = tb.load_hf(TINY)
    factors = factorise(tb.LowRank(0.5), config, params, rows(config))[0]
    with pytest.raises(tb.InputError, match="sparse cannot follow low rank: the dense layers are factors already"):
        check_methods((tb.Sparse(0.0),), factors, "sequence")
    for weight_bits in (None, 8):
        changed = dataclasses.replace(config, weight_bits=weight_bits)
        again = sparse(tb.Sparse(0.0), changed, params, rows(config))
        assert again[0] == changed
        jax.tree.map(np.testing.assert_array_equal, again[1], params)
