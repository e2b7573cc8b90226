"""Right and wrong answers in the plane that ITI's direction and a learned offset span.

With theta ITI's direction at a head (the probe's weights or the mass-mean, of length 1), v the head's offset and mu the mean of
its output z over all answers, the plane has the axes

    e1 = theta        e2 = (v - (v . e1) e1) / |v - (v . e1) e1|

and an answer is at ((z - mu) . e1, (z - mu) . e2). The offset ends at (v . e1, v . e2), with v . e2 > 0; ITI's edit, alpha
sigma(theta) theta, at (alpha sigma(theta), 0). Everything is in units of z. What the plane does not show is the variance of z
outside it: with lambda_1 and lambda_2 the variances along the axes, (lambda_1 + lambda_2) / tr(S) is inside.
"""

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens.analysis.head_activations import HeadActivations, spread_along
from lofit_lens.displacements import offsets_of
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.probes import LabelledAnswers

#: Of the offset's length. What lies across ITI's direction is rounding below this: float32 vectors have some 1e-7 of it.
PARALLEL = 1e-5


@dataclass(frozen=True, eq=False)
class OffsetPlane:
    """Answers and two edits in one plane, in units of z.

    Args:
        head: whose output.
        direction: which of ITI's is the first axis.
        alpha: strength of ITI's edit, in standard deviations along its direction.
        labelled: the answers, in the order of the points.
        points: where each answer is, from the mean of all.
        offset: where the learned offset ends.
        iti: where ITI's edit ends.
        variance_share: of the variance of z, what lies in the plane, in [0, 1].
    """

    head: Head
    direction: str
    alpha: float
    labelled: LabelledAnswers
    points: Float[Tensor, "text 2"]
    offset: Float[Tensor, "2"]
    iti: Float[Tensor, "2"]
    variance_share: float

    def to_frame(self) -> pd.DataFrame:
        """One row for each answer: `prompt`, `answer`, `is_right`, `along_iti`, `across_iti`."""
        along, across = self.points.unbind(1)
        return pd.DataFrame(
            {
                "prompt": self.labelled.prompts,
                "answer": self.labelled.answers,
                "is_right": self.labelled.is_right,
                "along_iti": along.numpy(),
                "across_iti": across.numpy(),
            }
        )


def offset_plane(
    intervention: HeadIntervention,
    activations: HeadActivations,
    head: tuple[int, int],
    *,
    direction: Literal["mass-mean", "probe"] = "mass-mean",
    alpha: float = 15.0,
) -> OffsetPlane:
    """The plane of one head.

    Args:
        intervention: an adapter with an offset there.
        activations: of that head, or of more.
        head: which.
        direction: ITI's.
        alpha: of ITI's edit.

    Raises:
        ValueError: an unknown direction, a head without an offset or without activations, or an offset that lies along ITI's
            direction, so that the two span no plane.
    """
    if direction not in ("mass-mean", "probe"):
        raise ValueError(f"got direction {direction!r}; wanted mass-mean or probe")
    v = offsets_of(intervention.restrict([head]))[Head(*head)]
    of_head = activations.restrict([head])
    (theta,) = of_head.mass_means() if direction == "mass-mean" else of_head.probe_weights()
    theta = theta / theta.norm()
    across = v - (v @ theta) * theta
    if not across.norm() > PARALLEL * v.norm():
        raise ValueError(
            f"the offset of {Head(*head).label} lies along ITI's {direction} direction, or one is zero, so they span no "
            "plane; take another head, or the other direction"
        )
    z = of_head.z[0].double()
    axes = torch.stack([theta, across / across.norm()], dim=1)
    points = (z - z.mean(0)) @ axes
    iti = torch.stack([alpha * spread_along(z, theta), torch.zeros_like(v[0])])
    share = points.var(0, correction=0).sum() / z.var(0, correction=0).sum()
    return OffsetPlane(Head(*head), direction, alpha, of_head.labelled, points, v @ axes, iti, share.item())
