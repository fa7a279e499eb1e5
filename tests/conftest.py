"""Fixtures common to all tests. The environment is set here, before jax and huggingface_hub read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the network
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # (b, q) + (q,) is a bug more often than a wish
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the same numbers on every machine


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures wider than one test do not touch the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYBERT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(path))
    return path
