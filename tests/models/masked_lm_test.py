"""The compiled masked LM gives what the whole model's logits say at each position."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_mlm import VOCABULARY, make_mlm

from tinybert_jax.models.masked_lm import BertForMaskedLM, logits_at, masked_lm_function


def test_most_probable_ids_are_those_of_the_whole_models_logits_at_the_position():
    config, params = make_mlm(VOCABULARY)
    random = np.random.default_rng(0)
    ids = random.integers(1, len(VOCABULARY), (6, 10)).astype(np.int32)
    mask = (np.arange(10) < random.integers(5, 11, 6)[:, None]).astype(np.int32)
    types = (np.arange(10) > 3).astype(np.int32)[None].repeat(6, 0)
    positions = random.integers(0, 5, 6).astype(np.int32)
    best = np.asarray(masked_lm_function(config, params, 7)(ids, mask, types, positions))
    out = jax.jit(BertForMaskedLM(config).apply)({"params": params}, ids, mask, types)
    logits = np.asarray(out.logits)[np.arange(6), positions]
    np.testing.assert_array_equal(best, np.argsort(-logits, axis=1)[:, :7])


def test_logits_at_chosen_positions_are_those_of_the_whole_model():
    config, params = make_mlm(VOCABULARY)
    ids = jnp.asarray(np.random.default_rng(0).integers(1, len(VOCABULARY), (3, 8)), jnp.int32)
    out = BertForMaskedLM(config).apply({"params": params}, ids)
    positions = np.array([[7, 0], [2, 2], [4, 5]])
    chosen = logits_at(config, params, out.last_hidden_state, jnp.asarray(positions))
    np.testing.assert_allclose(chosen, np.take_along_axis(np.asarray(out.logits), positions[:, :, None], 1), rtol=1e-5)


def test_a_checkpoint_as_pretrained_with_pooler_and_next_sentence_head_is_fine():
    config, params = make_mlm(VOCABULARY)
    more = {
        "encoder": params["encoder"] | {"pooler": {"dense": {"kernel": np.zeros((16, 16)), "bias": np.zeros(16)}}},
        "cls": params["cls"] | {"seq_relationship": {"kernel": np.zeros((16, 2)), "bias": np.zeros(2)}},
    }
    ids, ones, at = np.full((2, 8), 9, np.int32), np.ones((2, 8), np.int32), np.zeros(2, np.int32)
    np.testing.assert_array_equal(
        *(np.asarray(masked_lm_function(config, p, 3)(ids, ones, 0 * ones, at)) for p in (params, more))
    )
