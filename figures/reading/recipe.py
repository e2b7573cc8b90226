"""What offsets say in vocabulary space: the likeliest tokens of each head's offset, and what it adds to right answers directly.

LoFiT's offsets (seed 0) of the runs that `figures/saved.py` names, through each head's W_O, the final norm and the unembedding;
direct attribution on 50 test examples. Tokens are those of the eight heads with the largest scaling.

Kinship's offsets are read with TransformerLens's Jacobian lens too, which applies to this model. It is fitted here on four of
Kinship's own test texts of about 26 tokens, which takes two minutes and a half of a core; a hundred texts of 128 tokens, as its
authors advise, would take hours. So it is a first look. Lenses of two texts each tell how far to trust it: their ten
likeliest tokens have 7 to 9 in common at L19H4, L23H8 and L24H8, 3 to 5 at L17 and L19H3, none or one at L4H1 and L6H6. What
they agree on is a few words (L23H8: groceries, storage, supply, museum), punctuation and pieces of words: no name and no word
for a relative, as with the logit lens.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformer_lens.tools.analysis import JacobianLens

from figures.saved import TASKS, adapter, model, scores
from lofit_lens import plots
from lofit_lens.analysis import attribute_offsets, read_offsets
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result
from lofit_lens.tasks import texts_of

SHOWN = 8
#: Whose offsets the Jacobian lens reads, and what it is fitted on: twice as many texts.
READ_ON, TEXTS = "kinship", 2


def compute() -> Iterator[tuple[str, Result]]:
    for name, task in TASKS.items():
        yield name, read_offsets(model(), _shown(name))
        yield f"{name}-attribution", attribute_offsets(model(), task, adapter(name))
    halves = [_jacobian_lens(first) for first in (0, TEXTS)]
    for name, lens in {"": JacobianLens.merge(halves), "-half-1": halves[0], "-half-2": halves[1]}.items():
        yield f"{READ_ON}-jacobian{name}", read_offsets(model(), _shown(READ_ON), jacobian_lens=lens)


def _shown(name: str) -> Any:
    return adapter(name).restrict(scores(name).top(SHOWN))


def _jacobian_lens(first: int) -> JacobianLens:
    texts = texts_of(TASKS[READ_ON], first + TEXTS)[first:]
    layers = sorted({head.layer for head in _shown(READ_ON).heads})
    settings = {"source_layers": layers, "dim_batch": 64, "show_progress": False}
    return JacobianLens.fit(model(), texts, corpus=f"{READ_ON}, test", **settings)


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    k = 4 if columns == 1 else 8
    figures = {}
    for name in TASKS:
        figures[name] = plots.offset_tokens(results[name], k=k, title=f"Likeliest tokens of {name}'s offsets", columns=columns)
        figures[f"{name}-attribution"] = plots.offset_attribution(
            results[f"{name}-attribution"], title=f"What {name}'s offsets add", columns=columns
        )
    jacobian, title = f"{READ_ON}-jacobian", f"{READ_ON}'s offsets, Jacobian lens of {2 * TEXTS} texts"
    figures[jacobian] = plots.offset_tokens(results[jacobian], lens="Jacobian", k=k, title=title, columns=columns)
    return figures
