"""The structures: shapes, formulas, masks, gradients, tuning, round trips."""

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizerFast,
    pipeline,
)

from heads import HEADS, EncoderWithHeadConfig, EncoderWithHeadForSequenceClassification, attention_projections
from models import add_lora
from scratch_model import ScratchConfig, ScratchModel

H, R = 32, 8
PARAMETERS = {  # the formulas of the docstrings
    "linear": 0,
    "adapter": 2 * H * R + R + H,
    "lightweight": 2 * H * R + R + 3 * H,
    "tiny-attention": 4 * H * R + 3 * R + H,
    "grn": 3 * H * R + R * R + 2 * R + 4 * H,
}


def build(encoder_folder, head="grn", tuning="frozen", seed=0, **config):
    torch.manual_seed(seed)
    model = EncoderWithHeadForSequenceClassification.from_encoder(
        encoder_folder, head=head, tuning=tuning, num_labels=3, head_size=R, **config
    )
    return add_lora(model, rank=2) if tuning == "lora" else model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_a_model_loaded_in_half_precision(encoder_folder, tmp_path, head, dtype):
    model = build(encoder_folder, head).eval()
    model.save_pretrained(tmp_path)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype).eval()
    assert half.classifier.weight.dtype == dtype
    torch.testing.assert_close(half(**batch()).logits, model(**batch()).logits, atol=0.02, rtol=0.02)


def batch(rows=4, tokens=11, vocabulary=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(5, vocabulary, (rows, tokens), generator=generator),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
    }


def pad(inputs, count, pad_id):
    rows = len(inputs["input_ids"])
    return {
        "input_ids": torch.cat([inputs["input_ids"], torch.full((rows, count), pad_id)], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros(rows, count, dtype=torch.long)], dim=1),
    }


def reference(head: nn.Module, name: str, h: torch.Tensor) -> torch.Tensor:
    """The formulas again, from the docstrings' notation, token by token, for one note without padding."""
    w = dict(head.named_parameters())

    def linear(x, layer):
        return x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]

    def layer_norm(x):
        normal = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return normal * w["norm.weight"] + w["norm.bias"]

    if name == "linear":
        return h
    if name == "adapter":
        return h + linear(torch.clamp(linear(h, "down"), min=0), "up")
    if name == "lightweight":
        return layer_norm(linear(linear(h, "down"), "up"))
    if name == "tiny-attention":
        q, k, v = linear(h, "qkv").split(R, dim=-1)
        return h + linear(torch.softmax(q @ k.T / R**0.5, dim=-1) @ v, "output")
    eta1 = linear(F.elu(linear(h, "w2")), "w1")
    w5, w4 = linear(eta1, "gate").split(H, dim=-1)
    return layer_norm(h + torch.sigmoid(w4) * w5)


@pytest.mark.parametrize("name", HEADS)
def test_structure_follows_its_formula_and_parameter_count(name):
    torch.manual_seed(1)
    head = HEADS[name](H, R, dropout=0.1).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    hidden_states = torch.randn(2, 7, H)
    expected = torch.stack([reference(head, name, row) for row in hidden_states])  # (2, 7, H)
    mask = torch.ones(2, 7, dtype=torch.long)
    token_by_token = head(hidden_states, mask, pool=lambda states: states)
    torch.testing.assert_close(token_by_token, expected, rtol=1e-4, atol=1e-5)
    # pooling before the last affine layer gives what pooling after it gives
    pooled = head(hidden_states, mask, pool=lambda states: states.mean(dim=1))
    torch.testing.assert_close(pooled, expected.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in head.parameters()) == PARAMETERS[name]


