"""The tiny model: a text encoder, a denoiser and a picture codec in the shape of a latent diffusion model.

About a million weights, so that a lane on a CPU core takes a step in milliseconds. Nothing here draws a random
number; weights come from ``checkpoint.py``. Knows nothing of samplers' schedules, lanes or files.
"""

import math
import zlib
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

LATENT: Final = 4
"""Channels of a latent; its sides are an eighth of the picture's."""
SCALE: Final = 8
TOKENS: Final = 32
VOCABULARY: Final = 2048
TEXT: Final = 64
DATA_SIGMA: Final = 1.0
SMOOTH_SIGMA: Final = 0.15
STRENGTH: Final = 0.8

START, END, PAD = 0, 1, 2
_FIRST_WORD: Final = 3


def tokenize(text: str) -> list[int]:
    """Exactly ``TOKENS`` numbers: words by checksum, so that no vocabulary file is needed; what is over is cut."""
    words = text.lower().replace(",", " , ").split()
    ids = [_FIRST_WORD + zlib.crc32(word.encode()) % (VOCABULARY - _FIRST_WORD) for word in words]
    ids = [START, *ids[: TOKENS - 2], END]
    return ids + [PAD] * (TOKENS - len(ids))


class Attention(nn.Module):
    """Multi-head attention from ``x`` to ``context``; both (batch, tokens, channels)."""

    def __init__(self, channels: int, context: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(context, channels, bias=False)
        self.value = nn.Linear(context, channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        normal = self.norm(x)
        other = normal if context is None else context
        q, k, v = (self._split(t) for t in (self.query(normal), self.key(other), self.value(other)))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape)
        found: Tensor = x + self.out(mixed)
        return found

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        return x.reshape(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)


class TextEncoder(nn.Module):
    """Token numbers (batch, ``TOKENS``) → (batch, ``TOKENS``, ``TEXT``)."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, TEXT)
        self.position = nn.Embedding(TOKENS, TEXT)
        self.attention = Attention(TEXT, TEXT)
        self.norm = nn.LayerNorm(TEXT)
        self.mlp = nn.Sequential(nn.Linear(TEXT, 2 * TEXT), nn.GELU(), nn.Linear(2 * TEXT, TEXT))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight
        x = self.attention(x)
        found: Tensor = x + self.mlp(self.norm(x))
        return found


class Residual(nn.Module):
    """Two convolutions with the time's embedding between them."""

    def __init__(self, channels_in: int, channels_out: int, time: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time = nn.Linear(time, channels_out)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(time))[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        found: Tensor = self.skip(x) + h
        return found


class Denoiser(nn.Module):
    """A two-level UNet with attention to the text, in the form of Karras et al. 2022 (EDM), equations 7 and 8."""

    WIDTH: Final = 64
    TIME: Final = 128

    def __init__(self) -> None:
        super().__init__()
        width, deep, time = self.WIDTH, 2 * self.WIDTH, self.TIME
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.inner = nn.Conv2d(LATENT, width, 3, padding=1)
        self.down1 = Residual(width, width, time)
        self.pool = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.down2 = Residual(deep, deep, time)
        self.self_attention = Attention(deep, deep)
        self.cross_attention = Attention(deep, TEXT)
        self.up2 = Residual(deep, deep, time)
        self.widen = nn.Conv2d(deep, width, 3, padding=1)
        self.up1 = Residual(2 * width, width, time)
        self.norm = nn.GroupNorm(8, width)
        self.outer = nn.Conv2d(width, LATENT, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """The clean latent that ``x``, noised by ``sigma`` (batch), is taken to come from."""
        s = sigma[:, None, None, None]
        both = s * s + DATA_SIGMA**2
        inner = _smooth(torch.tanh(self._network(x / both.sqrt(), sigma.log() / 4, text)))
        # Untrained weights cannot tell picture from noise; pictures being smoother than noise, a Wiener filter can.
        noisy = s * s / (s * s + SMOOTH_SIGMA**2)
        kept = _smooth(x) * noisy + x * (1.0 - noisy)
        found: Tensor = kept * (DATA_SIGMA**2 / both) + inner * STRENGTH * (s * DATA_SIGMA / both.sqrt())
        return found

    def _network(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        half = self.WIDTH // 2
        steps = torch.exp(-math.log(1000.0) * torch.arange(half, device=x.device, dtype=x.dtype) / half)
        angles = time[:, None] * steps * 100.0
        embedded = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        top = self.down1(self.inner(x), embedded)
        low = self.down2(self.pool(top), embedded)
        batch, channels, height, width = low.shape
        tokens = low.flatten(2).transpose(1, 2)
        tokens = self.cross_attention(self.self_attention(tokens), text)
        low = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        low = self.up2(low, embedded)
        wide = functional.interpolate(self.widen(low), size=top.shape[-2:], mode="nearest")
        top = self.up1(torch.cat([wide, top], dim=1), embedded)
        found: Tensor = self.outer(functional.silu(self.norm(top)))
        return found


def _smooth(x: Tensor) -> Tensor:
    for _ in range(2):
        x = functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)
    return x


class Codec(nn.Module):
    """Pictures (batch, 3, height, width; 0 … 1) to latents and back: a linear map of colours plus small convolutions.

    ``colours`` (3 × ``LATENT``) is that map; previews use it alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.zeros(3, LATENT))
        self.detail1 = nn.Conv2d(LATENT, 32, 3, padding=1)
        self.detail2 = nn.Conv2d(32, 24, 3, padding=1)
        self.detail3 = nn.Conv2d(24, 16, 3, padding=1)
        self.detail4 = nn.Conv2d(16, 3, 3, padding=1)
        self.encode1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.encode2 = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.encode3 = nn.Conv2d(16, LATENT, 3, stride=2, padding=1)

    def decode(self, latent: Tensor) -> Tensor:
        x = functional.silu(self.detail1(latent))
        for layer in (self.detail2, self.detail3):
            x = functional.silu(layer(functional.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = self.detail4(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        smooth = functional.interpolate(latent, scale_factor=float(SCALE), mode="bilinear", align_corners=False)
        return self.to_colours(smooth, x)

    def to_colours(self, latent: Tensor, detail: Tensor | None = None) -> Tensor:
        """Colours of a latent at its own size, 0 … 1."""
        rgb = torch.einsum("rc,bchw->brhw", self.colours, latent)
        if detail is not None:
            rgb = rgb + 0.1 * torch.tanh(detail)
        return torch.clamp(0.5 + 0.25 * rgb, 0.0, 1.0)

    def encode(self, pixels: Tensor) -> Tensor:
        centred = (pixels - 0.5) * 4.0
        small = functional.avg_pool2d(centred, SCALE)
        inverse = torch.linalg.pinv(self.colours)
        base = torch.einsum("cr,brhw->bchw", inverse, small)
        x = functional.silu(self.encode1(centred))
        x = self.encode3(functional.silu(self.encode2(x)))
        return base + 0.05 * torch.tanh(x)


class TinyModel(nn.Module):
    """The three parts under the prefixes that Stable Diffusion checkpoints use for theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.cond_stage_model = TextEncoder()
        self.first_stage_model = Codec()
        self.model = nn.ModuleDict({"diffusion_model": Denoiser()})

    @property
    def denoiser(self) -> Denoiser:
        part = self.model["diffusion_model"]
        assert isinstance(part, Denoiser)  # noqa: S101 (set above; tells the type)
        return part
