"""Pretrain a small encoder on notes by masked-language modelling, or continue the pretraining of an existing one.

    python pretrain.py --architecture transformer --dataset notes.csv --group_column patient --unlabeled letters.csv
    python pretrain.py --model drbert --dataset notes.csv --group_column patient --unlabeled letters.csv

The folder that it writes is what train.py takes as --model. `train.py --model transformer-pretrained` calls the same
functions by itself, for each fold. Of a data set with given splits, which must have a validation part, the training
part is read and the rest is kept out; of one without, all notes are kept out, each being in some fold's test part: no
text of a held-out note, patient or document reaches the model or its tokenizer (corpus.py). No text of the notes is
written anywhere; but an encoder may remember what it was trained on, and its vocabulary may spell out words that
--min_word_documents patients share, so share neither before you have thought about it.

The folder's pretrain.json is written last: a folder that has one holds a finished model. An interrupted run goes on
from its last checkpoint when the command is given again.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before the libraries read it; see train.py

import copy
import hashlib
import json
import logging
import math
import shutil
import statistics
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging as transformers_logging

from backbones import (
    OFFSET_POSITIONS,
    BackboneError,
    encoder_fingerprint,
    find_backbone,
    load_config_and_tokenizer,
    longest_input,
    reading_weights,
    resolve_commit,
)
from callbacks import EarlyStopping, ObedientTrainer, PretrainingLine, StepClock, TrainingClock
from corpus import Corpus, Removed, of_notes, read_corpus, remove_held_out
from data import DataArguments, DataError, read_unlabeled
from locks import FolderError, alone_with, only_run_in
from machine import bfloat16_is_fast, keep_freed_memory, keep_to_available_cores, what_ran_out
from muon import GOES_WITH, create_muon, layer_matrices
from results import (
    describe_environment,
    discard_foreign_checkpoints,
    last_complete_checkpoint,
    remove_checkpoints,
    write_json,
)
from scratch_model import ROW_STEP, SCRATCH_MODELS, ScratchConfig, ScratchForMaskedLM
from tokenization import FAMILIES, train_tokenizer

logger = logging.getLogger("train")

# name -> its usual tokenizer
ARCHITECTURES = {"camembert": "unigram", "roberta": "bpe", "bert": "wordpiece"} | dict.fromkeys(SCRATCH_MODELS, "bpe")
MIN_DOCUMENTS, MIN_HELD_OUT, MAX_HELD_OUT = 20, 5, 100
LARGEST_HELD_OUT = 0.01  # share of all characters; of few documents, three times the mean (ours)
REPORT_FILE = "pretrain.json"
CODE = ("pretrain.py", "corpus.py", "tokenization.py", "scratch_model.py", "muon.py")  # what an encoder depends on

# What differs from the defaults of TrainingArguments; the command line wins. All ours.
COMMON_RECIPE = dict(
    weight_decay=0.01,
    warmup_steps=0.1,  # of all steps
    lr_scheduler_type="linear",
    logging_steps=0.05,
    eval_strategy="steps",
    eval_steps=0.05,
    save_steps=0.05,
    save_total_limit=2,  # the best and the last: by that a run which was killed after its end knows that it ended
    load_best_model_at_end=True,  # by the held-out loss
    restore_callback_states_from_checkpoint=True,
    remove_unused_columns=False,  # the collator needs special_tokens_mask
    dataloader_pin_memory=torch.cuda.is_available(),
    ddp_find_unused_parameters=False,
    disable_tqdm=True,
    seed=0,
)
RECIPES = {
    "small": dict(
        learning_rate=2e-3,
        adam_beta2=0.98,
        weight_decay=0.05,
        warmup_steps=0.03,
        num_train_epochs=15,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
    ),
    "from scratch": dict(learning_rate=1e-3, num_train_epochs=20, per_device_train_batch_size=8),
    "continued": dict(learning_rate=5e-5, num_train_epochs=3, per_device_train_batch_size=8),
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SHARE = "0, or more but less than 1"
RANGES = [  # of numbers, here and in train.py, and how to say so
    (
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps min_word_documents "
        f"vocab_size {' '.join(SIZES)}",
        lambda number: number >= 1,
        "1 or more",
    ),
    ("learning_rate num_train_epochs", lambda number: number > 0, "more than 0"),
    ("weight_decay adam_epsilon max_grad_norm", lambda number: number >= 0, "0 or more"),
    ("adam_beta1 adam_beta2 label_smoothing_factor", lambda share: 0 <= share < 1, SHARE),
    (
        "max_steps",
        lambda number: number == -1 or number >= 1,
        "1 or more, or -1 for as many as --num_train_epochs take",
    ),
]
# Of a small Transformer that is pretrained: wider than one that has only the labels to learn from, and with so many
# tokens to predict that it learns more from a step than it misses of their neighbours (ours; what was measured is in
# docs/few-labels-measurements.md).
SMALL = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024)
SMALL |= dict(vocab_size=8000, max_length=128, mlm_probability=0.4)
LARGEST_LOSS = 700  # of which the exponential, the perplexity, is still a number
PATIENCE = 3  # evaluations without a lower held-out loss before pretraining stops (ours)
# The training arguments, beside the seed, that can move a number, here and in train.py: what was made with others, or
# interrupted, is not this run's.
DECISIVE = (
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps warmup_steps "
    "lr_scheduler_type lr_scheduler_kwargs optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon "
    "max_grad_norm label_smoothing_factor bf16 fp16 tf32 data_seed load_best_model_at_end "
    "eval_strategy eval_steps save_strategy save_steps neftune_noise_alpha train_sampling_strategy "
    "metric_for_best_model eval_delay eval_on_start auto_find_batch_size optim_target_modules bf16_full_eval "
    "fp16_full_eval world_size"
).split()


class ArgumentError(ValueError):
    """Arguments that do not go together; the message is one line for the user."""


@dataclass
class PretrainArguments:
    """Which encoder, which text, which vocabulary; sizes are of a demonstration's mini encoder (ours)."""

    architecture: str | None = field(
        default=None, metadata={"help": f"A new encoder of this architecture: {', '.join(ARCHITECTURES)}."}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "An existing encoder to go on with: an alias of backbones.py, a Hub id or a local folder."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Commit or tag of --model on the Hub."})
    unlabeled: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Text to pretrain on: files of one document a line (.txt), tables as for --dataset, folders of "
            "tables, or folders of .txt files that are a document each; what belongs to a held-out note of --dataset "
            "is left out."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "The notes that the model is meant for, as for train.py, labels not needed. Their training part "
            "is pretrained on; without given splits none of them, since each is in some fold's test part."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of --dataset, if it is of the Hub."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Commit or tag of --dataset, if it is of the Hub."}
    )
    transductive: bool = field(
        default=False,
        metadata={"help": "Pretrain on the text of held-out notes too; the model is then marked in every table."},
    )
    text_column: str = field(default="text", metadata={"help": "Column with the text, of all tables."})
    group_column: str | None = field(
        default=None, metadata={"help": "Column with the patient or document, of all tables that have it."}
    )
    id_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the id, of --dataset and of other tables that have it. Default: 'id' or 'note_id'."
        },
    )
    split_column: str = field(default="split", metadata={"help": "Column of --dataset with train, validation, test."})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": f"A new encoder's tokenizer: {', '.join(FAMILIES)}. Default: its architecture's usual one."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Largest vocabulary of a new encoder."})
    min_word_documents: int = field(
        default=5,
        metadata={
            "help": "A new vocabulary is learned from the words of at least so many patients, so that it does not "
            "spell out a name. Where nothing names the patient documents are counted: then give more."
        },
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of a new encoder."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers of a new encoder."})
    num_attention_heads: int = field(default=2, metadata={"help": "Attention heads a layer of a new encoder."})
    intermediate_size: int = field(default=512, metadata={"help": "Feed-forward width of a new encoder."})
    max_length: int = field(default=256, metadata={"help": "Tokens in a training block, special tokens included."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Fraction of the tokens to predict."})
    whole_word_mask: bool = field(default=False, metadata={"help": "Mask all tokens of a word together."})
    muon: bool | None = field(
        default=None,
        metadata={
            "help": "Train the matrices of the layers with Muon, and the rest with --optim. Default: of a new small "
            "Transformer."
        },
    )
    held_out_fraction: float = field(
        default=0.05, metadata={"help": "Fraction of the documents kept to measure on, 5 to 100 of them."}
    )
    stand_in_for: str | None = field(
        default=None,
        metadata={"help": "Mark the encoder as a small stand-in for this one, so that reports call it that."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a model that is in OUTPUT_DIR."})

    def __post_init__(self):
        check_ranges(vars(self), RANGES)
        if (self.architecture is None) == (self.model is None):
            raise ArgumentError("Give either --architecture for a new encoder or --model to continue an existing one.")
        if self.muon is None:
            self.muon = self.architecture in SCRATCH_MODELS
        if not self.unlabeled and self.dataset is None:
            raise ArgumentError("Give --unlabeled, --dataset or both: text to pretrain on, notes as for train.py.")
        if self.dataset is None and (self.dataset_config or self.dataset_revision):
            raise ArgumentError("--dataset_config and --dataset_revision are of --dataset; give it too.")
        if self.architecture is None:
            unused = ["tokenizer", "vocab_size", "min_word_documents", *SIZES]
            given = [f"--{f.name}" for f in fields(self) if f.name in unused and getattr(self, f.name) != f.default]
            if given:
                raise ArgumentError(f"{', '.join(given)}: an existing encoder keeps its tokenizer and its size.")
        else:
            self._check_new_encoder()
        if self.max_length < 16:
            raise ArgumentError(f"--max_length {self.max_length}: give at least 16 tokens.")
        for name in ("mlm_probability", "held_out_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ArgumentError(f"--{name} {getattr(self, name)}: give a fraction between 0 and 1.")

    def _check_new_encoder(self):
        if self.architecture not in ARCHITECTURES:
            raise ArgumentError(f"--architecture {self.architecture}: choose from {', '.join(ARCHITECTURES)}.")
        self.tokenizer = self.tokenizer or ARCHITECTURES[self.architecture]
        if self.tokenizer not in FAMILIES:
            raise ArgumentError(f"--tokenizer {self.tokenizer}: choose from {', '.join(FAMILIES)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ArgumentError(
                f"--hidden_size {self.hidden_size} must be a multiple of --num_attention_heads "
                f"{self.num_attention_heads}."
            )
        if SCRATCH_MODELS.get(self.architecture) and self.num_hidden_layers < 2:
            raise ArgumentError(
                f"--num_hidden_layers {self.num_hidden_layers}: the experts of a {self.architecture} are in every "
                "second layer; give 2 or more."
            )


class ArgumentParser(HfArgumentParser):
    """Says in one line what is wrong, without the usage of some two hundred arguments; exit status 2."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; --help lists all arguments.\n")

    def parse_args_into_dataclasses(self, argv: list[str] | None = None) -> tuple:
        """As in the parent.

        Raises:
            ArgumentError: there is no such argument.
        """
        # What `accelerate launch` hands on of a user's own configuration. Here --bf16, --fp16 and --torch_compile say
        # it: else something other would run than what was asked for and is written down.
        os.environ["ACCELERATE_MIXED_PRECISION"] = os.environ["ACCELERATE_DYNAMO_BACKEND"] = "no"
        *parsed, unknown = super().parse_args_into_dataclasses(argv, return_remaining_strings=True)
        if unknown:
            name = unknown[0].split("=")[0]
            if not name.startswith("--"):
                raise ArgumentError(f"{name}: to which argument does it belong? --help lists all.")
            similar = get_close_matches(name, self._option_string_actions, n=1)
            hint = f"did you mean {similar[0]}? --help" if similar else "--help"
            raise ArgumentError(f"{name}: no such argument; {hint} lists all.")
        return tuple(parsed)


def parse_arguments(argv: list[str] | None = None) -> tuple[PretrainArguments, TrainingArguments]:
    """The command line over our recipe over the defaults of the libraries."""
    parser = ArgumentParser(
        (PretrainArguments, TrainingArguments),
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        epilog=f"Other defaults than shown, for every model: {COMMON_RECIPE}, output_dir models/..., use_cpu and bf16 "
        f"as the machine is; by kind of model: {RECIPES}; for {', '.join(SCRATCH_MODELS)} also: {SMALL}",
    )
    first_look, _ = parser.parse_known_args(argv)
    recipe = RECIPES["from scratch" if first_look.model is None else "continued"]
    if first_look.architecture in SCRATCH_MODELS:
        recipe = RECIPES["small"]
        parser.set_defaults(**SMALL)
    name = f"mini-{first_look.architecture}" if first_look.model is None else f"{Path(first_look.model).name}-ours"
    use_cpu = first_look.use_cpu or is_to_use_cpu()
    parser.set_defaults(
        **(COMMON_RECIPE | recipe),
        use_cpu=use_cpu,
        bf16=not first_look.fp16 and bfloat16_is_fast(use_cpu),
        output_dir=f"models/{name}",
    )
    arguments, training_args = parser.parse_args_into_dataclasses(argv)
    if arguments.muon and training_args.optim not in GOES_WITH:
        raise ArgumentError(
            f"--optim {training_args.optim.value}: Muon leaves embeddings and biases to {' or '.join(GOES_WITH)}; "
            "give one of these, or --muon False."
        )
    check_training(training_args)
    refuse_several_gpus(training_args)
    if training_args.gradient_checkpointing and arguments.architecture in SCRATCH_MODELS:
        raise ArgumentError(f"--gradient_checkpointing: a {arguments.architecture} has none; leave it out.")
    if (name := training_args.metric_for_best_model) not in (None, "loss", "eval_loss"):
        raise ArgumentError(f"--metric_for_best_model {name}: there is the held-out loss alone; leave it out.")
    if training_args.label_smoothing_factor:
        raise ArgumentError(
            "--label_smoothing_factor: the held-out loss would be another one, and experts would not share the "
            "tokens; leave it out."
        )
    if training_args.push_to_hub:
        raise ArgumentError("--push_to_hub: an encoder trained on notes may remember them; pretrain.py pushes none.")
    return arguments, training_args


def is_to_use_cpu() -> bool:
    """Where nothing is said: as a configuration of `accelerate launch` has it, or because there is nothing faster."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def check_ranges(given: dict, ranges: list[tuple[str, Callable, str]]):
    """Of a number that makes no sense some library would complain after the notes were read, or nobody."""
    for names, is_right, allowed in ranges:
        for name in names.split():
            if given.get(name) is not None and not is_right(given[name]):
                raise ArgumentError(f"--{name} {given[name]:g}: give {allowed}.")


def check_training(training_args: TrainingArguments, seeds: list[int] | None = None):
    """Before any text is read, what the libraries would find out later, or not at all."""
    check_ranges(vars(training_args), RANGES)
    check_seeds(training_args, seeds)
    check_schedule(training_args)
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(training_args, name):
            raise ArgumentError(f"--{name}: rounds the very weights that are kept; leave it out.")
    if training_args.resume_from_checkpoint is not None:
        raise ArgumentError("--resume_from_checkpoint: a run goes on by itself where it stopped; leave it out.")
    sharded = any(parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"))
    if sharded or training_args.fsdp or training_args.deepspeed or training_args.parallelism_config:
        raise ArgumentError(
            "FSDP, DeepSpeed and the like: a model here fits one GPU, and one process saves it; start with "
            "`accelerate launch --multi_gpu`, or without a configuration of them."
        )
    if training_args.use_liger_kernel:
        raise ArgumentError("--use_liger_kernel: has no kernels for these models; leave it out.")
    if training_args.enable_jit_checkpoint:
        raise ArgumentError(
            "--enable_jit_checkpoint: what a signal cut off would count as finished; leave it out, the last "
            "checkpoint is gone on from."
        )
    if training_args.auto_find_batch_size:
        raise ArgumentError(
            "--auto_find_batch_size: would go on with half-trained weights and another batch than is written down; "
            "give a smaller --per_device_train_batch_size and --gradient_accumulation_steps."
        )
    if training_args.fp16 and training_args.device.type == "cpu":
        raise ArgumentError("--fp16: a CPU would go on in float32; leave it out, or give --bf16 True.")
    if training_args.dataloader_persistent_workers and not training_args.dataloader_num_workers:
        raise ArgumentError("--dataloader_persistent_workers: there are none; give --dataloader_num_workers too.")
    if training_args.dataloader_drop_last:
        raise ArgumentError("--dataloader_drop_last: would drop held-out text too; leave it out.")
    if training_args.batch_eval_metrics or not training_args.eval_do_concat_batches:
        raise ArgumentError("--batch_eval_metrics, --eval_do_concat_batches: scores are of all notes; leave them out.")
    if training_args.prediction_loss_only:
        raise ArgumentError("--prediction_loss_only: there would be nothing to score; leave it out.")
    by_steps = training_args.eval_strategy == training_args.save_strategy == "steps"
    if by_steps and training_args.load_best_model_at_end and training_args.eval_steps != training_args.save_steps:
        raise ArgumentError(
            f"--eval_steps {training_args.eval_steps:g} and --save_steps {training_args.save_steps:g}: give the same, "
            "so that what scores best is kept."
        )
    try:
        Trainer.get_optimizer_cls_and_kwargs(training_args)
    except (ImportError, ValueError) as error:
        if "model" not in str(error):  # which some want, and there is none yet
            given = f" with --optim_args {training_args.optim_args}" if training_args.optim_args else ""
            raise ArgumentError(f"--optim {training_args.optim.value}{given}: {error}") from error
    installed = get_available_reporting_integrations()
    if lacking := [name for name in training_args.report_to if name not in installed]:
        raise ArgumentError(
            f"--report_to {lacking[0]}: not installed; install it, or give {', '.join(['none', *installed])}."
        )


def refuse_several_gpus(training_args: TrainingArguments):
    """The Trainer would split every batch among them in one process, which our losses and collators do not expect."""
    if training_args.n_gpu > 1:
        raise ArgumentError(
            f"{training_args.n_gpu} GPUs in one process: start with `accelerate launch --multi_gpu`, or choose one "
            "GPU with CUDA_VISIBLE_DEVICES=0."
        )


def check_seeds(training_args: TrainingArguments, seeds: list[int] | None = None):
    """Whether the libraries take these seeds; `seeds` are those of train.py's own argument."""
    for name, given in (("seed", [training_args.seed]), ("data_seed", [training_args.data_seed]), ("seeds", seeds)):
        for seed in given or []:
            if seed is not None and not 0 <= seed < 2**31:
                raise ArgumentError(f"--{name} {seed}: give 0 or more, below 2^31.")


def check_schedule(training_args: TrainingArguments):
    """Whether the learning rate's schedule has the arguments of its own that it needs, before any text is read."""
    name = training_args.lr_scheduler_type.value
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training_args.learning_rate)
    try:
        get_scheduler(name, optimizer, 0, 1, training_args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"--lr_scheduler_type {name}: {error}; --lr_scheduler_kwargs takes JSON.") from error


# ---- text ----------------------------------------------------------------------------------------------------------


@dataclass
class PretrainingText:
    """What a model is pretrained on, and what was kept out of it."""

    corpus: Corpus
    training_notes: int  # how many notes of the labelled corpus are among these
    removed: Removed | None  # None: there was nothing to keep out, or nobody asked for it
    transductive: bool = False  # held-out notes are in it, knowingly
    kept_out: str | None = None  # which notes were to be kept out (`Corpus.identity`), where there were any

    def describe(self) -> dict:
        """As result files have it: counts, and a hash of the text."""
        return {
            "documents": len(self.corpus),
            "training_notes": self.training_notes,
            "removed": None if self.removed is None else asdict(self.removed),
            "transductive": self.transductive,
            "text": self.corpus.fingerprint(),
        }


def gather_text(training: Corpus, held_out: Corpus, unlabeled: Corpus, transductive: bool) -> PretrainingText:
    """The training notes and the unlabelled documents; unless told otherwise, without what belongs to held-out notes.

    Raises:
        DataError: too few documents.
    """
    kept_out = held_out
    if transductive:  # then they are notes as the others, and count as such
        training, kept_out = training + held_out, Corpus([], [])
    corpus, removed, left = remove_held_out(training + unlabeled, kept_out, len(training))
    logger.info("  text: %d documents; left out: %s", len(corpus), removed)
    if len(corpus) < MIN_DOCUMENTS:
        raise DataError(
            f"{len(corpus)} different documents to pretrain on; at least {MIN_DOCUMENTS} are needed (left out: "
            f"{removed}): give more --unlabeled text."
        )
    if transductive or not len(held_out):
        return PretrainingText(corpus, left, None, transductive)
    return PretrainingText(corpus, left, removed, kept_out=held_out.identity())


def read_text(arguments: PretrainArguments) -> PretrainingText:
    """What `--dataset`, `--unlabeled` and `--transductive` mean."""
    nothing = Corpus([], [])
    unlabeled = read_corpus(arguments.unlabeled, arguments.text_column, arguments.group_column, arguments.id_column)
    training = held_out = nothing
    if arguments.dataset is not None:
        notes = read_unlabeled(
            DataArguments(
                dataset=arguments.dataset,
                dataset_config=arguments.dataset_config,
                dataset_revision=arguments.dataset_revision,
                text_column=arguments.text_column,
                group_column=arguments.group_column,
                id_column=arguments.id_column,
                split_column=arguments.split_column,
            )
        )
        if notes.given_splits is None:
            is_training = np.zeros(len(notes), dtype=bool)
            if not arguments.unlabeled and not arguments.transductive:
                raise DataError(
                    f"--dataset {arguments.dataset} has no splits: each of its notes is in some fold's test part. "
                    "Give --unlabeled text, let train.py pretrain within the folds (--model transformer-pretrained), "
                    "or accept a model that knows its test notes (--transductive)."
                )
        else:
            if "validation" not in notes.given_splits and not arguments.transductive:
                raise DataError(
                    f"--dataset {arguments.dataset} has no validation part: train.py would draw it from the training "
                    "part, whose text the model then knows. Give one, let train.py pretrain "
                    "(--model transformer-pretrained), or accept a model that knows its validation notes "
                    "(--transductive)."
                )
            is_training = notes.given_splits == "train"
        training, held_out = (of_notes(notes, np.flatnonzero(rows)) for rows in (is_training, ~is_training))
        logger.info("%s: %d training notes, %d held out", arguments.dataset, len(training), len(held_out))
    elif arguments.stand_in_for is None:
        logger.warning(
            "no --dataset: no notes are kept out of the text, and what train.py makes of this encoder will count as "
            "transductive; give the notes that it is meant for"
        )
    return gather_text(training, held_out, unlabeled, arguments.transductive)


def count_held_out(documents: int, fraction: float) -> int:
    """How many of them the loss is measured on."""
    return min(max(MIN_HELD_OUT, round(fraction * documents)), MAX_HELD_OUT)


def hold_out(texts: list[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the documents to train on, and of those to measure the loss on: none that is much of all text."""
    sizes = np.array([*map(len, texts)])
    order = np.random.default_rng(seed).permutation(len(texts))
    order = order[(sizes <= sizes.sum() * max(LARGEST_HELD_OUT, 3 / len(texts)))[order]]
    held_out = np.sort(order[: count_held_out(len(texts), fraction)])
    return np.setdiff1d(np.arange(len(texts)), held_out), held_out


def pack_blocks(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, whole_words: bool = False
) -> list[dict]:
    """Token ids in blocks of `max_length`, without padding; no token is left out.

    As RoBERTa's full sentences: documents one after the other with a separator between, cut wherever a block is full,
    and each block within the two special tokens that the encoder knows from single texts. The last block begins before
    the end of the one before it, so that it is as long; text that fills no block gives a single shorter one. With
    `whole_words` each token has an `offset_mapping`, by which the collator knows where words begin.
    """
    encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
    separator, stream, offsets = tokenizer.sep_token_id, [], []
    for number, ids in enumerate(encoded["input_ids"]):
        stream += [*ids, separator]
        if whole_words:
            offsets += [*offsets_of_words(encoded.word_ids(number)), (-1, -1)]
    stream, offsets = stream[:-1], offsets[:-1]  # no separator at the end
    stream, room = np.array(stream), max_length - 2
    special = list(tokenizer.all_special_ids)
    blocks = []
    for start in range(0, len(stream), room):
        start = max(0, min(start, len(stream) - room))
        ids = np.concatenate([[tokenizer.cls_token_id], stream[start : start + room], [separator]])
        block = {"input_ids": ids, "special_tokens_mask": np.isin(ids, special).astype(int)}
        if whole_words:
            block["offset_mapping"] = [(-1, -1), *offsets[start : start + room], (-1, -1)]
        blocks.append(block)
    return blocks


def offsets_of_words(word_ids: list[int]) -> list[tuple[int, int]]:
    """By the number of each token's word, a place (start, end) for the token: after a gap if it begins a word.

    That is how the collator tells words apart. The tokenizer's own places in the text will not do: many count the
    space before a word as part of it, so that a whole document would be one word.
    """
    begins = np.diff(word_ids, prepend=-1) != 0
    starts = np.arange(len(word_ids)) + begins.cumsum()
    return list(zip(starts.tolist(), (starts + 1).tolist(), strict=True))


# ---- encoder -------------------------------------------------------------------------------------------------------


def build_new(arguments: PretrainArguments, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder of random weights with a tokenizer of its own, learned on `corpus`."""
    tokenizer = train_tokenizer(
        corpus.texts,
        family=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        max_length=arguments.max_length,
        groups=corpus.groups,
        min_documents=arguments.min_word_documents,
    )
    if arguments.architecture in SCRATCH_MODELS:
        config = ScratchConfig(
            vocab_size=len(tokenizer),
            num_experts=SCRATCH_MODELS[arguments.architecture],
            dropout=0.0,  # far more text than the model can learn by heart (ours)
            pad_token_id=tokenizer.pad_token_id,
            **{name: getattr(arguments, name) for name in SIZES},
        )
        return ScratchForMaskedLM(config), tokenizer
    offset = tokenizer.pad_token_id + 1 if arguments.architecture in OFFSET_POSITIONS else 0
    config = AutoConfig.for_model(
        arguments.architecture,
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=arguments.intermediate_size,
        attention_probs_dropout_prob=0.0,  # else attention leaves its fast path (ours)
        type_vocab_size=1,
        max_position_embeddings=arguments.max_length + offset,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return AutoModelForMaskedLM.from_config(config, dtype=torch.float32), tokenizer


def also_kept_out(arguments: PretrainArguments, kept_out: str | None) -> str | None:
    """`kept_out`, unless the encoder to go on from was pretrained here with other notes kept out, or none.

    Raises:
        ArgumentError: its report is not one that this script writes.
    """
    report = Path(find_backbone(arguments.model, arguments.model_revision).hub_id) / REPORT_FILE
    if kept_out is None or not report.is_file():  # another's encoder
        return kept_out
    try:
        of_source = json.loads(report.read_text(encoding="utf-8")).get("kept_out")
    except (ValueError, AttributeError) as error:
        raise ArgumentError(f"{report} is not one that pretrain.py writes; pretrain that encoder anew.") from error
    if of_source == kept_out:
        return kept_out
    logger.warning(
        "  %s was pretrained without these held-out notes kept out: what is made of it will count as transductive",
        arguments.model,
    )
    return None


def load_existing(
    arguments: PretrainArguments, training_args: TrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and tokenizer of `--model`; lowers `arguments.max_length` to what the encoder takes."""
    backbone = find_backbone(arguments.model, arguments.model_revision)
    config, tokenizer = load_config_and_tokenizer(backbone)
    if None in (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise BackboneError(
            f"{backbone.hub_id}: its tokenizer has no mask, cls or sep token; give a BERT-like encoder."
        )
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise BackboneError(
            f"{backbone.hub_id}: of {config.model_type} there is no masked language model; give a BERT-like encoder."
        )
    if config.model_type == "mobilebert" or getattr(config, "sparse_prediction", False):
        raise BackboneError(
            f"{backbone.hub_id}: its masked language model does not score tokens one by one; give another encoder."
        )
    if training_args.gradient_checkpointing and config.model_type == ScratchConfig.model_type:
        raise ArgumentError(
            f"--gradient_checkpointing: {backbone.hub_id}, a small Transformer, has none; leave it out."
        )
    if config.model_type == "longformer":  # of which nothing attends globally here
        training_args.ddp_find_unused_parameters = True
    longest = longest_input(config)
    if longest and longest < arguments.max_length:
        logger.warning("max_length %d is more than the encoder takes: %d used", arguments.max_length, longest)
        arguments.max_length = longest
    with reading_weights(backbone):
        model = AutoModelForMaskedLM.from_pretrained(backbone.hub_id, revision=backbone.revision, dtype=torch.float32)
    if backbone.revision is None:
        model.config.name_or_path = ""  # a path of this machine is nobody else's business
    return model, tokenizer


# ---- training ------------------------------------------------------------------------------------------------------


class MaskedLanguageModelTrainer(ObedientTrainer):
    loss_is_scaled_for_ga = False

    def __init__(self, *args, muon: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        # The models' loss is a mean over the micro-batch, whatever their signature suggests (transformers#47688).
        self.model_accepts_loss_kwargs = False
        self.muon = muon

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None or not self.muon:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        if not layer_matrices(model):
            raise ArgumentError(
                f"--muon: the layers of {model.config.model_type} are not found by their names; leave it out."
            )
        self.optimizer = create_muon(self, model, self.args.learning_rate)
        return self.optimizer

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Scores over the vocabulary at the masked tokens only: the others' are not in the loss, and cost the most.

        A few others are added so that their number is a multiple of ROW_STEP: see there.
        """
        labels = inputs["labels"].flatten()
        if model.training and (labels == -100).all():  # of a short block chance may mask none, and none have no mean
            labels = torch.cat([inputs["input_ids"].flatten()[:1], labels[1:]])
        is_masked = labels != -100
        masked, others = is_masked.nonzero().squeeze(1), (~is_masked).nonzero().squeeze(1)
        rows = torch.cat([masked, others[: -len(masked) % ROW_STEP]])
        inputs = inputs | {"labels": labels[rows]}
        if "attention_mask" in inputs and inputs["attention_mask"].all():
            del inputs["attention_mask"]  # full blocks: nothing to hide
        decoder = self.accelerator.unwrap_model(model).get_output_embeddings()
        with decoder.register_forward_pre_hook(lambda module, states: (states[0].flatten(0, 1)[rows],)):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """With the same tokens masked every time, so that losses compare, and training's random numbers untouched."""
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # of the CPU it always is
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)


def check_output(arguments: PretrainArguments, output: Path):
    """Refuse to replace a model unless told to, and never the one that is read."""
    if arguments.model is not None and Path(os.path.expanduser(arguments.model)).resolve() == output.resolve():
        raise ArgumentError(f"--model and --output_dir are both {output}: choose another --output_dir.")
    # Beside checkpoints, a model without the report is our own, and its run was interrupted at the very end.
    checkpoints = output / "checkpoints"
    has_own_checkpoints = (checkpoints / "settings.json").exists()
    holds_model = (output / REPORT_FILE).exists() or ((output / "config.json").exists() and not has_own_checkpoints)
    if holds_model and not arguments.overwrite:
        raise ArgumentError(f"{output} already holds a model: choose another --output_dir, or --overwrite.")
    if not has_own_checkpoints and next(checkpoints.glob("*"), None):
        raise ArgumentError(f"{checkpoints} is not of this script: choose another --output_dir, or move it away.")


def code_fingerprint() -> str:
    """Of what trains here: an encoder that earlier code made is not taken for one that this code would make."""
    digest = hashlib.sha256(transformers.__version__.encode())
    for name in CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def resolve_settings(arguments: PretrainArguments, training_args: TrainingArguments, text: PretrainingText) -> dict:
    """All that decides what the model becomes, as pretrain.json holds it; files and folders by their names alone."""
    described = asdict(arguments)
    for name in ("model", "dataset"):
        path = Path(os.path.expanduser(described[name] or ""))
        if described[name] and os.path.exists(path):
            described[name] = path.resolve().name
    described["unlabeled"] = [Path(os.path.expanduser(source)).resolve().name for source in arguments.unlabeled]
    del described["overwrite"], described["id_column"]  # which decides what is left out: the text tells
    described["encoder"] = None
    if arguments.model is not None:
        described["encoder"] = encoder_fingerprint(find_backbone(arguments.model, arguments.model_revision))
    described["code"] = code_fingerprint()
    training = {name: getattr(training_args, name) for name in ("seed", *DECISIVE)}
    return json.loads(json.dumps({"arguments": described, "training": training, **text.describe()}, default=str))


def train_masked_lm(
    arguments: PretrainArguments, training_args: TrainingArguments, text: PretrainingText, output: Path
) -> dict:
    """Train, save the encoder with its tokenizer in `output`, and return what pretrain.json says."""
    checkpoints = output / "checkpoints"
    arguments = replace(arguments)  # `load_existing` may lower its max_length
    if arguments.model is not None:  # the newest commit is another one tomorrow
        arguments.model_revision = resolve_commit(find_backbone(arguments.model, arguments.model_revision))
    settings = resolve_settings(arguments, training_args, text)
    rows = hold_out(text.corpus.texts, arguments.held_out_fraction, training_args.seed)
    train, held_out = map(text.corpus.select, rows)
    if training_args.device.type == "cpu":
        keep_freed_memory()
    set_seed(training_args.seed)  # before the model exists
    model, tokenizer = (
        build_new(arguments, train) if arguments.model is None else load_existing(arguments, training_args)
    )
    used = {"arguments": settings["arguments"] | {"max_length": arguments.max_length}}
    used["kept_out"] = text.kept_out if arguments.model is None else also_kept_out(arguments, text.kept_out)
    if arguments.stand_in_for is not None:
        model.config.stand_in_for = arguments.stand_in_for
    if text.transductive:
        model.config.transductive = True
    blocks = {
        name: pack_blocks(part.texts, tokenizer, arguments.max_length, arguments.whole_word_mask)
        for name, part in (("train", train), ("held_out", held_out))
    }
    with training_args.main_process_first(local=False):
        if training_args.process_index == 0:
            discard_foreign_checkpoints(checkpoints, settings)
    checkpoint = last_complete_checkpoint(checkpoints)
    trainer_args = copy.copy(training_args)
    trainer_args.output_dir = str(checkpoints)
    trainer_args.hub_token = None  # checkpoints hold the arguments
    # (blocks have max_length tokens, which may be all that the encoder takes)
    masking = dict(pad_to_multiple_of=8 if arguments.max_length % 8 == 0 else None)
    if arguments.whole_word_mask:  # a word is then always replaced by masks, and offsets cannot be padded
        masking |= dict(whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0, pad_to_multiple_of=None)
    stopping = [EarlyStopping(PATIENCE)] if training_args.load_best_model_at_end else []
    clock = StepClock()
    trainer = MaskedLanguageModelTrainer(
        model=model,
        args=trainer_args,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=arguments.mlm_probability, **masking),
        train_dataset=blocks["train"],
        eval_dataset=blocks["held_out"],
        callbacks=[TrainingClock(), clock, PretrainingLine(), *stopping],
        muon=arguments.muon,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.log_to(output / "tensorboard")
    loss_before = trainer.evaluate()["eval_loss"]
    if not math.isfinite(loss_before):
        raise ArgumentError(
            f"The held-out loss is {loss_before} before training: of so little text give a higher --mlm_probability "
            "or --held_out_fraction."
        )
    # By this mark accelerate 1.15 takes the model, which was only evaluated, for one prepared to train, and would give
    # several processes a model each that knows nothing of the others' text.
    vars(trainer.model).pop("_is_accelerate_prepared", None)
    trainer.model_wrapped = trainer.model  # and not what --torch_compile made of it to evaluate
    trainer.train(resume_from_checkpoint=checkpoint)
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in trainer.state.log_history)
    loss = trainer.evaluate()["eval_loss"]
    if not loss < LARGEST_LOSS:
        raise ArgumentError(f"The held-out loss is {loss:g}: training diverged; give a lower --learning_rate.")

    report = {
        **settings,
        **used,
        "model": {
            "architecture": model.config.model_type,
            "parameters": model.num_parameters(),
            "vocabulary": len(tokenizer),
            "stand_in_for": arguments.stand_in_for,
        },
        "held_out_documents": len(held_out),
        "tokens": {name: sum(len(block["input_ids"]) for block in part) for name, part in blocks.items()},
        "held_out": {"loss_before": loss_before, "loss": loss, "perplexity": math.exp(loss)},
        "cost": {
            "training_hours": TrainingClock.of(trainer).seconds / 3600,
            "evaluation_hours": evaluating / 3600,  # that are in the former
            "steps": trainer.state.global_step,
            # median of this process; None if an earlier one had trained all
            "seconds_a_step": statistics.median(clock.seconds) if clock.seconds else None,
        },
        "environment": describe_environment(training_args.device.type == "cuda"),
    }
    if trainer.is_world_process_zero():
        (output / REPORT_FILE).unlink(missing_ok=True)  # of a model that is overwritten: it is of its old weights
        # Not by Trainer.save_model, which adds a pickle of the arguments.
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(output)
        tokenizer.save_pretrained(output)
        for weights in output.glob("*.safetensors"):  # on the disk before what says that they are there
            with weights.open("rb") as file:
                os.fsync(file.fileno())
        write_json(output / REPORT_FILE, report)
        remove_checkpoints(checkpoints)
    logger.info(
        "  pretrained: %s, %.1f M parameters, vocabulary %d; %d steps in %.3f h; held-out loss %.3f -> %.3f "
        "(perplexity %.1f)",
        model.config.model_type,
        model.num_parameters() / 1e6,
        len(tokenizer),
        trainer.state.global_step,
        report["cost"]["training_hours"],
        loss_before,
        loss,
        math.exp(loss),
    )
    return report


def pretrain(arguments: PretrainArguments, training_args: TrainingArguments) -> dict:
    """The command: read the text, train, leave the model in `--output_dir`."""
    output = Path(training_args.output_dir)
    with only_run_in(output) if training_args.process_index == 0 else nullcontext():
        with training_args.main_process_first(local=False):
            if training_args.process_index == 0:
                check_output(arguments, output)
        return train_masked_lm(arguments, training_args, read_text(arguments), output)


def pretrain_in_house(
    arguments: PretrainArguments,
    text: PretrainingText,
    tokens: float,
    cache_dir: Path,
    like: TrainingArguments,
) -> Path:
    """A small Transformer pretrained on `text` for about so many `tokens`, repeats counted; the folder that holds it.

    It is made once for all that ask for the same, and kept in `cache_dir` under a name that says what it depends on;
    an interrupted one goes on. Device and precision are those of `like`, the recipe is RECIPES["small"].
    """
    recipe = COMMON_RECIPE | RECIPES["small"]
    batch = recipe["per_device_train_batch_size"] * arguments.max_length * like.world_size
    training_args = TrainingArguments(
        output_dir=str(cache_dir), use_cpu=like.use_cpu, bf16=like.bf16, fp16=like.fp16,
        **(recipe | {"max_steps": math.ceil(tokens / batch)}),
    )  # fmt: skip
    settings = resolve_settings(arguments, training_args, text)
    folder = cache_dir / f"pretrained-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    with ExitStack() as stack:
        if like.process_index == 0:
            stack.enter_context(alone_with(folder, "pretraining"))
            folder.mkdir(mode=0o700, exist_ok=True)
        like.distributed_state.wait_for_everyone()  # the lock is held by the first process for all of them
        if (folder / REPORT_FILE).is_file():
            logger.info("  pretraining: done earlier, read from %s", folder)
            if like.process_index == 0:  # of a run that was killed at its very end
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        else:
            logger.info("  pretraining a %s in %s, derived from the notes", arguments.architecture, folder)
            train_masked_lm(arguments, training_args, text, folder)
            # which keeps what it was told first: here, to compile nothing
            AcceleratorState._reset_state()
        like.distributed_state.wait_for_everyone()
    return folder


def describe_pretraining(name: str, report: dict) -> dict:
    """What a result file says of the pretraining of its model; `report` is what pretrain.json holds."""
    facts = ("documents", "training_notes", "removed", "transductive", "tokens", "held_out")
    described = {"id": name, **{name: report[name] for name in facts}}
    # (which notes were kept out an encoder of before does not say)
    return described | {"kept_out": report.get("kept_out"), "own_tokenizer": report["arguments"]["model"] is None}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed with a line that says why."""
    try:
        arguments, training_args = parse_arguments(argv)
    except (ValueError, OSError, ImportError) as error:  # or of TrainingArguments; no text is read yet
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        logging.basicConfig(
            format="%(message)s", level=logging.INFO if training_args.process_index == 0 else logging.ERROR
        )
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # else each request of the Hub's client is a line
        transformers_logging.set_verbosity_error()  # of tied weights that a checkpoint stores once
        transformers_logging.disable_progress_bar()
        keep_to_available_cores()
        pretrain(arguments, training_args)
        return 0
    except (ArgumentError, DataError, BackboneError, FolderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: given again, the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:  # its message may quote a note: only the frames and the type are shown, as in train.py
        print("".join(traceback.format_tb(error.__traceback__)), file=sys.stderr)
        why = what_ran_out(error) or f"{type(error).__name__} (message withheld: it may quote a note)"
        print(f"error: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
