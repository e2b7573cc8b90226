"""Texts and attention patterns under an edit, drawn by CircuitsVis; its code is in the page, so that it works offline."""

import html
from dataclasses import dataclass
from typing import Any

import torch
from circuitsvis import attention, tokens

from lofit_lens.analysis.token_effects import AttentionPatterns, TokenEffects

#: Stands for "<" until the page is written: no token can end a script in it.
_LESS_THAN = "\ue000"
#: Takes no room. CircuitsVis sets tokens as HTML in some places and as plain text in others: with this behind them, "<" begins
#: no tag and "&" no character, and both are shown as they are in either.
_JOINER = "\u2060"


@dataclass(frozen=True)
class TokenView:
    """A part of a page that draws itself, in a notebook or in a file (`save_figure`).

    Args:
        html: with all of its code.
        title: of the page, if it is kept as one.
        element: of CircuitsVis, that is drawn.
        properties: of the element, as JSON: for a page with several views, which needs the code once (`circuitsvis_code`).
    """

    html: str
    title: str = ""
    element: str = ""
    properties: str = ""

    def _repr_html_(self) -> str:
        return self.html

    def to_html(self) -> str:
        """A page of its own."""
        title = html.escape(self.title)
        return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>{self.html}</html>'


def token_view(effects: TokenEffects, *, title: str = "") -> TokenView:
    """A text, coloured by the change of each token's log-probability, by KL, or by either model's log-probability.

    Hover over a token for all four; nats. Nothing predicts the first token, which has zeros. Blue is above 0 and red below,
    each on a scale of its own: CircuitsVis sets no common bound for several values.
    """
    columns = (effects.change, effects.kl, effects.base_logprobs, effects.edited_logprobs)
    values = torch.cat([torch.zeros(1, len(columns)), torch.stack(columns, dim=1)])
    labels = ["change of log-probability", "KL", "base log-probability", "edited log-probability"]
    return _view(tokens.colored_tokens_multi(_safe(effects.tokens), values, labels), title)


def attention_view(patterns: AttentionPatterns, *, title: str = "") -> TokenView:
    """Where each head looks: the base model's pattern, and the edited one's beside it."""
    names = [f"{head.label} {when}" for head in patterns.heads for when in ("base", "edited")]
    both = torch.stack([patterns.base, patterns.edited], dim=1).flatten(0, 1)
    return _view(attention.attention_heads(both, _safe(patterns.tokens), names, max_value=1.0, min_value=0.0), title)


def _safe(labels: tuple[str, ...]) -> list[str]:
    return [label.replace("<", _LESS_THAN + _JOINER).replace("&", "&" + _JOINER) for label in labels]


def circuitsvis_code() -> str:
    """What a page needs once; then `CircuitsVis.render(id, CircuitsVis[element], properties)` draws a view in it."""
    return _split(tokens.colored_tokens([], []).local_src)[0]


def _view(rendered: Any, title: str) -> TokenView:
    # In the page's script both are escapes within a string, and mean the same character to it.
    source = rendered.local_src.replace("\\ue000", "\\u003c")
    return TokenView(source, title, *_split(source)[1:])


def _split(source: str) -> tuple[str, str, str]:
    """The code, the element and its properties. No string of JSON has a line break, so the call's are not within one."""
    code, _, call = source.partition("<script")[2].partition(">")[2].rpartition("\n    CircuitsVis.render(\n")
    _, element, properties = (line.strip() for line in call.split("\n")[:3])
    return code.strip(), element.removeprefix("CircuitsVis.").rstrip(","), properties
