"""The original TinyBERT arithmetic in PyTorch, written from its description: what `official` is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, mse_loss, softmax
from transformers import PreTrainedModel

NO_DECAY = ("bias", "LayerNorm.weight")


class Outputs(NamedTuple):
    """What a Hugging Face BERT gives, with the attention scores before mask and softmax."""

    hidden_states: tuple[Tensor, ...]  # l + 1 of [b, q, d]
    scores: tuple[Tensor, ...]  # l of [b, h, q, k]
    logits: Tensor | tuple[Tensor, Tensor] | None  # start and end of a span in question answering


def perturb(model: nn.Module, seed: int, scale: float = 0.1) -> None:
    """Adds noise to biases and LayerNorm weights: at their fresh values, 0 and 1, they would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(NO_DECAY):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def scores_of(model: PreTrainedModel, **inputs: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    """The unmodified model's output, and QK^T / sqrt(d) of every layer, computed from its query and key layers, with
    the bias of positions that MPNet adds.
    """
    outputs: dict[nn.Module, list[Tensor]] = {}
    bias: Any = 0
    if model.config.model_type == "distilbert":
        del inputs["token_type_ids"]
        attentions = [layer.attention for layer in model.base_model.transformer.layer]
        projections = [(attention.q_lin, attention.k_lin) for attention in attentions]
    elif model.config.model_type == "albert":  # whose groups are called again and again
        groups = model.base_model.encoder.albert_layer_groups
        repeats = model.config.num_hidden_layers // len(groups)
        attentions = [group.albert_layers[0].attention for group in groups for _ in range(repeats)]
        projections = [(attention.query, attention.key) for attention in attentions]
    elif model.config.model_type == "mpnet":
        del inputs["token_type_ids"]
        attentions = [layer.attention.attn for layer in model.base_model.encoder.layer]
        projections = [(attention.q, attention.k) for attention in attentions]
        bias = model.base_model.encoder.compute_position_bias(inputs["input_ids"])
    else:
        attentions = [layer.attention.self for layer in model.base_model.encoder.layer]
        projections = [(attention.query, attention.key) for attention in attentions]
    hooks = [
        linear.register_forward_hook(lambda module, _, output: outputs.setdefault(module, []).append(output))
        for linear in {linear for linears in projections for linear in linears}
    ]
    out = model(**inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    count = model.config.num_attention_heads

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    scores = []
    for linears in projections:
        query, key = (heads(outputs[linear].pop(0)) for linear in linears)
        scores.append(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias)
    return out, tuple(scores)


def run(model: PreTrainedModel, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Outputs:
    """One forward pass on anything `torch.as_tensor` takes."""
    out, scores = scores_of(
        model,
        input_ids=torch.as_tensor(input_ids).long(),
        attention_mask=torch.as_tensor(attention_mask).long(),
        token_type_ids=torch.as_tensor(token_type_ids).long(),
    )
    if hasattr(out, "start_logits"):
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        logits = getattr(out, "logits", None)
    return Outputs(out.hidden_states, scores, logits)


def official_transformer_loss(
    student: Outputs, teacher: Outputs, attention_mask: Tensor, fit_dense: nn.Linear
) -> dict[str, Tensor]:
    """`attention` (with the additive mask -1e4, entries <= -1e2 set to 0) and `hidden` (embedding included, one
    shared projection with bias); padded positions count in both. The loss is their sum."""
    layers = len(student.scores)
    step, rest = divmod(len(teacher.scores), layers)
    if rest:
        raise ValueError(f"{layers} student layers do not divide {len(teacher.scores)} teacher layers")
    additive = (1.0 - attention_mask[:, None, None, :].to(student.scores[0].dtype)) * -1e4

    def masked(scores: Tensor) -> Tensor:
        scores = scores + additive
        return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)

    attention = sum(
        mse_loss(masked(s), masked(teacher.scores[i * step + step - 1])) for i, s in enumerate(student.scores)
    )
    hidden = sum(mse_loss(fit_dense(s), teacher.hidden_states[i * step]) for i, s in enumerate(student.hidden_states))
    return {"attention": attention, "hidden": hidden}


def official_prediction_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """-p_T log p_S, mean over batch and classes; both logits divided by the temperature, no temperature^2 factor."""
    return (-softmax(teacher_logits / temperature, -1) * log_softmax(student_logits / temperature, -1)).mean()


def trained(student: PreTrainedModel, fit_dense: nn.Linear) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the Transformer stage trains: neither pooler nor head."""
    encoder = [(n, p) for n, p in student.named_parameters() if not n.startswith(("bert.pooler", "classifier"))]
    return [*encoder, *fit_dense.named_parameters(prefix="fit_dense")]


def gradients(loss: Tensor, named: list[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The gradient of each parameter, under its name."""
    grads = torch.autograd.grad(loss, [parameter for _, parameter in named])
    return {name: grad for (name, _), grad in zip(named, grads, strict=True)}


def train(
    loss: Callable[[], Tensor],
    named: list[tuple[str, nn.Parameter]],
    steps: int,
    total_steps: int,
    warmup: float,
    learning_rate: float,
) -> None:
    """The first `steps` of `total_steps` of BertAdam, in place."""
    optimizer = BertAdam(named, learning_rate, total_steps, warmup)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def warmup_linear(progress: float, warmup: float) -> float:
    """The original schedule: up from 0 over the first `warmup` of the run, then down to 0 at its end."""
    if progress < warmup:
        return progress / warmup
    return max((progress - 1) / (warmup - 1), 0.0)


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, with decoupled weight decay and clipping of each tensor by itself.

    Parameters without a gradient are left alone. `warmup=None` is a constant learning rate.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        total_steps: int,
        warmup: float | None = None,
        weight_decay: float = 0.01,
    ) -> None:
        named = list(named_parameters)
        groups = [
            {"params": [p for n, p in named if not n.endswith(NO_DECAY)], "weight_decay": weight_decay},
            {"params": [p for n, p in named if n.endswith(NO_DECAY)], "weight_decay": 0.0},
        ]
        super().__init__(groups, {})
        self.learning_rate, self.total_steps, self.warmup = learning_rate, total_steps, warmup
        self.steps_done = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        multiplier = 1.0 if self.warmup is None else warmup_linear(self.steps_done / self.total_steps, self.warmup)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                m, v = state["m"], state["v"]
                grad = p.grad * (1.0 / (p.grad.norm() + 1e-6)).clamp(max=1.0)
                m.mul_(0.9).add_(grad, alpha=0.1)
                v.mul_(0.999).addcmul_(grad, grad, value=0.001)
                update = m / (v.sqrt() + 1e-6) + group["weight_decay"] * p
                p.sub_(self.learning_rate * multiplier * update)
        self.steps_done += 1
