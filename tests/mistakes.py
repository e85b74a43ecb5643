"""Plausible mistakes and what the user is told: the code, run as it stands, and the page that shows both.

    python -m tests.mistakes    # writes docs/howto/mistakes.md anew

The test (tests/test_mistakes.py) makes every mistake and compares what is said with the page.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO

import avbvi

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "mistakes.md"
INTRODUCTION = """# What mistakes look like

Mistakes that are easily made, what avbvi says to each, word for word, and what to do. The page is made by running the
code (`python -m tests.mistakes`); a test makes every mistake again, compares what is said with the page, and runs the
mended code. In all examples:

```python
import pyro, torch, avbvi
import pyro.distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
```
"""


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        title: what was done wrong.
        code: as a user writes it.
        why: cause and remedy, in words.
        mended: a piece of the code, and what to write in its place.
    """

    title: str
    code: str
    why: str
    mended: tuple[str, str] | None = None


REGRESSION = """\
def model(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)
"""
MISTAKES = (
    Mistake(
        "A log-density of the wrong shape",
        """
        def log_prob(z):  # (*batch, 2)
            return -0.5 * z.square()

        avbvi.fit(avbvi.LogDensity(log_prob, event_shape=(2,)), steps=1000)
        """,
        "`log_prob` gets many draws at once and gives one number for each: `(*batch, 2) -> (*batch,)`. Sum over the "
        "coordinates of a draw, not over the draws; a function that is written for one draw needs `batched=False`.",
        ("z.square()", "z.square().sum(-1)"),
    ),
    Mistake(
        "A forgotten `.to_event`",
        """
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        avbvi.fit(model, torch.randn(4, 2), steps=1000)
        """,
        "Dimensions of one draw are its *event*; what is not declared as such counts as independent draws, and these "
        "belong to plates.",
        ("dist.Normal(torch.zeros(2), 1.0)", "dist.Normal(torch.zeros(2), 1.0).to_event(1)"),
    ),
    Mistake(
        "A matrix product with a vector of latents",
        REGRESSION.replace("(x * w).sum(-1)", "x @ w")
        + "\navbvi.fit(model, torch.randn(50, 3), torch.randn(50), steps=1000)",
        "The model is run once for many draws, as Pyro does with `vectorize_particles=True`: latents have one more "
        "dimension, on the left.",
        ("x @ w", "(x * w).sum(-1)"),
    ),
    Mistake(
        "A discrete latent",
        """
        def model(y):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y)

        avbvi.fit(model, torch.randn(20), steps=1000)
        """,
        "A sampler's draws have gradients; a discrete site has none. Pyro can sum it out.",
        (
            "avbvi.fit(model, torch.randn(20), steps=1000)",
            "elbo = avbvi.AdversarialELBO(TraceEnum_ELBO(num_particles=64, vectorize_particles=True))\n"
            "avbvi.fit(pyro.infer.config_enumerate(model), torch.randn(20), elbo=elbo, steps=1000)",
        ),
    ),
    Mistake(
        "float64 mixed in",
        """
        precision = torch.eye(2, dtype=torch.float64)  # from NumPy, say

        def log_prob(z):
            return -0.5 * ((z @ precision) * z).sum(-1)

        avbvi.fit(avbvi.LogDensity(log_prob, event_shape=(2,)), steps=1000)
        """,
        "NumPy's arrays are float64, PyTorch's tensors float32 unless told otherwise.",
        ("torch.eye(2, dtype=torch.float64)", "torch.eye(2, dtype=torch.float64).float()"),
    ),
    Mistake(
        "Data on another device",
        REGRESSION
        + '\nx = torch.ones(50, 3, device="meta")  # "cuda", say\navbvi.fit(model, x, torch.randn(50), steps=1000)',
        "Latents are made where the fit runs. `fit(..., device=...)` moves the model's arguments and modules there; "
        "what a function closes over has to be moved by hand. (The example runs on a machine without a GPU: `meta` "
        "stands for another device.)",
        ('device="meta"', 'device="cpu"'),
    ),
    Mistake(
        "NaN in the data",
        """
        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        y = torch.tensor([0.3, float("nan"), 1.2])
        avbvi.fit(model, y, steps=1000)
        """,
        "One NaN makes every density NaN. Missing values can be left out, masked, or inferred as latents.",
        ("avbvi.fit(model, y, ", "avbvi.fit(model, y[torch.isfinite(y)], "),
    ),
    Mistake(
        "NaN in a covariate",
        REGRESSION
        + "\nx = torch.randn(50, 3)\nx[7, 0] = float('nan')\navbvi.fit(model, x, torch.randn(50), steps=1000)",
        "What is no observed site is not looked at before the model fails; the arguments are looked through then.",
        ("x[7, 0] = float('nan')", "x[7, 0] = 0.0"),
    ),
    Mistake(
        "A typo in an option",
        """
        model = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
        avbvi.fit(model, step=1000)
        """,
        "No option is swallowed: what a function does not know, it refuses. The same holds of "
        "`AVBGuide(samplr=...)`, `AdversarialELBO(step=...)` and `LogDensity(...)`.",
        ("step=1000", "steps=1000"),
    ),
    Mistake(
        "Too few steps",
        """
        def log_prob(z):  # a ring
            return -0.5 * ((z.square().sum(-1).add(1e-12).sqrt() - 2.0) / 0.2) ** 2

        model = avbvi.LogDensity(log_prob, event_shape=(2,))
        guide = avbvi.AVBGuide(model, trunk=avbvi.AffineTrunk())
        posterior = avbvi.fit(model, guide=guide, steps=5, seed=0, progress=False)
        print(posterior.verdict)
        """,
        "That is no error but a verdict: look at it before the draws. The default is 5000 steps. (With the default "
        "trunk, a mixture that starts at the modes, few steps may be enough, and the verdict says so.)",
    ),
    Mistake(
        "A second model in the same parameter store",
        """
        class VAE:
            def __init__(self):
                self.decoder = torch.nn.Linear(2, 3)

            def model(self, x):
                pyro.module("decoder", self.decoder)
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        x = torch.randn(8, 3)
        for attempt in range(2):
            vae = VAE()
            guide = avbvi.AVBGuide(vae.model, sampler=avbvi.SemiImplicitSampler(context_dim=3))
            elbo = avbvi.AdversarialELBO(steps=1000)
            svi = SVI(vae.model, guide, elbo.optimizer(), loss=elbo)
            svi.step(x)
        """,
        "Pyro keeps parameters by name, and under this name it has those of the first decoder; in Pyro the second "
        "would stay untrained without a word. A second *guide* is no mistake: each has names of its own. `fit` trains "
        "the model's own parameters whatever the store has.",
        ("    vae = VAE()\n", "    pyro.clear_param_store()\n    vae = VAE()\n"),
    ),
    Mistake(
        "A missing file of data",
        """
        avbvi.ArrayFileDataset("no_such_folder/images.npy")
        """,
        "A relative path begins at the folder in which Python was started.",
    ),
    Mistake(
        "A missing folder of data",
        """
        from models.data import mnist

        mnist.load("no_such_folder")
        """,
        "Nothing is downloaded; the variable is read when no `path` is given.",
    ),
)


