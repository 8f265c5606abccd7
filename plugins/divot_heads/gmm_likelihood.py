"""Likelihood and samples of a mixture of diagonal Gaussians, from the parameters that a projector predicts.

Shape letters: B batch, Q tokens of one clip, C feature width, K mixture components, P = 2*K*C + K parameters per token,
N tokens in one row.
"""

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import softplus

from divot_heads.gmm_variants import draw_components, relaxed

VARIANCE_FLOOR = 1e-5
"""Smallest variance of a component, as released."""

_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}
"""Elements of one (tokens, K, C) intermediate result: about the size of a CPU core's cache for each thread, so that
threads wait for each other seldom, and 16 MB on a GPU. A chunk has at least one token."""


def split_gmm_params(params_BQP: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a head's output into the parameters of the mixture.

    Args:
        params_BQP: (..., 2*K*C + K), float: K*C means, then K*C raw variances, then K logits.
        num_components: K.

    Returns:
        means_BQKC, variances_BQKC (softplus, at least 1e-5) and logits_BQK (unnormalised).

    >>> means, variances, logits = split_gmm_params(torch.zeros(1, 1, 2 * 3 * 4 + 3), 3)
    >>> tuple(means.shape), round(variances.max().item(), 4), tuple(logits.shape)
    ((1, 1, 3, 4), 0.6931, (1, 1, 3))
    """
    means_BQKC, raw_BQKC, logits_BQK = _split_raw(params_BQP, num_components)
    return means_BQKC, softplus(raw_BQKC).clamp(min=VARIANCE_FLOOR), logits_BQK


def gmm_nll(
    params_BQP: Tensor,
    target_BQC: Tensor,
    num_components: int,
    mask_BQ: Tensor | None = None,
    relaxation: float = 0.0,
) -> Tensor:
    """Return the negative log-likelihood of the mixture per feature dimension, averaged over the tokens.

    Loss and gradient are computed together, in chunks of tokens, so no (tokens, K, C) intermediate result is kept for
    the backward pass: the memory besides its inputs is one gradient of the size of `params_BQP`, and about six chunks.
    Neither loss nor gradient depends on the size of the chunks.

    Args:
        params_BQP: (..., 2*K*C + K), float32; see `split_gmm_params`.
        target_BQC: (..., C), float32.
        num_components: K.
        mask_BQ: (...), True or 1 where a token counts; None counts all.
        relaxation: In [0, 1); the loss is that of `divot_heads.gmm_variants.relaxed`.

    Returns:
        A scalar, float32, in nats per dimension; 0 if no token counts. It can be differentiated once: autograd
        refuses a second backward pass, since the first one scales the kept gradient in place.

    >>> standard = math.log(math.e - 1)  # softplus of it is a variance of 1
    >>> params = torch.tensor([0.0, 0.0, standard, standard, 0.0])
    >>> round(gmm_nll(params[None], torch.zeros(1, 2), num_components=1).item(), 4)  # log(2 pi) / 2
    0.9189
    """
    params_NP, target_NC = params_BQP.flatten(0, -2), target_BQC.flatten(0, -2)
    if mask_BQ is None:
        weights_N = target_NC.new_full((len(target_NC),), 1.0 / max(len(target_NC), 1))
    else:
        counts_N = mask_BQ.flatten().to(target_NC.dtype)
        weights_N = counts_N / counts_N.sum().clamp(min=1.0)
    loss: Tensor = _MixtureNLL.apply(params_NP, target_NC, weights_N, num_components, relaxation)
    return loss


def gmm_sample(
    params_BQP: Tensor,
    num_components: int,
    *,
    variance_scale: float = 1.0,
    temperature: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """Sample one component per token by its weight, then a value of that component's Gaussian.

    Args:
        params_BQP: (..., 2*K*C + K), float32; see `split_gmm_params`.
        num_components: K.
        variance_scale: Multiplies the variances; 0.1 in the released code.
        temperature: Divides the logits and multiplies the standard deviations; 0 gives the mean of the most
            probable component.
        generator: Random generator on the device of `params_BQP`.

    Returns:
        features_BQC, float32.
    """
    means_BQKC, variances_BQKC, logits_BQK = split_gmm_params(params_BQP, num_components)
    chosen_BQ = draw_components(logits_BQK, temperature, generator)
    index_BQ1C = chosen_BQ[..., None, None].expand(*chosen_BQ.shape, 1, means_BQKC.shape[-1])
    mean_BQC = means_BQKC.gather(-2, index_BQ1C).squeeze(-2)
    variance_BQC = variances_BQKC.gather(-2, index_BQ1C).squeeze(-2) * variance_scale
    noise_BQC = torch.randn(mean_BQC.shape, generator=generator, device=mean_BQC.device, dtype=mean_BQC.dtype)
    return mean_BQC + variance_BQC.sqrt() * temperature * noise_BQC


def _split_raw(params_BQP: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return means_BQKC, raw_BQKC (before the softplus) and logits_BQK as views."""
    half, rest = divmod(params_BQP.shape[-1] - num_components, 2)
    feature_dim, uneven = divmod(half, num_components)
    assert rest == uneven == 0, f"{params_BQP.shape[-1]} is not 2*K*C + K for K = {num_components}"
    means, raw, logits_BQK = params_BQP.split([half, half, num_components], dim=-1)
    shape = (num_components, feature_dim)
    return means.unflatten(-1, shape), raw.unflatten(-1, shape), logits_BQK


class _MixtureNLL(torch.autograd.Function):
    """Weighted NLL / C whose gradient is computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        params_NP: Tensor,
        target_NC: Tensor,
        weights_N: Tensor,
        num_components: int,
        relaxation: float,
    ) -> Tensor:
        needs_params, needs_target = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        # The gradient of the targets is a sum over that of the means, so it needs both.
        grad_params_NP = torch.empty_like(params_NP) if needs_params or needs_target else None
        grad_target_NC = torch.empty_like(target_NC) if needs_target else None
        cpu = params_NP.device.type == "cpu"
        block = max(1, _CHUNK_ELEMENTS["cpu" if cpu else "cuda"] // max(params_NP.shape[-1] // 2, 1))
        chunk = block * (torch.get_num_threads() if cpu else 1)
        log_likelihood_N = torch.empty_like(weights_N)
        for start in range(0, len(params_NP), chunk):
            rows = slice(start, start + chunk)
            log_likelihood_N[rows] = _chunk_log_likelihood(
                params_NP[rows],
                target_NC[rows],
                weights_N[rows] / target_NC.shape[-1],
                num_components,
                relaxation,
                None if grad_params_NP is None else grad_params_NP[rows],
                None if grad_target_NC is None else grad_target_NC[rows],
            )
        ctx.save_for_backward(grad_params_NP, grad_target_NC)  # type: ignore[arg-type]
        loss = params_NP.new_zeros(())
        # Block by block, so that the sum is rounded in the same way with any number of threads.
        for part_N in (weights_N / target_NC.shape[-1] * log_likelihood_N).split(block):
            loss -= part_N.sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # In place: a scaled copy of the size of the parameters would double the memory.
        grad_params_NP, grad_target_NC = (
            None if gradient is None else gradient.mul_(grad_loss) for gradient in ctx.saved_tensors
        )
        return grad_params_NP, grad_target_NC, None, None, None


def _chunk_log_likelihood(
    params_NP: Tensor,
    target_NC: Tensor,
    weights_N: Tensor,
    num_components: int,
    relaxation: float,
    grad_params_NP: Tensor | None,
    grad_target_NC: Tensor | None,
) -> Tensor:
    """Return the log-likelihoods of some tokens, relaxed, and write the gradients of their weighted NLL into the rows.

    With v = max(softplus(s), floor), u = (x - m) / v, w the weights of the components and r their responsibilities:
    d/dm = -r u, d/dx = sum r u, d/dv = r (1/v - u^2) / 2, dv/ds = sigmoid(s) above the floor, d/dlogit = w - r.
    Relaxed, r is (1 - relaxation) r + relaxation / K in all of these.
    """
    means_NKC, raw_NKC, logits_NK = _split_raw(params_NP, num_components)
    inverse_NKC = softplus(raw_NKC).clamp_(min=VARIANCE_FLOOR).reciprocal_()
    difference_NKC = target_NC.unsqueeze(1) - means_NKC
    scaled_NKC = difference_NKC * inverse_NKC
    log_weights_NK = logits_NK.log_softmax(dim=-1)
    mahalanobis_NK = torch.linalg.vecdot(difference_NKC, scaled_NKC)
    log_inverse_NK = inverse_NKC.log().sum(dim=-1)
    constant = target_NC.shape[-1] * math.log(2 * math.pi)
    joint_NK = log_weights_NK + 0.5 * (log_inverse_NK - mahalanobis_NK - constant)
    log_likelihood_N = joint_NK.logsumexp(dim=-1)
    if grad_params_NP is not None:
        weights_N1 = weights_N.unsqueeze(-1)
        responsibilities_NK = (joint_NK - log_likelihood_N.unsqueeze(-1)).exp_()
        if relaxation:
            responsibilities_NK.mul_(1 - relaxation).add_(relaxation / num_components)
        responsibilities_NK *= weights_N1
        grad_means_NKC, grad_raw_NKC, grad_logits_NK = _split_raw(grad_params_NP, num_components)
        torch.sub(log_weights_NK.exp() * weights_N1, responsibilities_NK, out=grad_logits_NK)
        _write_raw_gradient(grad_raw_NKC, raw_NKC, inverse_NKC, scaled_NKC, responsibilities_NK)
        torch.mul(scaled_NKC, -responsibilities_NK.unsqueeze(-1), out=grad_means_NKC)
        if grad_target_NC is not None:
            torch.sum(grad_means_NKC, dim=1, out=grad_target_NC).neg_()
    return relaxed(joint_NK, relaxation) if relaxation else log_likelihood_N


def _write_raw_gradient(
    grad_raw_NKC: Tensor, raw_NKC: Tensor, inverse_NKC: Tensor, scaled_NKC: Tensor, responsibilities_NK: Tensor
) -> None:
    torch.addcmul(inverse_NKC, scaled_NKC, scaled_NKC, value=-1.0, out=grad_raw_NKC)
    grad_raw_NKC *= (0.5 * responsibilities_NK).unsqueeze(-1)
    grad_raw_NKC *= raw_NKC.sigmoid() * (inverse_NKC < 1.0 / VARIANCE_FLOOR)
