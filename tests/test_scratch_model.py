"""The small Transformers: routing against a token-by-token reference, capacity, balance, masks, round trips."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from scratch_model import (
    ScratchConfig,
    ScratchForSequenceClassification,
    SwitchFeedForward,
    attend,
)

SMALL = dict(
    vocab_size=60,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    relative_reach=6,
    num_labels=2,
)


def build(experts=0, seed=0, **config):
    torch.manual_seed(seed)
    return ScratchForSequenceClassification(ScratchConfig(**{**SMALL, **config}, num_experts=experts))


def batch(rows=4, tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def switch_layer(capacity_factor=1.25, experts=3):
    torch.manual_seed(0)
    config = ScratchConfig(**SMALL, num_experts=experts, expert_capacity_factor=capacity_factor)
    layer = SwitchFeedForward(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def route_one_by_one(layer, hidden_states, mask, capacity):
    """What the Switch Transformer's text says, a token at a time: (output, load-balancing loss, tokens dropped)."""
    output, taken, dropped = torch.zeros_like(hidden_states), [0] * layer.num_experts, 0
    chosen, probabilities = [], []
    for row, column in mask.nonzero():
        token = hidden_states[row, column]
        p = (layer.router.weight @ token).softmax(0)
        expert = int(p.argmax())
        chosen.append(expert)
        probabilities.append(p)
        if taken[expert] == capacity:
            dropped += 1
            continue
        taken[expert] += 1
        wide = F.gelu(token @ layer.up_weight[expert] + layer.up_bias[expert, 0])
        output[row, column] = p[expert] * (wide @ layer.down_weight[expert] + layer.down_bias[expert, 0])
    share = torch.bincount(torch.tensor(chosen), minlength=layer.num_experts) / len(chosen)
    return output, layer.num_experts * (share * torch.stack(probabilities).mean(0)).sum(), dropped


@pytest.mark.parametrize("rows", [3, 40])  # an expert of 40 rows takes more tokens than the least room that it has
@pytest.mark.parametrize("training", [True, False])
def test_experts_agree_with_routing_one_token_at_a_time(training, rows):
    layer = switch_layer(capacity_factor=0.8).train(training)
    torch.manual_seed(1)
    hidden_states = torch.randn(rows, 7, 16, requires_grad=True)
    mask = torch.ones(rows, 7, dtype=torch.long)
    mask[1, 4:] = 0
    real = rows * 7 - 3
    capacity = math.ceil(0.8 * real / 3) if training else real
    expected, balance, dropped = route_one_by_one(layer, hidden_states, mask, capacity)
    assert (dropped > 0) == training  # the capacity is felt in training and absent in evaluation
    output, loss = layer(hidden_states, mask)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, balance)
    assert (output[1, 4:] == 0).all()
    wanted = torch.randn_like(output)
    parameters = [hidden_states, *layer.parameters()]
    ours, theirs = (torch.autograd.grad((each * wanted).sum(), parameters) for each in (output, expected))
    for gradient, of_reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, of_reference, rtol=1e-4, atol=1e-4)
    assert (ours[0][1, 4:] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_padding_alone_goes_to_no_expert(training):
    output, _ = switch_layer().train(training)(torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.long))
    assert output.shape == (2, 5, 16) and (output == 0).all()


def test_balanced_routing_has_the_least_loss():
    """E * sum f_i P_i is 1 when the router is indifferent, and E when one expert takes everything."""
    layer = switch_layer().eval()
    hidden_states, mask = torch.ones(2, 6, 16), torch.ones(2, 6, dtype=torch.long)
    layer.router.weight.data.zero_()
    torch.testing.assert_close(layer(hidden_states, mask)[1], torch.tensor(1.0))
    layer.router.weight.data[0] = 10.0
    torch.testing.assert_close(layer(hidden_states, mask)[1], torch.tensor(3.0))


