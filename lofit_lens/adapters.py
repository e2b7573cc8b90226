"""Adapter folders: `lofit_config.json`, `lofit_vectors.safetensors` and a card for people, written whole or not at all.

The configuration names the SHA-256 of the vectors, so a truncated or swapped file is noticed when it is read.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from lofit_lens.files import new_folder, recover_folder, sha256_of

SCHEMA_VERSION = 1
#: Beside an adapter, where its method scored heads.
SCORES_FILE = "head_scores.json"
CONFIG_FILE = "lofit_config.json"
VECTORS_FILE = "lofit_vectors.safetensors"
CARD_FILE = "README.md"
REQUIRED = ("base_model", "made_by", "vectors_sha256")

CARD = """---
library_name: lofit-lens
base_model: {base_model}
tags: [lofit, interpretability, transformer-lens]
---
# Adapter for {base_model}

Edit: {edit}. Vectors: {vectors}.
Made by: {made_by}.

```python
import lofit_lens as ll

model = ll.load_model("{base_model}")
intervention = ll.load_adapter("path/to/this/folder", model)
with ll.attached(model, intervention):
    ...
```
"""


def write_adapter(
    folder: Path, config: Mapping[str, Any], vectors: Mapping[str, torch.Tensor], *, overwrite: bool = False
) -> Path:
    """Write an adapter folder in one atomic step; a kill at any moment leaves the old one, or none, or the new one.

    Raises:
        FileExistsError: the folder exists, and `overwrite` is not set.
        OSError: it cannot be written.
    """
    with new_folder(folder, overwrite=overwrite) as draft:
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in vectors.items()}
        save_file(tensors, draft / VECTORS_FILE)
        packages = {name: version(name) for name in ("lofit-lens", "transformer-lens", "transformers", "torch")}
        complete = {
            "schema_version": SCHEMA_VERSION,
            **config,
            "vectors_sha256": sha256_of(draft / VECTORS_FILE),
            "package_versions": packages,
        }
        (draft / CONFIG_FILE).write_text(json.dumps(complete, indent=2) + "\n", encoding="utf-8")
        card = CARD.format(
            base_model=config["base_model"]["name"],
            edit=config["edit"],
            vectors=", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()),
            made_by=json.dumps(config["made_by"]),
        )
        (draft / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and the vectors of an adapter folder, checked against each other.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: truncated, foreign, or of an unknown schema.
    """
    recover_folder(folder)
    for name in (CONFIG_FILE, VECTORS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; wanted a folder that HeadIntervention.save wrote")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{folder / CONFIG_FILE} is not JSON ({error}); the file is damaged, save the adapter again"
        ) from error
    schema = config.get("schema_version") if isinstance(config, dict) else None
    if schema != SCHEMA_VERSION:
        raise ValueError(
            f"{folder / CONFIG_FILE} has schema version {schema!r}, this lofit-lens reads {SCHEMA_VERSION}; "
            "use the release that wrote it, or save the adapter again"
        )
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise ValueError(f"{folder / CONFIG_FILE} lacks {missing}; wanted what HeadIntervention.save writes")
    if sha256_of(folder / VECTORS_FILE) != config["vectors_sha256"]:
        raise ValueError(f"{folder / VECTORS_FILE} is not the file that {CONFIG_FILE} describes: truncated or replaced")
    try:
        return config, load_file(folder / VECTORS_FILE)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / VECTORS_FILE} cannot be read: {error}") from error
