"""What the machine does fast: the choice of precision, looked up and not timed, so that it is the same every time.

And what makes a CPU faster whatever the model, memory that stays with the process; and what the machine ran out of.
"""

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

# Matrix products of bfloat16 were 2.2 times as fast as of float32 with AVX-512-bf16, and 4.6 times with AMX (measured
# with torch 2.13); a CPU with neither emulates them and is slower.
BFLOAT16_CUDA_CAPABILITY = (8, 0)
# Parameters of glibc's mallopt (malloc.h): blocks from this size on come from the kernel one by one and go back when
# they are freed; of the others so much stays with the process.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Of a container, microseconds of all cores together in so many: control groups of version 2 and of version 1.
CGROUP_ROOT = Path("/sys/fs/cgroup")
CPU_LIMITS = [["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]]
MOST_BEFORE_2_35 = 2**25  # of M_MMAP_THRESHOLD; older versions of glibc refuse more


def bfloat16_is_fast(use_cpu: bool = False) -> bool:
    """Whether to compute in bfloat16 here, on the GPU if there is one and `use_cpu` does not rule it out."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.get_device_capability() >= BFLOAT16_CUDA_CAPABILITY
    return any(torch.cpu.get_capabilities().get(feature, False) for feature in ("amx_bf16", "avx512_bf16"))


def describe_machine(use_cpu: bool, bf16: bool, fp16: bool = False) -> str:
    """One line: what computes, with how many threads, in which precision."""
    if torch.cuda.is_available() and not use_cpu:
        what = torch.cuda.get_device_name()
    else:
        capabilities = torch.cpu.get_capabilities()
        bf16_unit = (
            "AMX" if capabilities.get("amx_bf16") else "AVX-512-bf16" if capabilities.get("avx512_bf16") else ""
        )
        cores, threads = available_cores(), torch.get_num_threads()
        what = ", ".join(
            part for part in (capabilities.get("cpu_name") or "CPU", bf16_unit, f"{threads} of {cores} cores") if part
        )
    precision = "bfloat16" if bf16 else "float16" if fp16 else "float32"
    fast = "bfloat16" if bfloat16_is_fast(use_cpu) else "float32"
    reason = f" (asked for; {fast} is faster here)" if {precision, fast} == {"bfloat16", "float32"} else ""
    return f"{what}; {precision}{reason}"


def keep_freed_memory(block_bytes: int = 2**28, kept_bytes: int = 2**30):
    """Have the C library (glibc; others go on as ever) keep blocks that a training step frees, for the next step.

    By itself it gives those over 32 MB back to the kernel, which hands them out anew page by page, each filled with
    zeros: a sixth of the time of a small Transformer's training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # The second call switches glibc's own adaptation off, so it is made only where the first had its effect.
        if mallopt(M_MMAP_THRESHOLD, block_bytes) or mallopt(M_MMAP_THRESHOLD, MOST_BEFORE_2_35):
            mallopt(M_TRIM_THRESHOLD, kept_bytes)


def memory_ran_out(error: Exception) -> bool:
    """Of a CPU's memory, and of a GPU's before it has any, PyTorch says so by a RuntimeError like any other."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    of_gpu = re.match(r"CUDA error: (out of memory|CU\w+_STATUS_ALLOC_FAILED)", str(error))
    return of_gpu is not None or "DefaultCPUAllocator: can't allocate memory" in str(error)


def what_ran_out(error: Exception) -> str | None:
    """Whether memory or the disk ran out, in words; None if it was something else.

    Of a file that torch.save could not write, too, there is a RuntimeError like any other.
    """
    if memory_ran_out(error):
        return "memory ran out"
    said = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, SafetensorError) or re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+", said):
        return "weights could not be written or read; is the disk full, or a checkpoint damaged?"
    return None


def available_cores() -> int:
    """Cores that this process may use; fewer than the machine has where a scheduler or a container divides it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in CPU_LIMITS:
        with suppress(OSError, ValueError):  # where nothing limits them there is no such file, or "max" or -1 in it
            quota, period = map(int, " ".join((CGROUP_ROOT / name).read_text() for name in files).split())
            cores = min(cores, -(-quota // period)) if quota > 0 else cores
    return cores


def keep_to_available_cores():
    """PyTorch begins as many threads as it sees cores, of which a container may use fewer."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