def test_router_works_in_float32_under_autocast():
    layer = switch_layer().eval()
    torch.manual_seed(2)
    hidden_states, mask = torch.randn(4, 8, 16), torch.ones(4, 8, dtype=torch.long)
    exact, loss = layer(hidden_states, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, rounded_loss = layer(hidden_states, mask)
    torch.testing.assert_close(rounded_loss, loss)  # same tokens to the same experts
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("experts", [0, 3])
def test_padding_and_neighbours_change_no_logit(experts):
    model = build(experts).eval()
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    padded = model(
        input_ids=torch.cat([ids, torch.zeros(4, 5, dtype=torch.long)], 1),
        attention_mask=torch.cat([mask, torch.zeros(4, 5, dtype=torch.long)], 1),
    ).logits
    logits = model(**inputs).logits
    torch.testing.assert_close(padded, logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(ids[:1]).logits, logits[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("experts", [0, 4])
def test_gradients_reach_every_parameter(experts):
    model = build(experts).train()
    output = model(**batch(rows=16), labels=torch.arange(16) % 2)
    assert ("auxiliary_loss" in output) == (experts > 0)
    (output.loss + output.get("auxiliary_loss", 0)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_evaluation_returns_logits_and_loss_only():
    output = build(3).eval()(**batch(), labels=torch.tensor([0, 1, 0, 1]))
    assert set(output) == {"loss", "logits"}


def test_default_sizes_are_those_of_the_docstring():
    sizes = {
        e: sum(p.numel() for p in ScratchForSequenceClassification(ScratchConfig(num_experts=e)).parameters())
        for e in (0, 4)
    }
    h, f, v = 192, 768, 6000
    block = 4 * h * h + 4 * h + 4 * h + 2 * h * f + f + h
    dense = v * h + 4 * (2 * 64 + 1) + 2 * block + 2 * h + 2 * h + 2
    assert sizes[0] == dense and round(dense / 1e6, 1) == 2.0
    assert sizes[4] == dense + 3 * (2 * h * f + f + h) + 4 * h and round(sizes[4] / 1e6, 1) == 2.9


@pytest.mark.parametrize("experts", [0, 3])
def test_save_and_load_give_equal_logits(tmp_path, experts):
    model = build(experts, thresholds=[0.3], id2label={0: "non", 1: "oui"}, label2id={"non": 0, "oui": 1}).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is ScratchForSequenceClassification
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits, rtol=0, atol=1e-7)
    assert loaded.config.thresholds == [0.3] and loaded.config.id2label == {0: "non", 1: "oui"}
    assert (tmp_path / "scratch_model.py").is_file()


@pytest.mark.parametrize("experts", [0, 3])
def test_overfits_eight_notes(experts):
    model = build(experts, dropout=0.0).train()
    inputs, labels = batch(rows=8), torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (model.eval()(**inputs).logits.argmax(1) == labels).all()


def test_same_seed_same_weights():
    for seed in (0, 1):
        first, second = build(3, seed=seed).state_dict(), build(3, seed=seed).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(build(3, seed=2).classifier.weight, build(3, seed=0).classifier.weight)


def test_windows_of_a_note_are_averaged():
    model = build().eval()
    rows = model(**batch()).logits
    notes = model(**batch(), window_note=torch.tensor([0, 1, 1, 1])).logits
    torch.testing.assert_close(notes, torch.stack([rows[0], rows[1:].mean(0)]), rtol=0, atol=1e-6)


def test_evaluation_has_no_more_rows_at_a_time_than_notes():
    model, rows = build().eval(), []
    model.encoder.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model(**batch(rows=9), window_note=torch.tensor([0] * 4 + [1] * 5))
    assert rows == [2, 2, 2, 2, 1]


def test_training_sees_one_window_of_each_note_and_each_now_and_then():
    model = build(dropout=0.0)
    alone = model.eval()(**batch(rows=5)).logits
    window_note, drawn = torch.tensor([0, 1, 1, 1, 2]), set()
    torch.manual_seed(0)
    for _ in range(40):
        logits = model.train()(**batch(rows=5), window_note=window_note).logits
        closest = (alone[None] - logits[:, None]).abs().sum(-1)  # (notes, windows)
        assert closest.min(1).values.max() < 1e-5
        drawn.add(tuple(closest.argmin(1).tolist()))
    assert drawn == {(0, 1, 4), (0, 2, 4), (0, 3, 4)}


def test_head_count_must_divide_the_width():
    with pytest.raises(ValueError, match="hidden_size 16 must be a multiple of num_attention_heads 3"):
        build(num_attention_heads=3)


def test_relative_positions_penalise_distance_each_side_by_its_own_slope():
    positions = build(hidden_size=16, num_attention_heads=4, relative_reach=3).encoder.positions
    bias = positions(6)
    assert bias.shape == (4, 6, 6)
    # the first head: 8 a token to the left of the query, 1/4 to the right; beyond the reach as at it
    assert bias[0, 2].tolist() == [-16, -8, 0, -0.25, -0.5, -0.75]
    assert bias[0, 0].tolist() == [0, -0.25, -0.5, -0.75, -0.75, -0.75]
    torch.testing.assert_close(bias[1, 2], torch.tensor([-0.5, -0.25, 0, -8, -16, -24]))
    bias.sum().backward()
    assert positions.bias.grad[0].tolist() == [3.0 + 2 + 1, 4, 5, 6, 5, 4, 6]  # so many pairs at each distance


def test_word_order_matters():
    model = build().eval()
    ids = batch(rows=1)["input_ids"]
    assert (model(ids).logits - model(ids.flip(1)).logits).abs().max() > 1e-6


def test_attention_is_the_same_written_out_and_by_the_library():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    bias, visible = torch.randn(4, 6, 6), torch.ones(2, 1, 1, 6, dtype=torch.bool)
    visible[1, ..., 4:] = False
    exact = attend(query, key, value, visible, bias=bias)
    for gradient in (True, False):  # written out, and not
        short = [tensor.bfloat16().requires_grad_(gradient) for tensor in (query, key, value)]
        rounded = attend(*short, visible, bias=bias)
        torch.testing.assert_close(rounded.detach().float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(attend(query, key, value, None, bias=bias)[0], exact[0])
