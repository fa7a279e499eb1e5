"""A turn has whole rounds of its calls, is long enough, and does not count the warm-up."""

from __future__ import annotations

import time

import pytest

from tinybert_jax.inference import timing


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def test_a_turn_has_whole_rounds_behind_the_warm_up() -> None:
    called: list[str] = []
    calls = [lambda: called.append("a"), lambda: called.append("b")]
    times = timing.call_seconds(*calls, turn=0.0, least=3, warmup=2)
    assert "".join(called) == "aa" + "ab" * 2
    assert len(times) == 4


def test_a_turn_lasts_as_long_as_it_is_told_to() -> None:
    times = timing.call_seconds(lambda: time.sleep(0.002), turn=0.01)
    assert sum(times[:-1]) < 0.01 <= sum(times)
    assert min(times) >= 0.002


def test_random_rows_have_the_lengths_asked_for() -> None:
    batch = timing.random_batch(64, 12, 100, shortest=3)
    lengths = batch.attention_mask.sum(axis=1)
    assert (lengths.min(), lengths.max()) == (3, 12)
    assert ((batch.input_ids > 4) == (batch.attention_mask > 0)).all()
    assert timing.random_batch(2, 12, 1).input_ids.max() == 0, "a vocabulary of one token"
