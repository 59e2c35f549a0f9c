"""The sequence model: latents and actions so far -> the hidden state that predicts what comes next.

B batch   T steps   D width   H heads   A actions   L cache positions   n tokens a step (1 fused, 2 separate)

Two ways through the same weights: `forward` over whole windows (training), `prefill` + `step` over a preallocated
K/V cache (imagination). They agree to rounding: tests/world_model/test_transformer.py.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormfast.settings import WorldModelConfig
from stormfast_kernels import cached_attention_step


@dataclass
class KVCache:
    """Projected keys and values of every layer, in buffers made once."""

    key: Tensor  # [layers, B, H, L, D/H]
    value: Tensor  # [layers, B, H, L, D/H]
    length: Tensor  # [] int64 on the device, positions filled
    filled: int = 0  # the same on the host, where reserve() counts, so that a full cache is refused without a sync
    first: Tensor | None = None  # [B] int64, first position each sequence may see

    def reserve(self, tokens: int) -> None:
        """Counts tokens about to be appended. Raises: ValueError where they do not fit."""
        if self.filled + tokens > self.key.shape[-2]:
            raise ValueError(f"the cache is full: {self.filled} of {self.key.shape[-2]} tokens")
        self.filled += tokens

    def begin_anew(self, where: Tensor) -> None:
        """Makes what is cached invisible to the sequences in `where` [B] bool: an episode begins there."""
        first = torch.zeros_like(where, dtype=torch.int64) if self.first is None else self.first
        self.first = torch.where(where, self.filled, first)


class Attention(nn.Module):
    """Multi-head causal attention without biases, post-norm: LN(x + out(softmax(q k^T / sqrt(D/H)) v))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads, self.dropout = heads, dropout

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # [B, T, D] -> [B, H, T, D/H]

    def join(self, residual: Tensor, mixed: Tensor) -> Tensor:
        return self.norm(residual + F.dropout(self.out(mixed), self.dropout, self.training))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attend(x, self.split(self.key(x)), self.split(self.value(x)), mask)

    def attend(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Queries x [B, Q, D] over key, value [B, H, T, D/H]; mask [B or 1, 1, Q, T] is True where they may look."""
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(self.split(self.query(x)), key, value, attn_mask=mask, dropout_p=dropout)
        return self.join(x, mixed.transpose(-3, -2).flatten(-2))

    def step(self, x: Tensor, cache: KVCache, layer: int) -> Tensor:
        """One token x [B, D]: appends its key and value to the cache and attends over what the cache holds."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value)
        )
        mixed = cached_attention_step(
            query, key, value, cache.key[layer], cache.value[layer], cache.length, cache.first
        )
        return self.join(x, mixed.flatten(-2))


class FeedForward(nn.Module):
    """Post-norm two-layer ReLU network of inner width 2 D."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.dropout(self.outer(F.relu(self.inner(x))), self.dropout, self.training))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)


def token_stem(features: int, width: int) -> nn.Sequential:
    """Linear, LN, ReLU, Linear, LN: what turns an input vector into a token."""
    return nn.Sequential(
        nn.Linear(features, width, bias=False),
        nn.LayerNorm(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width, bias=False),
        nn.LayerNorm(width),
    )


def one_hot(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """[...] int64 -> [..., classes]. Not F.one_hot, whose range check waits for the device on some of them."""
    return (index[..., None] == torch.arange(classes, device=index.device)).to(dtype)


class FusedTokens(nn.Module):
    """The action mixer: one token a step from concat(latent, one-hot action)."""

    per_step = 1

    def __init__(self, latent_features: int, num_actions: int, width: int) -> None:
        super().__init__()
        self.stem = token_stem(latent_features + num_actions, width)
        self.num_actions = num_actions

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent [B, T, S*K], action [B, T] int64 -> [B, T, D]."""
        return self.stem(torch.cat([latent, one_hot(action, self.num_actions, latent.dtype)], -1))


class SeparateTokens(nn.Module):
    """Two tokens a step, observation then action; the action token's output is the step's hidden state.

    Source: the token ablation of STORM, arXiv 2310.09615, section 5.
    """

    per_step = 2

    def __init__(self, latent_features: int, num_actions: int, width: int) -> None:
        super().__init__()
        self.obs_stem = token_stem(latent_features, width)
        self.action_stem = token_stem(num_actions, width)
        self.num_actions = num_actions

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent [B, T, S*K], action [B, T] int64 -> [B, 2T, D]."""
        action_token = self.action_stem(one_hot(action, self.num_actions, latent.dtype))
        return torch.stack([self.obs_stem(latent), action_token], -2).flatten(-3, -2)


def causal_mask(is_first: Tensor | None, length: int, device: torch.device) -> Tensor:
    """True where step i may look at step j: j <= i and, where is_first [B, T] is given, in the same episode.

    Returns: [B or 1, 1, T, T] bool.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if is_first is None:
        return causal[None, None]
    episode = is_first.cumsum(-1)
    return (causal & (episode[:, :, None] == episode[:, None, :]))[:, None]


