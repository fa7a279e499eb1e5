"""Products in the compute dtype, in the backward pass too; what is summed over tokens in float32."""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def float32_precision() -> str | None:
    """What JAX_DEFAULT_MATMUL_PRECISION, or its equal in the program, makes of float32 products on accelerators."""
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(
    equation: str, a: Float[Array, "..."], b: Float[Array, "..."], result: Any = jnp.float32
) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype, into `result`; the products of its gradients are in that dtype too.

    The gradient of `a` is summed in `result`, that of `b` in float32: `b` is the kernel where there is one, and its
    gradient is a sum over all tokens. JAX's own gradients would multiply in float32 where the result is float32; where
    it is bfloat16, XLA's compiler for CPUs would sum them in bfloat16 (from jaxlib 0.11.2 on).
    """
    return jnp.einsum(equation, a, b, preferred_element_type=result)


def _forward(equation: str, a: Array, b: Array, result: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(equation, a, b, result), (a, b)


def _backward(equation: str, result: Any, operands: tuple[Array, Array], gradient: Array) -> Any:
    (a, b), gradient = operands, gradient.astype(operands[0].dtype)
    if a.dtype == jnp.float32:
        return jax.vjp(functools.partial(jnp.einsum, equation), a, b)[1](gradient)
    of_a, of_b, of_gradient = re.split(",|->", equation)
    # the gradient comes first: from the other order einsum makes products for relations that XLA cannot run on a CPU
    sums = (
        product(f"{of_gradient},{of_b}->{of_a}", gradient, b, result),
        product(f"{of_gradient},{of_a}->{of_b}", gradient, a),
    )
    return tuple(total.astype(a.dtype) for total in sums)


product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """A dense layer [..., i] -> [..., features] in the compute dtype.

    Its bias is added in float32. In bfloat16 the bias's gradient, a sum over all tokens, would stop growing after some
    hundreds of them: a number is lost where what it is added to is 256 times as large.
    """

    features: int
    dtype: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        # not into float32: where devices share i, they send each other parts of the sum, and bfloat16 is enough
        y = product("...i,io->...o", jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype), self.dtype)
        return (y.astype(jnp.float32) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(self.dtype)
