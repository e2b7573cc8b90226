"""One HTML page of a study: tables, interactive figures and token views, in a file that asks no network for anything.

Every text from data is escaped, by the template or as JSON that cannot end a script. Should one get through all the same, the
page's content security policy runs only the scripts whose hashes it names, and loads nothing from anywhere.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup

from lofit_lens import analysis, plots
from lofit_lens.files import check_writable, write_text_atomically
from lofit_lens.report import heads
from lofit_lens.report.figures import IN_THE_DARK, Drawn, figures_of
from lofit_lens.report.sources import Findings, read_sources
from lofit_lens.report.tables import Table, all_settings, overview, tables_of
from lofit_lens.report.transfers import transfers
from lofit_lens.results import Result

HERE = Path(__file__).parent
#: plotly.js with bars, heat maps and lines only: a third of the whole, which a browser takes a second to get ready. As it is on
#: npm (plotly.js-cartesian-dist-min), in the version that the Python package has.
PLOTLY = HERE / "plotly-cartesian.min.js"
#: What ends a script, or a line of one, in JSON: each is an escape within a string.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
#: A store of runs has no texts under an edit: those take a model, which a report does without.
_HOW_TO_VIEW = (
    "None yet: runs keep edits and outcomes, and a view of a text takes the model. Keep what analysis.token_effects or "
    "analysis.attention_patterns find with save_result, and name the file beside the runs; so with doses and offset geometry."
)
#: CircuitsVis takes no bounds for a view of several values.
_HOW_TO_READ: Mapping[type, str] = {
    analysis.TokenEffects: "Blue is above 0, red below, each on a scale of its own; type one number into both bounds "
    "to compare shades.",
}
#: Pixels above a figure that has no title: for the names of its panels, of two lines, and the buttons that appear.
_TOP, _LINE = 44, 16


@dataclass(frozen=True)
class Panel:
    """A figure: for Plotly, `element` is "plot"; else it is CircuitsVis's. `source` is JSON that is safe in a script."""

    name: str
    element: str
    source: Markup
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Card:
    """Figures, in tabs if `has_tabs`, and tables below one heading."""

    id: str
    title: str
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    kind: str = ""
    note: str = ""
    has_tabs: bool = False


@dataclass(frozen=True)
class Section:
    """Tables, the first of them open, and cards."""

    id: str
    title: str
    cards: Sequence[Card] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def write_report(sources: Iterable[str | Path], path: str | Path, *, title: str = "") -> Path:
    """Write one page of runs, adapters and results, which opens in any browser, offline.

    Args:
        sources: folders of runs (a `RunStore`'s, or one run's), of adapters or of results, or files as `save_result` writes
            them.
        path: of the page; what is there is replaced.
        title: of the page.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a source with nothing to show, or something damaged; nothing is written.
        OSError: the page cannot be written.
    """
    check_writable(path)
    study = read_sources(sources)
    write_text_atomically(path, _render(study, title or "lofit-lens report"))
    return Path(path)


