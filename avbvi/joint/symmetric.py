"""The symmetric adversarial VAE (AS-VAE) and its two halves (Pu et al. 2017, eq. 5-12)."""

from __future__ import annotations

from torch import Tensor

from ..adversaries import Adversary
from ..amortised.adversaries import JointAdversary
from ..arguments import flag, found, positive_number
from ..schedules import Schedule
from .draws import JointDraws
from .games import (
    Game,
    JointContrast,
    SeesPairs,
    decoded,
    encoded,
    encoded_simulations,
    encoder_marginals,
    encoding_ratio,
    model_marginals,
)
from .loss import ADVERSARY_LR, JointAdversarialLoss, OneGameLoss


def pair_adversary() -> Adversary:
    """T of pairs: with a quadratic form, so that it goes on where few draws of the products of marginals lie."""
    return JointAdversary(quadratic=True)


def encoder_game(adversary: Adversary | None, lr: float, densities: bool | None) -> Game:
    """f1 = log q(x, z) - log p(x) p(z) (eq. 5); the contrast is p(x) q(z | x)."""
    return Game(
        pair_adversary() if adversary is None else adversary,
        SeesPairs(),
        encoded,
        model_marginals,
        positive_number("adversary_lr", lr),
        contrast=None if densities is False else JointContrast(encoded_simulations, encoding_ratio),
        needed=densities is True,
    )


def decoder_game(adversary: Adversary | None, lr: float, densities: bool | None) -> Game:
    """f2 = log p(x, z) - log q(x) q(z) (eq. 6); the contrast is q(x, z), for which log q(z) is taken for log p(z)."""
    return Game(
        pair_adversary() if adversary is None else adversary,
        SeesPairs(),
        decoded,
        encoder_marginals,
        positive_number("adversary_lr", lr),
        contrast=None if densities is False else JointContrast(encoded, encoding_ratio),
        needed=densities is True,
    )


def _checked(densities: bool | None) -> bool | None:
    return None if densities is None else flag("densities", densities)


class OneSidedELBO(OneGameLoss):
    """What both halves of AS-VAE have in common: one adversary, and whether the guide's density helps it.

    Args:
        adversary: the network; ``None`` takes the subclass's default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`).
        densities: as :class:`ReconstructionELBO`.
    """

    def __init__(
        self,
        adversary: Adversary | None = None,
        *,
        steps: int | None = None,
        adversary_steps: int = 2,
        adversary_lr: float = ADVERSARY_LR,
        pretrain_steps: int = 100,
        schedule: Schedule | None = None,
        densities: bool | None = None,
    ) -> None:
        self.densities: bool | None = _checked(densities)
        super().__init__(
            adversary,
            steps=steps,
            adversary_steps=adversary_steps,
            adversary_lr=adversary_lr,
            pretrain_steps=pretrain_steps,
            schedule=schedule,
        )


class ReconstructionELBO(OneSidedELBO):
    """AS-VAE-r: E_q(x, z)[log p(x | z) - f1(x, z)], the half that learns by likelihood (eq. 8).

    f1 learns log q(x, z) - log p(x) p(z). To the encoder its gradient is that of log q(z | x) - log p(z), so that it
    learns as in AVB with the prior as contrast: KL(q(x, z), p(x, z)) is what is minimised, in both. The encoder needs
    no density: an :class:`~avbvi.AVBGuide` whose sampler takes a context will do. Where it has one, f1 is
    log q(z | x) - log p(z) + T, and T is told q(x, z) from p(x) q(z | x): it has log q(x) - log p(x) left to learn.

    Args:
        adversary: f1; a :class:`~avbvi.JointAdversary` with ``quadratic`` by default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`).
        densities: tell the adversary its sample from a law that is nearer than a product of marginals, by the density
            of the guide; by default where that can be evaluated at any latents. False is the paper's way.

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
        >>> loss = avbvi.ReconstructionELBO(pretrain_steps=2)
        >>> svi = SVI(model, guide, loss.optimizer(lr=1e-3), loss=loss)
        >>> losses = [svi.step(torch.randn(8, 3)) for _ in range(2)]
        >>> loss.step_count, loss.skipped_steps
        (2, 0)

    Source: Pu, Wang, Henao, Chen, Gan, Li and Carin (2017), Adversarial symmetric variational autoencoder, NeurIPS,
    eq. 5 and 8; the contrast by the guide's density is this project's.
    """

    def game(self, adversary: Adversary | None, lr: float) -> Game:
        return encoder_game(adversary, lr, self.densities)

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        (f1,) = self.games
        return weight * f1.log_ratio(draws.encoded, draws) - draws.log_likelihood


