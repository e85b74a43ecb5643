"""Posterior: what a fit returns. Draws, densities, predictions, the verdict, files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .amortised.guide import AmortisedAVBGuide
from .arguments import fits_in_memory, flag, instance, integer, real_tensor
from .checkpoints import check_path, write_atomically
from .diagnostics import StageComparison, Verdict
from .diagnostics.evidence import Evidence
from .estimates import Estimate
from .export import to_arviz
from .fit_files import FORMAT, VERSION, part_configurations, plain_comparison, site_table
from .guides import AVBGuide
from .model_state import model_buffers, model_parameters, modules_at_hand
from .predictive import deterministic, log_joint, predictions
from .refinement import Refinement, moved_draws, refinement
from .runs import Run
from .targets import Model, UnconstrainedTarget


class Posterior:
    """A fitted approximation of a model's posterior.

    :func:`~avbvi.fit` and :func:`~avbvi.load` make it.

    Args:
        model: the model.
        guide: the trained guide.
        args: positional arguments of the model that the guide was trained with.
        kwargs: its keyword arguments.
        verdict: the judgement on the fit.
        run: how the fit came about.
        comparison: trunk against adversarial stage, where there was a choice.
        hmc_steps: HMC transitions that the draws of :meth:`sample` and what is made of them are moved by; 0 for none.
        evidence: draws and weights that the verdict is based on, for :meth:`report`.

    Example:
        >>> import avbvi
        >>> model = avbvi.LogDensity(lambda z: -0.5 * (z - 1.0).square().sum(-1), event_shape=(2,))
        >>> posterior = avbvi.fit(model, guide=avbvi.AVBGuide(model, trunk=avbvi.MixtureTrunk(2)),
        ...                       steps=20, seed=0, progress=False)
        >>> draws = posterior.sample(500)
        >>> draws["z"].shape
        torch.Size([500, 2])
        >>> posterior.log_prob(draws).shape  # log q of each draw
        torch.Size([500])
        >>> posterior.elbo_is_exact
        True
        >>> posterior.verdict.status
        'ok'
    """

    def __init__(
        self,
        model: Model,
        guide: AVBGuide,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        verdict: Verdict,
        run: Run,
        comparison: StageComparison | None = None,
        hmc_steps: int = 0,
        evidence: Evidence | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.args = args
        self.kwargs = kwargs
        self.verdict = verdict
        self.run = run
        self.comparison = comparison
        self.hmc_steps = hmc_steps
        self.evidence: Evidence = evidence or Evidence()

    def __repr__(self) -> str:
        sites = ", ".join(f"{s.name}{list(s.shape)}" for s in self._layout.sites)
        return f"Posterior({sites}; {'adversarial stage' if self.guide.is_adversarial else 'trunk'})\n{self.verdict}"

    @property
    def _layout(self) -> Any:
        assert self.guide.layout is not None
        return self.guide.layout

    @property
    def _target(self) -> UnconstrainedTarget:
        target = self.guide.target(*self.args, **self.kwargs)
        if target is None:
            raise RuntimeError("the guide is part of an AutoGuideList and has no joint density of its own")
        return target

    def _number(self, n: int) -> int:
        """A number of draws, checked."""
        n = integer("n", n, 1)
        fits_in_memory("n", n, self._layout.dim)
        return n

    @property
    def elbo_is_exact(self) -> bool:
        """Whether log q is known exactly (trunk), so that the ELBO is a lower bound; otherwise it is learned."""
        return not self.guide.is_adversarial

    @torch.no_grad()
    def sample(self, n: int = 1000, *, hmc_steps: int | None = None) -> dict[str, Tensor]:
        """n draws: {site: (n, *shape)} on the constrained scale, deterministic sites included.

        Where the fit left room for it, draws of the guide are moved by a few HMC transitions (``hmc_steps``, by default
        the posterior's own; 0 for the guide's draws as they are). These leave the posterior invariant, so that
        KL(q, p) can only fall; :meth:`log_prob` and :meth:`elbo` are of the guide, before them.

        Raises:
            TypeError: n or hmc_steps is no integer.
            ValueError: n is less than 1, or hmc_steps negative.
            MemoryError: so many draws do not fit in memory.
        """
        n = self._number(n)
        steps = None if hmc_steps is None else integer("hmc_steps", hmc_steps, 0)
        values, _ = self._layout.constrain(self._draws(n, steps))
        return {**values, **deterministic(self._target, values)}

    def _draws(self, n: int, hmc_steps: int | None = None) -> Tensor:
        steps = self.hmc_steps if hmc_steps is None else hmc_steps
        return moved_draws(self.guide, self._target, n, steps) if steps else self.guide.draw(n).z

    @torch.no_grad()
    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Approximate log q (n,) of draws {site: (n, *shape)}, in nats and with respect to the sites' own coordinates.

        Exact for the trunk, learned by the adversary otherwise. Sites that are not latent are ignored.

        Raises:
            TypeError: draws is no dict of numbers.
            ValueError: a latent site is missing, misshapen, outside its support or infinite.
        """
        instance("draws", draws, Mapping, "a dict of draws {site: (n, *shape)}")
        names = [site.name for site in self._layout.sites]
        values = {k: real_tensor(f"draws[{k!r}]", draws[k]).to(self.guide.anchor) for k in names if k in draws}
        z, log_det = self._layout.unconstrain(values)
        posterior = self.guide.get_posterior(*self.args, **self.kwargs)
        result: Tensor = posterior.log_prob(z) - log_det
        return result

    @torch.no_grad()
    def elbo(self, n: int = 20_000) -> Estimate:
        """E_q[log p - log q] in nats by n fresh draws; a lower bound of the log-evidence only if ``elbo_is_exact``.

        Raises:
            TypeError: n is no integer.
            ValueError: n is less than 2.
            MemoryError: so many draws do not fit in memory.
        """
        return guide_elbo(self.guide, self._target, self._number(n))

    def refine(self, steps: int = 40, n: int = 4000) -> Refinement:
        """Move n draws by some HMC steps: better draws, and a test of the fit, for draws of the posterior stay.

        It sees errors within a mode, not a lost one. See :class:`~avbvi.refinement.Refinement` for what is reported.

        Raises:
            ValueError: steps is less than 2, or fewer than 10 of the draws have positive density.
        """
        n = self._number(n)
        return refinement(self._target, self.guide.draw(n).z, steps=steps)

    @torch.no_grad()
    def predict(self, *args: Any, n: int = 1000, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior predictive draws {observed site: (n, *shape)}.

        With no arguments the model runs with those of the fit, its observations replaced by draws; other
        arguments (new covariates, say) are passed on to the model. Discrete latents that were summed out are drawn:
        anew for each observation inside a plate, given the fit's observations outside of all plates.

        Raises:
            ValueError: n is less than 1.
            ModelError: with these arguments a latent site has another shape than in the fit.
        """
        n = self._number(n)
        target = self._target
        at = target.with_arguments(args, kwargs) if args or kwargs else target
        values, _ = self._layout.constrain(self._draws(n))
        return predictions(target, values, at)

    @torch.no_grad()
    def to_arviz(
        self,
        n: int = 2000,
        *,
        log_likelihood: bool | None = None,
        posterior_predictive: bool | None = None,
        prior: bool | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """Draws and what follows from them as ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x), in one chain.

        ESS and R-hat of these independent draws say nothing about the quality of the fit; see ``verdict``.

        Groups: ``posterior`` (n draws, deterministic sites included); ``sample_stats`` (``lp``, the log joint density,
        and ``log_q``, both (1, n) and in the sites' own coordinates; the attribute ``density`` says whether log q is
        "exact" or "learned"; draws that were moved by HMC have none); ``log_likelihood`` (1, n, *plates), of each
        observation without weights from ``poutine.scale``; ``posterior_predictive`` at the same draws; ``prior`` and
        ``prior_predictive`` (factors are ignored); ``observed_data``; ``constant_data``, the tensors and arrays among
        the model's arguments.

        Args:
            n: number of draws, of the prior too.
            log_likelihood: whether to have the group. ``None``: as far as the model allows. One without observations
                (a factor is none) or a ``LogDensity`` goes without, silently; a site in a subsampled plate, or a
                discrete latent that several observations share, gives a warning. ``True``: an error instead.
            posterior_predictive: likewise.
            prior: likewise, of ``prior`` and ``prior_predictive`` together; a prior that can't be drawn from gives a
                warning, or an error.
            coords: dimension -> labels along it.
            dims: site -> names of all its dimensions. By default a dimension has the name of its plate, unless that
                is a variable's too or taken by ``dims`` for another length; all others are called as in ArviZ.

        Raises:
            ValueError: n is less than 1, or ``coords`` or ``dims`` do not fit the sites.
            ModelError: a group that is ``True`` can't be had.
        """
        n = self._number(n)
        target = self._target
        density = "exact" if self.elbo_is_exact else "learned"
        if self.hmc_steps:
            z, density = self._draws(n), f"none: draws moved by {self.hmc_steps} HMC steps"
            values, log_det = self._layout.constrain(z)
            stats = {"lp": log_joint(target, z) - log_det}
        else:
            posterior = self.guide.get_posterior(*self.args, **self.kwargs)
            draw = posterior.draw((n,))
            values, log_det = self._layout.constrain(draw.z)
            log_q = posterior.draw_log_prob(draw) - log_det
            stats = {"lp": log_joint(target, draw.z) - log_det, "log_q": log_q}
        verdict = {"verdict": self.verdict.status, "verdict_reasons": "; ".join(self.verdict.reasons)}
        return to_arviz(
            target,
            values,
            deterministic(target, values),
            stats=stats,
            attributes={**verdict, "density": density},
            log_likelihood=log_likelihood,
            posterior_predictive=posterior_predictive,
            prior=prior,
            coords=coords,
            dims=dims,
        )

    @property
    def _needs_model(self) -> bool:
        """Whether the density depends on the model."""
        return bool(self.guide.is_adversarial and self.guide.part("adversary").uses_target)

    @property
    def _vectorize(self) -> bool:
        """Whether the model runs for many draws at once."""
        return self._target.vectorize

    def report(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Write a report on the fit: one HTML page that needs nothing else, to be read here or sent on.

        It has the verdict in words, its figures with their limits, a summary of the draws, marginals and pairs of the
        coordinates in doubt before and after a short HMC, posterior predictive checks, the training curve, importance
        weights, reliability of the adversary, and versions and seed. The page makes no request, runs no script, suits
        light and dark screens, phones and paper. It shows draws, observations and site names: what must not be sent on
        must not be in the model. The caller's random state is left alone; the fit stays as it is.

        Args:
            path: the file to write, ending in ``.html`` or ``.htm``; an older one is replaced, whole or not at all.
            title: of the page; by default the model's name.

        Returns:
            The path of the page.

        Raises:
            TypeError: path is no path, or title no string.
            ValueError: path has another suffix.
            FileNotFoundError: the folder of path does not exist.
            CheckpointError: path is a folder.

        Example:
            >>> import tempfile, torch, avbvi
            >>> model = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
            >>> guide = avbvi.AVBGuide(model, trunk=avbvi.MixtureTrunk(2))
            >>> posterior = avbvi.fit(model, guide=guide, seed=0, steps=20, progress=False)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     page = posterior.report(f"{folder}/normal.html", title="A normal distribution")
            ...     page.name, "A normal distribution" in page.read_text(encoding="utf-8")
            ('normal.html', True)
        """
        from .reports import collect, write_report  # needed for pages only: templates and pictures
        from .reports.page import check_page

        checked = check_page(path, title)
        with modules_at_hand():
            return write_report(collect(self), checked, title)

    def save(self, path: str | os.PathLike[str], *, report: bool = True) -> None:
        """Write the fit to a file, atomically; :func:`avbvi.load` reads it again.

        Args:
            path: the file.
            report: whether it holds what ``avbvi report`` shows without the model's code: some thousand draws, and
                observations beside replications of some of them, a few MiB at most.

        Raises:
            TypeError: path is no path, or report no bool.
            FileNotFoundError: the folder of path does not exist.
            CheckpointError: path is a folder.
        """
        path = check_path(path)
        with modules_at_hand():
            summary = self._report_summary() if flag("report", report) else None
            learned = model_parameters(self.model, self.args, self.kwargs)
        write_atomically(
            path,
            {
                "format": FORMAT,
                "version": VERSION,
                "parts": part_configurations(self.guide),
                "own_context": isinstance(self.guide, AmortisedAVBGuide) and self.guide._context is not None,
                "guide": self.guide.state_dict(),
                "sites": site_table(self.guide),
                "needs_model": self._needs_model,
                "vectorize": self._vectorize,
                "model": {k: p.detach() for k, p in learned.items()},
                "buffers": model_buffers(self.model, self.guide),
                "verdict": self.verdict.to_dict(),
                "comparison": plain_comparison(self.comparison),
                "hmc_steps": self.hmc_steps,
                "run": vars(self.run),
                "evidence": self.evidence.to_dict(),
                "report": summary,
            },
        )

    def _report_summary(self) -> dict[str, Any]:
        from .reports import collect

        return collect(self).summary.to_dict()


@torch.no_grad()
def guide_elbo(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> Estimate:
    """E_q[log p - log q] with its Monte Carlo standard error."""
    if n < 2:
        raise ValueError(f"n must be at least 2 for a standard error, found {n}")
    posterior = guide.get_posterior(*target.args, **target.kwargs)
    draw = posterior.draw((n,))
    terms = (target.log_prob(draw.z) - posterior.draw_log_prob(draw)).double()
    return Estimate(float(terms.mean()), float(terms.std() / math.sqrt(n)))
