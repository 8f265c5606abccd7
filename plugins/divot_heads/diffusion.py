"""A diffusion loss on each token, with a small denoiser conditioned on the hidden state.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, N rows (tokens times noise draws).
"""

from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Generator, Tensor

from divot_heads.denoiser import MLPDenoiser
from divot_heads.draws import mean_of_draws, rows_of_draws
from divot_heads.guidance import condition_dropout_or_none, guided
from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.models.ddim import exact_scheduler, take_step
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean

NUM_STEPS = 1000
FIRST_EPSILON_STEP = 990
"""First step of sampling if the noise is predicted. The estimate of the clean features multiplies an error of the
prediction by 64 at this step, and by 20,000 at the last step. Here the noisy features still contain 1.6% of the clean
ones, too little to shift samples, which start from pure noise."""

Prediction = Literal["epsilon", "v"]


class DiffusionHead(GenerationHead):
    """Diffusion of each token by itself, given its hidden state, as in MAR (arXiv:2406.11838).

    Objective (b) of Divot (arXiv:2412.04432, section 3.2), which does not state the size of the denoiser, the
    schedule or the number of steps. Default width and depth are MAR's; the schedule is cosine with 1000 steps.
    Tokens are sampled independently of each other. Guidance as in MAR's code, if trained with `condition_dropout`.
    MAR's denoiser also learns the variance of each step; here it is that of DDPM's posterior (arXiv:2006.11239,
    equation 7), and `temperature` multiplies the noise of the start too.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ("sampling_steps", "guidance")

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        prediction: Prediction = "v",
        width: int = 1024,
        depth: int = 3,
        draws_per_token: int = 4,
        sampling_steps: int = 100,
        condition_dropout: float = 0.0,
        guidance: float = 1.0,
    ) -> None:
        """Build the denoiser.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
            prediction: What the denoiser predicts: the noise ("epsilon") or the velocity ("v").
            width: Width of the denoiser, even.
            depth: Residual blocks of the denoiser.
            draws_per_token: Noise draws per token and loss; more make the gradient less noisy and cost time in the
                head only.
            sampling_steps: Denoising steps per sample, 1 to 1000.
            condition_dropout: Probability that a row is trained without its hidden state, 0 to below 1; 0.1 in MAR.
            guidance: Guidance scale of sampling; 1 samples the learnt distribution, above 1 exaggerates the condition.
                Other values than 1 need condition dropout.
        """
        super().__init__(hidden_dim, feature_dim)
        require_one_of(get_args(Prediction), prediction=prediction)
        require_at_least(1, width=width, depth=depth, draws_per_token=draws_per_token)
        if not 1 <= sampling_steps <= NUM_STEPS:
            raise UserError(f"sampling_steps={sampling_steps} is not allowed; give 1 to {NUM_STEPS}")
        self.prediction = prediction
        self.draws_per_token = draws_per_token
        self.sampling_steps = sampling_steps
        self.guidance = guidance
        self.denoiser = MLPDenoiser(feature_dim, hidden_dim, width, depth)
        self.condition_dropout = condition_dropout_or_none(hidden_dim, condition_dropout, guidance)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the mean squared error of the prediction over C, draws and tokens; see `GenerationHead.loss`."""
        scheduler: Any = cosine_scheduler(self.prediction)  # the types of diffusers are too narrow
        clean_NC = rows_of_draws(clear_masked(target_BQC, mask_BQ), self.draws_per_token)
        condition_ND = rows_of_draws(clear_masked(hidden_BQD, mask_BQ), self.draws_per_token)
        noise_NC = torch.randn_like(clean_NC)
        timestep_N = torch.randint(len(scheduler.alphas_cumprod), (len(clean_NC),), device=clean_NC.device)
        noisy_NC = scheduler.add_noise(clean_NC, noise_NC, timestep_N)
        target_NC = noise_NC if self.prediction == "epsilon" else scheduler.get_velocity(clean_NC, noise_NC, timestep_N)
        if self.condition_dropout is not None:
            condition_ND = self.condition_dropout(condition_ND)
        error_NC = self.denoiser(noisy_NC, timestep_N, condition_ND) - target_NC
        error_BQ = mean_of_draws(error_NC.square().mean(dim=-1), target_BQC, self.draws_per_token)
        return masked_mean(error_BQ, mask_BQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Denoise from Gaussian noise (DDIM with eta 1, that is, ancestral sampling).

        Args:
            hidden_BQD: Hidden states at the queries.
            temperature: Multiplies all noise: the noise that sampling starts from and the noise that each step adds.
            generator: Random generator on the device of `hidden_BQD`.

        Returns:
            features_BQC, float32.
        """
        steps = sampling_times(self.prediction, self.sampling_steps)
        trained: Any = cosine_scheduler(self.prediction)  # the types of diffusers are too narrow
        scheduler = exact_scheduler(trained.alphas_cumprod, steps, trained.config.prediction_type)
        condition_ND = hidden_BQD.flatten(0, -2)
        shape = (len(condition_ND), self.feature_dim)
        features_NC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        for index, step in enumerate(steps):
            time_N = torch.full((len(features_NC),), step, device=hidden_BQD.device)
            predict = partial(self.denoiser, features_NC, time_N)
            prediction_NC = guided(predict, condition_ND, self.condition_dropout, self.guidance)
            noise_NC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
            features_NC = take_step(scheduler, index, prediction_NC, features_NC, eta=1.0, noise=noise_NC)
        return features_NC.view(*hidden_BQD.shape[:-1], self.feature_dim)


def sampling_times(prediction: Prediction, count: int) -> list[int]:
    """Return the training steps that sampling visits, in falling order.

    Args:
        prediction: "v" starts at the last step. "epsilon" starts at `FIRST_EPSILON_STEP`, or as late as needed if more
            steps are asked for than there are up to it.
        count: Number of steps, 1 to 1000.

    >>> sampling_times("v", 4), sampling_times("epsilon", 4)
    ([999, 749, 499, 249], [990, 660, 330, 0])
    """
    if prediction == "v":
        return [round(NUM_STEPS * left / count) - 1 for left in range(count, 0, -1)]
    first = max(FIRST_EPSILON_STEP, count - 1)
    return [first] if count == 1 else [round(first * left / (count - 1)) for left in range(count - 1, -1, -1)]


def cosine_scheduler(prediction: Prediction) -> DDIMScheduler:
    """Build the noise schedule: 1000 steps, cosine (arXiv:2102.09672, section 3.2), nothing clipped.

    Args:
        prediction: What the denoiser predicts.

    Returns:
        A fresh scheduler of `diffusers`.
    """
    return DDIMScheduler(
        num_train_timesteps=NUM_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
    )
