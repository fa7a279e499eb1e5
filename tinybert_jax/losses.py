"""Pure losses of one example: no batch axis, no hidden reduction over examples. `jax.vmap` adds the batch.

Sources: TinyBERT, arXiv 1909.10351, equations 7 to 10; MiniLMv2, arXiv 2012.15828, for other numbers of heads.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, Shaped

from tinybert_jax.precision import product, unit


def _masked_mean(values: Float[Array, "..."], mask: Shaped[Array, "..."]) -> Float[Array, ""]:
    """The mean of `values` over `mask`, which broadcasts. An empty mask gives 0, in value and in gradient."""
    mask = mask.astype(jnp.float32)
    counted = jnp.sum(mask) * (values.size // mask.size)
    return jnp.sum(values * mask) / jnp.maximum(counted, 1.0)


def attention_mse(
    student: Float[Array, "h q k"],
    teacher: Float[Array, "h q k"],
    mask: Num[Array, "k"] | None = None,
    padding: Literal["exclude", "zero"] = "exclude",
) -> Float[Array, ""]:
    """Mean squared error of attention scores before softmax (equation 7).

    Args:
        student: scores q.k / sqrt(head_dim), without the additive mask.
        teacher: attention scores of the teacher's mapped layer, computed in the same way.
        mask: 1 on real tokens; None: all positions count.
        padding: "exclude" averages over pairs of real tokens. "zero" is the original code's arithmetic: scores of
            padded keys, and scores of -100 and less, count as 0 on both sides, and the mean is over all pairs.

    Returns:
        A scalar, in squared score units.

    Raises:
        ValueError: `padding` is neither.

    >>> student, teacher = jnp.zeros((1, 2, 2)), jnp.array([[[1.0, 5.0], [5.0, 5.0]]])
    >>> float(attention_mse(student, teacher, jnp.array([1, 0])))
    1.0
    >>> float(attention_mse(student, teacher, jnp.array([1, 0]), padding="zero"))  # (1 + 0 + 25 + 0) / 4
    6.5
    """
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    real = jnp.ones(student.shape[-1]) if mask is None else mask
    if padding == "exclude":
        pairs = (real[:, None] * real[None, :])[None]
        return _masked_mean(jnp.square(student - teacher), pairs)

    if padding != "zero":
        raise ValueError(f"padding is {padding!r}; it must be exclude or zero")

    def zeroed(scores: Float[Array, "h q k"]) -> Float[Array, "h q k"]:
        return jnp.where((real[None, None, :] > 0) & (scores > -1e2), scores, 0.0)

    return jnp.mean(jnp.square(zeroed(student) - zeroed(teacher)))


def relation_kl(
    student: Float[Array, "q d"], teacher: Float[Array, "q e"], mask: Num[Array, "q"], relation_heads: int
) -> Float[Array, ""]:
    """KL divergence of self-attention relations (MiniLMv2, arXiv 2012.15828). The numbers of heads may differ.

    The heads are concatenated and split again into `relation_heads`. The relations of a relation head are
    softmax(x x^T / sqrt(width)) over the real tokens.

    Args:
        student: queries, keys or values, with all heads concatenated.
        teacher: queries, keys or values of the teacher's mapped layer, of any width.
        mask: 1 on real tokens.
        relation_heads: the number of relation heads; it divides both widths.

    Returns:
        A scalar, in nats: KL(teacher || student), averaged over relation heads and the rows of real tokens.

    >>> x = jnp.array([[2.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    >>> round(float(relation_kl(x, x, jnp.array([1, 1, 0]), 1)), 6)
    0.0
    >>> round(float(relation_kl(x, 9 * x, jnp.array([1, 1, 0]), 1)), 3)  # log(1 + exp(-4 / sqrt(2)))
    0.057
    """

    def log_relations(x: Float[Array, "q e"]) -> Float[Array, "r q q"]:
        split = x.reshape(x.shape[0], relation_heads, -1)
        products = product("qre,kre->rqk", split, split) / jnp.sqrt(jnp.float32(split.shape[-1]))
        return jax.nn.log_softmax(jnp.where(mask[None, None, :] > 0, products, -1e9))

    student_log, teacher_log = log_relations(student), log_relations(teacher)
    divergence = jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), axis=-1)
    return _masked_mean(divergence, jnp.broadcast_to(mask[None], divergence.shape))


def hidden_mse(
    student: Float[Array, "q d"], teacher: Float[Array, "q d"], mask: Num[Array, "q"] | None = None
) -> Float[Array, ""]:
    """Mean squared error of hidden states or embeddings (equations 8 and 9).

    Args:
        student: states, projected to the teacher's width.
        teacher: states of the teacher's mapped layer.
        mask: 1 on real tokens; None: all positions count, as in the original code.

    Returns:
        A scalar: the mean over counted positions and over d.

    >>> float(hidden_mse(jnp.zeros((2, 3)), jnp.array([[2.0] * 3, [9.0] * 3]), jnp.array([1, 0])))
    4.0
    """
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    real = jnp.ones(student.shape[0]) if mask is None else mask
    return _masked_mean(jnp.square(student - teacher), real[:, None])


def cosine_distance(
    student: Float[Array, "q d"], teacher: Float[Array, "q d"], mask: Num[Array, "q"]
) -> Float[Array, ""]:
    """Mean of 1 - cos(student, teacher) over the counted positions (DistilBERT, arXiv 1910.01108).

    Args:
        student: states.
        teacher: states of the same width.
        mask: 1 on real tokens.

    Returns:
        A scalar, from 0 to 2.

    >>> student, teacher = jnp.array([[1.0, 0.0], [9.0, 9.0]]), jnp.array([[0.0, 3.0], [1.0, 0.0]])
    >>> float(cosine_distance(student, teacher, jnp.array([1, 0])))
    1.0
    """
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    product, squares = (jnp.sum(student * teacher, -1), [jnp.sum(jnp.square(x), -1) for x in (student, teacher)])
    return _masked_mean(1.0 - product * jax.lax.rsqrt(squares[0] * squares[1] + 1e-12), mask)


def vector_mse(student: Float[Array, "d"], teacher: Float[Array, "d"]) -> Float[Array, ""]:
    """Mean squared error of a text's vector. For vectors of length 1 it is 2 / d times `vector_cosine`.

    >>> float(vector_mse(jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0])))
    5.0
    """
    return jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)))


def vector_cosine(student: Float[Array, "d"], teacher: Float[Array, "d"]) -> Float[Array, ""]:
    """1 - cos(student, teacher) of a text's vector, from 0 to 2.

    >>> float(vector_cosine(jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0])))
    1.0
    """
    return 1.0 - jnp.sum(unit(student.astype(jnp.float32)) * unit(teacher.astype(jnp.float32)))


def similarity_mse(
    student: Float[Array, "b d"], teacher: Float[Array, "b e"], mask: Num[Array, "b"]
) -> Float[Array, ""]:
    """Mean squared error of the cosines between the texts of a batch. It is a loss of a batch, not of an example.

    Park et al. (arXiv 1904.05068) compare distances in this way. The widths of student and teacher may differ.

    Args:
        student: vectors.
        teacher: vectors of the same texts, of any width.
        mask: 0 in filler rows.

    Returns:
        A scalar: the mean over pairs of different texts; 0 with fewer than two texts.

    >>> student, teacher = jnp.eye(3), jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> round(float(similarity_mse(student, teacher, jnp.array([1, 1, 1]))), 4)  # one pair of three, of cosine 1
    0.3333
    """
    cosines = [product("id,jd->ij", x, x) for x in (unit(x.astype(jnp.float32)) for x in (student, teacher))]
    pairs = mask[:, None] * mask[None, :] * (1 - jnp.eye(len(mask), dtype=mask.dtype))
    return _masked_mean(jnp.square(cosines[0] - cosines[1]), pairs)


def sigmoid_cross_entropy(logits: Float[Array, "c"], labels: Num[Array, "c"]) -> Float[Array, ""]:
    """Binary cross-entropy for multi-label rows: the mean over classes, as in torch's BCEWithLogitsLoss.

    Args:
        logits: one for each class.
        labels: 1 for the classes of the row, 0 for the others; or a probability for each class.

    Returns:
        A scalar, in nats.

    >>> round(float(sigmoid_cross_entropy(jnp.array([0.0, 100.0]), jnp.array([1, 1]))), 4)  # log(2) / 2
    0.3466
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    return -jnp.mean(labels * jax.nn.log_sigmoid(logits) + (1 - labels) * jax.nn.log_sigmoid(-logits))


