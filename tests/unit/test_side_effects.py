"""What an edit costs elsewhere, against a loop over texts and tokens in float64."""

import pytest
import torch

from lofit_lens import attached, scoring, side_effects
from lofit_lens.batches import encode_prompt
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, PromptIntervention
from lofit_lens.side_effects import SideEffects, side_effects_of_each
from lofit_lens.tasks import Example, sources, texts_of

EDIT = HeadIntervention((Head(0, 1), Head(2, 2)), offset=0.3 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
TEXTS = ["It was a bright cold day in April.", "No.", "The clocks were striking thirteen; nobody looked up."]


@torch.no_grad()
def test_equals_a_loop_over_texts_and_tokens(model):
    result = side_effects(model, EDIT, TEXTS, max_tokens=20, token_budget=40)
    for i, text in enumerate(TEXTS):
        ids = encode_prompt(model, text)[:20]
        base = model(torch.tensor([ids]))[0].double().softmax(-1)
        with attached(model, EDIT):
            edited = model(torch.tensor([ids]))[0].double().softmax(-1)
        n = len(ids) - 1
        assert result.n_tokens[i] == n
        # Float32 logits of size 1 to 10 on our side.
        exact = {"rel": 1e-4, "abs": 1e-6}
        assert result.base_cross_entropy[i] == pytest.approx(
            sum(-base[t, ids[t + 1]].log().item() for t in range(n)) / n, **exact
        )
        assert result.cross_entropy[i] == pytest.approx(sum(-edited[t, ids[t + 1]].log().item() for t in range(n)) / n, **exact)
        kl = sum((base[t] * (base[t] / edited[t]).log()).sum().item() for t in range(n)) / n
        assert kl > 1e-4
        assert result.kl[i] == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_large_vocabularies_go_through_in_smaller_parts(llama, monkeypatch):
    whole = side_effects(llama, EDIT, TEXTS)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 0)
    seen = []
    with llama.hooks(fwd_hooks=[("unembed.hook_out", lambda value, hook: seen.append(value.shape[1]))]):
        parts = side_effects(llama, EDIT, TEXTS)
    assert max(seen) <= scoring.ROWS_OF_LOGITS < sum(whole.n_tokens)
    # Float32 in other batches.
    assert parts.kl == pytest.approx(whole.kl, rel=1e-4)


def test_no_edit_costs_nothing(llama):
    result = side_effects(llama, 0.0 * EDIT, TEXTS)
    assert result.cross_entropy == result.base_cross_entropy
    assert result.kl == (0.0, 0.0, 0.0)


@torch.no_grad()
@pytest.mark.parametrize("prepends_bos", [True, False])
def test_text_in_front_is_read_and_not_predicted(llama, monkeypatch, prepends_bos):
    monkeypatch.setattr(llama.cfg, "default_prepend_bos", prepends_bos)
    shots = "Q: 1 and 1? A: 2\n\n"
    result = side_effects(llama, PromptIntervention(shots), TEXTS)
    for i, text in enumerate(TEXTS):
        ids, shown = encode_prompt(llama, text), encode_prompt(llama, shots)
        n = len(ids) - 1
        base = llama(torch.tensor([ids]))[0, :-1].double().log_softmax(-1)
        behind = llama(torch.tensor([shown + (ids[1:] if prepends_bos else ids)]))[0, -n - 1 : -1].double().log_softmax(-1)
        targets = torch.tensor(ids[1:])
        # Float32 logits of size 1 to 10 on our side.
        assert result.n_tokens[i] == n
        assert result.base_cross_entropy[i] == pytest.approx(-base[range(n), targets].mean().item(), rel=1e-4)
        assert result.cross_entropy[i] == pytest.approx(-behind[range(n), targets].mean().item(), rel=1e-4)
        kl = (base.exp() * (base - behind)).sum(-1).mean().item()
        assert kl > 1e-4
        assert result.kl[i] == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_no_text_in_front_costs_nothing(llama):
    result = side_effects(llama, PromptIntervention(""), TEXTS)
    assert result.cross_entropy == result.base_cross_entropy
    assert result.kl == (0.0, 0.0, 0.0)


def test_text_in_front_that_fills_the_context_is_refused(llama):
    assert side_effects(llama, PromptIntervention("x" * (llama.cfg.n_ctx - 3)), ["A whole text."]).n_tokens == (1,)
    with pytest.raises(ValueError, match="the edit's text has 255 tokens, and the model's context of 256 leaves no room"):
        side_effects(llama, PromptIntervention("x" * (llama.cfg.n_ctx - 2)), ["A whole text."])


