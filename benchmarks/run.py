"""Our ways of training beside the plain ways of the field, timed in turn in one process; ratios, not seconds.

    python benchmarks/run.py                                  # all of it, about half an hour on two cores
    python benchmarks/run.py --only moe scratch --repeats 3

Writes benchmarks/results.md, which the README quotes. Notes are the built-in ones, encoders have random weights (the
arithmetic is the same). "Plain" is the Hugging Face `Trainer` as most scripts have it:
`AutoModelForSequenceClassification`, float32, batches of 8 in random order, padded to the longest of the batch or to
256 tokens (heads and small Transformers of ours come in batches of 32, as their recipe has it; fine-tuning in 8);
`BertForSequenceClassification` of the same dimensions for the small Transformer; the Switch layer of
`transformers` for the experts. Ratios are medians over repeats, with the smallest and the largest in brackets.
"""
# ruff: noqa: E402 (the project's scripts are found only once its folder is on the path)

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertModel,
    DataCollatorWithPadding,
    SwitchTransformersConfig,
    Trainer,
    TrainingArguments,
)
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from data import DataArguments, load_notes
from heads import HEADS
from machine import bfloat16_is_fast, describe_machine, keep_freed_memory
from scratch_model import FeedForward, ScratchConfig, SwitchFeedForward
from splits import Split
from tokenization import train_tokenizer
from train import parse_arguments
from trainer import Run, train_network

NOTES = 5444  # of the paper's corpus, to which parts are scaled
TRAIN_SHARE = 0.68  # of them, in each of 5 folds
NOTHING_KEPT = "--save_strategy no --eval_strategy no --load_best_model_at_end False".split()
NOTHING = np.array([], dtype=int)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FEW_NOTES = 800 if DEVICE.type == "cuda" else 64  # that a base-size encoder sees in every step of training
# Steps enough of fine-tuning that the first, which makes Adam's moments and takes as long as three, weighs little.
TUNED_NOTES = 800 if DEVICE.type == "cuda" else 160
MATRIX_ROWS = 32768 if DEVICE.type == "cuda" else 2048  # of the product that gives the machine's rate: they fill it
SOME_NOTES = 1500 if DEVICE.type == "cuda" else 800  # that ours, and the small Transformers, are timed on
GLIBC_ALONE = 2**25, 2**26  # bytes of `keep_freed_memory` that the C library itself arrives at


