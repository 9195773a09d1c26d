"""Keep training within a stated amount of memory: choose the micro-batch and gradient checkpointing.

Training needs memory for the parameters, Adam's two moments, the gradients, and the activations of one micro-batch.
The first two are counted. The others are measured, alike on every device: the longest notes go forward and backward,
and after every operation the bytes of all tensors then alive are written down. Two notes and three run the same
operations, and what is alive after each grows by the same bytes with every further note; so the peak of a larger
micro-batch is the highest point of these straight lines. It may lie elsewhere than for two notes.

The budget is for what training adds: what a process holds before it has a model (a GPU's context, on a CPU the
imported libraries) comes on top.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ADAM_MOMENTS = 2

# What memory taken from the system was to the tensors in it, with the heap of glibc: 1.13 to 1.30 for encoders of 4
# and 12 layers, nearly all of it holes between freed tensors (with every tensor mapped by itself it was 1.02 to 1.04).
# On a GPU (H200, full and LoRA tuning of a base-size encoder) the most that was allocated was 1.06 and 1.08 times the
# tensors; of a card of 2 GB it leaves 0.4 GB to the context and the workspaces of libraries.
ALLOCATOR_OVERHEAD = 1.25

# Checkpointing runs each layer's forward pass, a third of a step's arithmetic, once more.
CHECKPOINTING_COST = 4 / 3

# Work a micro-batch costs whatever its size (launches, casts of the weights, sums of gradients), in tokens.
TOKENS_OF_OVERHEAD = 256


class MemoryBudgetError(ValueError):
    """The memory budget, or the GPU, is too small for training; the message is one line for the user."""


@dataclass(frozen=True)
class MemoryPlan:
    micro_batch: int  # notes a forward pass
    accumulation: int  # micro-batches a step of the optimiser
    gradient_checkpointing: bool
    expected_gb: float  # what training so needs, in 10^9 bytes

    def relative_cost(self, tokens_a_note: int) -> float:
        """Time a note takes, 1 being a note in an endless micro-batch without checkpointing. The estimate is ours."""
        overhead = 1 + TOKENS_OF_OVERHEAD / (self.micro_batch * tokens_a_note)
        return overhead * (CHECKPOINTING_COST if self.gradient_checkpointing else 1)


class LiveBytes(TorchDispatchMode):
    """After every operation run within it, the bytes of all the tensors that operations within it made and that live.

    (torch.distributed._tools.MemTracker counts alike, but keeps the peaks alone.)
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        self.bytes = 0
        self.after_each_operation: list[int] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf.untyped_storage())
        self.after_each_operation.append(self.bytes)
        return result

    def count(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()  # a view shares its storage: counted once
        if key not in self.known:
            self.known.add(key)
            self.bytes += size
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int):
        self.known.discard(key)
        self.bytes -= size


