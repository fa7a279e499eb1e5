"""The Transformer stage's step, BERT_BASE -> TinyBERT4, compiled for machines that are not here.

    pip install -e .[tpu-aot]
    python experiments/compile_ahead.py [--meshes 1 fsdp=8 data=8,fsdp=8] [--rows 32] [--length 128] [--json FILE]

Nothing runs: of every mesh the compiled program is read. With libtpu it is a program for TPU v5e chips; without, for
as many fake CPU devices, whose compiler joins and places collectives in its own way. The last line lowers the same
step for CUDA. libtpu 0.0.42, 32 rows of 128 tokens per chip, bfloat16:

    mesh                      MB in  MB temp  MB sent   GB/s
    1                           620      756      0.0    0.0
    fsdp=8                       79      796    246.0   22.2
    data=2,fsdp=2,model=2       161     1091    541.7   48.9
    data=8,fsdp=8                79      725    197.4   17.8
    data=32,fsdp=8               79      725    198.5   17.9
    data=64,fsdp=2,model=2      161     1091    547.5   49.5
    lowered for CUDA: a serialised module of 0.10 MB

The rows of 64 and more chips were compiled before the kernels' gradients were summed in float32.

All of a chip, per step: arguments (state and teacher), temporaries, what collectives send, and the rate at which
that takes no longer than the 0.87 TFLOP of matrix products at 40% of 197 TFLOP/s, 11 ms, were nothing overlapped.
"""

from __future__ import annotations

import importlib.util
import json as jsonlib
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh

import tinybert_jax as tb
from tinybert_jax.devices import sharding
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.training import optim
from tinybert_jax.training.cost import step_flops
from tinybert_jax.training.inputs import VOCAB_MULTIPLE
from tinybert_jax.training.step import create_state, make_train_step

# v5e slices by their number of chips; a host of one chip has to be asked for
TOPOLOGIES = {1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 32: "v5e:4x8", 64: "v5e:8x8"}
TOPOLOGIES |= {128: "v5e:8x16", 256: "v5e:16x16"}
PEAK = 197e12  # bfloat16 FLOP/s of a v5e chip, as published
SHARE = 0.4  # of the peak that the matrix products are taken to reach
MESHES = ("1", "fsdp=8", "data=2,fsdp=2,model=2", "data=8,fsdp=8", "data=32,fsdp=8", "data=64,fsdp=2,model=2")
COMPUTE = tb.Compute("bfloat16", vocab_multiple=VOCAB_MULTIPLE)  # as a run has it
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

Shape = tuple[str, tuple[int, ...]]  # dtype and dimensions


class Collective(NamedTuple):
    """One collective of a compiled program; `shapes` are its results, on one device."""

    kind: str
    shapes: tuple[Shape, ...]
    group: int  # devices that take part together
    times: int  # executions in one run of the program
    scope: str  # where the program's source has it

    @property
    def traffic(self) -> float:
        """Bytes that a device sends in all executions, by the ring algorithms."""
        size = sum(_bytes(shape) for shape in self.shapes)
        share = (self.group - 1) / self.group
        sent = {
            "all-gather": share * size,
            "all-reduce": 2 * share * size,
            "reduce-scatter": (self.group - 1) * size,
            "all-to-all": share * size,
            "collective-permute": size,
        }
        return self.times * sent[self.kind]


class Program(NamedTuple):
    """What a compiled program's text says: shapes are those of one device's part."""

    inputs: dict[str, Shape]  # by the argument's path; the compiler leaves out what nothing reads
    outputs: tuple[Shape, ...]
    collectives: tuple[Collective, ...]


class _Instruction(NamedTuple):
    name: str
    result: str
    opcode: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split(")", 1)[0])