class GenerationELBO(OneSidedELBO):
    """AS-VAE-g: E_p(x, z)[log q(z | x) - f2(x, z)], the half that learns to generate (eq. 9).

    f2 learns log p(x, z) - log q(x) q(z); KL(p(x, z), q(x, z)) is what is minimised. The decoder has to be
    reparameterised, and the encoder to have a density at any z. f2 = log q(z | x) - log p(z) + T, and T is told p(x, z)
    from q(x, z): it learns the very ratio that is to vanish. That leaves log q(z) - log p(z) out of f2, which does not
    depend on x and so teaches nobody.

    Args:
        adversary: f2; a :class:`~avbvi.JointAdversary` with ``quadratic`` by default.
        adversary_lr: learning rate of its Adam (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`).
        densities: tell the adversary its sample from a law that is nearer than a product of marginals, by the density
            of the guide; by default where that can be evaluated at any latents. False is the paper's way.

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
        >>> loss = avbvi.GenerationELBO(pretrain_steps=2)
        >>> svi = SVI(model, guide, loss.optimizer(lr=1e-3), loss=loss)
        >>> losses = [svi.step(torch.randn(8, 3)) for _ in range(2)]
        >>> loss.step_count, loss.skipped_steps
        (2, 0)

    Source: Pu, Wang, Henao, Chen, Gan, Li and Carin (2017), Adversarial symmetric variational autoencoder, NeurIPS,
    eq. 6 and 9; the contrast by the guide's density is this project's.
    """

    def game(self, adversary: Adversary | None, lr: float) -> Game:
        return decoder_game(adversary, lr, self.densities)

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        (f2,) = self.games
        return weight * f2.log_ratio(draws.decoded, draws) - draws.log_encoding

    def reconstruction_terms(self, draws: JointDraws) -> Tensor:
        return -draws.log_encoding


class SymmetricAdversarialELBO(JointAdversarialLoss):
    """AS-VAE: the sum of both halves (eq. 11), which minimises the symmetric KL divergence of q(x, z) and p(x, z).

    The decoder has to be reparameterised, and the encoder to have a density at any z. What f1 and f2 are made of is in
    :class:`ReconstructionELBO` and :class:`GenerationELBO`.

    Args:
        adversaries: f1 and f2; two :class:`~avbvi.JointAdversary` with ``quadratic`` by default.
        adversary_lr: learning rate of their Adams (betas 0.5, 0.999), by default 0.002.
        steps: number of training calls to come (:class:`~avbvi.joint.JointAdversarialLoss`).
        adversary_steps: steps of the adversary per outer step.
        pretrain_steps: those before the first outer step.
        schedule: decay of the rates, polish and warm-up (:class:`~avbvi.joint.JointAdversarialLoss`).
        densities: tell the adversary its sample from a law that is nearer than a product of marginals, by the density
            of the guide; by default where that can be evaluated at any latents. False is the paper's way.

    Raises:
        TypeError: ``adversaries`` is no pair of adversaries of (x, z), or an argument of the wrong type.
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
        >>> loss = avbvi.SymmetricAdversarialELBO(pretrain_steps=2)
        >>> svi = SVI(model, guide, loss.optimizer(lr=1e-3), loss=loss)
        >>> losses = [svi.step(torch.randn(8, 3)) for _ in range(2)]
        >>> loss.step_count, loss.skipped_steps
        (2, 0)

    Source: Pu, Wang, Henao, Chen, Gan, Li and Carin (2017), Adversarial symmetric variational autoencoder, NeurIPS,
    eq. 5 to 12; the contrast by the guide's density is this project's.
    """

    def __init__(
        self,
        adversaries: tuple[Adversary, Adversary] | None = None,
        *,
        steps: int | None = None,
        adversary_steps: int = 2,
        adversary_lr: float = ADVERSARY_LR,
        pretrain_steps: int = 100,
        schedule: Schedule | None = None,
        densities: bool | None = None,
    ) -> None:
        if adversaries is not None and not (isinstance(adversaries, tuple | list) and len(adversaries) == 2):
            many = f"{len(adversaries)} of them" if isinstance(adversaries, tuple | list) else found(adversaries)
            raise TypeError(f"adversaries must be a pair (f1, f2), found {many}")
        f1, f2 = (None, None) if adversaries is None else adversaries
        super().__init__(
            [encoder_game(f1, adversary_lr, _checked(densities)), decoder_game(f2, adversary_lr, densities)],
            steps=steps,
            adversary_steps=adversary_steps,
            pretrain_steps=pretrain_steps,
            schedule=schedule,
        )

    def terms(self, draws: JointDraws, weight: float) -> Tensor:
        f1, f2 = self.games
        ratios = f1.log_ratio(draws.encoded, draws) + f2.log_ratio(draws.decoded, draws)
        return weight * ratios - draws.log_likelihood - draws.log_encoding

    def reconstruction_terms(self, draws: JointDraws) -> Tensor:
        return -draws.log_likelihood - draws.log_encoding
