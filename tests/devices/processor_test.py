"""What is said of the processor is what Linux says of it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from tinybert_jax.devices import processor as module


@pytest.mark.parametrize(
    ("lines", "name", "int8"),
    [
        (["model name\t: Xeon", "flags\t\t: fpu avx2 avx512_vnni amx_int8"], "Xeon", ("AVX512-VNNI", "AMX")),
        (["model name\t: Old", "flags\t\t: fpu avx2 avx512_vnni_not"], "Old", ()),
        (
            ["model name\t: First", "flags\t\t: avx_vnni", "", "model name\t: Second"],
            "First",
            ("AVX-VNNI",),
        ),
        (["BogoMIPS\t: 50", "Features\t: fp asimddp i8mm"], None, ("dot product", "I8MM")),
        (["model name\t: Quiet"], "Quiet", None),
        (None, None, None),
    ],
)
def test_the_name_and_the_instructions_are_those_of_the_first_processor(
    lines: list[str] | None, name: str | None, int8: tuple[str, ...] | None, tmp_path: Path, monkeypatch
) -> None:
    file = tmp_path / "cpuinfo"
    if lines is not None:
        file.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(module, "CPUINFO", file)
    kind = module.processor()
    assert kind.int8 == int8
    assert kind.name == name if name else kind.name


def test_what_other_work_takes_is_all_but_the_idle_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "stat"
    file.write_text("cpu 10 0 10 100 0 0 0 0 0 0\n")
    monkeypatch.setattr(module, "STAT", file)
    monkeypatch.setattr(module.time, "sleep", lambda _: file.write_text("cpu 40 0 10 190 0 0 0 0 0 0\n"))
    assert module.busy_share() == pytest.approx(30 / 120)
    file.unlink()
    assert module.busy_share() == 0.0


def test_memory_knows_the_most_that_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module.memory()
    if before is None:
        pytest.skip("this system has no /proc")
    held = mmap.mmap(-1, 50_000_000)  # new pages, where an array may reuse what this process freed
    np.frombuffer(held, np.uint8).fill(1)
    during = module.memory()
    held.close()
    after = module.memory()
    assert during.now >= before.now + 40
    assert after.most >= before.now + 40
    assert after.now <= during.now - 40
    monkeypatch.setattr(module, "STATUS", tmp_path / "none")
    assert module.memory() is None
