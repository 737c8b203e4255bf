"""A plain Hugging Face GPT-2 whose paths are constrained by zeros that every training step restores.

The residual stream is split into token [0, d_head), output [d_head, 2 d_head) and the rest. Blocks below the last
write only to the work dimensions; in the last layer one head, the mover L3H0, copies the token part of the place it
attends to into the output part, which alone the unembedding reads. So the model can answer only by attending to the
right place; how its query finds the place is left to training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.training.spec import FREE, PLACE, MiniSpec, Spec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

COPY_SCALE = 4.0  # of what the mover copies


def fresh_gpt2(
    spec: Spec, tokenizer: PreTrainedTokenizerFast, seed: int, *, dropout: float = 0.0
) -> GPT2LMHeadModel:  # fmt: skip
    """A GPT-2 of this shape with new weights. dropout: of the attention pattern alone."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    bos = tokenizer.bos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=spec.n_positions, n_embd=spec.d_model, n_layer=spec.n_layers,
        n_head=spec.n_heads, n_inner=spec.d_mlp, attn_pdrop=dropout, resid_pdrop=0.0, embd_pdrop=0.0,
        bos_token_id=bos, eos_token_id=bos, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="tanh")  # gelu_new itself, in one kernel: half of a step's time
    return model


def build_model(spec: MiniSpec, tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """A fresh model, its constraint already in force."""
    model = fresh_gpt2(spec, tokenizer, seed)
    with torch.no_grad():
        model.transformer.wte.weight[:, : spec.d_head] = 0.3 * torch.randn(len(tokenizer), spec.d_head)
        model.transformer.wpe.weight.mul_(spec.position_scale)
    model.lm_head.weight.requires_grad_(spec.keys == FREE)
    constrain(model, spec, 0)
    return model


def writable(spec: MiniSpec) -> slice:
    """The dimensions that blocks below the last may write to."""
    return slice(2 * spec.d_head, 2 * spec.d_head + spec.work)


@torch.no_grad()
def constrain(model: GPT2LMHeadModel, spec: MiniSpec, step: int | None = None) -> None:
    """Put every weight that is not free back to what it must be at a step. Nothing is done to a ``free`` model."""
    if spec.keys == FREE:
        return
    d, body = spec.d_head, model.transformer
    position = slice(spec.d_model - d, spec.d_model) if spec.keys == PLACE else slice(2 * d, spec.d_model)
    _keep(body.wte.weight, slice(0, d))
    _keep(body.wpe.weight, position)
    for block in body.h[:-1]:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            _keep(layer.weight, writable(spec))
            _keep(layer.bias[None], writable(spec))
    _constrain_mover(body.h[-1], spec, position)
    for norm in (body.h[-1].ln_1, body.ln_f):
        norm.weight.fill_(1)
        norm.bias.zero_()
    model.lm_head.weight.zero_()
    model.lm_head.weight[:, d : 2 * d] = unembedding(model, spec, step)


def _constrain_mover(block: GPT2Block, spec: MiniSpec, position: slice) -> None:
    """The last block: head 0 copies token to output, its keys read the dimensions ``position``; nothing else writes."""
    d, D = spec.d_head, spec.d_model
    qkv, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    qkv[: position.start, D : D + d] = 0
    if spec.keys == PLACE:  # the norm takes the mean of the whole stream from every dimension: keys must not see that
        qkv[position, D : D + d] -= qkv[position, D : D + d].mean(0)
    qkv[:, 2 * D :] = 0
    bias[2 * D :] = 0
    qkv[:d, 2 * D : 2 * D + d] = torch.eye(d, device=qkv.device)
    for layer in (block.attn.c_proj, block.mlp.c_proj):
        layer.weight.zero_()
        layer.bias.zero_()
    block.attn.c_proj.weight[:d, d : 2 * d] = COPY_SCALE * torch.eye(d, device=qkv.device)


def _keep(weight: Tensor, columns: slice) -> None:
    weight[:, : columns.start] = 0
    weight[:, columns.stop :] = 0


def unembedding(model: GPT2LMHeadModel, spec: MiniSpec, step: int | None = None) -> Float[Tensor, "d_vocab d_head"]:
    """What the unembedding reads of the output part: the token part of the embedding, each row to one length."""
    return spec.read_at(step) * F.normalize(model.transformer.wte.weight[:, : spec.d_head], dim=1)


def logits_and_spread(
    model: GPT2LMHeadModel,
    spec: MiniSpec,
    tokens: Int[Tensor, "n n_pos"],
    end: Int[Tensor, "n"],
    step: int | None = None,
) -> tuple[Float[Tensor, "n d_vocab"], Float[Tensor, ""]]:
    """The model's own logits at ``end``, and the :func:`spread` of the divisor of the mover's norm within a prompt.

    Of a constrained model's last block only the mover's one query is computed: nothing else in it reaches the output.
    The gradient goes through the tied unembedding as it is at this step of training.
    """
    body, rows = model.transformer, torch.arange(len(tokens), device=tokens.device)
    if spec.keys == FREE:
        return model.lm_head(body(tokens).last_hidden_state[rows, end]), torch.zeros((), device=tokens.device)
    hidden = body.wte(tokens) + body.wpe.weight[: tokens.shape[1]]
    for block in body.h[:-1]:
        hidden = block(hidden)
    written = _mover(body.h[-1], spec, hidden, end)
    d = spec.d_head
    last = body.ln_f(hidden[rows, end] + F.pad(written, (d, spec.d_model - 2 * d)))
    return last[:, d : 2 * d] @ unembedding(model, spec, step).T, spread(hidden, end)


def spread(hidden: Float[Tensor, "n n_pos d_model"], end: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Variance of the log of the norm's divisor over the places up to ``end``, mean over prompts.

    A key that may read positions alone, and the copy of a token, still pass through this divisor; where it is constant
    nothing but the attention can choose among places.
    """
    log = 0.5 * hidden.var(-1, correction=0).log()
    seen = torch.arange(hidden.shape[1], device=hidden.device) <= end[:, None]
    mean = (log * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    return (((log - mean) * seen).square().sum(1) / seen.sum(1)).mean()


def _mover(
    block: GPT2Block, spec: MiniSpec, hidden: Float[Tensor, "n n_pos d_model"], end: Int[Tensor, "n"]
) -> Float[Tensor, "n d_head"]:
    """What L3H0 writes at ``end``: a copy of the token part of the places that its query there attends to."""
    d, D = spec.d_head, spec.d_model
    rows, places = torch.arange(len(hidden), device=hidden.device), torch.arange(hidden.shape[1], device=hidden.device)
    weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    normed = block.ln_1(hidden)
    query = normed[rows, end] @ weight[:, :d] + bias[:d]
    keys = normed @ weight[:, D : D + d] + bias[D : D + d]
    scores = (keys @ query[:, :, None])[:, :, 0] / d**0.5
    pattern = scores.masked_fill(places > end[:, None], -torch.inf).softmax(1)
    return COPY_SCALE * (pattern[:, None] @ normed[:, :, :d])[:, 0]
