"""One smoke run of the whole grid: plan, runs, a failure that stops nothing, table; again, nothing is redone."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from backbones import BACKBONES
from baseline import BASELINES
from heads import HEADS
from models import PRETRAINED_HERE, SCRATCH_MODELS
from results import write_json

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "run_all.sh"


def run_all(*arguments, cwd=ROOT, commands=(), **variables):
    """`commands`: folders with commands that take the place of others; `variables`: of the environment."""
    path = os.pathsep.join(map(str, [*commands, Path(sys.executable).parent, os.environ["PATH"]]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": path, "CGROUP_ROOT": "/nowhere", **variables}
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def stand_in(folder, name, script):
    """A command that takes the place of another; returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)
    return folder


def test_plan_of_the_paper(tmp_path):
    whole = run_all("--demo", "--dry-run", "--tuning", "frozen,lora,full", "--folds", 5, "--output", tmp_path / "runs")
    with_head = len(BACKBONES) * len(HEADS)
    runs = len([*BASELINES, *SCRATCH_MODELS, *PRETRAINED_HERE]) + 3 * with_head
    assert whole.returncode == 0 and whole.stdout.startswith(f"{runs} runs on synthetic:1000 (folds: 5, unless")
    assert whole.stdout.count("-grn-frozen") == len(BACKBONES) and whole.stdout.count("-lora\t") == with_head
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_a_folder_that_cannot_be_made_is_known_beforehand(tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    folders = {"--output": tmp_path / "runs", "--report": tmp_path / "report"} | {option: tmp_path / "file" / "folder"}
    done = run_all("--dataset", "synthetic:60", "--models", "tfidf", *sum(folders.items(), ()))
    assert (
        done.returncode == 2
        and done.stderr == f"error: {tmp_path}/file/folder: cannot be made or written; choose another\n"
    )


def test_blanks_after_the_commas():
    lists = ("--models", "tfidf, drbert", "--heads", "grn, linear", "--tuning", "frozen, lora")
    plan = run_all("--demo", "--dry-run", *lists, "--train-sizes", "100, full").stdout.splitlines()
    assert plan[0].startswith("10 runs on") and plan[-1].startswith("drbert-linear-lora\tdrbert\tlinear\tlora\t-")


def test_filters_and_the_hours_beforehand(notes_file, tmp_path):
    # fmt: off
    some = run_all(
        "--dry-run", "--models", "tfidf,drbert", "--heads", "grn,linear", "--tuning", "full", "--jobs", 2,
        "--dataset", notes_file, "--output", tmp_path / "runs",
    )
    # fmt: on
    assert some.returncode == 0 and some.stdout.startswith("3 runs on")
    names = [line.split()[0] for line in some.stdout.splitlines() if line.startswith(("tfidf ", "drbert-"))]
    assert names == ["tfidf", "drbert-grn-full", "drbert-linear-full"]
    assert "in all at most" in some.stdout and "2 runs without an estimate left out" in some.stdout
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["estimate.json"]


@pytest.mark.parametrize(
    ("free_mib", "at_a_time"),
    [("17000", "2 at a time (threads each: 8 of 16"), ("900", "1 at a time"), ("[N/A]", "1 at a time")],
)
def test_a_gpu_carries_as_many_runs_as_its_memory(tmp_path, free_mib, at_a_time):
    for name, prints in (("nvidia-smi", free_mib), ("nproc", "16"), ("awk", "64")):
        stand_in(tmp_path, name, f"echo '{prints}'")
    plan = run_all("--demo", "--dry-run", commands=[tmp_path])
    assert plan.returncode == 0 and at_a_time in plan.stdout
    for none in ("", "-1"):
        plan = run_all("--demo", "--dry-run", commands=[tmp_path], CUDA_VISIBLE_DEVICES=none)
        assert plan.returncode == 0 and "16 at a time (threads each: 1 of 16" in plan.stdout


def test_cores_that_no_run_wants_are_threads_of_the_others(tmp_path):
    for name, prints in (("nproc", "16"), ("awk", "64"), ("nvidia-smi", "no GPU >&2; exit 1")):
        stand_in(tmp_path, name, f"echo {prints}")
    for models, expected in (
        ("tfidf-nb,transformer-pretrained", "1 at a time (threads each: 16 of 16"),
        ("tfidf,transformer,moe-transformer", "2 at a time (threads each: 8 of 16"),
        ("tfidf,tfidf-nb", "2 at a time (threads each: 8 of 16"),
    ):
        plan = run_all("--demo", "--dry-run", "--models", models, commands=[tmp_path])
        assert plan.returncode == 0 and expected in plan.stdout
    plan = run_all("--demo", "--dry-run", "--models", "transformer", "--jobs", 4, commands=[tmp_path])
    assert "4 at a time (threads each: 4 of 16" in plan.stdout  # asked for


def test_the_demo_takes_an_encoder_of_ones_own_as_it_is(tmp_path):
    commands = stand_in(tmp_path / "bin", "accelerate", 'echo "$@"')
    for name in ("camembert-bio", "alibert", "drbert"):
        (tmp_path / "out" / "stand-ins" / name).mkdir(parents=True)
        (tmp_path / "out" / "stand-ins" / name / "pretrain.json").touch()
    (tmp_path / "enc").mkdir()
    options = ["--models", "enc,drbert", "--heads", "grn", "--tuning", "lora", "--output", "out", "--report", "r"]
    run_all("--demo", *options, cwd=tmp_path, commands=[commands])
    logs = tmp_path / "out" / "logs"
    assert f"--model {tmp_path / 'enc'} " in (logs / "enc-grn-lora.log").read_text()
    assert f"--model {tmp_path / 'out' / 'stand-ins' / 'drbert'} " in (logs / "drbert-grn-lora.log").read_text()


def test_the_limits_of_a_container_are_kept(tmp_path):
    for name, does in (("nproc", "echo 16"), ("awk", "echo 64"), ("nvidia-smi", "exit 1")):
        stand_in(tmp_path / "bin", name, does)
    for limits, expected in (
        ("350000 100000,9000000000,anon 1000000000", "2 at a time (threads each: 2 of 4, 8 GB free)"),
        ("max 100000,max,anon 1000000000", "16 at a time (threads each: 1 of 16, 64 GB free)"),
    ):
        for name, limit in zip(("cpu.max", "memory.max", "memory.stat"), limits.split(","), strict=True):
            (tmp_path / name).write_text(f"{limit}\n")
        plan = run_all("--demo", "--dry-run", commands=[tmp_path / "bin"], CGROUP_ROOT=str(tmp_path))
        assert plan.returncode == 0 and expected in plan.stdout
    older = tmp_path / "version-1"
    for name, limit in (
        ("cpu/cpu.cfs_quota_us", "350000"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("memory/memory.limit_in_bytes", "9000000000"),
        ("memory/memory.stat", "cache 5\ntotal_rss 1000000000"),
    ):
        (older / name).parent.mkdir(parents=True, exist_ok=True)
        (older / name).write_text(f"{limit}\n")
    plan = run_all("--demo", "--dry-run", commands=[tmp_path / "bin"], CGROUP_ROOT=str(older))
    assert "2 at a time (threads each: 2 of 4, 8 GB free)" in plan.stdout


@pytest.mark.parametrize(
    ("line", "folder", "file"),
    [
        ("0::/system.slice/job_1/step_0", "system.slice/job_1", "memory.max"),
        ("9:memory:/slurm/uid_0/job_1/step_0", "memory/slurm/uid_0/job_1", "memory.limit_in_bytes"),
    ],
)
def test_the_memory_of_a_job_is_kept(tmp_path, line, folder, file):
    """Slurm limits a group somewhere between the root's, which has no limit, and that of the process."""
    for name, does in (("nproc", "echo 16"), ("awk", "echo 64"), ("nvidia-smi", "exit 1")):
        stand_in(tmp_path / "bin", name, does)
    (tmp_path / "groups" / folder / "step_0").mkdir(parents=True)
    (tmp_path / "groups" / folder / file).write_text("9000000000\n")
    (tmp_path / "own").write_text(f"{line}\n")
    groups = {"CGROUP_ROOT": str(tmp_path / "groups"), "CGROUP_OF": str(tmp_path / "own")}
    plan = run_all("--demo", "--dry-run", commands=[tmp_path / "bin"], **groups)
    assert plan.returncode == 0 and "2 at a time (threads each: 8 of 16, 9 GB free)" in plan.stdout


def test_an_absolute_path_is_what_it_says(tmp_path):
    """Though there is one like it below the folder where the command is given."""
    (tmp_path / "there").mkdir()
    notes = tmp_path / "there" / "notes.csv"
    twin = tmp_path / str(notes).lstrip("/")
    twin.parent.mkdir(parents=True)
    for path in (notes, twin):
        path.touch()
    commands = stand_in(tmp_path / "bin", "accelerate", 'echo "$@"')
    run_all(
        "--dataset", notes, "--models", "tfidf", "--output", "out", "--report", "r", cwd=tmp_path, commands=[commands]
    )
    assert f"--dataset {notes} " in (tmp_path / "out" / "logs" / "tfidf.log").read_text()


def test_the_script_may_be_a_link_or_be_called_by_a_relative_path(tmp_path):
    link = tmp_path / "compare"
    link.symlink_to(SCRIPT)
    for script, folder in ((link, tmp_path), (SCRIPT.relative_to(ROOT.parent), ROOT.parent)):
        shown = subprocess.run(["bash", script, "--help"], cwd=folder, capture_output=True, text=True)
        assert shown.returncode == 0 and shown.stdout.startswith("The whole comparison, one command")
    copy = tmp_path / "slurm_script"  # as sbatch runs it
    copy.write_bytes(SCRIPT.read_bytes())
    for folder, status in ((ROOT, 0), (tmp_path, 2)):
        plan = subprocess.run(["bash", copy, "--demo", "--dry-run"], cwd=folder, capture_output=True, text=True)
        assert plan.returncode == status and ("train.py is neither beside" in plan.stderr) == (status == 2)


def test_failures_are_of_one_start(tmp_path):
    """Another grid in the same folder has its own."""
    options = ["--dataset", "someone/notes", "--models", "tfidf", "--output", "out", "--report", "r"]
    (tmp_path / "out" / "logs").mkdir(parents=True)
    other = tmp_path / "out" / "logs" / "failures-1.txt"
    other.write_text("drbert: error\n")
    commands = stand_in(tmp_path / "bin", "accelerate", "echo 'error: of this one'; exit 1")
    done = run_all(*options, cwd=tmp_path, commands=[commands])
    assert done.returncode == 1 and done.stdout.count("tfidf: error: of this one") == 1 and "drbert" not in done.stdout
    assert [*other.parent.glob("failures*")] == [other]


def test_one_gpu_of_several(tmp_path):
    commands = stand_in(tmp_path / "bin", "accelerate", 'echo "GPU ${CUDA_VISIBLE_DEVICES}"')
    asked = ["--dataset", "someone/notes", "--models", "tfidf", "--output", "out", "--report", "r"]
    run_all(*asked, cwd=tmp_path, commands=[commands], CUDA_VISIBLE_DEVICES="2,3")
    assert (tmp_path / "out" / "logs" / "tfidf.log").read_text() == "GPU 2\n"
    stand_in(commands, "python", 'echo "GPU ${CUDA_VISIBLE_DEVICES}"')  # of the dry run, which is no launched one
    asked += ["--dry-run", "--model_revision", "main"]
    shown = run_all(*asked, cwd=tmp_path, commands=[commands], CUDA_VISIBLE_DEVICES="2,3", ACCELERATE_CONFIG="a.yaml")
    assert shown.stdout.splitlines()[-1] == "GPU 2"
    (tmp_path / "a.yaml").write_text("compute_environment: LOCAL_MACHINE\nuse_cpu: true\n")
    shown = run_all(*asked, cwd=tmp_path, commands=[commands], CUDA_VISIBLE_DEVICES="2,3", ACCELERATE_CONFIG="a.yaml")
    assert shown.stdout.splitlines()[-1] == "GPU "


def test_a_configuration_that_accelerate_was_left_with_changes_nothing(tmp_path):
    """What the launcher makes of its arguments: `accelerate config` may have asked for something else."""
    left = tmp_path / "home" / "accelerate" / "default_config.yaml"
    left.parent.mkdir(parents=True)
    left.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
        "gpu_ids: '1'\nmixed_precision: bf16\n"
    )
    (tmp_path / "made_of_it.py").write_text(
        "import sys\n"
        "from accelerate.commands.launch import _validate_launch_command, launch_command_parser\n"
        "made, *_ = _validate_launch_command(launch_command_parser().parse_args(sys.argv[2:]))\n"
        "print(made.num_processes, made.use_cpu, made.gpu_ids, made.mixed_precision, made.main_process_port)\n"
    )
    commands = stand_in(tmp_path / "bin", "accelerate", f'exec "{sys.executable}" "{tmp_path}/made_of_it.py" "$@"')
    asked = ["--dataset", "someone/notes", "--models", "tfidf", "--output", "out", "--report", "r"]
    log, home = tmp_path / "out" / "logs" / "tfidf.log", {"HF_HOME": str(tmp_path / "home")}
    run_all(*asked, cwd=tmp_path, commands=[commands], **home, ACCELERATE_CONFIG="")
    assert log.read_text().splitlines()[-1] == "1 False all no None"
    run_all(*asked, cwd=tmp_path, commands=[commands], **home, ACCELERATE_CONFIG=str(left))  # asked for: taken
    assert log.read_text().splitlines()[-1] == "2 True 1 bf16 None"
    # of several GPUs, runs that start together have a port each
    several = left.read_text().replace("MULTI_CPU", "MULTI_GPU").replace("'1'", "0,1").replace("use_cpu: true\n", "")
    port_said = "main_process_port: 29501\n"
    for jobs, more, port in (
        (2, "", 0),
        (2, port_said, 0),
        (1, port_said, 29501),
        (2, f"{port_said}num_machines: 2\nmachine_rank: 0\n", 29501),
    ):
        left.write_text(several + more)
        run_all(*asked, "--jobs", jobs, cwd=tmp_path, commands=[commands], **home, ACCELERATE_CONFIG=str(left))
        assert log.read_text().splitlines()[-1] == f"2 False 0,1 bf16 {port}"


def test_cores_are_counted_whatever_a_shell_says_of_threads():
    plans = [run_all("--demo", "--dry-run", **threads) for threads in ({}, {"OMP_NUM_THREADS": "1"})]
    cores = [re.search(r"threads each: \d+ of (\d+),", plan.stdout)[1] for plan in plans]
    assert cores[0] == cores[1] == str(len(os.sched_getaffinity(0)))


def test_paths_are_as_seen_from_where_it_was_called(tmp_path):
    here = tmp_path / "a folder"
    for name in ("my encoder", "tfidf", "drbert"):  # of the last two there are models
        (here / name).mkdir(parents=True)
    plan = run_all(
        "--demo", "--dry-run", "--models", "tfidf,my encoder", "--heads", "grn", "--output", "out", cwd=here
    )
    assert plan.returncode == 0 and f"into {here}/out/" in plan.stdout
    assert "tfidf\ttfidf\t-" in plan.stdout and f"my encoder-grn-frozen\t{here}/my encoder\tgrn" in plan.stdout
    commands = stand_in(tmp_path / "bin", "accelerate", 'printf "%s|" "$@"')
    more = ["--models", "tfidf,drbert", "--heads", "grn", "--tuning", "full", "--output", "out", "--report", "r"]
    run_all("--dataset", "someone/notes", *more, cwd=here, commands=[commands])
    logs = here / "out" / "logs"  # a folder goes before what the Hub has under its name
    assert f"|--model|{here}/drbert|" in (logs / "drbert-grn-full.log").read_text()
    assert "|--model|tfidf|" in (logs / "tfidf.log").read_text()
    plan = run_all("--demo", "--dry-run", "--models", " tfidf,, my encoder/ ", "--heads", "grn", cwd=here)
    assert plan.returncode == 0 and plan.stdout.startswith("2 runs on ")  # no name is no folder either
    # after an equals sign the shell leaves a tilde as it is
    plan = run_all("--demo", "--dry-run", "--output=~/out", cwd=here, HOME=str(tmp_path / "my home"))
    assert f"into {tmp_path}/my home/out/" in plan.stdout


def test_what_train_py_is_given(tmp_path):
    """A command that says what it was given takes the place of the launcher."""
    commands = stand_in(tmp_path / "bin", "accelerate", 'printf "%s|" "$@"')
    more = ["--models", "tfidf", "--cache_dir", "my cache", "--output", "out", "--report", "r", "--group_column", "p"]
    run_all("--dataset", "someone/notes", *more, cwd=tmp_path, commands=[commands])
    given = (tmp_path / "out" / "logs" / "tfidf.log").read_text()
    assert f"|train.py|--model|tfidf|--dataset|someone/notes|--folds|5|--output_dir|{tmp_path}/out/tfidf|" in given
    assert f"|--keep_model|False|--cache_dir|{tmp_path}/my cache|--group_column|p|" in given


def test_logs_of_an_earlier_start_stay(tmp_path):
    options = ["--dataset", "someone/notes", "--models", "tfidf", "--output", "out", "--report", "r"]
    for prints, status, told in (
        ("epoch 1; error: none", 0, "done in"),
        ("error: the first", 1, "FAILED: error: the first"),
        ("nothing", 1, "FAILED: see out/logs/tfidf.log"),
    ):
        commands = stand_in(tmp_path / "bin", "accelerate", f"echo '{prints}'; exit {status}")
        done = run_all(*options, cwd=tmp_path, commands=[commands])
        assert told in done.stdout.replace(f"{tmp_path}/", "")
    log = (tmp_path / "out" / "logs" / "tfidf.log").read_text()
    again = "---- started again\n"
    assert log == f"epoch 1; error: none\n{again}error: the first\n{again}nothing\n"


@pytest.mark.parametrize(("folds", "passes"), [(1, False), (2, True)])
def test_hidden_states_of_finished_runs_are_not_made_again(tmp_path, folds, passes):
    commands = stand_in(tmp_path / "bin", "accelerate", "true")
    stand_in(tmp_path / "bin", "python", 'echo "$@"')
    (tmp_path / "enc").mkdir()
    result = {"run": {"fold": 0, "num_folds": folds, "num_seeds": 1, "seeds": [0]}}
    write_json(tmp_path / "out" / "enc-grn-frozen" / "fold-0" / "result.json", result)
    options = ["--models", "enc", "--heads", "grn", "--tuning", "frozen", "--jobs", "2", "--output", "out"]
    for more, expected in (((), passes), (("--overwrite",), True)):
        run_all("--dataset", "someone/notes", *options, "--report", "r", *more, cwd=tmp_path, commands=[commands])
        assert (tmp_path / "out" / "logs" / "features-enc.log").is_file() == expected


def test_what_a_refusal_means_for_the_grid(tmp_path):
    refusal = "error: x was finished with other settings (seed 0, now 1): choose another --output_dir, or --overwrite."
    commands = stand_in(tmp_path / "bin", "accelerate", f"echo '{refusal}'; exit 1")
    options = ["--dataset", "someone/notes", "--models", "tfidf", "--output", "out", "--report", "r"]
    done = run_all(*options, cwd=tmp_path, commands=[commands])
    assert done.returncode == 1 and "FAILED: error: x was finished with other settings" in done.stdout
    assert "the table shows at most what was there before; for the grid it is another --output" in done.stdout


@pytest.mark.parametrize(
    ("number", "status", "hanging"),
    [(signal.SIGINT, 130, ""), (signal.SIGHUP, 129, ""), (signal.SIGTERM, 143, "trap '' TERM; ")],
)
def test_an_interruption_leaves_no_run_behind(tmp_path, number, status, hanging):
    # the launcher and what it launches
    commands = stand_in(tmp_path / "bin", "accelerate", f'{hanging}sleep 300 & echo "$$ $!" >> "$PIDS"; wait')
    pids = tmp_path / "pids"
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    # fmt: off
    grid = subprocess.Popen(
        ["bash", ROOT / "run_all.sh", "--dataset", "someone/notes", "--models", "tfidf,tfidf-nb,transformer",
         "--jobs", "2", "--output", tmp_path / "out", "--report", tmp_path / "report"],
        env=os.environ | {"PATH": path, "PIDS": str(pids)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # else ignored where the tests run under nohup
    )
    # fmt: on
    deadline = time.monotonic() + 60
    while not (pids.is_file() and len(pids.read_text().split()) == 4):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    runs = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    grid.send_signal(number)
    printed, _ = grid.communicate(timeout=60)
    assert grid.returncode == status and "interrupted: given again" in printed
    _, alive = psutil.wait_procs(runs, timeout=10)
    assert all(run.status() == psutil.STATUS_ZOMBIE for run in alive)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_of_the_table_is_one_too(tmp_path, number, status):
    commands = stand_in(tmp_path / "bin", "accelerate", "true")
    stand_in(tmp_path / "bin", "python", 'echo "$$" > "$PIDS"; exec sleep 300')
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    # fmt: off
    grid = subprocess.Popen(
        ["bash", ROOT / "run_all.sh", "--dataset", "someone/notes", "--models", "tfidf", "--output", tmp_path / "out",
         "--report", tmp_path / "report"],
        env=os.environ | {"PATH": path, "PIDS": str(tmp_path / "pids")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    # fmt: on
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pids").is_file() and (tmp_path / "pids").read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    evaluation = psutil.Process(int((tmp_path / "pids").read_text()))
    grid.send_signal(number)
    printed, _ = grid.communicate(timeout=60)
    assert grid.returncode == status and "interrupted: given again" in printed
    _, alive = psutil.wait_procs([evaluation], timeout=10)
    assert not alive


def test_mistakes_are_one_line():
    for arguments, message in (
        (["--heads", "gru"], "--heads gru: choose from linear"),
        (["--tuning", "half"], "--tuning half: choose from frozen"),
        (["--jobs", "0"], "--jobs 0: give a number from 1"),
        (["--train-sizes", "100,all"], "--train-sizes all: give numbers of notes, or full"),
        (["--folds"], "--folds needs a value"),
        (["--dataset", ""], "--dataset needs a value"),
        (["--unlabeled"], "--unlabeled needs a value"),
        (["--unlabeled", "--jobs", "1"], "--unlabeled needs a value"),
        (["--unlabeled", "letters", ""], "--unlabeled needs a value"),
        (["--unlabeled="], "--unlabeled needs a value"),
        (["--average", "mean"], "--average mean: choose from macro"),
        (["--price-per-hour", "0,5"], "--price-per-hour 0,5: give what an hour costs, as 0.5"),
        (["--train-size", "100"], "--train_size is for train.py; the grid has --train-sizes"),
        (["--output-dir=x"], "--output_dir is for train.py; the grid has --models, --heads and --output"),
        (["--models", "tfidf,tfdf"], "--models tfdf: did you mean tfidf?"),
        (["--models", "camembert-base,drbet"], "--models drbet: did you mean drbert?"),  # the first is on the Hub
        (["--models", "tfidf", "--train-sizes", "50,50"], "two runs would be in the folder tfidf-n50: give each"),
        (["--models", "drbert,drbert", "--heads", "grn"], "two runs would be in the folder drbert-grn-frozen"),
    ):
        done = run_all(*arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--num_train_epoch", "3", ": no such argument; did you mean --num_train_epochs? --help lists all."),
        ("--learning_rate", "high", "/--learning-rate: invalid float value: 'high'; --help lists all arguments."),
    ],
)
def test_an_argument_that_no_run_takes_stops_the_grid(notes_file, tmp_path, argument, value, message):
    models = ("--models", "tfidf,tfidf-nb,transformer", "--jobs", 1)
    folders = ("--output", tmp_path / "runs", "--report", tmp_path / "report")
    done = run_all("--dataset", notes_file, *folders, *models, argument, value)
    assert done.returncode == 2 and done.stderr.endswith(f"{argument}{message}\n")
    assert done.stdout.count("FAILED") == 1


def test_the_grid_end_to_end(notes_file, tmp_path, encoder_folder):
    # fmt: off
    arguments = [
        "--dataset", notes_file, "--output", tmp_path / "runs", "--report", tmp_path / "report", "--folds", 2,
        "--models", f"tfidf,transformer,transformer-pretrained,{encoder_folder},no-such/encoder",
        "--heads", "grn", "--tuning", "frozen",
        "--jobs", 2, "--group_column", "patient", "--max_length", 48, "--vocab_size", 400, "--num_train_epochs", 1,
        "--pretraining_tokens", 20_000, "--min_steps", 0, "--unlabeled", notes_file,
    ]
    # fmt: on
    assert run_all(*arguments, "--dry-run").returncode == 0
    done = run_all(*arguments)
    assert done.returncode == 1  # because one encoder cannot be had; everything else is there
    assert done.stdout.startswith(f"5 runs on {notes_file} (folds: 2")
    assert "no-such--encoder-grn-frozen: FAILED: error: no-such/encoder is not in the cache" in done.stdout
    table = (tmp_path / "report" / "results.md").read_text()
    results = pd.read_csv(tmp_path / "report" / "results.csv")
    assert len(results) == 5 and results["f1_macro_mean"].notna().sum() == 4
    assert "no-such" in table and "tfidf" in table and "transformer (pretrained in-house)" in table
    assert len(list((tmp_path / "runs" / "pretrained").glob("*/pretrain.json"))) == 2  # one a fold
    hours = table.split("## Hours, estimated beforehand and measured")[1]
    for name in (f"{encoder_folder.name}-grn-frozen", "transformer-pretrained", "all of them"):
        assert re.search(rf"\| {name} +\|", hours)
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 8
    assert sorted(path.name for path in (tmp_path / "runs" / "logs").glob("*.log")) == [
        f"{encoder_folder.name}-grn-frozen.log", f"features-{encoder_folder.name}.log",
        "features-no-such--encoder.log", "no-such--encoder-grn-frozen.log", "tfidf.log",
        "transformer-pretrained.log", "transformer.log",
    ]  # fmt: skip

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    again = run_all(*arguments, "--models", "tfidf")
    assert again.returncode == 1 and "finished earlier, kept" in (tmp_path / "runs" / "logs" / "tfidf.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_learning_curves(notes_file, tmp_path):
    # fmt: off
    done = run_all(
        "--dataset", notes_file, "--output", tmp_path / "runs", "--report", tmp_path / "report", "--folds", 2,
        "--models", "tfidf,transformer", "--train-sizes", "15,30,full", "--vocab_size", 400, "--num_train_epochs", 1,
    )
    # fmt: on
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir() and path.name != "logs") == [
        "tfidf", "tfidf-n15", "tfidf-n30", "transformer", "transformer-n15", "transformer-n30",
    ]  # fmt: skip
    report = (tmp_path / "report" / "results.md").read_text()
    curves = report.split("## With fewer notes")[1]
    assert "| Model" in curves and "15 notes" in curves and "30 notes" in curves and "all notes" in curves
    assert re.search(r"^transformer (needs about|is ahead of|does not pass) .*tfidf", curves, re.MULTILINE)
    assert (tmp_path / "report" / "learning_curves_1.svg").exists()
    whole = report.split("## notes.csv")[1].split("## With fewer notes")[0]
    assert "n15" not in whole and "on 15 notes" not in whole