def plan_memory(
    model: nn.Module,
    make_batch: Callable[[int], dict[str, Tensor]],
    batch_size: int,
    accumulation: int,
    budget_gb: float,
    autocast_dtype: torch.dtype | None,
    copies: int = 0,
    processes: int = 1,
) -> MemoryPlan:
    """The fastest way to train within `budget_gb` (10^9 bytes) with `batch_size * accumulation` notes a step.

    `copies`: of the model's parameters, that are kept beside it meanwhile. `processes`: that train it together.
    `make_batch(n)` gives the n longest training notes as `model(**batch)` takes them, labels included, for n up to 3.
    Measuring runs the model in training mode, in `autocast_dtype` (None: without autocast), and leaves it as found.

    Raises:
        MemoryBudgetError: if one note at a time does not fit, or three into the GPU while this is found out.
    """
    notes = batch_size * accumulation
    tokens_a_note = make_batch(1)["input_ids"].numel()
    state = state_bytes(model, copies, processes)
    plans = []
    for checkpointing in (False, True) if supports_checkpointing(model) else (False,):
        try:
            needed_bytes = measure_need(model, make_batch, autocast_dtype, checkpointing, state)
        except torch.OutOfMemoryError:  # of a GPU; with checkpointing three notes may still fit
            if processes > 1:
                raise  # another may have had the memory, and would plan otherwise
            continue
        plans += [
            MemoryPlan(size, notes // size, checkpointing, needed_bytes(size, notes // size) / 1e9)
            for size in range(1, batch_size + 1)
            if notes % size == 0
        ]
        if plans[-1].expected_gb <= budget_gb:  # the batch as asked for: checkpointing would only cost time
            break
    if not plans:
        raise MemoryBudgetError(
            f"--memory_gb {budget_gb:g}: to plan it, three of the longest notes must fit into the GPU, and do not; "
            "use --tuning lora or frozen, a shorter --max_length or a smaller model."
        )
    fitting = [plan for plan in plans if plan.expected_gb <= budget_gb]
    if not fitting:
        least = min(plan.expected_gb for plan in plans)
        raise MemoryBudgetError(
            f"--memory_gb {budget_gb:g}: training needs {least:.2f} GB at least, with one note at a time; give it as "
            "much, or use --tuning lora or frozen, a shorter --max_length or a smaller model."
        )
    return min(fitting, key=lambda plan: plan.relative_cost(tokens_a_note))


def supports_checkpointing(model: nn.Module) -> bool:
    """Whether it, and the encoder in it, can; a `PreTrainedModel` says so for itself alone."""
    return getattr(model, "supports_gradient_checkpointing", False) and any(
        hasattr(module, "gradient_checkpointing") for module in model.modules()
    )


def measure_need(
    model: nn.Module,
    make_batch: Callable[[int], dict[str, Tensor]],
    autocast_dtype: torch.dtype | None,
    checkpointing: bool,
    state: int,
) -> Callable[[int, int], float]:
    """Bytes that training needs, as a function of micro-batch and accumulation; `state` of them last throughout."""
    with left_as_found(model, checkpointing):
        # Not one note: an axis of length 1 can be moved without a copy, so fewer operations are run.
        two, first = trace_two_micro_batches(model, make_batch(2), autocast_dtype)
        three, _ = trace_two_micro_batches(model, make_batch(3), autocast_dtype)
    if len(two) != len(three):
        raise MemoryBudgetError(
            f"--memory_gb cannot plan for {type(model).__name__}, which runs other operations on three notes than on "
            "two: choose --per_device_train_batch_size and --gradient_checkpointing yourself."
        )

    def needed_bytes(micro_batch: int, accumulation: int) -> float:
        trace = two + (micro_batch - 2) * (three - two)
        # Without accumulation every micro-batch is a first one: the step deletes the gradients.
        peak = trace[:first].max() if accumulation == 1 else trace.max()
        return ALLOCATOR_OVERHEAD * (state + peak)

    return needed_bytes


def state_bytes(model: nn.Module, copies: int = 0, processes: int = 1) -> int:
    """What lasts from step to step: the parameters and copies of them, and the two moments of those trained.

    Of several `processes` each also has the buckets by which they exchange gradients, as large as these.
    """
    of_trained = ADAM_MOMENTS + (processes > 1)
    return sum(
        parameter.nbytes * (1 + copies + (of_trained if parameter.requires_grad else 0))
        for parameter in model.parameters()
    )


def trace_two_micro_batches(
    model: nn.Module, batch: dict[str, Tensor], autocast_dtype: torch.dtype | None
) -> tuple[np.ndarray, int]:
    """Bytes alive after each operation of two micro-batches, beside the parameters, and how many are the first's.

    The first finds no gradients; the second adds its own to them, as in all but the first of an accumulated batch.
    """
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    # A batch with padding needs a mask in its attention, one without does not: most have some.
    batch["attention_mask"] = batch["attention_mask"].index_fill(1, torch.tensor([-1], device=device), 0)
    model.zero_grad(set_to_none=True)
    autocast = torch.autocast(device.type, autocast_dtype) if autocast_dtype is not None else nullcontext()
    operations = []
    with LiveBytes(model) as live:
        for _ in range(2):
            with autocast:
                loss = model(**batch).loss
            loss.backward()
            operations.append(len(live.after_each_operation))
    return np.array(live.after_each_operation, dtype=float), operations[0]


@contextmanager
def left_as_found(model: nn.Module, checkpointing: bool) -> Iterator[None]:
    """Training mode, with gradient checkpointing or not; then everything as it was, random numbers included."""
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            yield
    finally:
        if checkpointing:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
