"""Muon for the matrices inside an encoder's layers, AdamW for all other parameters: what trains small Transformers.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the momentum with its singular values made
about equal, so that directions which the gradient hardly shows are learned too. Embeddings, biases and norms stay with
AdamW, as its authors advise; so do the head over the vocabulary, and routers of experts, whose rows compete (ours).
Steps are scaled so that one learning rate serves both (Liu et al. 2025, arXiv 2502.16982, equation 4).

`torch.optim.Muon` computes in bfloat16 alone, 20 to 30 times slower than float32 on the CPU without AVX-512 where it
was measured, and takes no stacked experts: hence our own.
"""

import math
import re

import torch
from torch import nn
from transformers import Trainer

GOES_WITH = ("adamw_torch", "adamw_torch_fused")  # values of --optim
MOMENTUM = 0.95
# Of x <- a x + b (x x') x + c (x x')^2 x, five times: Jordan's, chosen so that small singular values grow fast.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
LAYER_MATRIX = re.compile(r"\blayers?\.\d+\..*weight$")


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The polar factor of each matrix (..., rows, columns), about: same singular vectors, singular values near 1.

    By Newton-Schulz iterations, in the precision of `matrices`. Values of a hundredth of the matrix's norm and more
    come out between 0.68 and 1.2, smaller ones are multiplied by up to 500; a matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.size(-2) > matrices.size(-1)
    wide = matrices.mT if is_tall else matrices
    shape, wide = wide.shape, wide.flatten(end_dim=-3) if wide.ndim > 2 else wide
    # A single matrix is no batch of one: of that, a CPU copies the transpose first: up to a third longer.
    add_product = torch.addmm if wide.ndim == 2 else torch.baddbmm
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if wide.dtype in (torch.bfloat16, torch.float16):
        for _ in range(ITERATIONS):
            gram = wide @ wide.mT
            wide = add_product(wide, add_product(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    else:
        # Each iteration multiplies x by a polynomial of x x'. These commute, so x is needed at the end alone, and all
        # else are products of the smaller side: half the time. In half precision the errors add up (singular values
        # of 2 to 4 came out), so not there.
        gram, factor = wide @ wide.mT, None
        for iteration in range(ITERATIONS):
            polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            factor = polynomial if factor is None else polynomial @ factor
            if iteration < ITERATIONS - 1:
                gram = polynomial @ gram @ polynomial
        wide = factor @ wide
    wide = wide.view(shape)
    return wide.mT if is_tall else wide


class MuonWithAdamW(torch.optim.AdamW):
    """AdamW, but groups with `muon=True` are stepped by Muon: (rows, columns) or experts stacked along the first axis.

    Args:
        params: parameter groups.
        dtype: of the orthogonalization: torch.bfloat16 where that is fast, or torch.float32.
        kwargs: of torch.optim.AdamW.
    """

    def __init__(self, params, dtype: torch.dtype = torch.float32, **kwargs):
        super().__init__(params, **kwargs)
        self.dtype = dtype
        # Of fp16: the scaler is to skip the whole step when it finds an overflow, not to leave it to the fused kernel.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure=None):
        """One step. The gradients of Muon's parameters are None afterwards, by which AdamW passes them over."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group.get("muon"):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_by_muon(parameter, group["lr"], group["weight_decay"])
        super().step()
        return loss

    def _step_by_muon(self, parameter: nn.Parameter, lr: float, weight_decay: float):
        state = self.state[parameter]
        if not state:
            # AdamW asks for a step of every state that it loads.
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        update = orthogonalize(parameter.grad.lerp(momentum, MOMENTUM).to(self.dtype))  # Nesterov momentum
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(update, alpha=-lr * 0.2 * math.sqrt(max(parameter.shape[-2:])))
        parameter.grad = None


def layer_matrices(model: nn.Module) -> list[str]:
    """The names of the parameters that Muon trains: matrices of the numbered layers, routers of experts left out."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and LAYER_MATRIX.search(name) and "router" not in name
    ]


def create_muon(trainer: Trainer, model: nn.Module, learning_rate: float) -> MuonWithAdamW:
    """The optimizer of what `model` trains: Muon with `learning_rate`, all else as the trainer's arguments say."""
    matrices, decayed = set(layer_matrices(model)), set(trainer.get_decay_parameter_names(model))
    decay = trainer.args.weight_decay
    groups = [
        {"params": [], "weight_decay": decay, "muon": True, "lr": learning_rate},
        {"params": [], "weight_decay": decay, "muon": False},
        {"params": [], "weight_decay": 0.0, "muon": False},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if name in matrices else 1 if name in decayed else 2]["params"].append(parameter)
    _, adamw = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    return MuonWithAdamW(groups, torch.bfloat16 if trainer.args.bf16 else torch.float32, **adamw)