class Bench:
    """The machine's rates, a corpus, a base-size encoder, and a folder that is deleted at the end."""

    def __init__(self, folder: Path, repeats: int):
        self.folder, self.repeats = folder, repeats
        notes = load_notes(DataArguments(dataset="synthetic:1600"))
        # Half of each note, which makes about the paper's 107 tokens a note of the built-in notes.
        self.notes = replace(notes, texts=[text[: len(text) // 2] for text in notes.texts])
        self.encoder = folder / "encoder"
        tokenizer = train_tokenizer(self.notes.texts, "unigram", 6000, 256)
        tokenizer.save_pretrained(self.encoder)
        torch.manual_seed(0)
        self.config = CamembertConfig(  # CamemBERT-bio's dimensions
            vocab_size=32005,
            max_position_embeddings=514,
            type_vocab_size=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        CamembertModel(self.config).save_pretrained(self.encoder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.encoder)
        self.lengths = np.array(
            [len(ids) for ids in self.tokenizer(self.notes.texts, truncation=True, max_length=256)["input_ids"]]
        )
        self.rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}  # operations a second

    def part(self, count: int) -> np.ndarray:
        """`count` notes spread evenly over the lengths, so that a part is as long on average as the whole."""
        return np.sort(np.argsort(self.lengths)[np.linspace(0, len(self.lengths) - 1, count).astype(int)])

    def ours(self, rows: np.ndarray, *arguments: str, epochs: float = 1) -> float:
        """Seconds of training on these notes as train.py does it."""
        output = tempfile.mkdtemp(dir=self.folder)
        arguments = [*arguments, "--output_dir", output, "--cache_dir", str(self.folder / "features")]
        run = Run(*parse_arguments([*arguments, *NOTHING_KEPT]), self.notes)
        trained = train_network(run, Split(rows, NOTHING, NOTHING), 0, Path(output), epochs)
        return trained.cost["training_hours"] * 3600

    def plain(self, rows: np.ndarray, model: torch.nn.Module, padding: str | bool, epochs: int = 1) -> float:
        """Seconds of training on these notes by the Trainer's defaults."""
        texts = [self.notes.texts[row] for row in rows]
        encoded = self.tokenizer(texts, truncation=True, max_length=256, padding=padding)
        dataset = Dataset.from_dict({**encoded, "labels": self.notes.labels[rows].tolist()})
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(dir=self.folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            save_strategy="no",
            disable_tqdm=True,
            log_level="error",
            logging_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        collator = DataCollatorWithPadding(self.tokenizer)
        trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator)
        return timed(trainer.train)

    def compare(self, plain: Callable[[], float], ours: Callable[[], float]) -> tuple[list[float], float, float]:
        """Ratios plain / ours over the repeats, in turn, and the median seconds of each."""

        def pair() -> tuple[float, float]:
            keep_freed_memory(*GLIBC_ALONE)
            seconds = plain()
            keep_freed_memory()
            return seconds, ours()

        pair()  # what happens only once (loading, warming up) is nobody's
        pairs = [pair() for _ in range(self.repeats)]
        return [a / b for a, b in pairs], *(statistics.median(seconds) for seconds in zip(*pairs, strict=True))


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of the encoder's largest matrix product, the best of thirty."""
    inputs = torch.randn(MATRIX_ROWS, 768, dtype=dtype, device=DEVICE)
    layer = torch.nn.Linear(768, 3072, dtype=dtype, device=DEVICE)
    with torch.inference_mode():
        return 2 * MATRIX_ROWS * 768 * 3072 / min(timed(lambda: layer(inputs)) for _ in range(30))


def timed(action: Callable[[], object]) -> float:
    """Seconds, until a GPU too is done."""
    finish = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    finish()
    started = time.perf_counter()
    action()
    finish()
    return time.perf_counter() - started


def ratio(values: list[float]) -> str:
    return f"**{statistics.median(values):.3g} x** ({min(values):.3g} to {max(values):.3g})"


# ---- what is compared: each gives rows (what, against what, result) ------------------------------------------------


def feature_pass(bench: Bench) -> list[tuple]:
    """The forward pass against the floor: its matrix products at the measured rate of the same run."""
    dtype = torch.bfloat16 if bfloat16_is_fast() else torch.float32
    layers, width, wide = bench.config.num_hidden_layers, bench.config.hidden_size, bench.config.intermediate_size
    operations = 2 * layers * (4 * width * width + 2 * width * wide)  # a token; attention's own, 1 to 2 %, is left out
    slower, per_token = [], []
    for number in range(bench.repeats):
        before = matrix_rate(dtype)
        rows = bench.part(SOME_NOTES + number)  # another number of notes: nothing is found in the cache
        run = Run(*frozen_arguments(bench, "grn", f"features-{number}"), bench.notes.select(rows))
        tokens = len(run.features.states)
        per_token.append(run.features.hours * 3600 / tokens)
        slower.append(per_token[-1] * max(before, matrix_rate(dtype)) / operations)
    speed = f"{1 / statistics.median(per_token):.0f} tokens/s"
    against = "the floor: its matrix products at the measured rate"
    return [("feature pass, base size", against, f"{ratio(slower)} the floor; {speed}")]


def frozen_arguments(bench: Bench, head: str, folder: str):
    output = bench.folder / folder
    return parse_arguments(["--model", str(bench.encoder), "--head", head, "--output_dir", str(output), *NOTHING_KEPT])


def frozen_heads(bench: Bench) -> list[tuple]:
    """An epoch of a head on cached hidden states against one of the plain run; then the whole grid of one encoder."""
    few, all_notes = bench.part(FEW_NOTES), bench.notes
    some = all_notes.select(bench.part(SOME_NOTES))
    run = Run(*frozen_arguments(bench, "grn", "grid"), some)
    run.model_args.cache_dir = str(bench.folder / "features")
    pass_seconds = run.features.hours * 3600 * NOTES / len(some)

    def plain() -> float:
        """Seconds a note."""
        bench.notes = all_notes
        model = AutoModelForSequenceClassification.from_pretrained(bench.encoder, num_labels=2, dtype=torch.float32)
        model.base_model.requires_grad_(False)
        return bench.plain(few, model, padding=False) / len(few)

    def ours(head: str) -> float:
        bench.notes = some
        return bench.ours(np.arange(len(some)), "--model", str(bench.encoder), "--head", head) / len(some)

    rows, ours_seconds, plain_seconds = [], {}, []
    for head in HEADS:
        ratios, plain_note, ours_note = bench.compare(plain, lambda head=head: ours(head))
        ours_seconds[head] = ours_note
        plain_seconds.append(plain_note)
        rows.append((f"an epoch of `{head}` on cached hidden states", "plain frozen, dynamic padding", ratio(ratios)))
    start_up = min(timed(lambda: subprocess.run([sys.executable, "-c", "import train"], cwd=ROOT)) for _ in range(2))
    epochs = 5 * 10 * NOTES * TRAIN_SHARE  # notes that a head sees in 5 folds of 10 epochs
    plain_grid = 5 * epochs * statistics.median(plain_seconds) + 5 * start_up
    ours_grid = pass_seconds + sum(ours_seconds.values()) * epochs + 5 * start_up
    rows.append(
        (
            f"5 heads x 5 folds x 10 epochs of {NOTES} notes, one encoder; pass and start-up included "
            f"(scaled from {len(few)} notes plain, {len(some)} ours; training alone, without evaluation)",
            f"plain: {plain_grid / 3600:.1f} h",
            f"**{plain_grid / ours_grid:.3g} x**, {ours_grid / 60:.0f} min (pass {pass_seconds / 60:.1f} min)",
        )
    )
    bench.notes = all_notes
    return rows


def scratch(bench: Bench) -> list[tuple]:
    """The small Transformers from scratch against BERT of the same dimensions."""
    rows_of_notes = bench.part(SOME_NOTES)
    sizes = ScratchConfig()

    def plain(padding: str | bool) -> Callable[[], float]:
        def train() -> float:
            config = BertConfig(
                vocab_size=6000,
                hidden_size=sizes.hidden_size,
                num_hidden_layers=sizes.num_hidden_layers,
                num_attention_heads=sizes.num_attention_heads,
                intermediate_size=sizes.intermediate_size,
            )
            return bench.plain(rows_of_notes, BertForSequenceClassification(config), padding)

        return train

    rows = []
    for model in ("transformer", "moe-transformer"):
        for padding, name in (("max_length", "padded to 256"), (False, "dynamic padding")):
            ratios, _, seconds = bench.compare(
                plain(padding), lambda model=model: bench.ours(rows_of_notes, "--model", model)
            )
            speed = f"{ratio(ratios)}, {len(rows_of_notes) / seconds:.0f} notes/s"
            rows.append((f"`{model}`, an epoch", f"BERT of the same size, float32, {name}", speed))
    return rows


def moe(bench: Bench) -> list[tuple]:
    """One layer of experts, forward and backward, on 32 x 112 tokens."""
    sizes = ScratchConfig(num_experts=4)
    inputs = torch.randn(32, 112, sizes.hidden_size, device=DEVICE)
    mask = torch.ones(32, 112, dtype=torch.long, device=DEVICE)
    ours, dense = SwitchFeedForward(sizes).to(DEVICE).train(), FeedForward(sizes).to(DEVICE).train()
    for parameter in (ours.up_weight, ours.down_weight):
        torch.nn.init.normal_(parameter, std=0.02)
    switch = SwitchTransformersSparseMLP(
        SwitchTransformersConfig(
            d_model=sizes.hidden_size,
            d_ff=sizes.intermediate_size,
            num_experts=4,
            expert_capacity=int(1.25 * 112 / 4),  # theirs is a row's
            dense_act_fn="gelu",
            router_jitter_noise=0.0,  # theirs is added to the layer's input in place
        )
    )
    switch = switch.to(DEVICE).train()

    def step(call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], float]:
        def run(batch: torch.Tensor):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bfloat16_is_fast()):
                output = call(batch)
            output.float().mean().backward()

        def seconds() -> float:
            # no two batches are routed alike; drawing one takes a tenth of our step, and is nobody's
            batches = [torch.randn_like(inputs).requires_grad_() for _ in range(30)]
            return sum(timed(lambda batch=batch: run(batch)) for batch in batches) / len(batches)

        return seconds

    def first(output: torch.Tensor | tuple) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    def dense_as_ours() -> float:
        keep_freed_memory()
        return step(lambda x: first(dense(x, mask)))()

    def switch_in_float32(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, enabled=False):
            return first(switch(x))

    against_plain, _, _ = bench.compare(step(switch_in_float32), step(lambda x: first(ours(x, mask))))
    against_switch, _, _ = bench.compare(step(lambda x: first(switch(x))), step(lambda x: first(ours(x, mask))))
    against_dense, _, _ = bench.compare(dense_as_ours, step(lambda x: first(ours(x, mask))))
    slower = [1 / value for value in against_dense]
    return [
        (
            "layer of 4 experts, forward and backward",
            "`SwitchTransformersSparseMLP`, float32",
            ratio(against_plain),
        ),
        ("the same", "`SwitchTransformersSparseMLP` in our precision", ratio(against_switch)),
        ("the same", "dense layer with as many active parameters", f"{ratio(slower)} its time"),
    ]


def full(bench: Bench) -> list[tuple]:
    """Full and LoRA fine-tuning of a base-size encoder."""
    rows_of_notes = bench.part(TUNED_NOTES)

    def plain() -> float:
        model = AutoModelForSequenceClassification.from_pretrained(bench.encoder, num_labels=2, dtype=torch.float32)
        return bench.plain(rows_of_notes, model, padding=False)

    rows, grid = [], 3 * 5 * 5 * 10 * NOTES * TRAIN_SHARE  # notes that the paper's grid would train on, in all
    for tuning in ("full", "lora"):
        arguments = ["--model", str(bench.encoder), "--head", "linear", "--tuning", tuning]
        arguments += ["--per_device_train_batch_size", "8"]
        ratios, plain_seconds, seconds = bench.compare(
            plain, lambda arguments=arguments: bench.ours(rows_of_notes, *arguments)
        )
        speed = f"{ratio(ratios)}, {len(rows_of_notes) / seconds:.3g} notes/s"
        rows.append((f"fine-tuning, base size, `{tuning}`", "plain full fine-tuning, dynamic padding", speed))
        plain_hours, hours = (grid * each / len(rows_of_notes) / 3600 for each in (plain_seconds, seconds))
        rows.append(
            (
                f"3 encoders x 5 heads x 5 folds x 10 epochs of {NOTES} notes, `{tuning}` (scaled from "
                f"{len(rows_of_notes)} notes; training alone)",
                f"plain: {plain_hours:.3g} h",
                f"{hours:.3g} h",
            )
        )
    return rows


SECTIONS = {"features": feature_pass, "frozen": frozen_heads, "scratch": scratch, "moe": moe, "full": full}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS], help="these parts (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs for each ratio (default: 3)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results.md", help="the table")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: give 1 or more")
    if not arguments.output.absolute().parent.is_dir():  # known before the work is done
        parser.error(f"--output {arguments.output}: no such folder")
    logging.disable(logging.INFO)
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.repeats)
        rates = ", ".join(f"{str(d).removeprefix('torch.')} {rate / 1e12:.2f}" for d, rate in bench.rates.items())
        machine = describe_machine(not torch.cuda.is_available(), bfloat16_is_fast())
        machine = (
            f"{machine}; torch {torch.__version__}; {bench.lengths.mean():.0f} tokens a note; "
            f"matrix products, 10^12 operations a second: {rates}"
        )
        lines = [machine, "", "| what | against | result |", "|---|---|---|"]
        print(machine, flush=True)
        for name in arguments.only:
            for row in SECTIONS[name](bench):
                lines.append(f"| {' | '.join(row)} |")
                print(lines[-1], flush=True)
    arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
