import copy

import pytest
import torch

from muon import MuonWithAdamW, layer_matrices, orthogonalize
from scratch_model import ScratchConfig, ScratchForMaskedLM


def small_model(num_experts: int = 0) -> ScratchForMaskedLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return ScratchForMaskedLM(ScratchConfig(vocab_size=40, num_experts=num_experts, dropout=0.0, **sizes))


def optimizer_of(model, lr: float = 0.01, **kwargs) -> MuonWithAdamW:
    matrices = set(layer_matrices(model))
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in matrices) == muon], "muon": muon}
        for muon in (True, False)
    ]
    return MuonWithAdamW(groups, lr=lr, **kwargs)


def backward(model):
    ids = torch.arange(5, 35).reshape(2, 15)
    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4), (3, 8, 6)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-4
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    # the polar factor lies the same way
    assert torch.cosine_similarity(result.flatten(), (left @ right).flatten(), dim=0) > 0.95


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_both_ways_to_iterate_are_the_same_polynomial(shape):
    """As written by its authors, step by step; bfloat16 rounds."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    expected = matrices / matrices.norm()
    for _ in range(5):
        gram = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalize(matrices), expected, rtol=1e-4, atol=1e-5)
    rounded = orthogonalize(matrices.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0.1, atol=0.1)


def test_a_stack_is_its_matrices_one_by_one():
    torch.manual_seed(0)
    stack = torch.randn(3, 8, 6)
    torch.testing.assert_close(orthogonalize(stack), torch.stack([orthogonalize(each) for each in stack]))


def test_a_matrix_without_gradient_stays_finite():
    assert orthogonalize(torch.zeros(4, 6)).eq(0).all()


def test_muon_has_the_matrices_of_the_layers_alone():
    names = layer_matrices(small_model(num_experts=4))
    ends = {name.split(".", 3)[3] for name in names}
    assert ends == {
        *("qkv.weight", "output.weight", "feed_forward.up.weight", "feed_forward.down.weight"),
        *("feed_forward.up_weight", "feed_forward.down_weight"),
    }
    assert all(name.startswith("encoder.layers.") for name in names)


def test_a_step_has_the_size_of_the_learning_rate():
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = optimizer_of(model, lr=0.01, weight_decay=0.0)
    backward(model)
    optimizer.step()
    for name in layer_matrices(model):
        change = (model.get_parameter(name) - before[name]).detach()
        assert change.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.4), name
        assert model.get_parameter(name).grad is None
    embedding = "encoder.token_embedding.weight"
    used = before[embedding][5:35], model.get_parameter(embedding)[5:35]
    assert (used[0] - used[1]).abs().max().item() == pytest.approx(0.01, rel=0.01)  # AdamW's first step


def test_weight_decay_shrinks_what_has_no_gradient():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = MuonWithAdamW([{"params": [weight], "muon": True}], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_steps_are_those_of_torchs_muon(shape):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for _ in "ab")
    optimizers = (
        MuonWithAdamW([{"params": [ours], "muon": True}], dtype=torch.bfloat16, lr=0.1, weight_decay=0.5),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0.01)


def test_a_stack_of_experts_is_stepped_one_by_one():
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 8, 6))
    experts = [torch.nn.Parameter(each.clone()) for each in stack.detach()]
    together, apart = (
        MuonWithAdamW([{"params": parameters, "muon": True}], lr=0.1) for parameters in ([stack], experts)
    )
    stack.grad = torch.randn(3, 8, 6)
    for expert, gradient in zip(experts, stack.grad, strict=True):
        expert.grad = gradient.clone()
    together.step()
    apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([each.detach() for each in experts]))


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_in_half_precision_changes_nothing(fused):
    parameters = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    groups = [{"params": [each], "muon": muon} for each, muon in zip(parameters, (True, False), strict=True)]
    optimizer, scaler = MuonWithAdamW(groups, lr=0.1, fused=fused), torch.amp.GradScaler("cpu")
    for factor, changes in ((float("inf"), False), (1.0, True)):
        scaler.scale(sum(each.sum() for each in parameters) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert [bool((each != 1).any()) for each in parameters] == [changes, changes]


def test_a_closure_is_evaluated_once_before_the_step():
    model = small_model()
    optimizer = optimizer_of(model)
    twin = copy.deepcopy(model)
    by_hand = optimizer_of(twin)
    loss = optimizer.step(lambda: backward(model))
    assert loss == backward(twin)
    by_hand.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("num_experts", [0, 4])
def test_the_layers_alone_learn(num_experts):
    """The rest held still: what the loss falls by is Muon's doing."""
    model = small_model(num_experts)
    optimizer = optimizer_of(model)
    optimizer.param_groups[1]["lr"] = 0.0
    losses = []
    for _ in range(30):
        losses.append(backward(model))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]


def test_saved_and_loaded_it_goes_on_the_same_way():
    model = small_model()
    optimizer = optimizer_of(model)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    twin = copy.deepcopy(model)
    resumed = optimizer_of(twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (twin, resumed)):
        backward(each)
        its.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
