"""The variational autoencoder of small handwritten digits, trained by several processes.

torchrun --nproc-per-node 2 examples/distributed_vae.py [--steps 1500] [--checkpoint run.pt] [--out vae.pt]
python examples/distributed_vae.py ...   (the same fit in one process)
"""

import argparse

import torch

import avbvi
from avbvi import AVBGuide, JointAdversary, SemiImplicitSampler, distributed
from models.data import digits
from models.data.binarisation import StaticBinarisation
from models.data.loaders import loader
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description="A variational autoencoder of 8 x 8 digits, by several processes.")
    parser.add_argument("--latent", type=int, default=2, help="number of latent dimensions")
    parser.add_argument("--steps", type=int, default=1500, help="number of training steps")
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--checkpoint", help="file that a run which was cut short goes on from")
    parser.add_argument("--out", default="distributed_vae.pt", help="file for the posterior")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    # Join the others, if torchrun has started any; each process has a GPU of its own where there are enough.
    device = distributed.init()

    # The same in all processes. The loader gives whole batches, of which each process takes its part.
    torch.manual_seed(options.seed)
    data = digits.load()
    vae = VAE(FullyConnectedDecoder(options.latent, (1, 8, 8), hidden=(200, 200)), options.latent)
    guide = AVBGuide(vae.model, sampler=SemiImplicitSampler(context_dim=64), adversary=JointAdversary((128, 128)))
    batches = loader(data.train, batch_size=options.batch_size)
    posterior = avbvi.fit(
        vae.model,
        batches,
        guide=guide,
        device=device,
        seed=options.seed,
        steps=options.steps,
        checkpoint=options.checkpoint,
    )
    assert isinstance(posterior, avbvi.AmortisedPosterior)  # one posterior per digit

    # All processes now hold the same posterior; one of them is enough to tell.
    with distributed.together():
        first, size = distributed.is_first(), distributed.world_size()
    if first:
        print(posterior.verdict)
        print(f"processes: {size}; steps per second: {posterior.run.steps / posterior.run.seconds:.1f}")
        x = StaticBinarisation(seed=0)(data.test.intensities())[:100]
        print(f"ELBO of 100 test digits: {posterior.elbo(x.to(device))}")
        posterior.save(options.out)
        print(f"posterior: {options.out}")
    distributed.close()


if __name__ == "__main__":
    main()