def soft_sigmoid_cross_entropy(
    student: Float[Array, "c"], teacher: Float[Array, "c"], temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, ""]:
    """Binary cross-entropy against the teacher's softened probabilities in multi-label rows: the mean over classes.

    Args:
        student: logits.
        teacher: logits.
        temperature: divides the logits of both. The loss is not multiplied by temperature**2.

    Returns:
        A scalar, in nats.

    >>> round(float(soft_sigmoid_cross_entropy(jnp.zeros(3), jnp.array([9.0, 0.0, -4.0]))), 4)  # log(2)
    0.6931
    """
    target = jax.nn.sigmoid(teacher.astype(jnp.float32) / temperature)
    return sigmoid_cross_entropy(student.astype(jnp.float32) / temperature, target)


def soft_cross_entropy(
    student: Float[Array, "c"], teacher: Float[Array, "c"], temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, ""]:
    """Cross-entropy of the student against the teacher's softened distribution (equation 10).

    Args:
        student: logits.
        teacher: logits.
        temperature: divides the logits of both. The loss is not multiplied by temperature**2.

    Returns:
        A scalar, in nats.

    >>> import math
    >>> loss = soft_cross_entropy(jnp.zeros(4), jnp.array([9.0, 0.0, 0.0, 0.0]))
    >>> math.isclose(loss, math.log(4), rel_tol=1e-6)
    True
    """
    target = jax.nn.softmax(teacher.astype(jnp.float32) / temperature)
    return -jnp.sum(target * jax.nn.log_softmax(student.astype(jnp.float32) / temperature))


