"""Adversarial autoencoders, adversarially learned inference (BiGAN) and generative adversarial networks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..adversaries import Adversary, ResidualAdversary
from ..amortised.adversaries import JointAdversary
from .draws import JointDraws
from .games import Game, SeesData, SeesLatents, SeesPairs, data_and_prior, decoded, encoded
from .loss import OneGameLoss


def plain_adversary() -> Adversary:
    """T of one input, the latents or the data."""
    return ResidualAdversary(hidden=128, target_hint=False)


class AdversarialAutoencoderLoss(OneGameLoss):
    """AAE: -E_q[log p(x | z)] + KL(q(z), p(z)), with T(z) = log q(z) - log p(z) (AVB, eq. 6.3-6.5).

    AVB's adversary restricted to functions of z: the aggregate q(z) is drawn to the prior, not q(z | x) to the
    posterior, so this is no bound of the likelihood.

    Args:
        adversary: T(z); a :class:`~avbvi.ResidualAdversary` by default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`).

    Raises:
        TypeError: an argument of the wrong type, or an adversary of another kind.
        ValueError: a non-positive number.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, avbvi
        >>> from pyro.infer import SVI
        >>> decoder, encoder = torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(encoder(x), 0.1).to_event(1))
        >>> loss = avbvi.AdversarialAutoencoderLoss(pretrain_steps=2)
        >>> svi = SVI(model, guide, loss.optimizer(lr=1e-3), loss=loss)
        >>> losses = [svi.step(torch.randn(8, 3)) for _ in range(2)]
        >>> loss.step_count, loss.skipped_steps
        (2, 0)

    Source: Makhzani, Shlens, Jaitly, Goodfellow and Frey (2015), Adversarial autoencoders, arXiv:1511.05644; AVB
    (Mescheder, Nowozin and Geiger 2017), eq. 6.3 to 6.5.
    """

    def game(self, adversary: Adversary | None, lr: float) -> Game:
        return Game(plain_adversary() if adversary is None else adversary, SeesLatents(), encoded, data_and_prior, lr)

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        (game,) = self.games
        return weight * game.log_ratio(draws.encoded, draws) - draws.log_likelihood


class AdversarialInferenceLoss(OneGameLoss):
    """ALI, or BiGAN: encoder and decoder both work against T(x, z) = log q(x, z) - log p(x, z) (AS-VAE, eq. 3).

    Each minimises the adversary's loss with the labels exchanged, which does not saturate. No density is needed; the
    decoder has to be reparameterised.

    Args:
        adversary: T(x, z); a :class:`~avbvi.JointAdversary` by default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`); a
            warm-up has no effect, as there is nothing else to learn by.

    Raises:
        TypeError: an argument of the wrong type, or an adversary of another kind.
        ValueError: a non-positive number.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, avbvi
        >>> from pyro.infer import SVI
        >>> decoder, encoder = torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(encoder(x), 0.1).to_event(1))
        >>> loss = avbvi.AdversarialInferenceLoss(pretrain_steps=2)
        >>> svi = SVI(model, guide, loss.optimizer(lr=1e-3), loss=loss)
        >>> losses = [svi.step(torch.randn(8, 3)) for _ in range(2)]
        >>> loss.step_count, loss.skipped_steps
        (2, 0)

    Source: Dumoulin et al. (2017), Adversarially learned inference, ICLR; Donahue, Krähenbühl and Darrell (2017),
    Adversarial feature learning, ICLR; AS-VAE (Pu et al. 2017), eq. 3.
    """

    def game(self, adversary: Adversary | None, lr: float) -> Game:
        return Game(JointAdversary() if adversary is None else adversary, SeesPairs(), encoded, decoded, lr)

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        (game,) = self.games
        t_q, t_p = game.log_ratio(draws.encoded, draws), game.log_ratio(draws.decoded, draws)
        return functional.softplus(t_q) + functional.softplus(-t_p)


class GenerativeAdversarialLoss(OneGameLoss):
    """GAN: the decoder alone, against T(x) = log q(x) - log p(x); there is no encoder.

    The decoder minimises -E_p log sigmoid(T), which does not saturate. With convolutional networks it is DCGAN. The
    guide is not asked: any function of the model's arguments will do, such as ``lambda x: None``.

    Args:
        adversary: T(x); a :class:`~avbvi.ResidualAdversary` of the flattened data by default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`); a
            warm-up has no effect, as there is nothing else to learn by.

    Raises:
        TypeError: an argument of the wrong type, or an adversary of another kind.
        ValueError: a non-positive number.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, avbvi
        >>> from pyro.infer import SVI
        >>> decoder = torch.nn.Linear(1, 3)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
        >>> loss = avbvi.GenerativeAdversarialLoss(pretrain_steps=2)
        >>> svi = SVI(model, lambda x: None, loss.optimizer(lr=1e-3), loss=loss)
        >>> losses = [svi.step(torch.randn(8, 3)) for _ in range(2)]
        >>> loss.step_count, loss.skipped_steps
        (2, 0)

    Source: Goodfellow et al. (2014), Generative adversarial nets, NeurIPS; with convolutional networks Radford, Metz
    and Chintala (2016), Unsupervised representation learning with deep convolutional generative adversarial networks,
    ICLR.
    """

    def game(self, adversary: Adversary | None, lr: float) -> Game:
        return Game(plain_adversary() if adversary is None else adversary, SeesData(), data_and_prior, decoded, lr)

    def _look_at_guide(self, draws: JointDraws) -> None:
        pass  # it is not asked

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        (game,) = self.games
        return functional.softplus(-game.log_ratio(draws.decoded, draws))

    def reconstruction_terms(self, draws: JointDraws) -> Tensor:
        raise TypeError("a GAN has no encoder, so that it reconstructs nothing; judge its samples instead")
