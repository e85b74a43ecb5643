"""A variational autoencoder of small handwritten digits, with an encoder that has no density.

python examples/vae_digits.py [--latent 2] [--steps 1500] [--out vae_digits.png]
"""

import argparse

import torch
from matplotlib.figure import Figure

import avbvi
from avbvi import AVBGuide, JointAdversary, SemiImplicitSampler, SigmoidTemperatures, plots
from models.data import digits
from models.data.binarisation import StaticBinarisation
from models.data.loaders import loader
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description="A variational autoencoder of 8 x 8 digits.")
    parser.add_argument("--latent", type=int, default=2, help="number of latent dimensions")
    parser.add_argument("--steps", type=int, default=1500, help="number of training steps")
    parser.add_argument("--temperatures", type=int, default=50, help="of annealed importance sampling")
    parser.add_argument("--out", default="vae_digits.png", help="picture to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    # The model is an ordinary Pyro model of a minibatch; its decoder learns with the guide.
    torch.manual_seed(options.seed)
    data = digits.load()
    vae = VAE(FullyConnectedDecoder(options.latent, (1, 8, 8), hidden=(200, 200)), options.latent)
    guide = AVBGuide(vae.model, sampler=SemiImplicitSampler(context_dim=64), adversary=JointAdversary((128, 128)))
    batches = loader(data.train, batch_size=128)
    posterior = avbvi.fit(vae.model, batches, guide=guide, seed=options.seed, steps=options.steps)
    assert isinstance(posterior, avbvi.AmortisedPosterior)  # one posterior per digit
    print(posterior.verdict)

    # How good is the model? log p(x) of unseen digits, by annealed importance sampling from the encoder's moments.
    x = StaticBinarisation(seed=0)(data.test.intensities())[:100]
    evidence = avbvi.annealed_importance_sampling(
        vae.model, x, guide=guide, temperatures=SigmoidTemperatures(options.temperatures), seed=options.seed
    )
    print(f"\nlog p(x) of {len(x)} test digits: {evidence.mean}")
    print(f"ELBO as the adversary sees it:  {posterior.elbo(x)}")

    # Above: unseen digits and what the model makes of them. Below: digits that it makes up.
    z = posterior.sample(1, x[:10])["z"][0]
    with torch.no_grad():
        rebuilt, made_up = vae.mean(z), vae.mean(torch.randn(30, options.latent))
    with plots.style():
        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(2, 3))
        label = "unseen digits, and their reconstructions"
        plots.reconstruction_panel(above, x[:10].reshape(-1, 8, 8), rebuilt.reshape(-1, 8, 8), label=label)
        plots.image_panel(below, made_up.reshape(-1, 8, 8), columns=10, label="digits that the model makes up")
    figure.savefig(options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
