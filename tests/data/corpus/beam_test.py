"""The Beam pipeline writes what the local build writes."""

import gzip
import json

import pytest
from sequences_test import DOCUMENTS, join, make_tokenizer

import tinybert_jax as tb
from tinybert_jax.data.corpus import text
from tinybert_jax.data.corpus.corpus import build, load
from tinybert_jax.data.corpus.shards import JOURNAL
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource

beam = pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Beam has many of its own


@pytest.fixture
def model(tmp_path):
    """A Hugging Face directory, of which only the tokenizer is read."""
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "model")
    config = tb.BertConfig(vocab_size=len(tokenizer))
    (tmp_path / "model" / "config.json").write_text(json.dumps(config.to_hf()))
    return tmp_path / "model", tokenizer


def test_shards_are_those_of_the_local_build(model, tmp_path, monkeypatch):
    from tinybert_jax.data.corpus.beam import run

    monkeypatch.setattr(text, "UNIT_BYTES", 2000)
    directory, tokenizer = model
    (tmp_path / "a.txt").write_text(join(DOCUMENTS))
    (tmp_path / "b.gz").write_bytes(gzip.compress(join(DOCUMENTS).encode()))
    source = CorpusSource((str(tmp_path / "a.txt"), str(tmp_path / "b.gz")), pairs=True)
    run(source, str(directory), str(tmp_path / "beam"), 24, 3, ["--runner=DirectRunner"])
    build(source, tokenizer, 24, 3, tmp_path / "local")
    local, ours = ({p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("local", "beam"))
    del local[JOURNAL]
    assert len(ours) > 20
    assert ours == local
    assert load(tmp_path / "beam").fingerprint == load(tmp_path / "local").fingerprint
    with pytest.raises(InputError, match="holds a corpus"):
        run(source, str(directory), str(tmp_path / "beam"))


def test_a_missing_file_is_refused_before_the_pipeline_starts(model, tmp_path):
    from tinybert_jax.data.corpus.beam import run

    with pytest.raises(InputError, match="none: no such file"):
        run(CorpusSource((str(tmp_path / "none"),)), str(model[0]), str(tmp_path / "out"))
