"""Tables as Markdown, as text from data may be."""

import pandas as pd


def markdown_table(frame: pd.DataFrame) -> str:
    """A table without its index; a bar in a text is no end of a cell."""
    rows = [map(str, frame.columns), ["---"] * len(frame.columns), *(map(str, row) for row in frame.itertuples(index=False))]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
