"""AVBGuide: a Pyro guide over all continuous latents of a model, made of one implicit distribution."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn
from torch.func import functional_call

from .adversaries import Adversary, ResidualAdversary
from .arguments import function, instance, levels
from .checks import check_density, check_latents, check_name_is_free, check_plates, check_sampler, check_size
from .contrasts import Contrast, MixtureContrast, PriorContrast
from .control import Factor, is_one
from .diagnostics import StageComparison
from .distributions import Draw, ImplicitDistribution
from .divided.division import own_draws
from .hints import hint
from .host_buffers import HostBuffers
from .layout import LatentLayout
from .placing import place_by_prior, place_by_search
from .remedies import spelled
from .rng import seeded
from .samplers import ResidualSampler, Sampler, as_sampler
from .starts import Effort, LaplaceModes
from .targets import Model, UnconstrainedTarget
from .trunks import AffineTrunk, BestTrunk, IdentityTrunk, Trunk, standard_normal_log_prob

_names = itertools.count()

#: Values of the guide's ``stage`` buffer: whose density is in force.
TRUNK, ADVERSARIAL = 0, 1

REFERENCE_SCALE = 2.0
QUANTILE_DRAWS = 20_000


class AVBGuide(HostBuffers, AutoContinuous):
    """Adversarial variational guide: z = trunk(sampler(noise)), its density learned by an adversary.

    A guide like any of Pyro's autoguides: use it with ``SVI``, ``Predictive``, ``AutoGuideList``. Train
    it with :class:`~avbvi.AdversarialELBO`, or leave all to :func:`~avbvi.fit`. A sampler that takes a context makes
    it an :class:`~avbvi.amortised.AmortisedAVBGuide`, over the plate in which the model's latents live.

    Args:
        model: a Pyro model, or a :class:`~avbvi.LogDensity`.
        sampler: noise to base coordinates; any module with a ``noise_dim`` will do.
        trunk: base coordinates to the latent space; by default the better of a Gaussian mixture and a flow, fitted
            first and then frozen; with a sampler of your own an affine map, so that your sampler is returned.
        contrast: the density that the adversary compares the sampler with.
        adversary: the network that learns log q - log r.
        context: (amortised) function of the model's arguments that gives the data's context; by default the first.
        name: prefix of the guide's entries in Pyro's parameter store; unique by default.

    Raises:
        ModelError: (at set-up) no continuous latents, a discrete latent that is neither enumerated nor
            hidden, latents that come and go, latents in a subsampled plate.
        ValueError: a context without a sampler that takes one, or ``PriorContrast`` with another trunk than the
            identity; (at set-up) a part was built for another width, or the sampler's output is not ``dim`` wide.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, avbvi
        >>> from pyro.infer import SVI, Predictive
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([0.5, 1.0, 1.5])
        >>> guide = avbvi.AVBGuide(model)
        >>> elbo = avbvi.AdversarialELBO(num_particles=64)
        >>> svi = SVI(model, guide, elbo.optimizer(lr=2e-3), loss=elbo)
        >>> for _ in range(3):
        ...     loss = svi.step(y)
        >>> draws = Predictive(model, guide=guide, num_samples=50, parallel=True)(y)
        >>> draws["mu"].shape
        torch.Size([50, 1])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), sections 3 and 4. The trunk takes up its section 7, which asks for
    better contrasting distributions.
    """

    #: Whether there is one posterior for each datum, of the data as context.
    is_amortised: ClassVar[bool] = False
    ON_HOST: ClassVar[tuple[str, ...]] = (
        *("stage", "step_count", "adversarial_steps", "polishing", "began"),
        *("trunk_decided", "trunk_suffices", "skipped_steps", "started"),
    )

    def __new__(cls, *args: Any, sampler: Any = None, **kwargs: Any) -> AVBGuide:
        if cls is AVBGuide and getattr(sampler, "context_dim", None) is not None:
            # The package builds on this module.
            from .amortised.guide import AmortisedAVBGuide

            cls = AmortisedAVBGuide
        guide: AVBGuide = super().__new__(cls)
        return guide

    @spelled
    def __init__(
        self,
        model: Model,
        *,
        sampler: nn.Module | None = None,
        trunk: Trunk | None = None,
        contrast: Contrast | None = None,
        adversary: Adversary | None = None,
        context: Callable[..., Any] | None = None,
        name: str | None = None,
    ) -> None:
        function("model", model)
        if context is not None and not self.is_amortised:
            raise ValueError(
                "context is what an amortised guide's sampler sees of the data, and this sampler takes none; give one "
                "with a context_dim, or leave context out"
            )
        if name is not None:
            instance("name", name, str, "a string")
        super().__init__(model, init_loc_fn=init_to_median)
        for given, kind, role in (
            (trunk, Trunk, "trunk"),
            (contrast, Contrast, "contrast"),
            (adversary, Adversary, "adversary"),
        ):
            if given is not None and not isinstance(given, kind):
                raise TypeError(f"{role} must be a {kind.__name__}, found {type(given).__name__}")
        self._given_name = name
        self._pyro_name = name or self._unique_name()
        self._own_model = (model,)
        self._default_trunk = trunk is None
        self.sampler: Sampler = ResidualSampler() if sampler is None else as_sampler(sampler)
        # Behind a flow, which would be compared with it and might be kept instead, a user's sampler had little to do.
        own = not isinstance(self._modules["sampler"], ResidualSampler)
        self.trunk = (AffineTrunk() if own else BestTrunk()) if trunk is None else trunk
        if isinstance(contrast, PriorContrast) and not isinstance(self._modules["trunk"], IdentityTrunk):
            raise ValueError(
                "contrast=PriorContrast() is a density of the latents themselves, which are base coordinates only "
                "with trunk=IdentityTrunk(); pass that, or use GaussianContrast()"
            )
        self.contrast: Contrast = MixtureContrast() if contrast is None else contrast
        self.adversary: Adversary = ResidualAdversary() if adversary is None else adversary
        self.register_on_host(stage=TRUNK, step_count=0, adversarial_steps=0, polishing=False, began=0.0)
        self.register_on_host(trunk_decided=False, trunk_suffices=False, skipped_steps=0, started=False)
        self.register_buffer("anchor", torch.zeros(()))
        self.layout: LatentLayout | None = None
        self._target: UnconstrainedTarget | None = None
        #: How the last run chose between trunk and adversarial stage.
        self.comparison: StageComparison | None = None
        #: Gaussians that the start found to describe the target best; None where broad draws did better.
        self.modes: LaplaceModes | None = None
        #: What the search for a start found to be wrong with the target, in words, and whether no fit is to be trusted.
        self.start_notes: list[str] = []
        self.start_suspect = False
        #: Inverse temperature of the current training call (set by AdversarialELBO).
        self._beta: Factor = 1.0

    @staticmethod
    def _unique_name() -> str:
        i = next(_names)
        return "AVBGuide" if i == 0 else f"AVBGuide_{i}"

    # -- copies -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own version drops the model from the original as well, which breaks deepcopy.
        state = self.__dict__.copy()
        state["master"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy under the same name would train the original's parameters through Pyro's store.
        self._pyro_name = self._unique_name()

    # -- parts ------------------------------------------------------------------------------------
    # Reading a module as an attribute tells SVI to train it; these accessors do not.

    def part(self, role: str) -> Any:
        """The part in a ``role`` (trunk, sampler, contrast or adversary), read without telling SVI to train it."""
        return self._modules[role]

    @property
    def is_adversarial(self) -> bool:
        """Whether the adversarial stage's sampler is in force, and log q therefore learned."""
        return int(self.stage) == ADVERSARIAL

    def adversary_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the adversary's own optimiser may move."""
        return list(self.part("adversary").parameters())

    @property
    def site_scales(self) -> dict[str, Factor]:
        """Factors of the terms of the model's latent sites in this training call, where they are not 1."""
        return {}

    # -- set-up -----------------------------------------------------------------------------------

    def setup(self, *args: Any, **kwargs: Any) -> AVBGuide:
        """Run the model once with its arguments, check it and build all parts; done on the first call otherwise.

        Call it before ``load_state_dict``. Returns the guide itself.

        Raises:
            ModelError: the model can't be fitted (see the class).
            ValueError: a part does not fit the model.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return self

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        master = None if self.master is None else self.master()
        if master is not None and master.prototype_trace is None:
            # An AutoGuideList sets itself up in its first forward(), which comes after the ELBO's call of this.
            master._setup_prototype(*args, **kwargs)
        enumerated = check_latents(self._own_model[0], args, kwargs)
        if enumerated:
            self._model = (poutine.block(self.model, hide=enumerated),)
        super()._setup_prototype(*args, **kwargs)
        check_plates(self.prototype_trace)
        self.layout = LatentLayout.from_trace(self.prototype_trace)
        check_size(self.layout.dim)
        self._check_name()
        like = self._init_loc()
        trunk = self.part("trunk")
        trunk.build(self.layout.dim)
        for role in ("sampler", "contrast"):
            self.part(role).build_on(trunk)
        self.part("adversary").build_for(self.part("contrast").feature_dim, trunk.base_dim)
        self.to(device=like.device, dtype=like.dtype)
        trunk.start(like, torch.eye(self.layout.dim, dtype=like.dtype, device=like.device))
        self._check_sampler()

    def use_affine_trunk(self) -> None:
        """Replace a default trunk by an affine one: for training without a known number of steps."""
        if self._default_trunk and self.prototype_trace is None:
            self.trunk = AffineTrunk()

    def _check_name(self) -> None:
        if self._given_name is not None:
            check_name_is_free(self._pyro_name, self)

    def _check_sampler(self) -> None:
        sampler = self.part("sampler")
        with torch.no_grad(), seeded(0):
            sampler.start(self.anchor)
        check_sampler(sampler, self.part("trunk").base_dim, self.anchor)

    def bind(
        self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], *, vectorize: bool
    ) -> UnconstrainedTarget | None:
        """The target that this guide approximates, for the ``model`` as it is trained (with enumerated sites).

        ``args`` and ``kwargs`` are the model's arguments. With ``vectorize`` the model is run once for many draws, else
        draw by draw. ``None`` inside an ``AutoGuideList``: the joint density then depends on the other guides too.
        """
        if self.master is not None:
            self.part("contrast").bind(None)
            return None
        assert self.layout is not None
        if self._target is None or self._target.model is not model or self._target.vectorize != vectorize:
            self._target = UnconstrainedTarget(model, self.layout, args, kwargs, vectorize=vectorize)
        else:
            self._target = self._target.with_arguments(args, kwargs)
        self.part("contrast").bind(self._target)
        return self._target

    def target(self, *args: Any, **kwargs: Any) -> UnconstrainedTarget | None:
        """The target for these arguments; the model is the one last trained with, else the guide's own."""
        if self._target is None:
            return self.bind(self._own_model[0], args, kwargs, vectorize=True)
        if (args or kwargs) and self._target.args is not args:
            self._target = self._target.with_arguments(args, kwargs)
        return self._target

    def check(self, target: UnconstrainedTarget) -> None:
        """Raise if the target's log-density is not fit to be searched and fitted.

        Raises:
            ModelError: at the points from which a search would start it is NaN, +inf or finite nowhere, has no
                gradient, or does not keep draws apart.
        """
        check_density(target, self.anchor)

    @torch.no_grad()
    def start(self, target: UnconstrainedTarget | None, effort: Effort | None = None) -> None:
        """Place the trunk where a search finds the mass of ``target``; by the prior's moments where there is none.

        ``effort`` says how many points it starts from; by default 64, fewer where the model is run draw by draw.
        """
        if target is not None:
            place_by_search(self, target, effort)
        else:
            assert self.layout is not None
            prior = UnconstrainedTarget(self._own_model[0], self.layout, *self._last_arguments)
            place_by_prior(self.part("trunk"), prior, self.anchor)
        self.started.fill_(True)

    _last_arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    # -- the implicit distribution ------------------------------------------------------------------

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The guide's :class:`~avbvi.ImplicitDistribution` over the unconstrained vector of all latents."""
        assert self.layout is not None

        def base_log_prob(draw: Draw) -> Tensor:
            return self._tempered(self.base_log_prob(draw, args, kwargs), draw)

        # In the adversarial stage the trunk is frozen: its parameters are detached and hidden from SVI.
        trunk = self._frozen_trunk() if self.is_adversarial else self.trunk
        draw_base = self._sampler_draws(self.sampler) if self.is_adversarial else self.trunk_base
        return ImplicitDistribution(draw_base, trunk, self.part("trunk").inverse, base_log_prob, self.layout.dim)

    def _frozen_trunk(self) -> Any:
        trunk = self.part("trunk")
        parameters = {k: p.detach() for k, p in trunk.named_parameters()}
        if not parameters:
            return trunk
        return lambda e: functional_call(trunk, parameters, (e,))

    def trunk_base(self, shape: torch.Size) -> Tensor:
        """Draws of the trunk's own base density, (*shape, base_dim)."""
        return own_draws(lambda s: self.part("trunk").sample_base(s, like=self.anchor), shape)

    def _sampler_draws(self, sampler: Sampler) -> Any:
        return lambda shape: sampler(own_draws(lambda s: sampler.sample_noise(s, like=self.anchor), shape))

    def base_log_prob(
        self,
        draw: Draw,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        log_p: Tensor | None = None,
    ) -> Tensor:
        """log q (*batch,) of a ``draw`` in base coordinates: T + log r, or the trunk's own base density in its stage.

        ``log_p`` (*batch,), the target's log-density in base coordinates at the draw, spares its evaluation where it is
        known; ``args`` and ``kwargs`` are the model's arguments.
        """
        if not self.is_adversarial:
            own: Tensor = self.part("trunk").base_log_prob(draw.base)
            return own
        adversary: Adversary = self.part("adversary")
        contrast: Contrast = self.part("contrast")
        log_r = contrast.log_prob(draw.base)
        target = self.target(*args, **(kwargs or {})) if adversary.uses_target else None
        given = hint(self, target, draw, log_r, log_p=log_p)
        parameters = {k: p.detach() for k, p in adversary.named_parameters()}
        t = functional_call(adversary, parameters, (contrast.features(draw.base), given))
        return adversary.objective.log_ratio(t) + log_r

    def carried(self, base: Tensor) -> Draw:
        """The draw that these base coordinates (*batch, base_dim) become; its gradient is in them alone."""
        z, log_det = self._frozen_trunk()(base)
        return Draw(z, base, log_det)

    def log_p(self, target: UnconstrainedTarget, draw: Draw) -> Tensor:
        """The (annealed) target's log-density in base coordinates at a ``draw``, (*batch,)."""
        log_p = target.log_prob(draw.z.reshape(-1, draw.z.shape[-1])).reshape(draw.z.shape[:-1])
        if not is_one(self._beta):
            log_p = self._beta * log_p + (1.0 - self._beta) * self._log_reference(draw.z)
        return log_p + draw.log_det

    def log_p_at(self, target: UnconstrainedTarget, base: Tensor) -> Tensor:
        """The (annealed) target's log-density in base coordinates, at points (*batch, base_dim) of them."""
        return self.log_p(target, self.carried(base))

    @torch.no_grad()
    def draw(self, n: int) -> Draw:
        """n draws without gradient: z (n, dim) with base coordinates and log-determinant."""
        base = self.draw_base(n)
        z, log_det = self.part("trunk")(base)
        return Draw(z, base, log_det)

    @torch.no_grad()
    def draw_base(self, n: int) -> Tensor:
        """n draws without gradient, in base coordinates (n, base_dim)."""
        sampler = self.part("sampler")
        draws = self._sampler_draws(sampler) if self.is_adversarial else self.trunk_base
        base: Tensor = draws(torch.Size((n,)))
        return base

    # -- annealing: beta log p + (1 - beta) log N(0, 2^2 I) in the start's coordinates ------------------

    def _tempered(self, log_q: Tensor, draw: Draw) -> Tensor:
        if is_one(self._beta):
            return log_q
        # forward() multiplies everything by beta, the sites' Jacobians included; log q itself must not be.
        rest = (1.0 - self._beta) * self._log_reference(draw.z)
        return (log_q - rest) / self._beta + (1.0 - 1.0 / self._beta) * draw.log_det

    def _log_reference(self, z: Tensor) -> Tensor:
        scaled = self.part("trunk").reference_coordinates(z) / REFERENCE_SCALE
        return standard_normal_log_prob(scaled)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample all latent sites: {site: value of its shape in the model} (Pyro's protocol of guides)."""
        self._last_arguments = (args, kwargs)
        self.setup(*args, **kwargs)
        if is_one(self._beta):
            sites: dict[str, Tensor] = super().forward(*args, **kwargs)
            return sites
        with poutine.scale(scale=self._beta):
            sites = super().forward(*args, **kwargs)
        return sites

    # -- summaries ------------------------------------------------------------------------------------

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Empirical quantiles of each site on its constrained scale: {site: (len(quantiles), *shape)}.

        They are those of 20,000 draws, the same ones at each call.

        Raises:
            TypeError: ``quantiles`` holds no real numbers.
            ValueError: it is no list, is empty, or one of them is not in [0, 1].
        """
        q = levels("quantiles", quantiles)
        self.setup(*args, **kwargs)
        assert self.layout is not None
        with seeded(0):
            values, _ = self.layout.constrain(self.draw(QUANTILE_DRAWS).z)
        q = q.to(self.anchor)
        return {name: torch.quantile(value, q, dim=0) for name, value in values.items()}

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Empirical median of each site on its constrained scale: {site: (*shape,)}."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}