def read_program(text: str) -> Program:
    """Reads the text of a compiled program, from `compiled.as_text()`."""
    computations: dict[str, list[_Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            name = opened[2]
            entry = name if opened[1] else entry
            computations[name] = []
        elif instruction := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)", line):
            computations[name].append(_Instruction(*instruction.groups()))
    calls = _executions(computations, entry)
    found_inputs = {
        path[1].replace("\\", ""): _shapes(i.result)[0]
        for i in computations[entry]
        if i.opcode == "parameter" and (path := re.search(r'op_name="([^"]*)"', i.rest))
    }
    collectives: dict[Any, Collective] = {}
    for name, instructions in computations.items():
        for i in instructions if calls[name] else ():
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # a collective that is spread over the fusions beside it stands in each of them, with one number
            channel = re.search(r"channel_id=(\d+)", i.rest)
            split = channel is not None and "chain_id=" in i.rest
            # a reduction of which only the device's own part is kept
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
            read = _collective(kind, i, calls[name])
            if name.startswith("all-reduce-scatter"):
                part = tuple((dtype, (math.prod(dims) // read.group,)) for dtype, dims in read.shapes)
                read = read._replace(shapes=part)
            collectives[channel[1] if channel and split else (name, i.name)] = read
    root = computations[entry][-1]
    return Program(found_inputs, tuple(_shapes(root.result)), tuple(collectives.values()))


def _collective(kind: str, i: _Instruction, times: int) -> Collective:
    shapes = _shapes(i.result)
    if i.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # (operands, results, contexts)
        shapes = shapes[len(i.operands) : 2 * len(i.operands)]
    scope = re.search(r'op_name="([^"]*)"', i.rest)
    return Collective(kind, tuple(shapes), _group(i.rest), times, scope[1] if scope else "")


def _group(attributes: str) -> int:
    """The devices of one group, from any of the three ways to write groups."""
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    return 2  # a permutation's pairs


def _executions(computations: dict[str, list[_Instruction]], entry: str) -> Counter[str]:
    """How often each computation runs."""
    runs: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for i in computations[name]:
            if i.opcode.endswith(("-done", "-update")):
                continue  # names what its start has called
            called = re.findall(r"(?:calls|to_apply|body|condition)=%([\w.-]+)", i.rest)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", i.rest):
                called += re.findall(r"%([\w.-]+)", branches[1])
            trips = _trips(computations, i) if i.opcode == "while" else 1
            for other in called:
                visit(other, times * trips)

    visit(entry, 1)
    return runs


def _trips(computations: dict[str, list[_Instruction]], loop: _Instruction) -> int:
    """Iterations of a loop that counts from 0: as noted, or the bound in its condition over its counter's stride."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    called = dict(re.findall(r"(body|condition)=%([\w.-]+)", loop.rest))
    condition = {i.name: i for i in computations[called["condition"]]}
    body = {i.name: i for i in computations[called["body"]]}
    compared = computations[called["condition"]][-1]
    bound, counter = 1, None
    for operand in (condition[name] for name in compared.operands if name in condition):
        if operand.opcode == "constant":
            bound = int(operand.rest.split(")")[0])
        elif index := re.search(r"index=(\d+)", operand.rest):
            counter = int(index[1])
    if counter is None:
        raise ValueError(f"cannot read how often {loop.name} runs: {compared}")
    following = body.get(computations[called["body"]][-1].operands[counter])
    stride = 0
    while following is not None and following.opcode == "add":
        terms = [body[name] for name in following.operands if name in body]
        stride += sum(int(term.rest.split(")")[0]) for term in terms if term.opcode == "constant")
        following = next((term for term in terms if term.opcode != "constant"), None)
    return -(-bound // (stride or 1))


def _shapes(result: str) -> list[Shape]:
    shapes = re.findall(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]", result)
    return [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in shapes]


def _bytes(shape: Shape) -> float:
    dtype, dims = shape
    bits = 8 if dtype == "pred" else int(re.sub(r"\D*(\d+).*", r"\1", dtype))
    return math.prod(dims) * bits / 8


class Step(NamedTuple):
    """A train step and its arguments, of which only shapes exist."""

    call: Any
    state: Any
    teacher: Any
    batch: Any

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.state, self.teacher, self.batch, tb.Hyper()


def make_step(
    mesh: Mesh,
    student: tb.BertConfig,
    teacher: tb.BertConfig,
    rows: int,
    length: int,
    optimizer: Any = None,
    compute: tb.Compute = COMPUTE,
) -> Step:
    """The step of the Transformer stage on a global batch of `rows`, with AdamW unless told otherwise."""
    objective = transformer_objective(student, teacher, compute=compute)
    optimizer = optim.make_optimizer("adamw") if optimizer is None else optimizer

    def create(key: Any) -> tuple[Any, Any]:
        def params(config: tb.BertConfig) -> Any:
            return tb.init_params(tb.BertForSequenceClassification(config, compute), key)

        # where a state lies is no part of its shapes, and the devices of `mesh` hold no arrays
        trainable, one = objective.init(key, params(student)), sharding.make_mesh()
        return create_state(trainable, optimizer, key, one, keeps_best=False), params(teacher)

    state, teacher_params = jax.eval_shape(create, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    labels, counted = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = tb.Batch(tokens, tokens, tokens, labels, counted)
    schedule = optim.make_schedule("constant")
    call = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params)
    return Step(call, state, teacher_params, batch)


def find_devices(count: int) -> Sequence[Any]:
    """TPU chips that are described and not there, where libtpu is installed; otherwise CPU devices, real or fake."""
    if importlib.util.find_spec("libtpu") is None:
        return jax.devices("cpu")[:count]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks the network what machine this is
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    return topologies.get_topology_desc(TOPOLOGIES[count], "tpu", **options).devices


def compile_step(step: Step) -> Any:
    """The compiled step. For TPU with the least effort on speed, which compiles sooner. What full effort gave
    where it was tried: temporaries as large on fsdp=8, and 14% smaller on data=2,fsdp=2,model=2.
    """
    on_tpu = importlib.util.find_spec("libtpu") is not None
    # 9 is O0; the option `exec_time_optimization_effort` is unknown to jax 0.12
    options = {"optimization_level": 9} if on_tpu else {"xla_backend_optimization_level": 0}
    return step.call.lower(*step.arguments).compile(compiler_options=options)


def export_cuda(step: Step) -> jax.export.Exported:
    """The step lowered for CUDA, its arguments and results as flat lists of leaves; its module is serialised."""
    leaves, tree = jax.tree.flatten(step.arguments)

    def flat(leaves: list[Any]) -> list[Any]:
        return jax.tree.leaves(step.call(*jax.tree.unflatten(tree, leaves)))

    return jax.export.export(jax.jit(flat), platforms=["cuda"])(leaves)


def sizes_of(mesh: str) -> dict[str, int]:
    """ "data=2,fsdp=4" as the sizes of axes; "1" is a single device."""
    return {axis: int(size) for axis, size in (part.split("=") for part in mesh.split(",") if "=" in part)}


def measure(mesh: str, rows: int, length: int) -> dict[str, Any]:
    sizes = sizes_of(mesh)
    count = math.prod(sizes.values())
    student, teacher = base_configs()
    start = time.perf_counter()
    step = make_step(sharding.make_mesh(**sizes, devices=find_devices(count)), student, teacher, rows * count, length)
    compiled = compile_step(step)
    memory, program = compiled.memory_analysis(), read_program(compiled.as_text())
    by_kind: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for collective in program.collectives:
        by_kind[collective.kind][0] += collective.times
        by_kind[collective.kind][1] += collective.traffic
    flops = step_flops(transformer_objective(student, teacher), rows, length)
    traffic = sum(sent for _, sent in by_kind.values())
    return {
        "mesh": mesh,
        "devices": count,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": dict(by_kind),
        "traffic": traffic,
        "flops": flops,
        "link": traffic / (flops / (PEAK * SHARE)),
        "compile_seconds": time.perf_counter() - start,
    }


def base_configs() -> tuple[tb.BertConfig, tb.BertConfig]:
    """TinyBERT4 and BERT_BASE."""
    teacher = tb.BertConfig()
    return tb.student_config("tinybert-4l-312d", teacher), teacher


def main(
    meshes: tuple[str, ...] = MESHES, rows: int = 32, length: int = 128, cuda: bool = True, json: Path | None = None
) -> None:
    """Compile and read.

    Args:
        meshes: sizes of axes, or 1.
        rows: of the batch, per device.
        length: tokens per row.
        cuda: lower for CUDA as well.
        json: file to append each mesh's numbers to, as one line.
    """
    if importlib.util.find_spec("libtpu") is None:
        wanted = max(math.prod(sizes_of(mesh).values()) for mesh in meshes)
        jax.config.update("jax_num_cpu_devices", wanted)
    print(f"{'mesh':24} {'MB in':>6} {'MB temp':>8} {'MB sent':>8} {'GB/s':>6}  collectives: MB sent")
    for mesh in meshes:
        numbers = measure(mesh, rows, length)
        kinds = ", ".join(
            f"{count:.0f} {kind}: {sent / 1e6:.3g}" for kind, (count, sent) in sorted(numbers["collectives"].items())
        )
        megabytes = [numbers[name] / 1e6 for name in ("arguments", "temporaries", "traffic")]
        row = "{:6.0f} {:8.0f} {:8.1f}".format(*megabytes)
        print(f"{mesh:24} {row} {numbers['link'] / 1e9:6.1f}  {kinds or 'none'}", flush=True)
        if json is not None:
            with json.open("a", encoding="utf-8") as out:
                out.write(jsonlib.dumps(numbers) + "\n")
    if cuda:
        student, teacher = base_configs()
        exported = export_cuda(make_step(sharding.make_mesh(), student, teacher, rows, length))
        print(f"lowered for CUDA: a serialised module of {len(exported.mlir_module_serialized) / 1e6:.2f} MB")


if __name__ == "__main__":
    tyro.cli(main)