def test_an_edit_that_has_diverged_has_no_cost(llama):
    edit = HeadIntervention((Head(0, 1),), offset=torch.full((1, 16), torch.nan))
    with pytest.raises(ArithmeticError, match=r"not finite for 3 of 3 texts; the edit has diverged: fit it again"):
        side_effects(llama, edit, TEXTS)


def test_several_edits_share_the_base_models_passes(llama, passes):
    edits = [EDIT, -2.0 * EDIT, 0.0 * EDIT]
    together = side_effects_of_each(llama, edits, TEXTS, max_tokens=20, token_budget=40)
    n_batches = len(passes) // 4
    assert (n_batches > 1, len(passes)) == (True, 4 * n_batches)
    # The same batches, so the same numbers, bit for bit.
    assert together == [side_effects(llama, edit, TEXTS, max_tokens=20, token_budget=40) for edit in edits]
    assert len({found.kl for found in together}) == 3


def test_text_in_front_may_be_one_of_several_edits(llama):
    shots = PromptIntervention("Q: 1 and 1? A: 2\n\n")
    for found, edit in zip(side_effects_of_each(llama, [EDIT, shots], TEXTS), [EDIT, shots], strict=True):
        alone = side_effects(llama, edit, TEXTS)
        assert found.n_tokens == alone.n_tokens
        # Float32 in other batches.
        assert found.kl == pytest.approx(alone.kl, rel=1e-3, abs=1e-6)
    # All are measured on what the context holds behind the longest of them.
    long = PromptIntervention("x" * (llama.cfg.n_ctx - 10))
    assert [found.n_tokens for found in side_effects_of_each(llama, [EDIT, long], TEXTS[:1])] == [(8,), (8,)]


def test_of_several_edits_the_diverged_one_is_named(llama):
    diverged = HeadIntervention((Head(0, 1),), offset=torch.full((1, 16), torch.nan))
    with pytest.raises(ArithmeticError, match="not finite for 3 of 3 texts under edit 1; the edit has diverged"):
        side_effects_of_each(llama, [EDIT, diverged], TEXTS)


def test_every_edit_is_checked_before_one_is_measured(llama, passes):
    misfit = HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16))
    with pytest.raises(ValueError, match="L9H9 is out of range"):
        side_effects_of_each(llama, [EDIT, misfit], TEXTS)
    with pytest.raises(ValueError, match="got no edits to measure"):
        side_effects_of_each(llama, [], TEXTS)
    assert passes == []


def test_tables():
    result = SideEffects((2.0, 3.0), (1.0, 1.5), (0.1, 0.3), (9, 9))
    assert list(result.to_frame().columns) == ["cross_entropy", "base_cross_entropy", "kl", "n_tokens"]
    summary = result.summary()
    assert summary.loc["rise_in_cross_entropy", "mean"] == pytest.approx(1.25)
    assert str(result).startswith("side effects: cross-entropy 2.500 from 1.250, rise 1.2500 [")
    assert str(result).endswith("] nats a token (n = 2 texts)")
    assert (summary["low"] <= summary["mean"]).all()
    assert (summary["mean"] <= summary["high"]).all()
    # No nats are not "no success".
    assert SideEffects((2.0, 3.0), (2.0, 3.0), (0.0, 0.0), (9, 9)).summary().loc["kl"].tolist() == [0, 0, 0]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "got 0 texts"), (["A whole text.", ""], "text 1 has fewer than two tokens"), ("one string", "wanted a list")],
)
def test_texts_that_say_nothing_are_refused(llama, texts, message):
    with pytest.raises(ValueError, match=message):
        side_effects(llama, EDIT, texts)


def test_texts_are_open_web_texts_if_none_are_given(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    nowhere = sources.DataFile("open_web_text/train.parquet", "http://127.0.0.1:9/train.parquet", "0" * 64, "")
    monkeypatch.setitem(sources.SOURCES, "open_web_text", (nowhere,))
    with pytest.raises(ConnectionError, match=r"could not be fetched.*or measure on other text \(texts=\.\.\., --text\)"):
        side_effects(llama, EDIT)
    (tmp_path / "open_web_text").mkdir()
    lines = [f'{{"text": "The news of day {i}."}}' for i in range(120)]
    (tmp_path / "open_web_text" / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len(side_effects(llama, EDIT).kl) == 100


def test_texts_of_a_file_and_of_a_task(toy_task, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    assert texts_of(tmp_path / "a.jsonl") == ["One.", "Two."]
    assert texts_of(str(tmp_path / "a.jsonl"), 1) == ["One."]
    assert texts_of(toy_task({"test": [Example("Q: who? A:", " Bo", aliases=(" Beau",))]})) == ["Q: who? A: Bo"]
    (tmp_path / "a.csv").write_text("words\nOne.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv, line 2 \(record 1\): got the fields \['words'\], wanted 'text' too"):
        texts_of(tmp_path / "a.csv")
