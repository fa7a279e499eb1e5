"""Matrix products in the compute dtype, with sums over tokens in float32; int8 products; unit vectors."""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def float32_precision() -> str | None:
    """The value of `jax_default_matmul_precision`: how accelerators compute float32 products."""
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(
    equation: str, a: Float[Array, "..."], b: Float[Array, "..."], result: Any = jnp.float32
) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype, summed in the dtype `result`. Gradients are products in that dtype too.

    The gradient of `a` is summed in `result`, that of `b` in float32. A kernel must be `b`, because its gradient is a
    sum over all tokens. With JAX's default gradients, a float32 result would mean products in float32; with a bfloat16
    result, XLA on CPUs would sum them in bfloat16 (since jaxlib 0.11.2).
    """
    return jnp.einsum(equation, a, b, preferred_element_type=result)


def _forward(equation: str, a: Array, b: Array, result: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(equation, a, b, result), (a, b)


def _backward(equation: str, result: Any, operands: tuple[Array, Array], gradient: Array) -> Any:
    (a, b), gradient = operands, gradient.astype(operands[0].dtype)
    if a.dtype == jnp.float32:
        return jax.vjp(functools.partial(jnp.einsum, equation), a, b)[1](gradient)
    of_a, of_b, of_gradient = re.split(",|->", equation)
    # the gradient comes first: with the other order, XLA cannot run the products of relations on a CPU
    sums = (
        product(f"{of_gradient},{of_b}->{of_a}", gradient, b, result),
        product(f"{of_gradient},{of_a}->{of_b}", gradient, a),
    )
    return tuple(total.astype(a.dtype) for total in sums)


product.defvjp(_forward, _backward)


ACTIVATION_BITS = 8  # for the inputs of quantised products


def quantise(x: Float[Array, "..."], bits: int, axis: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Symmetric quantisation: integers, stored as floats, and scales with 1 on `axis`. Their product is close to x.

    >>> [array.tolist() for array in quantise(jnp.array([[127.0, 1.0], [-63.5, 2.0]]), 8, axis=0)]
    [[[127.0, 64.0], [-64.0, 127.0]], [[1.0, 0.015748031437397003]]]
    """
    largest = 2 ** (bits - 1) - 1
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axis, keepdims=True), 1e-12) / largest
    return jnp.round(x / scale), scale


def rounded(x: Float[Array, "..."], bits: int, axis: int) -> Float[Array, "..."]:
    """x rounded to the grid of `quantise`. Gradients pass through (straight-through estimator, Bengio et al., arXiv
    1308.3432). The grid covers all values of x, so no gradient is cut off.
    """
    integers, scale = quantise(jax.lax.stop_gradient(x), bits, axis)
    return x + jax.lax.stop_gradient((integers * scale).astype(x.dtype) - x)


def int8_product(x: Float[Array, "... i"], kernel: Any, scale: Float[Array, "o"]) -> Float[Array, "... o"]:
    """The float32 product of x and an int8 kernel [i, o] with scales [o]. x is quantised, with a scale per row."""
    integers, x_scale = quantise(x, ACTIVATION_BITS, axis=-1)
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    sums = jax.lax.dot_general(integers.astype(jnp.int8), kernel, contracted, preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * x_scale * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors divided by their norms. A zero vector stays zero and has a zero gradient.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


class Dense(nn.Module):
    """A dense layer [..., i] -> [..., features] in the compute dtype.

    The bias is added in float32. Its gradient is a sum over all tokens. In bfloat16 that sum would stop growing after
    some hundred tokens, because adding a number to one 256 times as large changes nothing.

    If `rank` is not 0, the kernel is the product of two kernels, "down" [i, rank] and "up" [rank, features].

    With `weight_bits`, inputs and kernel are rounded as in int8, and gradients pass through. If the parameters hold an
    int8 kernel, with its "kernel_scale", the product is computed in int8.
    """

    features: int
    dtype: Any
    kernel_init: Any
    rank: int = 0
    weight_bits: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.rank:
            shared = (self.dtype, self.kernel_init, 0, self.weight_bits)
            narrow = Dense(self.rank, *shared, use_bias=False, name="down")(x)
            return Dense(self.features, *shared, name="up")(narrow)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        if kernel.dtype == jnp.int8:
            scale = self.param("kernel_scale", nn.initializers.ones, (self.features,), jnp.float32)
            y = int8_product(x, kernel, jnp.asarray(scale))
        else:
            if self.weight_bits is not None:
                x, kernel = rounded(x, ACTIVATION_BITS, -1), rounded(jnp.asarray(kernel), self.weight_bits, 0)
            # not float32: if axis i is sharded, devices exchange partial sums, and bfloat16 is enough for these
            y = product("...i,io->...o", jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype), self.dtype)
        if not self.use_bias:
            return y.astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return (y.astype(jnp.float32) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(self.dtype)
