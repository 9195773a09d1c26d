"""The choice of precision from what the machine says it has, and the line that tells the user."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from machine import (
    available_cores,
    bfloat16_is_fast,
    describe_machine,
    keep_freed_memory,
    keep_to_available_cores,
)
from train import parse_arguments


@pytest.fixture
def machine(monkeypatch):
    """A CPU with these features, or a GPU of this compute capability."""

    def pretend(*features, capability=None):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True) | {"cpu_name": "CPU X"}
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU Y")

    return pretend


def test_bfloat16_where_the_cpu_has_a_unit_for_it(machine):
    machine("avx2")
    assert not bfloat16_is_fast()
    for feature in ("avx512_bf16", "amx_bf16"):
        machine("avx2", feature)
        assert bfloat16_is_fast()


def test_bfloat16_by_the_capability_of_the_gpu(machine):
    machine("avx512_bf16", capability=(7, 5))  # the GPU computes, whatever the CPU can
    assert not bfloat16_is_fast() and bfloat16_is_fast(use_cpu=True)
    machine(capability=(8, 0))
    assert bfloat16_is_fast() and not bfloat16_is_fast(use_cpu=True)


def test_the_line_says_what_computes_and_in_which_precision(machine):
    machine("avx512_bf16", "amx_bf16")
    threads = f"{torch.get_num_threads()} of {available_cores()} cores"
    assert describe_machine(True, bf16=True) == f"CPU X, AMX, {threads}; bfloat16"
    assert describe_machine(True, bf16=False).endswith("float32 (asked for; bfloat16 is faster here)")
    machine(capability=(9, 0))
    assert describe_machine(False, bf16=True) == "GPU Y; bfloat16"
    assert describe_machine(False, bf16=False, fp16=True) == "GPU Y; float16"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "350000 100000\n"}, 4),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_a_container_may_use_fewer_cores_than_it_sees(monkeypatch, tmp_path, files, cores):
    monkeypatch.setattr("machine.CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("threads", "cores", "given", "expected"), [(64, 4, None, [4]), (64, 4, "64", []), (2, 4, None, [2])]
)
def test_no_more_threads_than_a_container_may_use(monkeypatch, threads, cores, given, expected):
    told = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr("machine.available_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    keep_to_available_cores()
    assert told == expected


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (2**40, [(-3, 2**28), (-1, 2**30)]),
        (2**25, [(-3, 2**28), (-3, 2**25), (-1, 2**30)]),  # glibc before 2.35
        (0, [(-3, 2**28), (-3, 2**25)]),  # its own adaptation stays on
    ],
)
def test_memory_is_kept_whatever_the_version_of_glibc(monkeypatch, largest, expected):
    calls = []

    def mallopt(parameter, value):
        calls.append((parameter, value))
        return int(parameter != -3 or value <= largest)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert calls == expected


@pytest.mark.parametrize("features, expected", [(["avx512_bf16"], True), (["avx2"], False)])
def test_training_follows_unless_told_otherwise(machine, features, expected):
    machine(*features)
    assert parse_arguments(["--model", "transformer", "--use_cpu"])[2].bf16 == expected
    assert not parse_arguments(["--model", "transformer", "--use_cpu", "--bf16", "False"])[2].bf16
    assert not parse_arguments(["--model", "tfidf"])[2].bf16  # so that its result is the same run everywhere


def test_freed_blocks_come_again_without_the_kernel():
    """In a process of its own: what it changes is the process."""
    code = """
import resource
import torch
from machine import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages()
before = pages()
keep_freed_memory()
pages()
print(before, pages())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 3  # some move on, until small blocks lie out of their way
