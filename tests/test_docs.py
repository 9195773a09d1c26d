"""What the README and the grid script say exists, exists."""

import re
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import launch_command_parser
from transformers import HfArgumentParser, TrainingArguments

from backbones import BACKBONES
from baseline import BASELINES
from data import DataArguments
from figures import HEADS as REPORTED_HEADS
from heads import HEADS
from models import PRETRAINED_HERE, SCRATCH_MODELS, TUNINGS, ModelArguments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "run_all.sh").read_text(encoding="utf-8")


def known_flags() -> set[str]:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    flags = {flag for action in parser._actions for flag in action.option_strings}
    scripts = ("evaluate.py", "estimate.py", "pretrain.py", "predict.py", "synthetic.py", "benchmarks/run.py")
    commands = [[sys.executable, script] for script in scripts]
    for command in [*commands, [Path(sys.executable).with_name("hf"), "download"]]:
        shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        flags |= set(re.findall(r"--[a-z][\w-]*", shown))
    for labels in re.findall(r"^ +((?:--?[\w-]+(?: \| )?)+)\)", SCRIPT, re.MULTILINE):  # of run_all.sh's `case`
        labels = labels.split(" | ")
        flags |= {*labels, *(f"--{label[2:].replace('_', '-')}" for label in labels)}  # which it takes either way
    return flags | {flag for action in launch_command_parser()._actions for flag in action.option_strings}


def test_flags_of_the_readme_exist():
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README))
    assert mentioned - known_flags() == set()
    assert len(mentioned) > 15


def test_flags_that_the_grid_passes_on_exist():
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    flags = {flag for action in parser._actions for flag in action.option_strings}
    passed = re.findall(r"(?:arguments\+?=|extra\+?=)\((.*?)\)", SCRIPT)
    assert len(passed) >= 4
    assert set(re.findall(r"--[a-z][\w-]*", " ".join(passed))) <= flags


def test_files_of_the_readme_exist_and_all_scripts_are_listed():
    table = README.split("## The files, in reading order")[1].split("## How to add")[0]
    listed = set(re.findall(r"`([\w./-]+?)`", table))
    for name in listed - {"Trainer"}:
        assert (ROOT / name).exists(), name
    assert {path.name for path in ROOT.glob("*.py")} <= listed
    for name in re.findall(r"`((?:tests/)?\w+\.(?:py|sh|txt))`", README):
        assert (ROOT / name).exists(), name


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))]
    assert len(links) > 5 and any("#" in link for _, link in links)
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert link.startswith("https://") or target.exists(), f"{page.name}: {link}"
        if anchor and not link.startswith("https://"):
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            as_anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in as_anchors, f"{page.name}: {link}"


def test_every_module_has_its_test_file():
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert modules == {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")} - {
        "docs",
        "run_all",
    }


def test_names_agree_between_code_grid_and_readme():
    assert f"heads={','.join(HEADS)}" in SCRIPT and f"tunings={','.join(TUNINGS)}" in SCRIPT
    assert f'no_encoder="{" ".join([*BASELINES, *SCRATCH_MODELS, *PRETRAINED_HERE])}"' in SCRIPT
    assert f"models=${{no_encoder// /,}},{','.join(BACKBONES)}" in SCRIPT
    assert [head for head in REPORTED_HEADS if head != "-"] == list(HEADS)
    for name in [*HEADS, *TUNINGS, *SCRATCH_MODELS, *PRETRAINED_HERE, *BACKBONES, *BASELINES]:
        assert f"`{name}`" in README, name


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", package) for package in packages)
    for package in ("transformers", "peft", "datasets", "evaluate", "accelerate", "torch"):
        assert any(line.startswith(f"{package}==") for line in packages)
