"""AS-VAE against AVB on small handwritten digits: two ways to compare, adversarially, an encoder with a decoder.

python examples/relatives_digits.py [--steps 2000] [--out relatives_digits.png]
"""

import argparse

import torch
from matplotlib.figure import Figure
from pyro.infer import SVI

import avbvi
from avbvi import (
    AVBGuide,
    GaussianStart,
    JointAdversary,
    SemiImplicitSampler,
    SigmoidTemperatures,
    SymmetricAdversarialELBO,
    inception_score,
    plots,
)
from models.data import digits
from models.data.binarisation import DynamicBinarisation, StaticBinarisation
from models.data.loaders import loader
from models.decoders import FullyConnectedDecoder
from models.digit_classifier import train_classifier
from models.encoders import GaussianEncoder, MLPBody
from models.likelihoods import RelaxedBernoulliLikelihood
from models.vaes import VAE

LATENT = 8


def new_vae(name: str) -> VAE:
    # AS-VAE differentiates through drawn pixels, so they are relaxed; their likelihood is the Bernoulli's.
    return VAE(
        FullyConnectedDecoder(LATENT, (1, 8, 8), hidden=(200, 200)), LATENT, RelaxedBernoulliLikelihood(1.0), name
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="AS-VAE against AVB on 8 x 8 digits.")
    parser.add_argument("--steps", type=int, default=2000, help="number of training steps")
    parser.add_argument("--temperatures", type=int, default=50, help="of annealed importance sampling")
    parser.add_argument("--out", default="relatives_digits.png", help="picture to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data = digits.load()
    batches = loader(data.train, batch_size=128, drop_last=True)

    # AVB: the encoder has no density; one adversary compares it with a contrast, datum by datum.
    avb = new_vae("avb")
    guide = AVBGuide(avb.model, sampler=SemiImplicitSampler(context_dim=64), adversary=JointAdversary((128, 128)))
    avbvi.fit(avb.model, batches, guide=guide, seed=options.seed, steps=options.steps)

    # AS-VAE: two adversaries compare the joint laws of data and latents, of the encoder's side and the decoder's.
    as_vae = new_vae("as-vae")
    encoder = GaussianEncoder(MLPBody(64, (200, 200)), LATENT)
    loss = SymmetricAdversarialELBO(steps=options.steps)
    svi = SVI(as_vae.model, encoder.guide, loss.optimizer(lr=2e-3), loss=loss)
    while loss.step_count < options.steps:
        for x in batches:
            svi.step(x)

    # Likelihood of unseen digits, and how well a classifier can tell what the digits are that a model makes up.
    x = StaticBinarisation(seed=0)(data.test.intensities())[:100]
    classifier = train_classifier(data.train, DynamicBinarisation())
    with plots.style():
        figure = Figure(figsize=(7.6, 2.2), layout="constrained")
        panels = figure.subplots(1, 2)
    fits = {
        "AVB": (avb, lambda x: guide.draw_latents(200, x)),
        "AS-VAE": (as_vae, lambda x: encoder.propose(x, 200).z.detach()),
    }
    for (name, (vae, encodings)), axis in zip(fits.items(), panels, strict=True):
        evidence = avbvi.annealed_importance_sampling(
            vae.model,
            x,
            start=lambda part, encodings=encodings: GaussianStart.of_draws(encodings(part)),
            temperatures=SigmoidTemperatures(options.temperatures),
            seed=options.seed,
        )
        made_up = vae.sample(2000, x)
        print(f"{name}: log p(x) {evidence.mean}, inception score {inception_score(classifier, made_up)}")
        plots.image_panel(axis, made_up[:60].reshape(-1, 8, 8), columns=12, label=name)
    figure.savefig(options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