def source(mistake: Mistake, *, mended: bool = False) -> str:
    """The mistake's code, or the mended one."""
    code = textwrap.dedent(mistake.code).strip()
    if not mended:
        return code
    assert mistake.mended is not None
    old, new = mistake.mended
    assert code.count(old) == 1, (old, code)
    return code.replace(old, new)


def run(code: str) -> str:
    """What the user sees: the last line of the traceback, or what was printed."""
    names: dict[str, Any] = {
        **{"pyro": pyro, "torch": torch, "avbvi": avbvi, "dist": dist},
        **{"SVI": SVI, "TraceEnum_ELBO": TraceEnum_ELBO},
    }
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exec(code, names)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return printed.getvalue().rstrip()


def wrapped(line: str) -> list[str]:
    """A line of a message in pieces that fit the page, those after the first indented."""
    indent = "    " if line.startswith("  - ") else "  "
    return textwrap.wrap(line, 98, subsequent_indent=indent, break_on_hyphens=False) or [""]


def section(number: int, mistake: Mistake, said: str) -> str:
    """A mistake as a section of the page."""
    lines = [line for part in said.splitlines() for line in wrapped(part)]
    text = f"## {number}. {mistake.title}\n\n```python\n{source(mistake)}\n```\n\n"
    text += "```text\n" + "\n".join(lines) + "\n```\n\n" + textwrap.fill(mistake.why, 120) + "\n"
    if mistake.mended is not None:
        _, new = (textwrap.dedent(part).strip("\n") for part in mistake.mended)
        text += f"\nMended:\n\n```python\n{new.strip()}\n```\n" if "\n" in new else f"\nMended: `{new.strip(' ,')}`\n"
    return text


def main() -> None:
    """Write the page."""
    parts = [section(i, mistake, run(source(mistake))) for i, mistake in enumerate(MISTAKES, 1)]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join([INTRODUCTION, *parts]), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
