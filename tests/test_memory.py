"""Memory by hand for a small network; what a budget changes in the plan, and what it must not."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import memory
from heads import EncoderWithHeadForSequenceClassification
from memory import ALLOCATOR_OVERHEAD, LiveBytes, MemoryBudgetError, MemoryPlan, measure_need, plan_memory, state_bytes
from models import add_lora
from scratch_model import ScratchConfig, ScratchForSequenceClassification

TOKENS = 48
FLOAT = 4  # bytes


def make_batch(notes):
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(5, 40, (notes, TOKENS), generator=generator),
        "attention_mask": torch.ones(notes, TOKENS, dtype=torch.long),
        "labels": torch.arange(notes) % 2,
    }


def scratch(**config):
    torch.manual_seed(0)
    return ScratchForSequenceClassification(
        ScratchConfig(
            **{"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, **config}
        )
    )


def encoder(folder, tuning="full"):
    torch.manual_seed(0)
    model = EncoderWithHeadForSequenceClassification.from_encoder(
        folder, head="adapter", head_size=4, tuning=tuning, num_labels=2
    )
    return add_lora(model, rank=2) if tuning == "lora" else model


def gb_needed(model, micro_batch, accumulation, checkpointing=False, autocast_dtype=None):
    needed_bytes = measure_need(model, make_batch, autocast_dtype, checkpointing, state_bytes(model))
    return needed_bytes(micro_batch, accumulation) / 1e9


def test_live_bytes_by_hand():
    """x -> W1 -> ReLU -> W2 -> mean, with 50 rows of 100, 200 and 10 numbers."""
    model = nn.Sequential(nn.Linear(100, 200, bias=False), nn.ReLU(), nn.Linear(200, 10, bias=False))
    inputs = torch.randn(50, 100)
    with LiveBytes(model) as live:
        hidden = model[0](inputs)
        assert live.bytes == 50 * 200 * FLOAT  # a weight's transposed view is no new memory
        active = model[1](hidden)
        del hidden  # ReLU keeps its output alone for the backward pass
        assert live.bytes == 50 * 200 * FLOAT
        output = model[2](active)
        loss = output.mean()
        del active, output
        assert live.bytes == 50 * 200 * FLOAT + FLOAT  # what the second layer multiplied, and the loss
        loss.backward()
        del loss
    gradients = (100 * 200 + 200 * 10) * FLOAT
    assert live.bytes == gradients
    # Highest while ReLU's gradient is computed from its output and the gradient after it, beside one weight's.
    assert max(live.after_each_operation) >= 3 * 50 * 200 * FLOAT + 200 * 10 * FLOAT


@pytest.mark.parametrize("experts", [0, 4])
def test_peak_of_a_larger_micro_batch_is_extrapolated_from_two_and_three_notes(experts):
    model = scratch(num_experts=experts)
    needed_bytes = measure_need(model, make_batch, None, checkpointing=False, state=state_bytes(model))
    model.train()
    model.zero_grad()
    with LiveBytes(model) as live:
        model(**make_batch(9)).loss.backward()
    peak = max(live.after_each_operation)
    without_activations = needed_bytes(1, 1) - (needed_bytes(2, 1) - needed_bytes(1, 1))
    assert needed_bytes(9, 1) / ALLOCATOR_OVERHEAD - state_bytes(model) == pytest.approx(peak, rel=0.02)
    assert needed_bytes(9, 1) > 4 * without_activations  # so it is the notes that the figures above agree on


def test_accumulation_keeps_the_gradients_during_the_forward_pass():
    model = scratch(vocab_size=4000)  # a batch small against the parameters
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    largest = model.encoder.token_embedding.weight.nbytes
    once, often = (gb_needed(model, 1, accumulation) * 1e9 for accumulation in (1, 8))
    assert often == gb_needed(model, 1, 2) * 1e9
    assert largest <= often - once < gradients + largest  # the new gradient of a weight stands beside the sum


def test_state_of_lora_has_moments_for_what_is_trained_only(encoder_folder):
    full, lora = encoder(encoder_folder), encoder(encoder_folder, "lora")
    assert state_bytes(full) == 3 * sum(parameter.nbytes for parameter in full.parameters())
    assert state_bytes(full, processes=2) == 4 * sum(parameter.nbytes for parameter in full.parameters())
    trained = sum(parameter.nbytes for parameter in lora.parameters() if parameter.requires_grad)
    everything = sum(parameter.nbytes for parameter in lora.parameters())
    assert 0 < trained < everything / 4
    assert state_bytes(lora) == everything + 2 * trained
    assert gb_needed(lora, 1, 2) < gb_needed(full, 1, 2)


def test_a_copy_that_waits_is_in_the_budget():
    model = scratch()
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    alone, beside = (plan_memory(model, make_batch, 4, 1, 1.0, None, copies).expected_gb for copies in (0, 1))
    assert beside - alone == pytest.approx(ALLOCATOR_OVERHEAD * parameters / 1e9)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointing_and_bfloat16_need_less(encoder_folder, tuning):
    model = encoder(encoder_folder, tuning)
    plain = gb_needed(model, 16, 2)
    assert gb_needed(model, 16, 2, checkpointing=True) < 0.8 * plain
    assert gb_needed(model, 16, 2, autocast_dtype=torch.bfloat16) < 0.8 * plain


@pytest.mark.parametrize("batch_size, accumulation", [(16, 1), (6, 2)])
def test_smaller_budgets_never_change_the_effective_batch(encoder_folder, batch_size, accumulation):
    model = encoder(encoder_folder)
    most = plan_memory(model, make_batch, batch_size, accumulation, 1.0, None)
    assert (most.micro_batch, most.accumulation, most.gradient_checkpointing) == (batch_size, accumulation, False)
    least = gb_needed(model, 1, batch_size * accumulation, checkpointing=True)
    budgets = np.linspace(most.expected_gb, least, 6)
    plans = [plan_memory(model, make_batch, batch_size, accumulation, budget, None) for budget in budgets]
    for plan, budget in zip(plans, budgets, strict=True):
        assert plan.micro_batch * plan.accumulation == batch_size * accumulation
        assert plan.micro_batch <= batch_size
        assert plan.expected_gb <= budget
    costs = [plan.relative_cost(TOKENS) for plan in plans]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert (plans[-1].micro_batch, plans[-1].gradient_checkpointing) == (1, True)


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_too_small_to_plan_without_checkpointing(encoder_folder, monkeypatch, fits):
    def measure(model, make_batch, autocast_dtype, checkpointing, state):
        if not (checkpointing and fits):
            raise torch.OutOfMemoryError("a card of 2 GB")
        return measure_need(model, make_batch, autocast_dtype, checkpointing, state)

    monkeypatch.setattr(memory, "measure_need", measure)
    if fits:
        assert plan_memory(encoder(encoder_folder), make_batch, 4, 1, 1.0, None).gradient_checkpointing
    else:
        with pytest.raises(MemoryBudgetError, match="three of the longest notes must fit into the GPU, and do not"):
            plan_memory(encoder(encoder_folder), make_batch, 4, 1, 1.0, None)
    with pytest.raises(torch.OutOfMemoryError):  # of several processes another might plan otherwise
        plan_memory(encoder(encoder_folder), make_batch, 4, 1, 1.0, None, processes=2)


def test_checkpointing_costs_a_third_and_small_micro_batches_cost_more():
    plain, checkpointed = (MemoryPlan(8, 1, checkpointing, 1.0) for checkpointing in (False, True))
    assert checkpointed.relative_cost(256) == pytest.approx(4 / 3 * plain.relative_cost(256))
    assert MemoryPlan(1, 8, False, 1.0).relative_cost(256) > checkpointed.relative_cost(256)
    assert MemoryPlan(4, 2, False, 1.0).relative_cost(256) < checkpointed.relative_cost(256)


@pytest.mark.parametrize("experts", [0, 4])
def test_a_model_without_checkpointing_gets_smaller_micro_batches_alone(experts):
    model = scratch(num_experts=experts)
    budget = (gb_needed(model, 4, 2) + gb_needed(model, 8, 1)) / 2
    plan = plan_memory(model, make_batch, 8, 1, budget, None)
    assert (plan.micro_batch, plan.accumulation, plan.gradient_checkpointing) == (4, 2, False)
    assert plan.expected_gb == pytest.approx(gb_needed(model, 4, 2), rel=0.05)  # dropout sends tokens elsewhere


def test_impossible_budget_says_what_is_needed_and_what_to_do(encoder_folder):
    model = encoder(encoder_folder)
    least = gb_needed(model, 1, 8, checkpointing=True)
    message = rf"--memory_gb 0.0001: training needs {least:.2f} GB at least.*--tuning lora.*--max_length"
    with pytest.raises(MemoryBudgetError, match=message) as error:
        plan_memory(model, make_batch, 8, 1, 0.0001, None)
    assert "\n" not in str(error.value)


def test_what_is_needed_at_least_is_of_one_note_at_a_time(encoder_folder, monkeypatch):
    monkeypatch.setattr("memory.measure_need", lambda *given: lambda micro_batch, accumulation: micro_batch * 3e9)
    with pytest.raises(MemoryBudgetError, match="training needs 3.00 GB at least"):
        plan_memory(encoder(encoder_folder), make_batch, 8, 1, 0.5, None)


def test_a_model_whose_operations_depend_on_the_notes_is_refused():
    class OneByOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(TOKENS, 1)

        def forward(self, input_ids, attention_mask, labels):
            rows = [self.layer(row.float()) for row in input_ids]
            return SequenceClassifierOutput(loss=torch.stack(rows).mean())

    with pytest.raises(MemoryBudgetError, match="cannot plan for OneByOne.*choose --per_device_train_batch_size"):
        plan_memory(OneByOne(), make_batch, 8, 1, 1.0, None)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_numbers_are_left_as_found(encoder_folder, tuning, training):
    model = encoder(encoder_folder, tuning).train(training)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    budget = gb_needed(model, 1, 8, checkpointing=True)
    assert plan_memory(model, make_batch, 8, 1, budget, torch.bfloat16).gradient_checkpointing
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_model_is_left_as_found_when_measuring_fails():
    model = scratch().eval()
    with pytest.raises(IndexError):
        plan_memory(model, lambda notes: make_batch(notes) | {"labels": torch.full((notes,), 7)}, 8, 1, 1.0, None)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
