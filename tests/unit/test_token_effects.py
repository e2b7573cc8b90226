"""Tokens under an edit against a loop, attention patterns against Hugging Face's own, and pages that nothing breaks."""

import re

import pytest
import torch

import lofit_lens as ll
from lofit_lens import attached, plots, save_figure
from lofit_lens.analysis import AttentionPatterns, TokenEffects, attention_patterns, token_effects
from lofit_lens.batches import encode_prompt
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, PromptIntervention
from lofit_lens.tiny import tiny_pair

EDIT = HeadIntervention((Head(0, 1), Head(1, 2)), offset=0.5 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
TEXT = "It was a bright cold day in April."


@torch.no_grad()
def test_tokens_equal_a_loop(model):
    effects = token_effects(model, TEXT, EDIT)
    ids = encode_prompt(model, TEXT)
    base = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    with attached(model, EDIT):
        edited = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    # Float32 logits of size 1 to 10 on our side.
    exact = {"rel": 1e-4, "abs": 1e-5}
    for place, token in enumerate(ids[1:]):
        assert effects.base_logprobs[place].item() == pytest.approx(base[place, token].item(), **exact)
        assert effects.edited_logprobs[place].item() == pytest.approx(edited[place, token].item(), **exact)
        kl = sum((base[place, v].exp() * (base[place, v] - edited[place, v])).item() for v in range(base.shape[1]))
        assert effects.kl[place].item() == pytest.approx(kl, rel=1e-3, abs=1e-5)
    frame = effects.to_frame()
    assert list(frame.columns) == ["position", "token", "base_logprob", "edited_logprob", "change", "kl"]
    assert len(frame) == len(effects.tokens) - 1 == len(ids) - 1
    assert frame["change"].abs().max() > 1e-2
    assert frame["change"].tolist() == (effects.edited_logprobs - effects.base_logprobs).tolist()


def test_their_means_are_the_side_effects(llama):
    effects, whole = token_effects(llama, TEXT, EDIT), ll.side_effects(llama, EDIT, [TEXT])
    assert effects.kl.mean().item() == pytest.approx(whole.kl[0], rel=1e-5)
    assert -effects.edited_logprobs.mean().item() == pytest.approx(whole.cross_entropy[0], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_patterns_are_the_models_own(request, family):
    model, (hf_model, _) = request.getfixturevalue(family), tiny_pair(family)
    heads = [(2, 3), (0, 1), (2, 0)]
    found = attention_patterns(model, TEXT, heads, EDIT)
    ids = torch.tensor([encode_prompt(model, TEXT)])
    own = hf_model(ids, output_attentions=True).attentions
    for head, offset in zip(EDIT.heads, EDIT.offset, strict=True):
        block = hf_model.transformer.h[head.layer].attn if family == "gpt2" else hf_model.model.layers[head.layer].self_attn
        added = torch.zeros(4, 16)
        added[head.index] = offset
        projection = block.c_proj if family == "gpt2" else block.o_proj
        projection.register_forward_pre_hook(lambda _, inputs, added=added: (inputs[0] + added.flatten(),))
    own_edited = hf_model(ids, output_attentions=True).attentions
    assert found.heads == tuple(Head(*head) for head in heads)
    for i, (layer, index) in enumerate(heads):
        # Float32 sums in another order.
        torch.testing.assert_close(found.base[i], own[layer][0, index], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found.edited[i], own_edited[layer][0, index], atol=1e-6, rtol=1e-4)
    # Nothing is edited below the first layer's attention; everything is above.
    assert torch.equal(found.base[1], found.edited[1])
    assert (found.base[0] - found.edited[0]).abs().max() > 1e-4


def test_what_cannot_be_looked_at_is_refused(llama):
    with pytest.raises(ValueError, match="the text has 1 tokens, wanted 2 to 256"):
        token_effects(llama, "", EDIT)
    with pytest.raises(ValueError, match="got an edit of prompts"):
        token_effects(llama, TEXT, PromptIntervention("Q: 1 + 1? A: 2.\n"))
    with pytest.raises(ValueError, match="got an edit that depends on where prompts end"):
        attention_patterns(llama, TEXT, [(0, 0)], HeadIntervention(EDIT.heads, offset=EDIT.offset, positions="generated"))
    with pytest.raises(ValueError, match="head L3H0 is out of range"):
        attention_patterns(llama, TEXT, [(3, 0)], EDIT)


EFFECTS = TokenEffects(
    ("a", "</script><script>alert(1)</script>", "\u2028é"),
    torch.tensor([-1.0, -2.0]),
    torch.tensor([-0.5, -3.0]),
    torch.tensor([0.1, 0.2]),
)


def test_a_token_view_holds_its_code_and_no_token_can_leave_its_string():
    page = plots.token_view(EFFECTS, title="What <b>moved</b>")
    assert page._repr_html_() == page.html
    assert "CircuitsVis.ColoredTokensMulti" in page.html
    assert "unpkg.com/circuitsvis" not in page.html
    props = page.html[page.html.rindex("CircuitsVis.ColoredTokensMulti") :]
    assert "alert(1)" in props
    # The one script that there is, and what ends it.
    assert re.findall("<[^>]*>", props) == ["</script>"]
    # No tag begins with a word joiner, wherever CircuitsVis takes a token for HTML.
    assert "\\u003c\\u2060/script>\\u003c\\u2060script>alert(1)" in props
    assert "<title>What &lt;b&gt;moved&lt;/b&gt;</title>" in page.to_html()


def test_an_attention_view_has_each_head_before_and_after(tmp_path):
    patterns = AttentionPatterns(("a", "b"), (Head(0, 1), Head(2, 0)), torch.eye(2).expand(2, 2, 2), torch.ones(2, 2, 2) / 2)
    page = plots.attention_view(patterns)
    props = page.html[page.html.rindex("CircuitsVis.AttentionHeads") :]
    assert '"attentionHeadNames": ["L0H1 base", "L0H1 edited", "L2H0 base", "L2H0 edited"]' in props
    assert "[[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]], [[1.0" in props
    (written,) = save_figure(page, tmp_path / "attention")
    assert written.read_text(encoding="utf-8").startswith("<!doctype html>")
