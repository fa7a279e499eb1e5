"""The compiled step's own text says that states lie as the rules have them, and that nothing gathers them whole.

For TPU chips where libtpu is installed, for fake CPU devices elsewhere.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import tinybert_jax as tb
from tinybert_jax.devices import sharding
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.training import optim
from tinybert_jax.training import step as step_module
from tinybert_jax.training.step import TrainState

ROOT = Path(__file__).parent.parent
# of such sizes that no layer's kernel, nor a projection, has as many numbers as a table, all layers, or half of them
SIZES = {"vocab_size": 97, "num_attention_heads": 4}
COMPUTE = tb.Compute("bfloat16", vocab_multiple=16)
TEACHER = tb.BertConfig(hidden_size=48, num_hidden_layers=6, intermediate_size=80, **SIZES)
STUDENT = tb.BertConfig(hidden_size=40, num_hidden_layers=3, intermediate_size=72, **SIZES)
ALL_AXES = {"data": 2, "fsdp": 2, "model": 2}
MESHES = {"fsdp=8": {"fsdp": 8}, "data=2,fsdp=2,model=2": ALL_AXES}
BROKEN = {
    "a replicated optimizer state": "enters as",
    "an update that gathers its state": "in the update",
    "a teacher gathered outside the scan": "a table or all layers at once",
}


@pytest.fixture(scope="module")
def read() -> dict:
    """What this file, run as a program on 8 devices that are not there, prints."""
    from conftest import on_devices  # not for the program

    path = os.pathsep.join([str(ROOT), str(ROOT / "experiments")])
    environment = on_devices(8) | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Involuntary full rematerialization" not in done.stderr, "the partitioner gave up on an activation"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("mesh", list(MESHES))
def test_every_state_enters_and_leaves_in_the_parts_of_the_rules_and_is_never_gathered(read: dict, mesh: str) -> None:
    assert read[mesh] == []


@pytest.mark.long
@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_step_that_breaks_this_is_caught(read: dict, fault: str) -> None:
    assert any(BROKEN[fault] in line for line in read[fault]), read[fault]


@pytest.mark.long
def test_collectives_of_a_loop_count_once_per_iteration(read: dict) -> None:
    assert read["five gathers of 8 x 16 floats"] == [5, 5 * 7 / 8 * 8 * 16 * 4]


def test_the_step_is_lowered_for_cuda_without_a_gpu(compile_ahead: ModuleType) -> None:
    step = compile_ahead.make_step(sharding.make_mesh(), STUDENT, TEACHER, rows=4, length=16, compute=COMPUTE)
    exported = compile_ahead.export_cuda(step)
    assert exported.platforms == ("cuda",)
    assert exported.mlir_module_serialized.startswith(b"ML\xefR"), "MLIR's own mark"
    assert len(exported.in_avals) == len(jax.tree.leaves(step.arguments))
    results = jax.eval_shape(step.call, *step.arguments)
    assert [aval.shape for aval in exported.out_avals] == [leaf.shape for leaf in jax.tree.leaves(results)]


@pytest.fixture
def compile_ahead(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("compile_ahead")


def faults(step: Any, program: Any, mesh: Mesh, rules: Callable[[Mesh, Any], Any]) -> list[str]:
    """The places where a program departs from the rules."""

    def parts(tree: Any) -> dict[str, tuple[int, ...]]:
        def part(leaf: Any, where: Any) -> tuple[int, ...]:
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.eval_shape(jax.random.key_data, leaf)
            return where.shard_shape(leaf.shape)

        wheres = jax.tree.leaves(rules(mesh, tree))
        leaves = jax.tree.leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path): part(leaf, where) for (path, leaf), where in zip(leaves, wheres, strict=True)
        }

    lines = []
    state, teacher = parts(step.state), parts(step.teacher)
    expected = {f"state{path}": part for path, part in state.items()}
    # the teacher's pooler and classifier are read by nobody
    named = {f"teacher_params{path}": part for path, part in teacher.items()}
    expected |= {path: part for path, part in named.items() if "['layer']" in path or "embeddings" in path}
    for path, part in expected.items():
        entered = program.inputs.get(path, (None, None))[1]
        if entered != part:
            lines.append(f"{path} enters as {entered}, not {part}")
    for (path, part), (_, left) in zip(state.items(), program.outputs, strict=False):
        if left != part:
            lines.append(f"state{path} leaves as {left}, not {part}")
    smallest = min(leaf.size for leaf in jax.tree.leaves(step.state.params)) // mesh.size
    for collective in program.collectives:
        largest = max(math.prod(dims) for _, dims in collective.shapes)
        # the clipping's norms: a number for a leaf
        if _in_the_update(collective.scope) and (collective.kind != "all-reduce" or largest >= smallest):
            lines.append(f"{collective.kind} of {collective.shapes} in the update")
        for _, dims in collective.shapes:
            if collective.kind == "all-gather" and math.prod(dims) in _whole(step, mesh):
                lines.append(f"{collective.kind} of {dims}: a table or all layers at once")
    return lines


def _in_the_update(scope: str) -> bool:
    """A collective that the partitioner adds has the scope it is used in, or, of newer XLA, the argument's path."""
    return "/optimizer/" in scope or "opt_state" in scope


