"""The opponents of the benchmarks: distillation step and inference with transformers on PyTorch, eager or compiled.

Written to be fast: attention scores are taken where the attention computes them, the teacher runs without gradient
and keeps only the scores that the loss reads, AdamW is the fused one, inference uses SDPA. All is made and computed on
torch's default device.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention, softmax, threshold
from torch.nn.functional import dropout as dropout_
from transformers import AttentionInterface

from tinybert_jax.models.config import DEFAULT, BertConfig, Compute

Inputs = Mapping[str, Tensor]
# as JAX takes, which nothing limits
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attention_with_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """Eager attention that gives the masked scores before softmax as its weights; none of those that drop them."""
    scores = _masked_scores(query, key, attention_mask, scaling)
    probabilities = dropout_(softmax(scores, dim=-1), dropout, module.training)
    kept = None if getattr(module, "drops_scores", False) else scores
    return (probabilities @ value).transpose(1, 2).contiguous(), kept


def sdpa_with_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """SDPA, and beside it, once more, the same scores as `attention_with_scores` gives."""
    rate = dropout if module.training else 0.0
    context = scaled_dot_product_attention(query, key, value, attention_mask, rate, scale=scaling)
    drops = getattr(module, "drops_scores", False)
    kept = None if drops else _masked_scores(query, key, attention_mask, scaling)
    return context.transpose(1, 2).contiguous(), kept


def _masked_scores(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    scores = (query @ key.transpose(2, 3)) * scaling
    return scores if attention_mask is None else scores + attention_mask


for _name, _function in (("eager_with_scores", attention_with_scores), ("sdpa_with_scores", sdpa_with_scores)):
    AttentionInterface.register(_name, _function)


def bert(config: BertConfig, kind: type[Any], attention: str, **kwargs: Any) -> Any:
    """A random BERT of transformers with our config."""
    torch.set_num_threads(THREADS)
    return kind(transformers.BertConfig(**config.to_hf() | {"attn_implementation": attention}), **kwargs)


def autocast(compute: Compute) -> Any:
    """PyTorch's way to compute in bfloat16, where it is asked for."""
    if compute.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.get_default_device().type, torch.bfloat16)


def tensors(input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Inputs:
    """numpy arrays as the model's keyword arguments."""
    return {
        "input_ids": torch.as_tensor(input_ids).long(),
        "attention_mask": torch.as_tensor(attention_mask).long(),
        "token_type_ids": torch.as_tensor(token_type_ids).long(),
    }


def _adamw(
    named: list[tuple[str, nn.Parameter]], learning_rate: float = 5e-5, weight_decay: float = 0.01
) -> Callable[[Tensor], Tensor]:
    """One update from a loss, which comes back. The whole gradient's norm is clipped to 1 before AdamW, as ours is."""
    parameters = [parameter for _, parameter in named]
    no_decay = [parameter for name, parameter in named if name.endswith(("bias", "LayerNorm.weight"))]
    decay = [parameter for name, parameter in named if not name.endswith(("bias", "LayerNorm.weight"))]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)

    def update(loss: Tensor) -> Tensor:
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()  # not its number: on a GPU that would wait for it

    return update


def make_intermediate_step(
    teacher_config: BertConfig,
    student_config: BertConfig,
    compute: Compute = DEFAULT,
    attention: Literal["eager_with_scores", "sdpa_with_scores"] = "eager_with_scores",
    compiled: bool = False,
) -> Callable[[Inputs], Tensor]:
    """One update on embeddings, attention scores and hidden states, with the arithmetic of the original code.

    Masked scores are the minimum of float32, and `threshold` makes them 0, as the original makes all <= -1e2.
    `compiled`: teacher, student and losses are one graph of `torch.compile`, with its gradient; clipping and AdamW
    stay eager.
    """
    teacher = bert(teacher_config, transformers.BertModel, attention, add_pooling_layer=False).eval()
    student = bert(student_config, transformers.BertModel, attention, add_pooling_layer=False).train()
    project = nn.Linear(student_config.hidden_size, teacher_config.hidden_size)
    every = teacher_config.num_hidden_layers // student_config.num_hidden_layers
    for number, layer in enumerate(teacher.encoder.layer, 1):
        layer.attention.self.drops_scores = number % every != 0
    update = _adamw([*student.named_parameters(), *project.named_parameters(prefix="project")])
    context = autocast(compute)

    @torch.no_grad()
    def targets(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        scores, states = _scores_and_states(teacher, inputs)
        return [threshold(s, -1e2, 0.0) for s in scores], states[::every]

    def loss_of(inputs: Inputs) -> Tensor:
        with context:
            teacher_scores, teacher_states = targets(inputs)
            scores, states = _scores_and_states(student, inputs)
            return torch.stack(
                [mse_loss(threshold(s, -1e2, 0.0), t) for s, t in zip(scores, teacher_scores, strict=True)]
                + [mse_loss(project(s), t) for s, t in zip(states, teacher_states, strict=True)]
            ).sum()

    loss = torch.compile(loss_of, dynamic=False, fullgraph=True) if compiled else loss_of
    return lambda inputs: update(loss(inputs))


def _scores_and_states(model: Any, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The masked scores of all layers that keep them, and all hidden states, by the model's own modules in the order
    of its forward: how that records outputs, `torch.compile` cannot trace.
    """
    x = model.embeddings(input_ids=inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
    mask = (1.0 - inputs["attention_mask"].float())[:, None, None] * torch.finfo(torch.float32).min
    scores, states = [], [x]
    for layer in model.encoder.layer:
        attended, layer_scores = layer.attention(x, mask)
        x = layer.feed_forward_chunk(attended)
        states.append(x)
        if layer_scores is not None:
            scores.append(layer_scores)
    return scores, states


def make_prediction_step(teacher_config: BertConfig, student_config: BertConfig) -> Callable[[Inputs], Tensor]:
    """One update on the soft cross-entropy of class logits; the teacher runs in every step, as in the original."""
    teacher = bert(teacher_config, transformers.BertForSequenceClassification, "sdpa").eval()
    student = bert(student_config, transformers.BertForSequenceClassification, "sdpa").train()
    update = _adamw(list(student.named_parameters()))

    def step(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            targets = teacher(**inputs).logits.softmax(dim=-1)
        return update(cross_entropy(student(**inputs).logits, targets))

    return step


def make_inference(
    config: BertConfig, attention: str = "sdpa", compiled: bool = False, compute: Compute = DEFAULT
) -> Callable[[Inputs], Tensor]:
    """Class logits of a random classifier, its parameters in the compute dtype. SDPA is transformers' default and the
    fastest of its attentions here. `compiled` is torch.compile's mode for short calls, which records CUDA's graphs.
    """
    model = bert(config, transformers.BertForSequenceClassification, attention).eval()
    model = model.to(getattr(torch, compute.dtype))
    run = torch.compile(model, mode="reduce-overhead", dynamic=False) if compiled else model

    @torch.inference_mode()
    def logits(inputs: Inputs) -> Tensor:
        return run(**inputs).logits

    return logits


def make_onnx_inference(config: BertConfig, inputs: Inputs) -> Callable[[], Any]:
    """Class logits of these inputs from ONNX Runtime, of the model that `make_inference` runs."""
    import onnxruntime

    model = bert(config, transformers.BertForSequenceClassification, "sdpa").eval()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.onnx"
        torch.onnx.export(model, kwargs=dict(inputs), f=file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: session.run(None, feed)
