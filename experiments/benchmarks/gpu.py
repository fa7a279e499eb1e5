"""What a GPU makes of the package, beside PyTorch on the same card: one command for a bare machine without a network.

    python experiments/benchmarks/gpu.py --out gpu.jsonl [--minutes 8] [--parts step torch] [--wheels DIR] [--tiny]
    python experiments/benchmarks/gpu.py --table gpu.jsonl

It needs jax with CUDA, flax, optax, numpy and jaxtyping, for PyTorch's side torch and transformers, and says what is
missing; the package itself need not be installed. Every result is one JSON line, printed and appended to --out at once
(default: gpu.jsonl, in $OUT where that is set); a table of this run ends it. Every part runs in a process of its own
with its share of the minutes left; what fails, or would take too long, is a line too. Models are random; but for
`correctness` they are BERT_BASE and TinyBERT4, their activations bfloat16. The parts, in order:

correctness  One training step of small models on the GPU and on the CPU, the teacher and dropout in it: the loss, and
             the gradient's worst leaf (norm of the difference over the leaf's norm, and 1 % of the largest number
             of all leaves).
step         A Transformer-distillation step of the authors' arithmetic: with the teacher in it, and with its outputs
             kept, which then already lie on the GPU. The programs of all shapes are compiled side by side in threads,
             and the time that all took is a line. FLOPs are those of the matrix products by count.
compiling    The first step once more, compiled alone and without XLA's autotuning, which times kernels on the GPU.
torch        The same step, teacher in it, by transformers under autocast. "eager" computes the attention by products
             and softmax, "SDPA" by scaled_dot_product_attention, and beside it the scores before softmax where a loss
             reads them: in all of the student's layers and four of the teacher's. "compiled" is one graph of
             torch.compile, of teacher, student, losses and gradient, for this shape; clipping and the fused AdamW are
             eager.
population   Students behind one teacher.
inference    Class logits, each call waited for. PyTorch's parameters are bfloat16, ours float32; "compiled" is
             torch.compile's mode "reduce-overhead", with CUDA graphs.
profile      The five kernels that the step spends most time in, CUDA graphs off.

Times are medians; steps are given to the GPU in groups of five, and it is waited for at a group's end. --tiny walks
all parts with small models, on a CPU too: its times say nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu_lines import CORE, TORCH, Lines, Numbers, first_line

HERE = Path(__file__).resolve().parent
# part, function of `gpu_parts` or `gpu_torch`, and its share of the minutes
WORK = (
    ("correctness", "correctness", 90),
    ("step", "step", 120),
    ("compiling", "compiling", 30),
    ("torch", "torch_step", 90),
    ("population", "population", 75),
    ("inference", "inference", 35),
    ("inference", "torch_inference", 40),
    ("profile", "profile", 30),
)
FLAGS = {  # of XLA, by function
    "compiling": "--xla_gpu_autotune_level=0",
    "profile": "--xla_gpu_enable_command_buffer=",  # kernels of a CUDA graph have no names of ours
}
PARTS = tuple(dict.fromkeys(part for part, _, _ in WORK))
GRACE = 15  # seconds that a part gets beyond its share, to end by itself
WHAT = ("part", "objective", "compared", "students", "model", "rows", "length", "teacher", "side")  # a line is about


def missing(packages: Iterable[str]) -> list[str]:
    """Those that Python does not find."""

    def is_there(package: str) -> bool:
        try:
            return importlib.util.find_spec(package) is not None
        except ImportError:
            return False

    return [package for package in packages if not is_there(package)]


def environment(function: str, path: Sequence[str], tiny: bool) -> dict[str, str]:
    """The environment of a part's process."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])}
    env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if tiny:
        env.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiled for longer than computed
    else:
        env["JAX_PLATFORMS"] = "cpu" if function.startswith("torch") else "cuda,cpu"
        env.pop("JAX_COMPILATION_CACHE_DIR", None)  # compiling is measured
        env["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    if function in FLAGS:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {FLAGS[function]}".strip()
    return env


def run_part(function: str, lines: Lines, limit: float, path: Sequence[str]) -> None:
    """In a process of its own, which may take `limit` seconds; what is left of it is ended with it."""
    command = [sys.executable, str(Path(__file__)), "--function", function, "--part", lines.part]
    command += ["--out", str(lines.out), "--until", str(lines.until), *(["--tiny"] if lines.tiny else [])]
    process = subprocess.Popen(command, env=environment(function, path, lines.tiny), process_group=0)
    try:
        if code := process.wait(limit):
            lines.write(error=f"{function} ended with code {code}")
    except subprocess.TimeoutExpired:
        lines.write(error=f"{function} was stopped after {limit:.0f} seconds")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(parts: Sequence[str], out: Path, minutes: float, path: Sequence[str], tiny: bool) -> None:
    """All that was asked for, in order."""
    start = time.time()
    end = start + 60 * minutes
    work = [entry for entry in WORK if entry[0] in parts]
    for number, (part, function, share) in enumerate(work):
        left = end - time.time()
        until = time.time() + left * share / sum(of_other for _, _, of_other in work[number:])
        lines = Lines(part, out, until, tiny)
        if function.startswith("torch") and (absent := missing(TORCH)):
            lines.write(skipped=f"{function}: {', '.join(absent)} not installed")
        elif left < GRACE:
            lines.write(skipped=f"{function}: the {minutes:g} minutes are over")
        else:
            run_part(function, lines, min(until + GRACE, end) - time.time(), path)
    Lines("end", out, end, tiny).write(seconds=round(time.time() - start, 1), parts=list(parts), tiny=tiny)


def short(value: Any) -> str:
    """Three digits of a number; nothing of None."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value).replace("|", "/")


def markdown(title: str, columns: dict[str, str], rows: Iterable[Numbers]) -> str:
    """A table of these columns, name in the line -> heading."""
    cells = [[short(row.get(name)) for name in columns] for row in rows]
    texts = [f"### {title}", "| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*texts, *("| " + " | ".join(row) + " |" for row in cells)]) if cells else ""


def shape(line: Numbers) -> str:
    return f"{line['rows']} x {line['length']}"


def sort_out(lines: Iterable[Numbers]) -> tuple[list[Numbers], list[Numbers]]:
    """The last that was measured of each thing; and what was not, or failed as a whole part."""
    measured: dict[Any, Numbers] = {}
    failed: list[tuple[Any, Numbers]] = []
    for line in lines:
        key = tuple(line.get(name) for name in WHAT)
        if "error" in line or "skipped" in line:
            failed.append((key, line))
        else:
            measured[key] = line
    return list(measured.values()), [line for key, line in failed if key not in measured or not any(key[1:])]


def table(lines: Iterable[Numbers]) -> str:
    """Everything as Markdown."""
    good, failed = sort_out(lines)
    of = {part: [line for line in good if line["part"] == part] for part in (*PARTS, "end")}
    sections = []
    for line in of["correctness"]:
        if "devices" in line:
            named = ", ".join(f"{name} {line[name]}" for name in ("python", *CORE[:4], *TORCH) if line.get(name))
            reached = f"{line['product']}^3 bfloat16: {short(line['tflops'])} TFLOP/s"
            sections.append(f"{'; '.join(line['devices'])}; {line.get('nvidia_smi', '')}\n{named}\n{reached}")
    judged = {
        "objective": "objective",
        "compared": "compared with the CPU's",
        "loss": "loss",
        "loss_error": "loss error",
    }
    judged |= {"gradient_error": "gradient error", "worst": "worst leaf", "tolerance": "tolerance", "passes": "passes"}
    sections.append(markdown("correctness", judged, (line for line in of["correctness"] if "objective" in line)))
    timed = {"compile_s": "compile s", "ms": "ms", "examples_per_s": "examples/s"}
    rates = {"tflops": "TFLOP/s", "share_of_peak": "share of peak"}
    memory = {"program_mb": "program MB", "temporary_mb": "of it temporary", "peak_mb": "peak MB"}
    compiled = {"teacher": "teacher", "programs": "programs, side by side", "compile_s": "compile s"}
    sections.append(markdown("step, compiling", compiled, (line for line in of["step"] if "programs" in line)))
    untuned = [line | {"shape": shape(line)} for line in of["compiling"]]
    sections.append(markdown("step, not autotuned", {"shape": "rows x tokens"} | timed, untuned))
    ours = [line | {"shape": shape(line)} for line in of["step"] if "ms" in line]
    steps = {name: heading for name, heading in timed.items() if name != "compile_s"}
    columns = {"shape": "rows x tokens", "teacher": "teacher"} | steps | rates | memory
    sections.append(markdown("step, ours", columns, ours))
    ms = {line["shape"]: line["ms"] for line in ours if line["teacher"] == "in the step"}
    torch = [
        line | {"shape": shape(line), "ratio": line["ms"] / ms[shape(line)] if shape(line) in ms else None}
        for line in of["torch"]
    ]
    columns = {"shape": "rows x tokens", "side": "side"} | timed | {"peak_mb": "peak MB", "ratio": "its ms / our ms"}
    sections.append(markdown("step, torch", columns, torch))
    columns = {"students": "students"} | timed | {"ms_per_student": "ms per student"} | rates | memory
    sections.append(markdown("population, 1 teacher", columns, of["population"]))
    ms = {(line["model"], shape(line)): line["ms"] for line in of["inference"] if line["side"] == "ours"}
    answers = [
        line
        | {"shape": shape(line), "ratio": line["ms"] / key if (key := ms.get((line["model"], shape(line)))) else None}
        for line in of["inference"]
    ]
    columns = {"model": "model", "shape": "rows x tokens", "side": "side"} | timed | {"ratio": "its ms / our ms"}
    sections.append(markdown("inference", columns, sorted(answers, key=lambda line: (line["model"], line["rows"]))))
    for line in of["profile"]:
        columns = {"kernel": "kernel", "ms": "ms a step", "share": "share", "calls": "calls a step", "scope": "scope"}
        title = f"profile, {shape(line)}: {short(line['all_ms'])} ms a step of {line['of']}"
        sections.append(markdown(title, columns, line["top"]))
    sections.append("\n".join(["### not measured", *map(json.dumps, failed)]) if failed else "")
    sections += [f"{line['seconds']} seconds" for line in of["end"]]
    return "\n\n".join(section for section in sections if section)


def read(file: Path, offset: int = 0) -> list[Numbers]:
    """The lines from an offset on; of one that was being written when all ended, nothing."""
    with file.open("rb") as opened:
        opened.seek(offset)
        return [json.loads(line) for line in opened if line.endswith(b"\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OUT", ".")) / "gpu.jsonl"
    parser.add_argument("--out", type=Path, default=default, help="file that the lines are appended to")
    parser.add_argument("--minutes", type=float, default=8.0, help="that all may take")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which to run")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of pure Python, or of unpacked ones, to import")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that all parts run")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    for name in ("--function", "--part", "--until"):  # how it calls itself
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table(read(args.table)))
        return
    if args.function:
        lines = Lines(args.part, args.out, float(args.until), args.tiny)
        try:
            import gpu_parts  # only here: it imports the package, and what that needs

            of_torch = args.function.startswith("torch")
            if not args.tiny and not of_torch:
                gpu_parts.check_gpu()
            functions = importlib.import_module("gpu_torch") if of_torch else gpu_parts
            getattr(functions, args.function)(lines, gpu_parts.Sizes(args.tiny))
        except Exception as error:
            lines.write(error=f"{args.function}: {first_line(error)}")
        return
    wheels = (
        [] if args.wheels is None else [str(args.wheels.resolve()), *map(str, args.wheels.resolve().glob("*.whl"))]
    )
    sys.path[:0] = path = [str(HERE.parent.parent), *wheels]
    if absent := missing(CORE):
        names = " ".join(absent).replace("_", "-")
        sys.exit(
            f"error: not installed: {', '.join(absent)}; where there is a network and this Python, `pip download"
            f" --no-deps -d wheels {names}`, then --wheels wheels; or unpack them, and name the folder in PYTHONPATH"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no part outlives it
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.touch()
    offset = args.out.stat().st_size
    run(args.parts, args.out.resolve(), args.minutes, path, args.tiny)
    written = read(args.out, offset)
    print(f"\n{table(written)}")
    if any("error" in line or line.get("passes") is False for line in written):
        sys.exit(1)


if __name__ == "__main__":
    main()