def _whole(step: Any, mesh: Mesh) -> set[int]:
    """Numbers in the tables of words and the kernels of all layers, and in what devices along `model` hold of them.

    Not their dimensions, which compilers arrange.
    """
    params = jax.tree.leaves_with_path((step.state.params, step.teacher))
    sizes = {leaf.size for path, leaf in params if leaf.ndim == 3 or "word_embeddings" in str(path)}
    return sizes | {size // mesh.shape["model"] for size in sizes}


@contextmanager
def broken(fault: str, mesh: Mesh) -> Iterator[optax.GradientTransformation]:
    """The optimizer, and for a while the package, with a fault."""
    right = optim.make_optimizer("adamw")
    whole = sharding.replicated(mesh)
    compiler = importlib.import_module("compile_ahead")
    rules, objective_of = step_module.tree_shardings, compiler.transformer_objective

    def replicated_moments(mesh: Mesh, tree: Any, members: bool = False) -> Any:
        shardings = rules(mesh, tree, members)
        if not isinstance(tree, TrainState):
            return shardings
        return shardings._replace(opt_state=jax.tree.map(lambda leaf: whole, tree.opt_state))

    def gathering(grads: Any, state: Any, params: Any) -> Any:
        return right.update(grads, jax.lax.with_sharding_constraint(state, whole), params)

    def gathered_teacher(*configs: Any, **settings: Any) -> Objective:
        objective = objective_of(*configs, **settings)

        def targets(params: Any, batch: tb.Batch) -> Any:
            return objective.targets(jax.lax.with_sharding_constraint(params, whole), batch)

        return objective._replace(targets=targets)

    if "replicated" in fault:
        step_module.tree_shardings = replicated_moments
    if "teacher" in fault:
        compiler.transformer_objective = gathered_teacher
    yield optax.GradientTransformation(right.init, gathering) if "update" in fault else right
    step_module.tree_shardings, compiler.transformer_objective = rules, objective_of


def gathers_in_a_loop(mesh: Mesh) -> Any:
    """Five matrices, each spread over 8 devices and gathered in its own iteration."""

    def step(total: jax.Array, matrix: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.lax.all_gather(jnp.sin(total[:1] + matrix), "fsdp", tiled=True), None

    def all_steps(matrices: jax.Array) -> jax.Array:
        start = jax.lax.pcast(jnp.zeros((8, 16)), ("fsdp",), to="varying")
        return jax.lax.scan(step, start, matrices)[0][None]

    spread = jax.shard_map(all_steps, mesh=mesh, in_specs=PartitionSpec(None, "fsdp"), out_specs=PartitionSpec("fsdp"))
    return jax.jit(spread).lower(jax.ShapeDtypeStruct((5, 8, 16), jnp.float32)).compile()


if __name__ == "__main__":
    compiler = importlib.import_module("compile_ahead")

    def check(mesh: Mesh, optimizer: optax.GradientTransformation | None = None) -> list[str]:
        step = compiler.make_step(mesh, STUDENT, TEACHER, rows=16, length=16, optimizer=optimizer, compute=COMPUTE)
        return faults(
            step, compiler.read_program(compiler.compile_step(step).as_text()), mesh, sharding.tree_shardings
        )

    devices = compiler.find_devices(8)
    meshes = {name: sharding.make_mesh(**sizes, devices=devices) for name, sizes in MESHES.items()}
    result: dict[str, Any] = {name: check(mesh) for name, mesh in meshes.items()}
    for name in BROKEN:
        mesh = meshes["data=2,fsdp=2,model=2"]
        with broken(name, mesh) as optimizer:
            result[name] = check(mesh, optimizer)
    looped = compiler.read_program(gathers_in_a_loop(meshes["fsdp=8"]).as_text()).collectives
    result["five gathers of 8 x 16 floats"] = [sum(c.times for c in looped), sum(c.traffic for c in looped)]
    print(json.dumps(result))
