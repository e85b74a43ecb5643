"""AmortisedAVBGuide: one implicit distribution per datum, inside the model's plate over data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor, nn
from torch.func import functional_call

from ..adversaries import Adversary
from ..arguments import function, levels
from ..checks import check_latents, check_sampler
from ..contrasts import Contrast
from ..control import Factor, is_one
from ..distributions import Draw, ImplicitDistribution
from ..divided.division import own_data
from ..errors import ModelError
from ..guides import ADVERSARIAL, AVBGuide
from ..remedies import spelled
from ..rng import seeded
from ..samplers import Sampler
from ..starts import Effort
from ..targets import Model
from ..trunks import IdentityTrunk, Trunk
from .adversaries import InnerProductAdversary
from .contrasts import ConditionalGaussianContrast
from .draws import MinibatchDraws
from .layout import PlateLayout, data_frame
from .minibatch import Minibatch, MinibatchReader
from .prior import MinibatchPrior
from .target import DatumTarget

QUANTILE_DRAWS = 2000
PRIOR_DRAWS = 4


class AmortisedAVBGuide(AVBGuide):
    """The :class:`~avbvi.AVBGuide` whose sampler takes a context: q(z | x) for every datum x of a plate.

    ``AVBGuide(model, sampler=...)`` makes it when the sampler has a ``context_dim``. All latent sites of the model lie
    in one plate, over the data; each datum's sites form one vector on unconstrained space, drawn by the sampler
    from noise and the datum's context. The guide opens the plate itself, with the model's sizes, so that its terms are
    scaled N / B like the model's; minibatches may differ in size. A context of the whole plate is indexed by the
    plate's places.

    Beside global latents it is one of the guides of an ``AutoGuideList``, of the model that hides them.

    Args:
        model: a Pyro model; it may have parameters of its own (a decoder), which are learned with the guide.
        sampler: noise (*S, B, noise_dim) and context (B, context_dim) to draws (*S, B, dim).
        trunk: only the identity.
        contrast: the density r(z | x) that the adversary compares the sampler with.
        adversary: the network T(z, x) that learns log q(z | x) - log r(z | x).
        context: function of the model's arguments that gives the data's context, (B or N, ...), flattened per
            datum; by default the first argument.
        name: prefix of the guide's entries in Pyro's parameter store; unique by default.

    Raises:
        ModelError: (at set-up) latents outside the plate or in several, discrete ones.
        ValueError: a trunk; (at set-up) a context whose length is neither B nor N, or whose width is not
            ``context_dim``, or a contrast or adversary that sees no context.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, avbvi
        >>> from pyro.infer import SVI
        >>> decoder = torch.nn.Linear(2, 5)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
        >>> guide = avbvi.AVBGuide(model, sampler=avbvi.ConditionalSampler(context_dim=5))
        >>> type(guide).__name__
        'AmortisedAVBGuide'
        >>> elbo = avbvi.AdversarialELBO(pretrain_steps=2)
        >>> svi = SVI(model, guide, elbo.optimizer(lr=1e-3), loss=elbo)
        >>> losses = [svi.step(torch.randn(n, 5)) for n in (8, 8, 3)]  # minibatches
        >>> guide.draw_latents(10, torch.randn(4, 5)).shape  # 10 draws for each of 4 data
        torch.Size([10, 4, 2])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), Algorithms 1 and 2 with x, and section 4.
    """

    is_amortised: ClassVar[bool] = True

    @spelled
    def __init__(
        self,
        model: Model,
        *,
        sampler: Sampler,
        trunk: Trunk | None = None,
        contrast: Contrast | None = None,
        adversary: Adversary | None = None,
        context: Callable[..., Any] | None = None,
        name: str | None = None,
    ) -> None:
        if trunk is not None and not isinstance(trunk, IdentityTrunk):
            raise ValueError(
                f"trunk={type(trunk).__name__}() is one map for all data, which an amortised guide does not have: its "
                "sampler takes the context instead; leave the trunk out"
            )
        super().__init__(
            model,
            sampler=sampler,
            trunk=IdentityTrunk(),
            contrast=ConditionalGaussianContrast() if contrast is None else contrast,
            adversary=InnerProductAdversary() if adversary is None else adversary,
            name=name,
        )
        if context is not None:
            function("context", context)
        self._context = context
        self.plate_layout: PlateLayout | None = None
        self.stage.fill_(ADVERSARIAL)
        self.reader: MinibatchReader | None = None
        #: What a training call has fixed for its duration: its minibatch and the contrast on it.
        self._call: tuple[Minibatch, Any] | None = None
        #: Weight of log q - log p(z) in the current training call (KL warm-up).
        self._kl_weight: Factor = 1.0
        self._opened: Minibatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_call": None, "_opened": None}

    def adversary_parameters(self) -> list[nn.Parameter]:
        return [*super().adversary_parameters(), *self.part("contrast").parameters()]

    # -- set-up -----------------------------------------------------------------------------------

    def _update_master(self, master_ref: Any) -> None:
        super()._update_master(master_ref)
        master = master_ref()
        if master is not None and getattr(master, "create_plates", self) is None:
            # Pyro's own would have the first minibatch's size for good.
            master.create_plates = self._open_plates

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        master = None if self.master is None else self.master()
        if master is not None and master.prototype_trace is None:
            master._setup_prototype(*args, **kwargs)
        enumerated = check_latents(self._own_model[0], args, kwargs)
        if enumerated:
            raise ModelError(
                f"sites {enumerated} are enumerated, which an amortised guide can't sum out; sum them out in the model "
                "(a mixture distribution, say), or hide them (poutine.block) and give them a guide in an AutoGuideList"
            )
        AutoContinuous._setup_prototype(self, *args, **kwargs)
        try:
            self._set_up_parts(args, kwargs)
        except (RuntimeError, TypeError, ValueError):
            self.prototype_trace: Any = None  # a second call must not find a guide that is half set up
            raise

    def _set_up_parts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout = PlateLayout.from_trace(self.prototype_trace)
        self._check_name()
        like = self._init_loc()
        dim = layout.dim
        sampler, contrast, adversary = self.part("sampler"), self.part("contrast"), self.part("adversary")
        assert sampler.context_dim is not None
        frame, example = data_frame(self.prototype_trace), (args, kwargs)
        reader = MinibatchReader(self._own_model[0], layout, frame, example, self._context, sampler.context_dim)
        self.part("trunk").build(dim)
        sampler.build(dim)
        contrast.build_for(dim, sampler.context_dim, sampler)
        adversary.build_for(contrast.feature_dim, dim, sampler.context_dim)
        self.to(device=like.device, dtype=like.dtype)
        with torch.no_grad(), seeded(0):
            sampler.start(self.anchor)
            context = reader.read(args, kwargs, self.anchor).context
        check_sampler(sampler, dim, self.anchor, context=context)
        if type(contrast).given is Contrast.given:
            contrast.given(sampler, context, None)  # raises: it follows a single posterior
        self.plate_layout, self.reader = layout, reader

    # -- the data of a call -------------------------------------------------------------------------

    def minibatch(self, *args: Any, **kwargs: Any) -> Minibatch:
        """The data that a call with these arguments is about; during a training call it is that call's.

        Raises:
            TypeError: the context is no tensor, or there is no first argument to take it from.
            ValueError: the context does not have one row for each datum, or rows of another width.
        """
        self.setup(*args, **kwargs)
        if self._call is not None:
            return self._call[0]
        assert self.reader is not None
        return self.reader.read(args, kwargs, self.anchor)

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.master is None:
            self.plates: dict[str, Any] = {p.name: p for p in self._open_plates(*args, **kwargs)}
        else:
            self.plates = self.master().plates
        return self.plates

    def _open_plates(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The plate over data, of the sizes that these arguments have."""
        data = self.minibatch(*args, **kwargs)
        frame, self._opened = data.frame, data
        if frame.size == frame.full_size or data.subsampled:
            return [pyro.plate(frame.name, frame.full_size, subsample=data.indices, dim=frame.dim)]
        # The minibatch was chosen by the caller, and the guide's part in it has no places: the model's stand.
        with poutine.block(hide=[frame.name]):
            return [pyro.plate(frame.name, frame.full_size, subsample=data.indices, dim=frame.dim)]

    # -- the implicit distribution ------------------------------------------------------------------

    def given(self, data: Minibatch) -> Any:
        """The contrast r(z | x) on a minibatch, ``data``, (a ``GivenContrast``), without gradient to the sampler."""
        if self._call is not None and self._call[0] is data and self._call[1] is not None:
            return self._call[1]
        return self.part("contrast").given(self.part("sampler"), data.context, self._prior(data))

    def _prior(self, data: Minibatch) -> MinibatchPrior:
        return MinibatchPrior(lambda: self._target_of(data))

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TorchDistribution:
        """The guide's :class:`~avbvi.ImplicitDistribution` over the vectors of a minibatch's data, batch (B, 1...)."""
        return self.posterior_of(self.minibatch(*args, **kwargs), self.sampler)

    def posterior_of(self, data: Minibatch, sampler: Sampler | None = None) -> dist.TorchDistribution:
        """The same for ``data``, a :class:`Minibatch`; Pyro learns of the sampler only if ``sampler`` is handed in."""
        assert self.plate_layout is not None
        layout = self.plate_layout
        draws = MinibatchDraws(
            self.part("sampler") if sampler is None else sampler, data.context, layout.trailing, self.anchor
        )
        bound: list[Any] = []

        def base_log_prob(draw: Draw) -> Tensor:
            if not bound:
                bound.append(self.given(data))
            z, log_det = draws.fixed(draw)
            return draws.outside(self.log_ratio_and_contrast(z, data, bound[0])) + log_det

        batch = torch.Size((data.frame.size,) + (1,) * layout.trailing)
        return ImplicitDistribution(draws.base, draws.trunk, draws.inverse, base_log_prob, layout.dim, batch)

    def log_ratio_and_contrast(self, z: Tensor, data: Minibatch, contrast: Any) -> Tensor:
        """Learned log q(z | x) = T + log r at z (*S, B, dim) -> (*S, B), in nats and differentiable in z alone.

        ``data`` is the minibatch, ``contrast`` what :meth:`given` gives for it.
        """
        adversary: Adversary = self.part("adversary")
        t = functional_call(
            adversary,
            {k: p.detach() for k, p in adversary.named_parameters()},
            (contrast.features(z), data.context.detach()),
            self.log_prior_if_used(z, data),
        )
        log_r: Tensor = contrast.log_prob(z)
        return adversary.objective.log_ratio(t) + log_r

    def log_prior_if_used(self, z: Tensor, data: Minibatch) -> dict[str, Tensor]:
        """log p(z) (*S, B) at z (*S, B, dim) of ``data``, as keyword argument, for an adversary that asks for it."""
        if not getattr(self.part("adversary"), "uses_log_prior", False):
            return {}
        return {"log_prior": self._prior(data).log_prior(z)}

    @torch.no_grad()
    def draw_latents(self, n: int, *args: Any, **kwargs: Any) -> Tensor:
        """n draws for every datum of a minibatch, as unconstrained vectors (n, B, dim)."""
        return self.draw_for(self.minibatch(*args, **kwargs), n)

    def draw_for(self, data: Minibatch, n: int) -> Tensor:
        """n draws for every datum of ``data``, a :class:`Minibatch`, (n, B, dim)."""
        sampler = self.part("sampler")
        noise = own_data(lambda s: sampler.sample_noise(s, like=self.anchor), torch.Size((n, data.frame.size)))
        z: Tensor = sampler(noise, data.context)
        return z

    def log_q(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Learned log q(z | x) of unconstrained vectors z (*S, B, dim) -> (*S, B), in nats."""
        data = self.minibatch(*args, **kwargs)
        return self.log_ratio_and_contrast(z, data, self.given(data))

    # -- the target ---------------------------------------------------------------------------------

    def bind(self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], *, vectorize: bool) -> Any:
        """The per-datum target for the ``model`` as it is trained; ``None`` inside an ``AutoGuideList``.

        ``args`` and ``kwargs`` are the model's arguments; ``vectorize``: see :meth:`avbvi.AVBGuide.bind`.
        """
        if self.master is not None:
            return None
        known: Any = self._target
        if known is None or known.model != model or known.vectorize != vectorize:
            data = self.minibatch(*args, **kwargs)
            known = DatumTarget(model, self.plate_layout, args, kwargs, vectorize=vectorize, indices=data.known_indices)
            self._target = known
        return known

    def target(self, *args: Any, **kwargs: Any) -> Any:
        """The per-datum target (:class:`~avbvi.amortised.DatumTarget`) of these arguments' minibatch.

        Without arguments that of the last call's.
        """
        if not args and not kwargs:
            args, kwargs = self._last_arguments
        return self._target_of(self.minibatch(*args, **kwargs))

    def _target_of(self, data: Minibatch) -> Any:
        known: Any = self._target
        if known is None:
            known = self.bind(self._own_model[0], data.args, data.kwargs, vectorize=True)
        return None if known is None else known.on(data.args, data.kwargs, data.frame, data.known_indices)

    @torch.no_grad()
    def check(self, target: Any) -> None:
        """Raise if the ``target``, the model's log-density of a datum, is NaN or +inf at draws of its prior.

        Raises:
            ModelError: it is.
        """
        with seeded(0), pyro.validation_enabled(False):
            z = target.sample_prior(PRIOR_DRAWS).to(self.anchor)
            value = target.log_joint(z)
        wrong = torch.isnan(value) | (value == torch.inf)
        if bool(wrong.any()):
            draw, datum = (int(i) for i in wrong.nonzero()[0])
            raise ModelError(
                f"the log-density is {float(value[draw, datum])} at a draw of the prior, for datum {datum} of the "
                f"minibatch (unconstrained coordinates {z[draw, datum, :8].tolist()}...); it must be finite, or -inf "
                "outside the support"
            )

    def start(self, target: Any, effort: Effort | None = None) -> None:
        """Nothing to search for: the sampler starts where its weights put it, whatever ``target`` and ``effort``."""
        self.started.fill_(True)

    # -- training calls -------------------------------------------------------------------------------

    @contextmanager
    def training_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Fix the minibatch and the contrast on it: adversary and outer step then see the same.

        ``args`` and ``kwargs`` are the model's arguments.
        """
        data = self.minibatch(*args, **kwargs)
        self._call = (data, None)
        try:
            self._call = (data, self.given(data))
            yield
        finally:
            self._call, self._kl_weight = None, 1.0

    def set_kl_weight(self, weight: Factor) -> None:
        """Multiply log q(z | x) - log p(z) by ``weight`` in the training call under way."""
        self._kl_weight = weight

    def current_call(self) -> tuple[Minibatch, Any]:
        """Minibatch and contrast of the training call under way.

        Raises:
            RuntimeError: there is none.
        """
        if self._call is None:
            raise RuntimeError("the adversary of an amortised guide is trained inside guide.training_call(...)")
        return self._call

    @property
    def site_scales(self) -> dict[str, Factor]:
        """Factors of the terms of the model's latent sites in this training call, where they are not 1."""
        return {} if is_one(self._kl_weight) else dict.fromkeys(self.site_names, self._kl_weight)

    @property
    def site_names(self) -> list[str]:
        """Names of one datum's latent sites."""
        assert self.plate_layout is not None
        return [site.name for site in self.plate_layout.sites]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent sites of a minibatch's data: {site: value of its shape in the model} (Pyro's protocol)."""
        self._last_arguments = (args, kwargs)
        self.setup(*args, **kwargs)
        assert self.plate_layout is not None
        layout = self.plate_layout
        plate = self._create_plates(*args, **kwargs)[layout.plate]
        sites: dict[str, Tensor] = {}
        with poutine.scale(scale=self._beta * self._kl_weight), plate as indices:
            data = self._at(indices, args, kwargs)
            posterior = self.posterior_of(data, self.sampler)
            latent = pyro.sample(f"_{self._pyro_name}_latent", posterior, infer={"is_auxiliary": True})
            batch = latent.shape[: latent.dim() - 1 - layout.trailing]
            for site, value, log_det in layout.each(latent.reshape(*batch, layout.dim)):
                # The density of the value is that of the vector over |d value / d z|.
                density = dist.Delta(
                    layout.in_plate(value, site),
                    log_density=-log_det.reshape(*batch, *(1,) * layout.trailing),
                    event_dim=len(site.shape),
                )
                sites[site.name] = pyro.sample(site.name, density)
        return sites

    def _at(self, indices: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Minibatch:
        """The minibatch at the places that the opened plate has, which a replay may have changed."""
        opened, self._opened = self._opened, None
        if opened is not None and opened.indices is indices:
            return opened
        assert self.reader is not None
        return self.reader.at(indices, args, kwargs, self.anchor)

    # -- summaries ------------------------------------------------------------------------------------

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Empirical quantiles of each datum's sites on their constrained scale: {site: (len(quantiles), B, *shape)}.

        They are those of 2000 draws for each datum, the same ones at each call.

        Raises:
            TypeError: ``quantiles`` holds no real numbers.
            ValueError: it is no list, is empty, or one of them is not in [0, 1].
        """
        q = levels("quantiles", quantiles)
        self.setup(*args, **kwargs)
        assert self.plate_layout is not None
        with seeded(0):
            values, _ = self.plate_layout.constrain(self.draw_latents(QUANTILE_DRAWS, *args, **kwargs))
        # torch.quantile takes no more than 16 million numbers.
        return {
            name: torch.stack([value.sort(0).values[round(float(x) * (len(value) - 1))] for x in q])
            for name, value in values.items()
        }
