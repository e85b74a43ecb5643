"""AmortisedPosterior: what an amortised fit returns, q(z | x) for any data x."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..arguments import device_of, fits_in_memory, instance, integer, real_tensor
from ..data.batches import is_loader, one_pass, reference_batch
from ..devices import moved
from ..diagnostics import Verdict
from ..errors import ModelError
from ..estimates import Estimate
from ..export import to_arviz
from ..layout import LatentLayout
from ..model_state import modules_at_hand, modules_of
from ..posterior import Posterior
from ..predictive import deterministic, expectations, predictions
from ..refinement import Refinement
from ..rng import seeded
from ..targets import UnconstrainedTarget
from .evaluation import draw_terms, mean_over_data
from .guide import AmortisedAVBGuide
from .layout import Frame
from .minibatch import Minibatch
from .verdict import LogLikelihood, judge


class AmortisedPosterior(Posterior):
    """q(z | x) of a model's latents for each datum x of a minibatch, with the model that was learned beside it.

    Methods take the data they are about as the model takes them, a minibatch of any size; without them they are about
    the fit's own: its arguments, or the first batch of its DataLoader. Results have one entry for each of the B data.
    Data on another device are moved.

    Args:
        model: the model.
        guide: the trained guide.
        args: positional arguments of the model that the guide was trained with.
        kwargs: its keyword arguments.
        verdict: the judgement on the fit.
        run: how the fit came about.
        comparison: always ``None``: there is no trunk to choose.
        hmc_steps: always 0: draws are the guide's.
        evidence: draws and weights that the verdict is based on, for :meth:`report`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, avbvi
        >>> decoder = torch.nn.Linear(2, 5)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)
        >>> guide = avbvi.AVBGuide(model, sampler=avbvi.ConditionalGaussianSampler(context_dim=5))
        >>> posterior = avbvi.fit(model, torch.randn(20, 5), guide=guide, steps=5, seed=0, progress=False)
        >>> x = torch.randn(3, 5)  # other data than the fit's
        >>> draws = posterior.sample(10, x)
        >>> draws["z"].shape
        torch.Size([10, 3, 2])
        >>> posterior.log_prob(draws, x).shape
        torch.Size([10, 3])
        >>> posterior.reconstruct(x)["x"].shape
        torch.Size([3, 5])
    """

    guide: AmortisedAVBGuide

    def __repr__(self) -> str:
        sites = ", ".join(f"{s.name}{list(s.shape)}" for s in self._layout.sites)
        return f"AmortisedPosterior(for each datum: {sites})\n{self.verdict}"

    @property
    def _layout(self) -> Any:
        assert self.guide.plate_layout is not None
        return self.guide.plate_layout

    @property
    def _vectorize(self) -> bool:
        vectorize: bool = self.guide.target(*self.args, **self.kwargs).vectorize
        return vectorize

    @property
    def _needs_model(self) -> bool:
        return bool(getattr(self.guide.part("adversary"), "uses_log_prior", False))

    def _data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Minibatch:
        """The data of a call, or the fit's own; keyword arguments of the fit stay unless there are others."""
        if not args and not kwargs:
            return self.guide.minibatch(*self.args, **self.kwargs)
        device = self.guide.anchor.device
        args = reference_batch(args[0], device) if is_loader(args) else tuple(moved(a, device) for a in args)
        kwargs = {name: moved(value, device) for name, value in kwargs.items()} or self.kwargs
        return self.guide.minibatch(*args, **kwargs)

    def _whole(self, data: Minibatch) -> Minibatch:
        """All data, of which the model would take a part at every run."""
        n, reader = data.frame.full_size, self.guide.reader
        assert reader is not None
        indices = torch.arange(n, device=data.indices.device)
        found = reader.at(indices, data.args, data.kwargs, self.guide.anchor)
        return found._replace(frame=Frame(data.frame.name, data.frame.dim, n, n), subsampled=True)

    def _number(self, n: int) -> int:
        return integer("n", n, 1)

    def _fits(self, n: int, data: Minibatch) -> None:
        fits_in_memory("n", n, data.frame.size * self._layout.dim)

    def _joint_target(self, data: Minibatch) -> UnconstrainedTarget:
        """The model with these data, the latents of all of them in one vector.

        Raises:
            ModelError: the model draws the places of its data itself.
        """
        frame = data.frame
        if data.subsampled:
            raise ModelError(
                f"the model subsamples plate {frame.name!r}, {frame.size} of {frame.full_size} data at every run, so "
                "that nothing can be said of its observations; fit and ask with the data of one minibatch and a plate "
                "without subsample_size"
            )
        with torch.no_grad(), seeded(0), poutine.block():
            trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*data.args, **data.kwargs))
        vectorize = self.guide._target_of(data).vectorize
        layout = LatentLayout.from_trace(trace)
        return UnconstrainedTarget(self.model, layout, data.args, data.kwargs, vectorize=vectorize)

    def _draws(self, n: int, data: Minibatch) -> Tensor:  # type: ignore[override]
        """n draws for each datum, unconstrained (n, B, dim)."""
        self._fits(n, data)
        return self.guide.draw_for(data, n)

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        """Constrained values {site: (n, B, *shape)}, as the model's plate has them."""
        values, _ = self._layout.constrain(z)
        return {site.name: self._layout.in_plate(values[site.name], site) for site in self._layout.sites}

    @torch.no_grad()
    @modules_at_hand()
    def sample(self, n: int = 1000, *args: Any, hmc_steps: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """n draws for each datum: {site: (n, B, *shape)} on the constrained scale, deterministic sites included.

        For a model that draws the places of its data itself (``subsample_size``) they are for all N data, without
        deterministic sites.

        Args:
            n: number of draws.
            args: the data.
            hmc_steps: only 0, draws of the guide as they are.
            kwargs: keyword arguments of the model.

        Raises:
            TypeError: n is no integer, or the data are of a wrong kind.
            ValueError: n is less than 1, ``hmc_steps`` positive, or the data do not fit the sampler's context.
            MemoryError: so many draws do not fit in memory.
        """
        n = self._number(n)
        if hmc_steps is not None and integer("hmc_steps", hmc_steps, 0):
            raise ValueError(
                f"hmc_steps must be 0 for an amortised posterior, found {hmc_steps}: it draws by its guide"
            )
        data = self._data(args, kwargs)
        if data.subsampled:
            return self._values(self._draws(n, self._whole(data)))
        values = self._values(self._draws(n, data))
        return {**values, **deterministic(self._joint_target(data), values)}

    def _given(self, draws: Mapping[str, Any], site: Any) -> Tensor:
        """A site's draws (n, B, *shape), checked, without the other plates' dimensions."""
        name, trailing = f"draws[{site.name!r}]", self._layout.trailing
        value = real_tensor(name, draws[site.name]).to(self.guide.anchor)
        if not value.numel() or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must hold at least one draw and be finite, found shape {tuple(value.shape)}")
        end = value.dim() - len(site.shape)
        if trailing and (end < trailing or any(size != 1 for size in value.shape[end - trailing : end])):
            shape = ", ".join(["n", "data", *["1"] * trailing, *map(str, site.shape)])
            raise ValueError(f"{name} must have shape ({shape}), found {tuple(value.shape)}")
        return self._layout.out_of_plate(value, site) if trailing else value

    @torch.no_grad()
    @modules_at_hand()
    def log_prob(self, draws: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Learned log q(z | x) (n, B) of draws {site: (n, B, *shape)}, in nats, with respect to the sites' coordinates.

        Sites that are not latent are ignored.

        Raises:
            TypeError: draws is no dict of numbers.
            ValueError: a latent site is missing, misshapen, outside its support or infinite, or is about another
                number of data.
        """
        instance("draws", draws, Mapping, "a dict of draws {site: (n, data, *shape)}")
        data = self._data(args, kwargs)
        if data.subsampled:
            data = self._whole(data)
        values = {site.name: self._given(draws, site) for site in self._layout.sites if site.name in draws}
        z, log_det = self._layout.unconstrain(values)
        if z.dim() < 3 or z.shape[-2] != data.frame.size:
            raise ValueError(
                f"draws must be of the {data.frame.size} data, shape (n, {data.frame.size}, *shape), "
                f"found {tuple(draws[self._layout.sites[0].name].shape)}; hand in the data that they are of"
            )
        log_q: Tensor = self.guide.log_ratio_and_contrast(z, data, self.guide.given(data))
        return log_q - log_det

    @torch.no_grad()
    @modules_at_hand()
    def elbo(self, *args: Any, n: int = 100, **kwargs: Any) -> Estimate:
        """Mean over the data of E_q[log p(x, z) - log q(z | x)] in nats, by n draws for each; the error is the draws'.

        log q is learned: this is an estimate and no bound (``elbo_is_exact`` is False), and too high by what the
        adversary misses. One DataLoader as argument gives the mean over all of its data.

        Raises:
            TypeError: n is no integer.
            ValueError: n is less than 2.
        """
        n = integer("n", n, 2)
        if not is_loader(args):
            data = self._data(args, kwargs)
            self._fits(n, data)
            return mean_over_data(draw_terms(self.guide, data, n).elbo)
        total, variance, count = 0.0, 0.0, 0
        for batch in one_pass(args[0]):
            found, size = self.elbo(*batch, n=n, **kwargs), self._data(batch, kwargs).frame.size
            total, variance, count = total + size * found.value, variance + (size * found.stderr) ** 2, count + size
        return Estimate(total / count, math.sqrt(variance) / count)

    @torch.no_grad()
    @modules_at_hand()
    def predict(self, *args: Any, n: int = 1000, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior predictive draws {observed site: (n, B, *shape)}: new observations from each datum's latents.

        Raises:
            TypeError: n is no integer.
            ValueError: n is less than 1.
            ModelError: the model draws the places of its data itself.
        """
        n = self._number(n)
        data = self._data(args, kwargs)
        return predictions(self._joint_target(data), self._values(self._draws(n, data)))

    @torch.no_grad()
    @modules_at_hand()
    def reconstruct(self, *args: Any, n: int = 1, **kwargs: Any) -> dict[str, Tensor]:
        """Mean of each observation given its datum's latents, averaged over n draws of them: {site: (B, *shape)}.

        Sites whose distribution has no mean are left out.

        Raises:
            TypeError: n is no integer.
            ValueError: n is less than 1.
            ModelError: the model draws the places of its data itself.
        """
        n = self._number(n)
        data = self._data(args, kwargs)
        return expectations(self._joint_target(data), self._values(self._draws(n, data)))

    def refine(self, steps: int = 40, n: int = 4000) -> Refinement:
        """Not for an amortised posterior, whatever ``steps`` and n.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "refine moves draws of one posterior, and an amortised guide has one for each datum; "
            "avbvi.annealed_importance_sampling tells how far they are from the truth (judge(ais=...))"
        )

    @modules_at_hand()
    def judge(self, *args: Any, ais: LogLikelihood | None = None, n: int | None = None, **kwargs: Any) -> Verdict:
        """The verdict on the guide for some data, by fresh draws; ``verdict`` stays as it is.

        Args:
            args: the data.
            kwargs: keyword arguments of the model.
            ais: annealed importance sampling of the same data: the ELBO's estimate must not exceed its result.
            n: draws for each datum; by default 400, and fewer of more than 655 data.

        Raises:
            TypeError: n is no integer, or ``ais`` no such result.
            ValueError: n is less than 2, or ``ais`` is about another number of data.
        """
        n = None if n is None else integer("n", n, 2)
        if ais is not None and not isinstance(getattr(ais, "log_evidence", None), Tensor):
            raise TypeError(f"ais must be what avbvi.annealed_importance_sampling returns, found {type(ais).__name__}")
        data = self._data(args, kwargs)
        run = self.run
        return judge(self.guide, self.model, data, skipped=run.skipped_steps, steps=run.steps, ais=ais, n=n)

    @torch.no_grad()
    def to_arviz(
        self,
        n: int = 1000,
        *args: Any,
        log_likelihood: bool | None = None,
        posterior_predictive: bool | None = None,
        prior: bool | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draws for each datum and what follows from them as an ArviZ container; see :meth:`avbvi.Posterior.to_arviz`.

        ``lp`` and ``log_q`` among the ``sample_stats`` are each datum's, (1, n, B).

        Args:
            n: number of draws.
            args: the data.
            log_likelihood: whether to have the group, as there.
            posterior_predictive: likewise.
            prior: likewise.
            coords: dimension -> labels along it.
            dims: site -> names of all its dimensions.
            kwargs: keyword arguments of the model.

        Raises:
            ValueError: n is less than 1, or ``coords`` or ``dims`` do not fit the sites.
            ModelError: a group that is ``True`` can't be had.
        """
        with modules_at_hand():
            n = self._number(n)
            data = self._data(args, kwargs)
            target = self._joint_target(data)
            self._fits(n, data)
            terms = draw_terms(self.guide, data, n)
            _, log_det = self._layout.constrain(terms.z)
            values = self._values(terms.z)
            return to_arviz(
                target,
                values,
                deterministic(target, values),
                stats={"lp": terms.log_p - log_det, "log_q": terms.log_q - log_det},
                attributes={
                    "verdict": self.verdict.status,
                    "verdict_reasons": "; ".join(self.verdict.reasons),
                    "density": "learned",
                },
                log_likelihood=log_likelihood,
                posterior_predictive=posterior_predictive,
                prior=prior,
                coords=coords,
                dims=dims,
            )

    def to(self, device: torch.device | str) -> AmortisedPosterior:
        """Move guide, the model's modules and data to a ``device``, in place; returns the posterior itself.

        Raises:
            TypeError: it is neither a string nor a device.
            ValueError: it names no device, or one that is not there.
        """
        where = device_of(device)
        assert where is not None
        self.guide.to(where)
        for module in modules_of(self.model).values():
            module.to(where)
        self.args: tuple[Any, ...] = tuple(moved(a, where) for a in self.args)
        self.kwargs: dict[str, Any] = {name: moved(value, where) for name, value in self.kwargs.items()}
        return self
