"""A small causal transformer over characters."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        number, length, width = states.shape
        joined = self.queries_keys_values(states).reshape(number, length, 3, self.heads, width // self.heads)
        queries, keys, values = joined.permute(2, 0, 3, 1, 4).unbind(0)
        # Written out: the fused kernel has no batched form over stacked parameters.
        scores = queries @ keys.transpose(-2, -1) * (width // self.heads) ** -0.5
        visible = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()
        attended = torch.where(visible, scores, -torch.inf).softmax(-1) @ values
        return self.output(attended.transpose(1, 2).reshape(number, length, width))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.perceptron_norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attention(self.attention_norm(states))
        return states + self.narrow(functional.gelu(self.wide(self.perceptron_norm(states))))  # type: ignore[no-any-return]


class CharLM(nn.Module):
    """Predicts each next character from those before it; at most ``context`` characters long."""

    def __init__(self, context: int, num_outputs: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_outputs, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Return outputs (n, length, num_outputs) for characters (n, length), integers below num_outputs."""
        places = torch.arange(characters.shape[1], device=characters.device)
        states = self.characters(characters) + self.positions(places)
        outputs: Tensor = self.head(self.norm(self.blocks(states)))
        return outputs
