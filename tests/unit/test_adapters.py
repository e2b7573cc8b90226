"""Adapter folders: what is read back is what was written, or the folder is refused."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lofit_lens import HeadIntervention, attached, load_model, methods, tiny_model
from lofit_lens.adapters import CARD_FILE, CONFIG_FILE, REQUIRED, VECTORS_FILE, read_adapter
from lofit_lens.heads import Head
from lofit_lens.models import exact_fingerprint, fingerprint
from lofit_lens.tasks.base import Example

HEADS = (Head(2, 3), Head(0, 1))
TOKENS = torch.arange(3, 19).reshape(2, 8)


def intervention_of(seed: int, **described) -> HeadIntervention:
    scale, offset = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(seed))
    return HeadIntervention(HEADS, scale=scale, offset=offset, **described)


MADE = intervention_of(0, made_by={"method": "LoFiT", "seed": 0, "settings": {"k": 2}}, head_scores=(0.75, 0.1))


@pytest.fixture
def folder(llama, tmp_path):
    return MADE.save(tmp_path / "adapter", llama)


@pytest.fixture(scope="module")
def other_llama():
    return tiny_model("llama", seed=1)


def same_vectors(a: HeadIntervention, b: HeadIntervention) -> bool:
    return a.heads == b.heads and torch.equal(a.scale, b.scale) and torch.equal(a.offset, b.offset)


def change_config(folder, **changes) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **changes}))


def test_everything_is_read_back_as_it_was_written(llama, folder):
    loaded = HeadIntervention.load(folder, llama)
    assert same_vectors(loaded, MADE)
    assert (loaded.made_by, loaded.head_scores) == (MADE.made_by, MADE.head_scores)


def test_the_loaded_adapter_gives_the_same_logits_bit_for_bit(model, tmp_path):
    MADE.save(tmp_path / "adapter", model)
    logits = []
    for intervention in (None, MADE, HeadIntervention.load(tmp_path / "adapter", model)):
        with attached(model, intervention), torch.no_grad():
            logits.append(model(TOKENS))
    assert torch.equal(logits[1], logits[2])
    assert not torch.equal(logits[1], logits[0])


@pytest.mark.parametrize("absent", ["scale", "offset"])
def test_a_vector_that_is_not_there_is_not_there_when_read_back(llama, tmp_path, absent):
    present = {name: torch.ones(1, 16) for name in ("scale", "offset") if name != absent}
    HeadIntervention((Head(0, 1),), **present).save(tmp_path / "adapter", llama)
    loaded = HeadIntervention.load(tmp_path / "adapter", llama)
    assert getattr(loaded, absent) is None
    assert loaded.head_scores is None


def test_a_part_of_another_adapter_and_a_multiple_are_saved_whole(llama, tmp_path):
    part = 0.5 * MADE.restrict([HEADS[1]])
    part.save(tmp_path / "adapter", llama)
    assert same_vectors(HeadIntervention.load(tmp_path / "adapter", llama), part)


def test_the_folder_says_what_it_is_without_this_package(llama, folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD_FILE, CONFIG_FILE, VECTORS_FILE])
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["heads"] == [[2, 3], [0, 1]]
    assert config["hook_point"] == "blocks.{layer}.attn.hook_z"
    assert config["base_model"] == {
        "name": "tiny-llama", "fingerprint": fingerprint(llama), "n_layers": 3, "n_heads": 4, "d_head": 16
    }  # fmt: skip
    assert torch.equal(load_file(folder / VECTORS_FILE)["offset"], MADE.offset)
    card = (folder / CARD_FILE).read_text()
    assert "base_model: tiny-llama" in card
    assert "2 attention heads" in card


# What exists


def test_an_existing_folder_is_not_overwritten_unasked(llama, folder):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        intervention_of(1).save(folder, llama)
    assert same_vectors(HeadIntervention.load(folder, llama), MADE)


def test_overwriting_replaces_the_whole_folder(llama, folder):
    (folder / "stale.txt").write_text("from before")
    other = intervention_of(1)
    other.save(folder, llama, overwrite=True)
    assert same_vectors(HeadIntervention.load(folder, llama), other)
    assert not (folder / "stale.txt").exists()


def test_what_cannot_be_written_leaves_nothing_behind(llama, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        intervention_of(0, made_by={"model": llama.cfg}).save(tmp_path / "adapter", llama)
    assert list(tmp_path.iterdir()) == []


# What is refused


def test_an_adapter_of_another_base_model_is_refused_with_the_way_out(other_llama, folder):
    with pytest.raises(ValueError, match=r"made for 'tiny-llama' \(fingerprint .*pass model=None"):
        HeadIntervention.load(folder, other_llama)
    assert same_vectors(HeadIntervention.load(folder), MADE)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_schema_is_refused(folder, version):
    change_config(folder, schema_version=version)
    with pytest.raises(ValueError, match=f"has schema version {version!r}, this lofit-lens reads 1"):
        HeadIntervention.load(folder)


@pytest.mark.parametrize("length", [0, 7, -1])
def test_truncated_vectors_are_refused(folder, length):
    path = folder / VECTORS_FILE
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{VECTORS_FILE} .* truncated or replaced"):
        HeadIntervention.load(folder)


def test_the_vectors_of_another_adapter_are_refused(llama, folder, tmp_path):
    other = intervention_of(1).save(tmp_path / "other", llama)
    shutil.copy(other / VECTORS_FILE, folder / VECTORS_FILE)
    with pytest.raises(ValueError, match="truncated or replaced"):
        HeadIntervention.load(folder)


def test_a_vectors_file_of_another_format_is_refused(folder):
    garbage = b"not safetensors" * 10
    (folder / VECTORS_FILE).write_bytes(garbage)
    change_config(folder, vectors_sha256=hashlib.sha256(garbage).hexdigest())
    with pytest.raises(ValueError, match=f"{VECTORS_FILE} cannot be read"):
        HeadIntervention.load(folder)


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: "", lambda text: "\x00" + text])
def test_a_damaged_configuration_is_refused(folder, damage):
    path = folder / CONFIG_FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=f"{CONFIG_FILE} is not JSON .* save the adapter again"):
        HeadIntervention.load(folder)


def test_a_configuration_in_another_encoding_is_refused(folder):
    (folder / CONFIG_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="is not JSON"):
        HeadIntervention.load(folder)


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", "{}"])
def test_a_configuration_of_another_program_is_refused(folder, text):
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match="has schema version None"):
        HeadIntervention.load(folder)


@pytest.mark.parametrize("key", [*REQUIRED, "vectors_sha256"])
def test_a_configuration_that_lacks_a_key_is_refused(folder, key):
    config = json.loads((folder / CONFIG_FILE).read_text())
    del config[key]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=key):
        HeadIntervention.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": {"name": "tiny-llama"}},
        {"base_model": "tiny-llama"},
        {"heads": "L2H3"},
        {"heads": [[2, 3]]},
        {"heads": [[2], [0]]},
        {"head_scores": 0.75},
    ],
)
def test_a_configuration_with_values_of_another_form_is_refused(llama, folder, changes):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=r"."):
        HeadIntervention.load(folder, llama)


@pytest.mark.parametrize("name", [CONFIG_FILE, VECTORS_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        HeadIntervention.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere has no"):
        read_adapter(tmp_path / "nowhere")


# Fingerprints


def test_the_fingerprint_is_of_the_weights_whatever_their_dtype(llama, other_llama):
    in_bfloat16 = load_model("tiny-llama", dtype=torch.bfloat16)
    assert fingerprint(in_bfloat16) == fingerprint(llama) == fingerprint(tiny_model("llama"))
    assert fingerprint(other_llama) != fingerprint(llama)


def test_one_entry_of_an_mlp_is_another_exact_fingerprint():
    edited = tiny_model("llama")
    before = exact_fingerprint(edited)
    assert before == exact_fingerprint(tiny_model("llama"))
    weights = next(weight for name, weight in edited.named_parameters() if "mlp" in name)
    with torch.no_grad():
        weights[1, 7] *= 1.01
    assert exact_fingerprint(edited) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_another_exact_fingerprint(llama, dtype):
    assert exact_fingerprint(tiny_model("llama", dtype=dtype)) != exact_fingerprint(llama)


def test_how_a_model_reads_its_weights_and_texts_is_in_its_exact_fingerprint():
    found = [exact_fingerprint(tiny_model("llama"))]
    for change in (
        lambda model: setattr(model.original_model.config, "rms_norm_eps", 1e-3),
        lambda model: setattr(model.cfg, "default_prepend_bos", False),
        lambda model: model.tokenizer.add_tokens(["a new one"]),
    ):
        changed = tiny_model("llama")
        change(changed)
        found.append(exact_fingerprint(changed))
    assert len(set(found)) == 4


def test_what_a_model_is_called_is_not_in_its_exact_fingerprint(llama):
    renamed = tiny_model("llama")
    renamed.cfg.model_name = renamed.original_model.config._name_or_path = "mine"
    assert exact_fingerprint(renamed) == exact_fingerprint(llama)


def test_one_layer_tuned_a_little_is_another_fingerprint():
    tuned = tiny_model("llama")
    before = fingerprint(tuned)
    with torch.no_grad():
        for weight in tuned.blocks[2].attn.o.parameters():
            weight.mul_(1.02)
    assert fingerprint(tuned) != before


def test_a_fit_knows_its_base_model_and_a_hand_made_edit_is_told(llama, gpt2, toy_task, tmp_path):
    task = toy_task({"train": [Example("one and one is", " two")]})
    method = methods.LoFiT(heads=((0, 1),), offset_epochs=1)
    fitted = method.fit(llama, task).intervention
    fitted.save(tmp_path / "fitted")
    again = HeadIntervention.load(tmp_path / "fitted", llama)
    assert again.base_model == fitted.base_model
    (0.5 * again + again).save(tmp_path / "sum")
    assert HeadIntervention.load(tmp_path / "sum", llama).heads == fitted.heads

    with pytest.raises(ValueError, match=r"pass it: save\(folder, model\)"):
        HeadIntervention((Head(0, 1),), offset=torch.ones(1, 16)).save(tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()
    with pytest.raises(ValueError, match="two base models"):
        fitted + method.fit(gpt2, task).intervention
