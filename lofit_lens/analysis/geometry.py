"""How a learned offset lies next to ITI's directions, and to whatever else a head says.

With v the offset of a head, z its output at the last token of prompt and answer, S the covariance of z over all right and wrong
answers (divided by their number), and d one of

    probe        w, the weights of ITI's logistic probe for z as it is       (Li et al. 2023, arXiv 2306.03341, section 3.1)
    mass-mean    mean of z over right answers - mean over wrong ones          (section 4)
    PC1, PC2...  eigenvectors of S, largest eigenvalue first, pointing as mass-mean does
    a name       the offset of another adapter at the same head: another task's, another seed's, ITI's own

the cosine of v and d is taken in three spaces:

    z            v and d
    residual     v W_O and d W_O: what is written into the stream, before any norm behind W_O (Gemma's)
    whitened     T v and T d, where T = (S + r I)^(-1/2) and r = 0.001 tr(S) / d_head, which keeps it finite;
                 of the probe, T^(-1) w

T is symmetric (ZCA); every other whitening is a rotation behind it and gives the same cosines. What is added to z is a
displacement: where z becomes T z, v becomes T v. The probe's weights read: for w . z to stay what it is they become T^(-1) w,
and their cosine with T v is w . v, the change of the probe's logit, over both lengths. So taken, the readout S^(-1) m that
linear discriminant analysis makes of the mass-mean m (a logistic probe's is alike) and the displacement m are one direction. In
z and in the residual stream the probe is what ITI makes of it, a displacement along w: there is no one readout of the stream
that reads as w does, for many agree on what one head writes. For that displacement in whitened space, give `offset_geometry`
the edit of `ITI(heads=..., direction="probe")` as another adapter.

Chance. The cosine c of a fixed and a uniformly random direction in n dimensions has c^2 ~ Beta(1/2, (n - 1) / 2), so that

    density(c) = (1 - c^2)^((n - 3) / 2) / B(1/2, (n - 1) / 2)        p(c) = P(|cosine| >= |c|)

with n = d_head everywhere. That is exact for an offset, independent of d, whose direction is uniform in that very space: in z,
over all its dimensions; in the residual stream, over the image of W_O (which has d_head dimensions if W_O has that rank);
whitened, T v is uniform if v ~ N(0, S + r I), shaped like the head's own activations. An offset that is uniform in z is not
uniform in the other two: W_O and T stretch it along some dimensions (T along those where z varies least), so that its cosines
with what lies there are larger than chance says, and with what does not, such as PC1, smaller. A p is of one cosine; nothing is
corrected for the number of heads and directions.

Strength, with sigma(u) the standard deviation of u . z over all answers, as in ITI's z <- z + alpha sigma(theta) theta:

    effective alpha    |v| / sigma(v / |v|)                 to set beside ITI's 15
    mass-mean alpha    v . theta / sigma(theta)             theta = m / |m|; below 0, v points to the wrong answers
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from lofit_lens import lens
from lofit_lens.analysis.head_activations import HeadActivations, spread_along
from lofit_lens.displacements import offsets_of
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, attached
from lofit_lens.lens import LensModel

Space = Literal["z", "residual", "whitened"]
SPACES: tuple[Space, ...] = get_args(Space)

#: Of the mean eigenvalue of the covariance, added to each: fewer answers than dimensions leave some at zero.
RIDGE = 1e-3
#: A standard deviation of z, over its largest number, that is rounding: z has seven digits, and is reckoned with in sixteen.
STILL = 1e-12


def cosine_null(n: int) -> Any:
    """The distribution of the cosine of a fixed and a uniformly random direction in `n` dimensions, frozen, as SciPy has them:
    `.pdf(c)` is its density, `.ppf(q)` its quantiles, `.sf(c)` the probability of a larger one.

    Raises:
        ValueError: fewer than two dimensions.
    """
    if n < 2:
        raise ValueError(f"got n = {n} dimensions, wanted at least 2: in one, every cosine is 1 or -1")
    # With a sign to either side, c^2 ~ Beta(1/2, (n - 1) / 2) says the same as (1 + c) / 2 ~ Beta((n - 1) / 2, (n - 1) / 2).
    return stats.beta((n - 1) / 2, (n - 1) / 2, loc=-1, scale=2)


@dataclass(frozen=True, eq=False)
class OffsetGeometry:
    """Where the offsets of an adapter lie, head by head; float64.

    Args:
        heads: the edited heads.
        directions: what each offset is compared with.
        cosines: in the order of `SPACES`; NaN where another adapter does not edit the head, or a vector is zero.
        d_head: dimensions that chance is reckoned in.
        lengths: |v|, in units of z.
        effective_alphas: |v| in standard deviations of z along v; NaN where z is always the same.
        mass_mean_alphas: v along mass-mean, in standard deviations of z along that; NaN likewise.
    """

    heads: tuple[Head, ...]
    directions: tuple[str, ...]
    cosines: Float[Tensor, "3 k direction"]
    d_head: int
    lengths: Float[Tensor, "k"]
    effective_alphas: Float[Tensor, "k"]
    mass_mean_alphas: Float[Tensor, "k"]

    def p_values(self) -> Float[np.ndarray, "3 k direction"]:
        """For each cosine, how often that of a random direction is as large, to either side."""
        return 2 * cosine_null(self.d_head).sf(self.cosines.abs().numpy())

    def to_frame(self) -> pd.DataFrame:
        """One row for each cosine that there is: `label`, `layer`, `head`, `direction`, `space`, `cosine`, `p`."""
        p = self.p_values()
        rows = [
            (head.label, *head, direction, space, self.cosines[i, j, k].item(), p[i, j, k])
            for i, space in enumerate(SPACES)
            for j, head in enumerate(self.heads)
            for k, direction in enumerate(self.directions)
        ]
        frame = pd.DataFrame(rows, columns=["label", "layer", "head", "direction", "space", "cosine", "p"])
        return frame.dropna(subset="cosine", ignore_index=True)

    def strengths(self) -> pd.DataFrame:
        """One row for each head: `label`, `layer`, `head`, `length`, `effective_alpha`, `mass_mean_alpha`."""
        return pd.DataFrame(
            {
                "label": [head.label for head in self.heads],
                "layer": [head.layer for head in self.heads],
                "head": [head.index for head in self.heads],
                "length": self.lengths.numpy(),
                "effective_alpha": self.effective_alphas.numpy(),
                "mass_mean_alpha": self.mass_mean_alphas.numpy(),
            }
        )


def offset_geometry(
    model: LensModel,
    intervention: HeadIntervention,
    activations: HeadActivations,
    *,
    others: Mapping[str, HeadIntervention] | None = None,
    n_components: int = 3,
) -> OffsetGeometry:
    """The cosines of every offset with everything in the module's list, and its strength.

    Args:
        model: that both were made with; only its W_O is used.
        intervention: an adapter with offsets.
        activations: of all its heads, or of more.
        others: adapters to compare with, by name; only where they edit the same heads.
        n_components: principal components to compare with.

    Raises:
        ValueError: an adapter has no offsets, does not fit the model or shares no head with the intervention; a name is taken;
            activations lack a head or are another model's; n_components is out of range. Before anything is computed.
    """
    others = {} if others is None else others
    directions = ("probe", "mass-mean", *(f"PC{i}" for i in range(1, n_components + 1)), *others)
    offsets = offsets_of(intervention)
    offsets_of_others = [offsets_of(other, f"the adapter {name!r}") for name, other in others.items()]
    _check_adapters(model, intervention, others, directions)
    activations = activations.restrict(intervention.heads)
    _check_dimensions(activations, intervention.d_head, n_components)
    cosines, strengths = [], []
    for head, of_head, probe, mass_mean in zip(
        activations.heads, activations.z, activations.probe_weights(), activations.mass_means(), strict=True
    ):
        z, v, nothing = of_head.double(), offsets[head], torch.full_like(probe, torch.nan)
        values, vectors = torch.linalg.eigh(torch.cov(z.T, correction=0))
        components = vectors.T.flip(0)[:n_components]
        components = components * torch.where(components @ mass_mean < 0, -1.0, 1.0)[:, None]
        elsewhere = [other.get(head, nothing) for other in offsets_of_others]
        compared = torch.stack([probe, mass_mean, *components, *elsewhere])
        W_O = lens.head_output_weights(model, head.layer)[head.index].cpu().double()
        in_space = {
            "z": (v, compared),
            "residual": (v @ W_O, compared @ W_O),
            "whitened": _whitened(v, compared, values, vectors),
        }
        cosines.append(torch.stack([_cosines(*in_space[space]) for space in SPACES]))
        along_mass_mean = v @ mass_mean / mass_mean.norm() / _spread(z, mass_mean)
        strengths.append(torch.stack([v.norm(), v.norm() / _spread(z, v), along_mass_mean]))
    return OffsetGeometry(
        activations.heads, directions, torch.stack(cosines, dim=1), intervention.d_head, *torch.stack(strengths).unbind(1)
    )


def _check_adapters(
    model: LensModel, intervention: HeadIntervention, others: Mapping[str, HeadIntervention], directions: tuple[str, ...]
) -> None:
    taken = sorted({name for name in others if directions.count(name) > 1})
    if taken:
        raise ValueError(f"other adapters are called {taken}, as directions are that are there anyway; give them other names")
    with attached(model, intervention):
        pass  # what does not fit is refused
    for name, other in others.items():
        with attached(model, other):
            pass
        if not set(other.heads) & set(intervention.heads):
            raise ValueError(
                f"the adapter {name!r} edits none of the heads {[head.label for head in intervention.heads]}; fit it at them: "
                "heads=intervention.heads"
            )


def _check_dimensions(activations: HeadActivations, d_head: int, n_components: int) -> None:
    _, n_texts, found = activations.z.shape
    if found != d_head:
        raise ValueError(f"the activations have d_head = {found}, the offsets {d_head}; collect them of this model")
    most = min(d_head, n_texts - 1)
    if not 0 <= n_components <= most:
        raise ValueError(f"got n_components = {n_components}; {n_texts} answers in {d_head} dimensions have 0 to {most}")


def _spread(z: Float[Tensor, "text d_head"], direction: Float[Tensor, "d_head"]) -> Float[Tensor, ""]:
    """`spread_along`; NaN where there is none but that of rounding, in whose units everything is long."""
    spread = spread_along(z, direction)
    return torch.where(spread > STILL * z.abs().max(), spread, torch.nan)


def _whitened(
    v: Float[Tensor, "d_head"],
    compared: Float[Tensor, "direction d_head"],
    values: Float[Tensor, "d_head"],
    vectors: Float[Tensor, "d_head d_head"],
) -> tuple[Float[Tensor, "d_head"], Float[Tensor, "direction d_head"]]:
    """Displacements T v and T d, and T^(-1) w for the probe, the first of them; in the covariance's own axes."""
    spread = (values.clamp(min=0) + RIDGE * values.mean()).sqrt()
    in_axes = compared @ vectors
    return v @ vectors / spread, torch.cat([in_axes[:1] * spread, in_axes[1:] / spread])


def _cosines(v: Float[Tensor, "n"], compared: Float[Tensor, "direction n"]) -> Float[Tensor, "direction"]:
    return (compared @ v / (compared.norm(dim=1) * v.norm())).clamp(-1, 1)
