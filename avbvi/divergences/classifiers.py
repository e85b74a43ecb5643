"""Judges that learn: networks trained to tell two samples apart, scored on draws they have not seen."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ..arguments import integer, integers
from ..estimates import Estimate
from .samples import Draws, paired_draws


def classifier_two_sample_test(
    x: Draws,
    y: Draws,
    *,
    folds: int = 5,
    hidden: tuple[int, ...] = (128, 128),
    max_epochs: int = 50,
    patience: int = 5,
    batch_size: int = 1024,
    seed: int = 0,
) -> Estimate:
    """Held-out accuracy of a network that tells draws x from draws y; 0.5 means "cannot".

    A multilayer perceptron is trained by cross-entropy on all folds but one and judged on that
    one, in turn, so that each draw is judged once by a network that has not seen it. Early
    stopping looks at a tenth of the training folds, never at the judged fold. The best
    possible accuracy is 1/2 + TV(q, p)/2; what is reached is a lower bound of it.

    The standard error is the binomial one over all judged draws. It presumes independent draws
    (repeats fall into different folds and let the network memorise them), and leaves out
    that the folds share their training draws, so that it is a little too small.

    Args:
        x: draws, shape (n, d); tensor or array. Training runs on x's device, in float32.
        y: draws, shape (m, d). Of the larger sample a random subset of min(n, m) is used, so
            that chance is exactly one half.
        folds: number of parts, at least 2; parts hold equally many x and y.
        hidden: widths of the hidden layers.
        max_epochs: upper bound of passes over a training set; the learning rate falls from 1e-3
            to 0 over them by a cosine.
        patience: epochs without a better validation loss after which training stops.
        batch_size: draws per optimiser step.
        seed: of subset, folds, weights and batches; the global random state is not touched.

    Returns:
        The accuracy in [0, 1] with its standard error.

    Raises:
        TypeError: x or y is no tensor or array of real numbers, or an option has the wrong type.
        ValueError: wrong or unequal dimensions, NaN or infinite values, options out of range,
            or fewer than 4 draws of each law per fold.

    Example:
        Two normals whose means are two standard deviations apart: .84 is the best that there is.

        >>> import avbvi, torch
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(500, 1), torch.randn(500, 1) + 2.0
        >>> accuracy = avbvi.classifier_two_sample_test(x, y, folds=2, hidden=(16,), max_epochs=20)
        >>> 0.79 < accuracy.value < 0.89
        True

    Source: Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests, ICLR; k-fold
    accuracy as in the sbibm benchmark (Lueckmann et al. 2021).
    """
    for name, option, least in (
        ("folds", folds, 2),
        ("max_epochs", max_epochs, 1),
        ("patience", patience, 1),
        ("batch_size", batch_size, 1),
    ):
        integer(name, option, least)
    hidden = integers("hidden", hidden, "widths of the hidden layers")
    integer("seed", seed)
    q, p = paired_draws(x, y)
    size = min(q.shape[0], p.shape[0])
    if size < 4 * folds:
        raise ValueError(f"The smaller sample has {size} draws; {folds} folds need at least {4 * folds}.")
    # The CPU generator serves every device, so that a seed means the same folds everywhere.
    generator = torch.Generator("cpu").manual_seed(seed)
    q = q[torch.randperm(q.shape[0], generator=generator, device="cpu")[:size].to(q.device)]
    p = p[torch.randperm(p.shape[0], generator=generator, device="cpu")[:size].to(p.device)]
    pooled = torch.cat([q, p])
    scale = pooled.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    pooled = ((pooled - pooled.mean(0)) / scale).float()
    labels = torch.cat([pooled.new_ones(size), pooled.new_zeros(size)])
    # Both halves are in random order already; striping them gives balanced folds.
    fold = (torch.arange(size, device=pooled.device) % folds).repeat(2)

    correct = 0
    for held_out in range(folds):
        inside = (fold != held_out).nonzero().squeeze(1)
        # Shuffled pairs (one x, one y) keep the validation split balanced as well.
        pairs = inside.numel() // 2
        order = torch.randperm(pairs, generator=generator, device="cpu").to(inside.device)
        cut = max(1, pairs // 10)
        validation = torch.cat([inside[:pairs][order[:cut]], inside[pairs:][order[:cut]]])
        training = torch.cat([inside[:pairs][order[cut:]], inside[pairs:][order[cut:]]])
        network = _train_classifier(
            pooled[training],
            labels[training],
            pooled[validation],
            labels[validation],
            hidden=hidden,
            max_epochs=max_epochs,
            patience=patience,
            batch_size=batch_size,
            generator=generator,
        )
        judged = fold == held_out
        with torch.no_grad():
            guess = _logits(network, pooled[judged]) > 0
        correct += int((guess == (labels[judged] > 0.5)).sum())
    accuracy = correct / (2 * size)
    return Estimate(accuracy, math.sqrt(accuracy * (1.0 - accuracy) / (2 * size)))


def _train_classifier(
    inputs: Tensor,
    labels: Tensor,
    validation_inputs: Tensor,
    validation_labels: Tensor,
    *,
    hidden: tuple[int, ...],
    max_epochs: int,
    patience: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Weights and biases, alternating, of the epoch with the best validation loss."""
    widths = (inputs.shape[1], *hidden, 1)
    network: list[Tensor] = []
    for fan_in, fan_out in pairwise(widths):
        weight = torch.randn(fan_out, fan_in, generator=generator, dtype=inputs.dtype, device="cpu") * math.sqrt(
            2.0 / fan_in
        )
        if fan_out == 1:
            weight *= 0.1  # start near the indifferent classifier
        network += [weight.to(inputs.device), inputs.new_zeros(fan_out)]
    for parameter in network:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(network, lr=1e-3, weight_decay=1e-2)
    size = inputs.shape[0]
    steps = max(1, size // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max_epochs * steps)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    best_loss, best, waited = math.inf, [w.detach().clone() for w in network], 0
    for _ in range(max_epochs):
        order = torch.randperm(size, generator=generator, device="cpu").to(inputs.device)
        # Equal batches; a remainder below one batch waits for the next epoch's order.
        for batch in order[: steps * batch_size].chunk(steps):
            with torch.enable_grad():
                loss = cross_entropy(_logits(network, inputs[batch]), labels[batch])
            for parameter, slope in zip(network, torch.autograd.grad(loss, network), strict=True):
                parameter.grad = slope
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            current = float(cross_entropy(_logits(network, validation_inputs), validation_labels))
        if current < best_loss:
            best_loss, best, waited = current, [w.detach().clone() for w in network], 0
        else:
            waited += 1
            if waited >= patience:
                break
    return best


def _logits(network: list[Tensor], inputs: Tensor) -> Tensor:
    """Log-odds of label 1, shape (batch,)."""
    out = inputs
    for layer in range(0, len(network), 2):
        if layer:
            out = torch.nn.functional.relu(out)
        out = torch.nn.functional.linear(out, network[layer], network[layer + 1])
    return out.squeeze(-1)