def _render(study: Findings, title: str) -> str:
    sections = [section for section in _sections(study) if section.cards or section.tables or section.note]
    panels = [panel for section in sections for card in section.cards for panel in card.panels]
    libraries = _libraries(panels)
    style, script = (Markup((HERE / f"page.{ending}").read_text(encoding="utf-8")) for ending in ("css", "js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        title=title,
        summary=_summary(study),
        sections=sections,
        policy=_policy([script, *libraries.values()]),
        style=style,
        script=script,
        libraries=libraries,
        in_the_dark=_inert(json.dumps(IN_THE_DARK)),
        version=version("lofit-lens"),
    )
    return page.lstrip()


def _inert(text: str) -> Markup:
    return Markup(text.translate(_ESCAPES))


def _libraries(panels: Sequence[Panel]) -> dict[str, Markup]:
    """The code that figures need, each once."""
    codes: dict[str, str] = {}
    if any(panel.element == "plot" for panel in panels):
        codes["plotly"] = PLOTLY.read_text(encoding="utf-8")
    if any(panel.element != "plot" for panel in panels):
        codes["circuitsvis"] = plots.circuitsvis_code()
    # The same to JavaScript; and line breaks as a browser reads them, for the hash.
    return {name: Markup(code.replace("</script", "<\\/script").replace("\r\n", "\n")) for name, code in codes.items()}


def _policy(scripts: Sequence[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _summary(study: Findings) -> str:
    counts = ((len(study.runs), "run"), (len(study.results), "result"))
    return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts if count)


def _sections(study: Findings) -> list[Section]:
    views = {name: result for name, result in study.results.items() if _is_view(result)}
    others = {name: result for name, result in study.results.items() if name not in views}
    tables = [overview(study.runs), all_settings(study.runs)] if study.runs else []
    return [
        Section("overview", "Overview", tables=[table for table in tables if table.rows]),
        Section("heads", "Heads", _head_cards(study)),
        Section("transfer", "Head transfer", _transfer_cards(study)),
        Section("results", "Results", [_card(f"result-{i}", *named) for i, named in enumerate(others.items(), start=1)]),
        Section(
            "tokens",
            "Token views",
            [_card(f"view-of-{i}", *named) for i, named in enumerate(views.items(), start=1)],
            note=_HOW_TO_VIEW if study.runs and not views else "",
        ),
    ]


def _is_view(result: Result) -> bool:
    return isinstance(result, analysis.TokenEffects | analysis.AttentionPatterns)


def _card(identifier: str, name: str, result: Result) -> Card:
    try:
        figures, note = figures_of(result), _HOW_TO_READ.get(type(result), "")
    except ValueError as error:
        figures, note = {}, f"No figure: {error}"
    return Card(identifier, name, _panels(figures), tables_of(result), type(result).__name__, note, len(figures) > 1)


def _head_cards(study: Findings) -> list[Card]:
    found = heads.all_scores(study)
    cards = [
        Card(f"maps-{i}", "Head maps", _panels(_numbered(figures)), note=what)
        for i, (what, figures) in enumerate(heads.head_maps(found), start=1)
    ]
    if histograms := heads.layer_histograms(study, found):
        cards.append(Card("layers", "Layers of chosen heads", _panels(_numbered(histograms)), note="Each set of heads once."))
    for i, overlap in enumerate(heads.overlaps(found), start=1):
        note = f"The {overlap.k} best heads of each. * marks pairs more alike than by chance that knows the layers (q < 0.05)."
        figures = figures_of(overlap)
        cards.append(Card(f"overlap-{i}", "Shared heads", _panels(figures), tables_of(overlap), "", note, len(figures) > 1))
    return cards


def _transfer_cards(study: Findings) -> list[Card]:
    cards = []
    for i, one in enumerate(transfers(study.runs), start=1):
        panels, tables = ([], []) if one.found is None else (_panels(figures_of(one.found)), tables_of(one.found))
        cards.append(Card(f"transfer-{i}", one.name, panels, tables, "HeadTransfer", one.note))
    return cards


def _numbered(figures: Sequence[go.Figure]) -> dict[str, Drawn]:
    return {"" if len(figures) == 1 else str(i): figure for i, figure in enumerate(figures, start=1)}


def _panels(figures: Mapping[str, Drawn]) -> list[Panel]:
    return [_panel(name, figure) for name, figure in figures.items()]


def _panel(name: str, figure: Drawn) -> Panel:
    if isinstance(figure, plots.TokenView):
        return Panel(name, figure.element, _inert(figure.properties))
    figure = go.Figure(figure)
    layout: Any = figure.layout  # its attributes are made at run time
    names = [note.text or "" for note in layout.annotations if note.yanchor == "bottom"]  # of panels
    n_lines = max((name.count("<br>") + 1 for name in names), default=1)
    more = _LINE * max(0, n_lines - 2)
    figure.update_layout(margin_t=_TOP + more, height=layout.height + more)
    return Panel(name, "plot", _inert(str(figure.to_json())), layout.width, layout.height)
