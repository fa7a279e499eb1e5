"""Products in the compute dtype, in the backward pass too; what is summed over tokens in float32."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def float32_precision() -> str | None:
    """What JAX_DEFAULT_MATMUL_PRECISION, or its equal in the program, makes of float32 products on accelerators."""
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype, into float32; the products of its gradients are in that dtype too.

    JAX's own gradients of it would multiply in float32, since what comes back is float32.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _forward(equation: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(equation, a, b), (a, b)


def _backward(equation: str, operands: tuple[Array, Array], gradient: Array) -> Any:
    return jax.vjp(functools.partial(jnp.einsum, equation), *operands)[1](gradient.astype(operands[0].dtype))


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
        # no `product`: where devices share i, they send each other parts of the sum, and bfloat16 is enough
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        return (y.astype(jnp.float32) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(self.dtype)