class SequenceModel(nn.Module):
    """Token stem, learned positions, LN, post-norm causal transformer blocks.

    Source: STORM, arXiv 2310.09615, section 3.1 and appendix.
    """

    def __init__(self, config: WorldModelConfig, num_actions: int) -> None:
        super().__init__()
        tokens: type[FusedTokens | SeparateTokens] = FusedTokens if config.tokens == "fused" else SeparateTokens
        self.tokens = tokens(config.categoricals * config.classes, num_actions, config.width)
        self.positions = nn.Embedding(config.max_length * tokens.per_step, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.config = config

    def layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def embed(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent [B, T, S*K], action [B, T] -> tokens at positions 0.. [B, n*T, D]."""
        if latent.shape[:2] != action.shape:
            raise ValueError(
                f"latent [B, T, S*K] and action [B, T] must fit, got {tuple(latent.shape)} and {tuple(action.shape)}"
            )
        tokens = self.tokens(latent, action)
        if tokens.shape[1] > self.positions.num_embeddings:
            raise ValueError(f"a window has at most {self.config.max_length} steps, got {action.shape[1]}")
        return self.norm(tokens + self.positions.weight[: tokens.shape[1]])

    def mask(self, is_first: Tensor | None, action: Tensor) -> Tensor:
        if is_first is not None and is_first.shape != action.shape:
            raise ValueError(
                f"is_first and action must both be [B, T], got {tuple(is_first.shape)} and {tuple(action.shape)}"
            )
        length = action.shape[1]
        mask = causal_mask(is_first, length, action.device)
        n = self.tokens.per_step
        if n == 1:
            return mask
        within = causal_mask(
            None, n * length, action.device
        )  # inside a step, the observation token may not see the action
        return mask.repeat_interleave(n, -1).repeat_interleave(n, -2) & within

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor | None) -> Tensor:
        """Hidden state of every step of a window.

        Args:
            latent: [B, T, S*K] float. action: [B, T] int64.
            is_first: [B, T] bool where attention must not cross episodes, or None where it may.
        Returns: [B, T, D]; row t has seen latents and actions 0..t.
        """
        x, mask = self.embed(latent, action), self.mask(is_first, action)
        for block in self.layers():
            x = block.feed_forward(block.attention(x, mask))
        return x[:, self.tokens.per_step - 1 :: self.tokens.per_step]

    def at(self, latent: Tensor, action: Tensor, step: Tensor) -> Tensor:
        """Row step[b] of what forward gives for one episode: latent [B, T, S*K], action [B, T], step [B] int64 -> [B,
        D].

        The last layer computes that row only. Causal: what lies beyond it is not seen.
        """
        x, last = self.embed(latent, action), len(self.blocks) - 1
        row = self.tokens.per_step * (step + 1) - 1
        mask = self.mask(None, action)
        for i, block in enumerate(self.layers()):
            key, value = block.attention.split(block.attention.key(x)), block.attention.split(block.attention.value(x))
            if i == last:
                x = x.gather(1, row[:, None, None].expand(-1, 1, x.shape[-1]))
                mask = mask[0, 0].index_select(0, row)[:, None, None]  # [B, 1, 1, T]
            x = block.feed_forward(block.attention.attend(x, key, value, mask))
        return x[:, 0]

    def new_cache(self, batch: int, steps: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """Room for `steps` steps of `batch` sequences."""
        if steps > self.config.max_length:
            raise ValueError(f"a cache holds at most {self.config.max_length} steps, got {steps}")
        shape = (
            self.config.layers,
            batch,
            self.config.heads,
            steps * self.tokens.per_step,
            self.config.width // self.config.heads,
        )
        key, value = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return KVCache(key, value, torch.zeros((), dtype=torch.int64, device=device))

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor | None, cache: KVCache) -> Tensor:
        """Fills the cache with a context in one pass.

        Args: as in forward; T must fit the cache, whatever it held is forgotten.
        Returns: [B, D], the hidden state of the last step.
        """
        x, mask = self.embed(latent, action), self.mask(is_first, action)
        count = x.shape[1]
        if x.shape[0] != cache.key.shape[1]:
            raise ValueError(f"a batch of {x.shape[0]} contexts does not fit a cache of {cache.key.shape[1]} sequences")
        if count > cache.key.shape[-2]:
            raise ValueError(f"context of {count} tokens does not fit a cache of {cache.key.shape[-2]}")
        for i, block in enumerate(self.layers()):
            key, value = block.attention.split(block.attention.key(x)), block.attention.split(block.attention.value(x))
            cache.key[i, :, :, :count], cache.value[i, :, :, :count] = key, value
            if i == len(self.blocks) - 1:  # only the last token's output is used
                x, mask = x[:, -1:], mask[:, :, -1:]
            x = block.feed_forward(block.attention.attend(x, key, value, mask))
        cache.filled = count
        cache.length.fill_(count)
        cache.first = None if is_first is None else first_visible(is_first) * self.tokens.per_step
        return x[:, -1]

    def step(self, latent: Tensor, action: Tensor, cache: KVCache) -> Tensor:
        """One more step: latent [B, S*K], action [B] -> hidden state [B, D].

        Raises ValueError when the cache is full.
        """
        cache.reserve(self.tokens.per_step)
        return self.step_reserved(latent, action, cache)

    def step_reserved(self, latent: Tensor, action: Tensor, cache: KVCache) -> Tensor:
        """step() after cache.reserve(): nothing here depends on the host's count, so that one compiled graph serves
        every step.
        """
        tokens = self.tokens(latent[:, None], action[:, None])
        for token in tokens.unbind(1):
            x = self.norm(token + self.positions(cache.length))  # indexing by a 0-d tensor would sync
            for i, block in enumerate(self.layers()):
                x = block.feed_forward(block.attention.step(x, cache, i))
            cache.length += 1
        return x


def first_visible(is_first: Tensor) -> Tensor:
    """The last step of each window at which an episode began, 0 where none did: [B, T] bool -> [B] int64."""
    steps = torch.arange(is_first.shape[1], device=is_first.device)
    return (steps * is_first).amax(-1)