def cross_entropy(logits: Float[Array, "c"], label: Int[Array, ""]) -> Float[Array, ""]:
    """Cross-entropy of one label, in nats.

    >>> round(float(cross_entropy(jnp.zeros(2), jnp.array(1))), 4)
    0.6931
    """
    return -jax.nn.log_softmax(logits.astype(jnp.float32))[label]


def squared_error(logits: Float[Array, "1"], target: Float[Array, ""]) -> Float[Array, ""]:
    """Squared error of a regression head's single output, in squared units of the target.

    >>> float(squared_error(jnp.array([3.0]), jnp.array(5.0)))
    4.0
    """
    return jnp.square(logits.astype(jnp.float32)[0] - target)


def token_cross_entropy(logits: Float[Array, "q c"], labels: Int[Array, "q"]) -> Float[Array, ""]:
    """Mean cross-entropy over the tokens with a label of at least 0, in nats.

    >>> round(float(token_cross_entropy(jnp.zeros((3, 2)), jnp.array([1, -1, -1]))), 4)
    0.6931
    """
    losses = jax.vmap(cross_entropy)(logits, jnp.maximum(labels, 0))
    return _masked_mean(losses, labels >= 0)


def soft_token_cross_entropy(
    student: Float[Array, "q c"],
    teacher: Float[Array, "q c"],
    mask: Shaped[Array, "q"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """Mean of `soft_cross_entropy` over the tokens where `mask` is 1.

    >>> round(float(soft_token_cross_entropy(jnp.zeros((2, 2)), jnp.ones((2, 2)), jnp.array([1, 0]))), 4)
    0.6931
    """
    return _masked_mean(jax.vmap(soft_cross_entropy, (0, 0, None))(student, teacher, temperature), mask)


def span_cross_entropy(logits: Float[Array, "q 2"], span: Int[Array, "2"], mask: Num[Array, "q"]) -> Float[Array, ""]:
    """Mean of the cross-entropies of an answer's first and last token, in nats. The softmax is over real positions.

    >>> round(float(span_cross_entropy(jnp.zeros((4, 2)), jnp.array([0, 1]), jnp.array([1, 1, 0, 0]))), 4)
    0.6931
    """
    start, end = _over_positions(logits, mask)
    return (cross_entropy(start, span[0]) + cross_entropy(end, span[1])) / 2


def soft_span_cross_entropy(
    student: Float[Array, "q 2"],
    teacher: Float[Array, "q 2"],
    mask: Num[Array, "q"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """Mean of `soft_cross_entropy` for an answer's first and last token, in nats. The softmax is over real positions.

    >>> zeros = jnp.zeros((4, 2))
    >>> round(float(soft_span_cross_entropy(zeros, zeros, jnp.array([1, 1, 0, 0]))), 4)
    0.6931
    """
    pairs = zip(_over_positions(student, mask), _over_positions(teacher, mask), strict=True)
    first, last = (soft_cross_entropy(s, t, temperature) for s, t in pairs)
    return (first + last) / 2


def margin_mse(student: Float[Array, "c"], teacher: Float[Array, "c"], mask: Num[Array, "c"]) -> Float[Array, ""]:
    """Mean squared error of score margins: the first passage's score minus that of each other passage of the query.

    This is Margin-MSE (Hofstätter et al., arXiv 2010.02666, equation 6), for one or more other passages.

    Args:
        student: scores of the query's passages.
        teacher: scores of the same passages.
        mask: 1 on passages, 0 on padding after them.

    >>> float(margin_mse(jnp.array([3.0, 1.0, 9.0]), jnp.array([4.0, 0.0, 0.0]), jnp.array([1, 1, 0])))
    4.0
    """
    errors = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return _masked_mean(jnp.square(errors[0] - errors[1:]), mask[1:])


def listwise_cross_entropy(
    student: Float[Array, "c"],
    teacher: Float[Array, "c"],
    mask: Num[Array, "c"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """`soft_cross_entropy` of the scores of a query's passages (ListNet, Cao et al. 2007), in nats.

    >>> scores = jnp.array([0.0, 0.0, 9.0])
    >>> round(float(listwise_cross_entropy(scores, scores, jnp.array([1, 1, 0]))), 4)
    0.6931
    """
    return soft_cross_entropy(_among(student, mask), _among(teacher, mask), temperature)


def relevance_cross_entropy(
    scores: Float[Array, "c"], relevance: Float[Array, "c"], mask: Num[Array, "c"]
) -> Float[Array, ""]:
    """Cross-entropy of a query's scores against each passage's share of the relevance, in nats; 0 if none is relevant.

    >>> round(float(relevance_cross_entropy(jnp.zeros(3), jnp.array([2.0, 0.0, 0.0]), jnp.array([1, 1, 0]))), 4)
    0.6931
    """
    gains = relevance * mask
    shares = gains / jnp.maximum(jnp.sum(gains), 1e-9)
    return -jnp.sum(shares * jax.nn.log_softmax(_among(scores, mask)))


def _among(scores: Float[Array, "c"], mask: Num[Array, "c"]) -> Float[Array, "c"]:
    """Scores, with a very low value on padding after the passages."""
    return jnp.where(mask > 0, scores.astype(jnp.float32), -1e9)


def _over_positions(logits: Float[Array, "q 2"], mask: Num[Array, "q"]) -> tuple[Array, Array]:
    """The logits [q] of start and end, with a very low value on padding."""
    start, end = jnp.where(mask[:, None] > 0, logits.astype(jnp.float32), -1e9).T
    return start, end
