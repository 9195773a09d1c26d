"""What is done to a model before it trains: that it computes the same, for encoders of several architectures."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    CamembertConfig,
    CamembertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
)

from heads import EncoderWithHeadForSequenceClassification
from machine import bfloat16_is_fast
from models import add_lora, count_parameters, pack_weights, suit_cpu, written_out_attention
from scratch_model import FastDropout

SIZES = dict(vocab_size=60, pad_token_id=1, bos_token_id=0, eos_token_id=2)
BERT_LIKE = SIZES | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
ENCODERS = {
    "camembert": lambda: CamembertModel(CamembertConfig(**BERT_LIKE)),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(**BERT_LIKE)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**SIZES, dim=32, n_layers=2, n_heads=2, hidden_dim=64)),
    # one layer sees 4 tokens to either side only, so that the last padding tokens see nothing but padding
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**BERT_LIKE, local_attention=8, cls_token_id=0, sep_token_id=2)
    ),
}


@pytest.fixture(params=[*ENCODERS])
def model(request, tmp_path):
    torch.manual_seed(0)
    ENCODERS[request.param]().save_pretrained(tmp_path)
    return EncoderWithHeadForSequenceClassification.from_encoder(tmp_path, head="adapter", tuning="full")


def padded_batch() -> dict[str, torch.Tensor]:
    input_ids = torch.randint(5, 60, (3, 24), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def test_suited_to_the_cpu_it_computes_the_same(model):
    suited = copy.deepcopy(model.eval())
    suit_cpu(suited)
    before, after = (each.encoder.config for each in (model, suited))
    assert after._attn_implementation == {"sdpa": "written-out"}.get(*[before._attn_implementation] * 2)
    # with dropout in it attention would be the library's
    assert getattr(after, "attention_probs_dropout_prob", getattr(after, "attention_dropout", None)) == 0.0
    batch = padded_batch()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
        for gradient in (True, False):  # attention written out, and not
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                with torch.set_grad_enabled(gradient):
                    logits, same = (each(**batch).logits for each in (model, suited))
            assert logits.isfinite().all()
            torch.testing.assert_close(same, logits, atol=tolerance, rtol=tolerance)


def test_suited_to_the_cpu_it_ignores_padding_and_learns(model):
    suit_cpu(model)
    assert not any(type(module) is nn.Dropout for module in model.modules())
    batch = padded_batch()
    with torch.autocast("cpu", torch.bfloat16):
        longer = {name: nn.functional.pad(tensor, (0, 8)) for name, tensor in batch.items()}
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(**longer).logits, model(**batch).logits, atol=0.02, rtol=0.02)
        model.train()(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        if "embeddings" not in name and parameter.grad is not None:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_suited_to_the_cpu_it_is_saved_as_any_other(model, tmp_path):
    suit_cpu(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    batch = padded_batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
    assert "written-out" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.skipif(not bfloat16_is_fast(use_cpu=True), reason="needs a CPU with a unit for bfloat16")
def test_packed_weights_give_the_same_to_bfloat16_rounding(model):
    batch, encoder = padded_batch(), model.encoder.eval()
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        expected = encoder(**batch).last_hidden_state[real]
        rounded = encoder.bfloat16()(**batch).last_hidden_state[real]
        weights = {name: weight.clone() for name, weight in encoder.state_dict().items()}
        pack_weights(encoder, 100)  # not the number of rows that come
        packed = encoder(**batch).last_hidden_state[real]
        one_token = encoder(input_ids=batch["input_ids"][:1, :1]).last_hidden_state
    assert all("forward" in vars(layer) for layer in encoder.modules() if isinstance(layer, nn.Linear))
    assert packed.dtype == torch.bfloat16 and one_token.isfinite().all()
    assert (packed - expected).norm() <= 1.2 * (rounded - expected).norm() > 0
    assert all(torch.equal(weight, weights[name]) for name, weight in encoder.state_dict().items())
    without_bias = nn.Sequential(nn.Linear(32, 8, bias=False, dtype=torch.bfloat16))
    inputs = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    expected = without_bias(inputs)
    pack_weights(without_bias, 6)
    torch.testing.assert_close(without_bias(inputs), expected, rtol=0.02, atol=0.02)


def test_attention_that_is_not_ours_to_write_out_goes_to_the_library():
    """Fewer keys than queries have heads, and a causal mask that is implied: what `attend` would get wrong."""
    query, key = torch.randn(1, 4, 6, 8).bfloat16(), torch.randn(1, 2, 6, 8).bfloat16()
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    output, _ = written_out_attention(module, query, key, key, None)
    expected = nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), key.repeat_interleave(2, 1), is_causal=True
    )
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_dropout_keeps_its_probability():
    model = nn.Sequential(nn.Dropout(0.25), nn.Sequential(nn.Dropout(0.5)))
    suit_cpu(model)
    assert isinstance(model[0], FastDropout) and (model[0].p, model[1][0].p) == (0.25, 0.5)
    kept = (model[0](torch.ones(100_000)) != 0).float().mean()
    assert abs(kept - 0.75) < 0.01


def test_with_lora_the_head_is_counted_once(tmp_path):
    ENCODERS["camembert"]().save_pretrained(tmp_path)
    model = EncoderWithHeadForSequenceClassification.from_encoder(tmp_path, head="adapter", tuning="lora")
    before = count_parameters(model)["total_parameters"]
    ours = sum(p.numel() for p in [*model.head.parameters(), *model.classifier.parameters()])
    lora = 2 * 4 * 2 * (2 * 32)  # layers, projections, matrices of rank 2
    counted = count_parameters(add_lora(model, rank=2))
    assert counted == {"trainable_parameters": ours + lora, "total_parameters": before}
