"""Multi-head attention whose projections are linear layers of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class UnpackedAttention(nn.MultiheadAttention):
    """Multi-head attention that computes what an ``nn.MultiheadAttention`` does, by four linear layers.

    ``nn.MultiheadAttention`` packs the three input projections into one tensor and passes the weight of the output
    projection to a function, so that no layer is called that could be replaced. Its callers check its type and read
    its settings, so that this derives from it, without its parameters.

    Args:
        attention: the attention, without ``add_bias_kv`` and ``add_zero_attn``; its parameters are shared.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)  # the packed one's would create its weights
        for name in ("embed_dim", "kdim", "vdim", "num_heads", "dropout", "batch_first", "head_dim"):
            setattr(self, name, getattr(attention, name))
        self.bias_k = self.bias_v = None
        self.add_zero_attn = False
        # Callers take their fused path, which reads the packed weight, for this one alone.
        self._qkv_same_embed_dim = False
        self.in_proj_weight = self.in_proj_bias = None  # type: ignore[assignment]  # there are three instead
        biases = [None] * 3 if attention.in_proj_bias is None else list(attention.in_proj_bias.detach().chunk(3))
        packed = attention.in_proj_weight
        separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        weights = separate if packed is None else packed.detach().chunk(3)
        flags = attention.out_proj.weight.requires_grad
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=False):
            setattr(self, name, _linear(weight, bias, flags))
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias, flags)  # type: ignore[assignment]  # a plain one
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see ``nn.MultiheadAttention.forward`` for arguments and results."""
        del is_causal  # a hint: the mask says the same
        batched = query.ndim == 3
        if not batched:
            query, key, value = (values[None] for values in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (values.transpose(0, 1) for values in (query, key, value))
        queries, keys, values = (
            rows.reshape(*rows.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for rows in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        mask = self._mask(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (queries / math.sqrt(self.head_dim)) @ keys.mT
            weights = (scores if mask is None else scores + mask).softmax(-1)
            attended = F.dropout(weights, dropout, self.training) @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _mask(self, mask: Tensor | None, padding: Tensor | None, queries: Tensor) -> Tensor | None:
        """Return what is added to the scores, in a shape that broadcasts to `[B, heads, queries, keys]`."""
        added = None if mask is None else _as_added(mask, queries.dtype)
        if added is not None and added.ndim == 3:
            added = added.reshape(-1, self.num_heads, *added.shape[1:])
        if padding is None:
            return added
        hidden = _as_added(padding, queries.dtype)[:, None, None]
        return hidden if added is None else added + hidden


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _linear(weight: Tensor, bias: Tensor | None, requires_grad: bool) -> nn.Linear:
    """Return a linear layer that shares a weight `[out, in]` and a bias `[out]`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad)
    return linear