def test_a_gated_residual_network_is_as_wide_as_the_encoder_unless_told():
    head = HEADS["grn"](H, HEADS["grn"].default_size, dropout=0.1)
    assert sum(parameter.numel() for parameter in head.parameters()) == 4 * H * H + 6 * H
    assert head.w2.out_features == head.w1.out_features == H


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_no_logit(encoder_folder, name, pooling):
    model = build(encoder_folder, name, pooling=pooling).eval()
    inputs = batch()
    padded = pad(inputs, 6, model.config.encoder_config.pad_token_id)
    torch.testing.assert_close(model(**padded).logits, model(**inputs).logits, rtol=0, atol=1e-6)
    alone = {key: value[:1] for key, value in inputs.items()}
    torch.testing.assert_close(model(**inputs).logits[:1], model(**alone).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_what_learns_and_one_step_changes_nothing_else(encoder_folder, name, tuning):
    model = build(encoder_folder, name, tuning).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's A has no gradient until B, which starts at zero, has moved
        optimizer.zero_grad()
        model(**batch(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients = {key: value.grad for key, value in model.named_parameters()}
        optimizer.step()
    for key, parameter in model.named_parameters():
        ours = key.split("base_model.model.")[-1].startswith(("head.", "classifier."))
        if tuning == "lora":  # peft trains a copy of the modules to save, and leaves the original alone
            learns = "lora_" in key or (ours and ".modules_to_save." in key)
        else:
            learns = tuning == "full" or ours
        assert parameter.requires_grad == learns, key
        if not learns:
            assert gradients[key] is None and torch.equal(parameter, before[key]), key
        elif ".position_embeddings." not in key and ".attention.self.key.bias" not in key and "qkv.bias" not in key:
            # (a bias on the keys adds the same to every score of a softmax: its gradient is zero but for rounding)
            assert gradients[key].abs().sum() > 0, key
            assert not ours or not torch.equal(parameter, before[key]), key


def test_frozen_encoder_is_deterministic_in_training(encoder_folder):
    model = build(encoder_folder, "linear", "frozen").train()
    assert not model.encoder.training and model.head.training
    inputs = batch()
    first, second = (model.encoder(**inputs).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    assert build(encoder_folder, "linear", "full").train().encoder.training


def test_encoder_weights_are_the_pretrained_ones(encoder_folder):
    ours = build(encoder_folder, tuning="full").encoder.state_dict()
    theirs = AutoModel.from_pretrained(encoder_folder).state_dict()
    shared = [key for key in theirs if not key.startswith("pooler.")]
    assert shared and all(torch.equal(ours[key], theirs[key]) for key in shared)
    assert set(ours) == set(shared)  # the pooler, which nothing would train, is gone


@pytest.mark.parametrize("name", HEADS)
def test_save_and_load_give_equal_logits(encoder_folder, tmp_path, name):
    model = build(encoder_folder, name, "full", thresholds=[0.4]).eval()
    model.save_pretrained(tmp_path)
    inputs = batch()
    for loader in (EncoderWithHeadForSequenceClassification, AutoModelForSequenceClassification):
        loaded = loader.from_pretrained(tmp_path).eval()
        assert type(loaded) is EncoderWithHeadForSequenceClassification
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-7)
        assert loaded.config.thresholds == [0.4] and loaded.config.head == name
    assert (tmp_path / "heads.py").is_file()  # what `trust_remote_code` loads elsewhere


@pytest.mark.parametrize("name", HEADS)
def test_lora_saves_all_of_the_head_and_merges_to_equal_logits(encoder_folder, tmp_path, name):
    model = build(encoder_folder, name, "lora").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    model.eval()
    inputs = batch(seed=3)
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path / "adapter")
    fresh = build(encoder_folder, name, "frozen", seed=9)
    adapted = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(adapted(**inputs).logits, logits, rtol=0, atol=1e-6)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, logits, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(**inputs).logits, logits, rtol=0, atol=1e-5)


def test_lora_goes_on_every_attention_projection_of_the_encoder_only(encoder_folder):
    names = attention_projections(build(encoder_folder, "tiny-attention"))
    assert len(names) == 2 * 4  # 2 layers: query, key, value, output
    assert all(name.startswith("encoder.") and ".attention." in name for name in names)


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_head(encoder_folder, seed):
    first, second = build(encoder_folder, seed=seed).state_dict(), build(encoder_folder, seed=seed).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = build(encoder_folder, seed=seed + 2)
    assert not torch.equal(other.head.w1.weight, first["head.w1.weight"])


def test_windows_of_a_note_are_averaged(encoder_folder):
    model = build(encoder_folder).eval()
    inputs = batch(rows=5)
    rows = model(**inputs).logits
    notes = model(**inputs, window_note=torch.tensor([0, 0, 1, 2, 2])).logits
    expected = torch.stack([rows[:2].mean(0), rows[2], rows[3:].mean(0)])
    torch.testing.assert_close(notes, expected, rtol=0, atol=1e-6)
    seen = []
    model.encoder.register_forward_hook(lambda module, given, output: seen.append(len(output.last_hidden_state)))
    with torch.no_grad():
        notes = model(**inputs, window_note=torch.tensor([0, 0, 1, 2, 2])).logits
    torch.testing.assert_close(notes, expected, rtol=0, atol=1e-6)
    assert seen == [3, 2]  # windows at a time: as many as there are notes


def test_multi_label_loss(encoder_folder):
    model = build(encoder_folder, problem_type="multi_label_classification").eval()
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = model(**batch(rows=2), labels=labels)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels))


def test_unknown_head_is_named_with_the_list(encoder_folder):
    with pytest.raises(ValueError, match="Unknown head 'gru'; choose one of: linear, adapter, lightweight"):
        build(encoder_folder, "gru")


def test_config_round_trip_keeps_the_encoder(encoder_folder):
    config = build(encoder_folder, "adapter").config
    again = EncoderWithHeadConfig.from_dict(config.to_dict())
    assert again.encoder_config.hidden_size == H and again.head == "adapter" and again.head_size == R


def test_in_a_pipeline_with_a_tokenizer_of_bert(tmp_path):
    """It gives the ids of segments, which `forward` takes and does not need."""
    (tmp_path / "vocab.txt").write_text("\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] le patient tousse".split()))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    assert "token_type_ids" in tokenizer("le patient")
    BertConfig(vocab_size=8, hidden_size=H, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    AutoModel.from_config(AutoConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    model = build(tmp_path).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    (found,) = classify(["le patient tousse"])
    ids = tokenizer("le patient tousse", return_tensors="pt")["input_ids"]
    expected = model(ids).logits.softmax(-1)[0].sort(descending=True).values
    torch.testing.assert_close(torch.tensor([answer["score"] for answer in found]), expected)


def test_experts_of_the_encoder_are_kept_even(tmp_path):
    """While it is trained, their load-balancing loss is there beside the logits, with a gradient for the routers."""
    torch.manual_seed(0)
    config = ScratchConfig(vocab_size=50, hidden_size=H, num_attention_heads=4, intermediate_size=2 * H, num_experts=2)
    ScratchModel(config).save_pretrained(tmp_path / "experts")
    model = build(tmp_path / "experts", "linear", "full").train()
    model(**batch())["auxiliary_loss"].backward()
    routers = [p for name, p in model.encoder.named_parameters() if "router" in name]
    assert routers and all(p.grad.abs().sum() > 0 for p in routers)
    assert "auxiliary_loss" not in model.eval()(**batch())
    assert "auxiliary_loss" not in build(tmp_path / "experts", "linear", "frozen").train()(**batch())
