"""What is done to tokens on their way to the de-tokenizer: a sphere, a KL term, noise, nested dropout.

Letters: B clips, Q tokens per clip, C channels of a token.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.models.randomness import Randomness, integer_rows, normal_rows, uniform_rows

NestedDropout = Literal["none", "uniform", "powers_of_two"]

INITIAL_STD = 0.1
"""First standard deviation of the posterior: small beside the tokens, which are LayerNorm outputs of deviation 1, so
that the de-tokenizer can read them from the first step, and large enough for the KL term to have a gradient."""


@dataclass(frozen=True)
class BottleneckConfig:
    """Options of the tokens. All are off by default, which is the paper's way.

    In training they act in this order: KL, noise, sphere, nested dropout. Without training only the sphere acts.

    Attributes:
        sphere: Scale each token to the norm sqrt(C), which is typical of a LayerNorm output, in training and later.
            Features that a video LLM generates are scaled, too (constant-norm tokens, SphereAR, arXiv:2509.24335).
        kl_weight: Weight of the KL divergence of the tokens' distribution from the standard normal one, per value; 0 is
            none. A token is then the mean of a normal distribution, and a linear layer adds its variance; training
            samples from it (arXiv:1312.6114; with a weight as in latent diffusion, arXiv:2112.10752).
        noise: Largest standard deviation of the noise that is added in training; that of each clip is uniform between
            0 and this number, so that the de-tokenizer learns to read tokens with errors (as in the code of RAE,
            arXiv:2510.11690, with 0.8). 0 is none.
        nested_dropout: Train with the first k tokens of each clip only, the others zero, so that any number of leading
            tokens decodes and the first ones hold what matters most (arXiv:1402.0915; for images and videos
            arXiv:2502.13967 and arXiv:2604.12887). k is uniform in 1 to Q, or a power of two or Q; "none" keeps all.
    """

    sphere: bool = False
    kl_weight: float = 0.0
    noise: float = 0.0
    nested_dropout: NestedDropout = "none"

    def __post_init__(self) -> None:
        """Refuse values without a meaning.

        Raises:
            UserError: A value is negative or unknown.
        """
        require_at_least(0, "tokenizer: bottleneck.", kl_weight=self.kl_weight, noise=self.noise)
        require_one_of(get_args(NestedDropout), "tokenizer: bottleneck.", nested_dropout=self.nested_dropout)


class TokenBottleneck(nn.Module):
    """Apply the options of a `BottleneckConfig`; it has weights only with a KL term.

    Args:
        config: The options.
        token_dim: Channels C of a token.
    """

    def __init__(self, config: BottleneckConfig, token_dim: int) -> None:
        super().__init__()
        self.config = config
        self.log_variance: nn.Linear | None = None
        if config.kl_weight > 0:
            self.log_variance = nn.Linear(token_dim, token_dim)
            nn.init.zeros_(self.log_variance.weight)
            nn.init.constant_(self.log_variance.bias, 2 * math.log(INITIAL_STD))

    def forward(self, tokens_BQC: Tensor) -> Tensor:
        """Return the tokens as they are used without training."""
        return to_sphere(tokens_BQC) if self.config.sphere else tokens_BQC

    def perturb(self, tokens_BQC: Tensor, generator: Randomness = None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens that the de-tokenizer is trained with, and the KL divergence.

        Args:
            tokens_BQC: Output of the tokenizer.
            generator: Random generator on the tokens' device, or one per clip on the CPU; unused if all is off.

        Returns:
            The tokens (B, Q, C), and the KL divergence per value in nats, scalar float32, or None without a KL term.
        """
        config, divergence = self.config, None
        if self.log_variance is not None:
            log_variance_BQC = self.log_variance(tokens_BQC).float()
            divergence = kl_to_standard_normal(tokens_BQC.float(), log_variance_BQC)
            tokens_BQC = _add_noise(tokens_BQC, (0.5 * log_variance_BQC).exp(), generator)
        if config.noise > 0:
            std_B = config.noise * uniform_rows(len(tokens_BQC), generator, tokens_BQC.device)
            tokens_BQC = _add_noise(tokens_BQC, std_B[:, None, None], generator)
        if self.log_variance is not None or config.noise > 0:
            tokens_BQC = self(tokens_BQC)  # back to the sphere
        if config.nested_dropout != "none":
            counts = kept_counts(config.nested_dropout, tokens_BQC.shape[1])
            index_B = integer_rows(len(counts), len(tokens_BQC), generator, tokens_BQC.device)
            tokens_BQC = keep_leading(tokens_BQC, torch.tensor(counts, device=tokens_BQC.device)[index_B])
        return tokens_BQC, divergence


def to_sphere(tokens_BQC: Tensor) -> Tensor:
    """Scale each token to the norm sqrt(C); a token of zeros stays as it is.

    >>> to_sphere(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])) / 2**0.5
    tensor([[[0.6000, 0.8000],
             [0.0000, 0.0000]]])
    """
    return functional.normalize(tokens_BQC, dim=-1) * tokens_BQC.shape[-1] ** 0.5


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of normal distributions from the standard normal one, averaged over all values.

    ``(mean^2 + variance - 1 - log variance) / 2`` for each value (arXiv:1312.6114, appendix B).

    Args:
        mean: Float, of any shape.
        log_variance: Of the same shape.

    Returns:
        Scalar, in nats, at least 0.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def kept_counts(rule: NestedDropout, num_tokens: int) -> list[int]:
    """Return the numbers of leading tokens that nested dropout chooses from, each with the same probability.

    >>> kept_counts("uniform", 5), kept_counts("powers_of_two", 12)
    ([1, 2, 3, 4, 5], [1, 2, 4, 8, 12])
    """
    if rule == "uniform":
        return list(range(1, num_tokens + 1))
    return [*(2**power for power in range(num_tokens.bit_length()) if 2**power < num_tokens), num_tokens]


def keep_leading(tokens_BQC: Tensor, count: int | Tensor) -> Tensor:
    """Set all but the leading tokens of each clip to zero, which no token of the tokenizer is.

    Args:
        tokens_BQC: Tokens, float.
        count: How many stay, from 1 to Q: one number, or one per clip, int64 (B,).

    Raises:
        UserError: One number is given, and it is not from 1 to Q.

    >>> keep_leading(torch.ones(2, 3, 1), torch.tensor([1, 3])).flatten(1)
    tensor([[1., 0., 0.],
            [1., 1., 1.]])
    """
    num_tokens = tokens_BQC.shape[1]
    if isinstance(count, int) and not 1 <= count <= num_tokens:
        raise UserError(f"num_tokens is {count}; a clip has {num_tokens} tokens, so give 1 to {num_tokens}")
    count_B = torch.as_tensor(count, device=tokens_BQC.device).expand(len(tokens_BQC))
    kept_BQ = torch.arange(num_tokens, device=tokens_BQC.device) < count_B[:, None]
    return torch.where(kept_BQ[..., None], tokens_BQC, 0.0)


def _add_noise(tokens_BQC: Tensor, std: Tensor, generator: Randomness) -> Tensor:
    noise = normal_rows(tokens_BQC.shape, generator, tokens_BQC.device)
    return tokens_BQC + (std * noise).to(tokens_BQC.dtype)
