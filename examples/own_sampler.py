"""A sampler of your own: any network of any noise is a guide, without a density.

python examples/own_sampler.py [--noise 64] [--coins] [--steps 5000]
"""

import argparse

import torch
from torch import Tensor, nn

import avbvi
from models import eight_schools


class Generator(nn.Module):
    """Noise to as many numbers as the model has latents: here 10, the schools' effects, their mean and their scale."""

    def __init__(self, noise_dim: int, coins: bool) -> None:
        super().__init__()
        self.noise_dim = noise_dim
        self.coins = coins
        self.network = nn.Sequential(
            nn.Linear(noise_dim, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        """Only needed where the noise is not standard normal."""
        noise = torch.randn(*shape, self.noise_dim).to(like)
        return noise.sign() if self.coins else noise

    def forward(self, noise: Tensor) -> Tensor:
        draws: Tensor = self.network(noise)
        return draws


def main() -> None:
    parser = argparse.ArgumentParser(description="Eight Schools by a generator network.")
    parser.add_argument("--noise", type=int, default=64, help="width of the noise")
    parser.add_argument("--coins", action="store_true", help="toss coins instead of normal noise")
    parser.add_argument("--steps", type=int, default=5000, help="number of training steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    guide = avbvi.AVBGuide(eight_schools.model, sampler=Generator(options.noise, options.coins))
    posterior = avbvi.fit(eight_schools.model, guide=guide, seed=options.seed, steps=options.steps)
    print(posterior.verdict)

    # The exact posterior is known for this model.
    draws, exact = posterior.sample(10_000), eight_schools.exact_posterior(10_000, seed=1)
    print("\n            generator          exact")
    for name in ("mu", "tau"):
        q, p = draws[name].flatten(), exact[name].flatten()
        print(f"{name:<6}{q.mean():8.2f} ± {q.std():.2f}{p.mean():10.2f} ± {p.std():.2f}")


if __name__ == "__main__":
    main()
