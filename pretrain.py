"""Pretrain a small encoder on notes by masked-language modelling, or continue the pretraining of an existing one.

    python pretrain.py --architecture camembert --dataset notes.csv --output_dir models/mini-camembert
    python pretrain.py --model camembert-bio --text corpus.txt --output_dir models/camembert-bio-ours

Beside train.py, not part of it: the folder that it writes is what train.py takes as --model. Of a data set with given
splits only the training part is read, since the text of test notes helps a model even without their labels. No
text of the notes is written anywhere; but an encoder may remember what it was trained on, and its vocabulary holds
every word that --min_word_documents notes share, so share neither before you have thought about it.

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
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from backbones import (
    OFFSET_POSITIONS,
    BackboneError,
    find_backbone,
    load_config_and_tokenizer,
    longest_input,
    resolve_commit,
)
from data import DataError, read_texts
from results import describe_environment, discard_foreign_checkpoints, last_complete_checkpoint, write_json
from tokenization import FAMILIES, train_tokenizer

logger = logging.getLogger("pretrain")

ARCHITECTURES = {"camembert": "unigram", "roberta": "bpe", "bert": "wordpiece"}  # name -> its usual tokenizer
MIN_DOCUMENTS, MIN_HELD_OUT = 20, 5
REPORT_FILE = "pretrain.json"

# What differs from the defaults of TrainingArguments; the command line wins. All ours.
COMMON_RECIPE = dict(
    weight_decay=0.01,
    warmup_steps=0.1,  # of all steps
    lr_scheduler_type="linear",
    logging_steps=0.1,
    save_steps=0.1,
    save_total_limit=1,
    remove_unused_columns=False,  # the collator needs special_tokens_mask
    dataloader_pin_memory=torch.cuda.is_available(),
    disable_tqdm=True,
    seed=0,
)
RECIPES = {
    "from scratch": dict(learning_rate=1e-3, num_train_epochs=20, per_device_train_batch_size=8),
    "continued": dict(learning_rate=5e-5, num_train_epochs=3, per_device_train_batch_size=8),
}
# The training arguments that go into pretrain.json, and that an interrupted run must share to be resumed.
DECISIVE = (
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps warmup_steps "
    "lr_scheduler_type optim weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 tf32 seed "
    "world_size"
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
    text: str | None = field(default=None, metadata={"help": "UTF-8 file, one document a line; blank lines skipped."})
    dataset: str | None = field(
        default=None, metadata={"help": "Notes as for train.py; only their training part if they come split."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of --dataset with the note."})
    split_column: str = field(default="split", metadata={"help": "Column of --dataset with train, validation, test."})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": f"A new encoder's tokenizer: {', '.join(FAMILIES)}. Default: its architecture's usual one."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Largest vocabulary of a new encoder."})
    min_word_documents: int = field(
        default=5,
        metadata={
            "help": "A new vocabulary is learned from the words of at least so many documents, so that it does not "
            "spell out a patient's name; give more if patients have many documents each."
        },
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of a new encoder."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers of a new encoder."})
    num_attention_heads: int = field(default=2, metadata={"help": "Attention heads a layer of a new encoder."})
    intermediate_size: int = field(default=512, metadata={"help": "Feed-forward width of a new encoder."})
    max_length: int = field(default=256, metadata={"help": "Tokens in a training block, special tokens included."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Fraction of the tokens to predict."})
    held_out_fraction: float = field(default=0.05, metadata={"help": "Fraction of the documents kept to measure on."})
    stand_in_for: str | None = field(
        default=None,
        metadata={"help": "Mark the encoder as a small stand-in for this one, so that reports call it that."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a model that is in OUTPUT_DIR."})

    def __post_init__(self):
        if (self.architecture is None) == (self.model is None):
            raise ArgumentError("Give either --architecture for a new encoder or --model to continue an existing one.")
        if (self.text is None) == (self.dataset is None):
            raise ArgumentError("Give either --text or --dataset: a file of documents, or notes as for train.py.")
        if self.architecture is None:
            unused = ["tokenizer", "vocab_size", "min_word_documents", "hidden_size", "num_hidden_layers"]
            unused += ["num_attention_heads", "intermediate_size"]
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


def parse_arguments(argv: list[str] | None = None) -> tuple[PretrainArguments, TrainingArguments]:
    """The command line over our recipe over the defaults of the libraries."""
    parser = HfArgumentParser((PretrainArguments, TrainingArguments), description=__doc__.splitlines()[0])
    first_look, _ = parser.parse_known_args(argv)
    recipe = RECIPES["from scratch" if first_look.model is None else "continued"]
    name = f"mini-{first_look.architecture}" if first_look.model is None else f"{Path(first_look.model).name}-ours"
    parser.set_defaults(**COMMON_RECIPE, **recipe, output_dir=f"models/{name}")
    arguments, training_args = parser.parse_args_into_dataclasses(argv)
    if training_args.push_to_hub:
        raise ArgumentError("--push_to_hub: an encoder trained on notes may remember them; pretrain.py pushes none.")
    return arguments, training_args


# ---- text ----------------------------------------------------------------------------------------------------------


def read_documents(arguments: PretrainArguments) -> list[str]:
    """The documents, each once: a copy of a note is no second document, and must not end up among the held-out ones.

    Raises:
        DataError: unreadable, or too few documents.
    """
    if arguments.dataset is not None:
        source, texts = arguments.dataset, read_texts(arguments.dataset, arguments.text_column, arguments.split_column)
    else:
        source = arguments.text
        try:
            lines = Path(source).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"--text {source} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
        except OSError as error:
            raise DataError(f"--text {source} cannot be opened ({error.strerror}).") from error
        texts = [line for line in lines if line.strip()]
    documents = list(dict.fromkeys(texts))
    if len(documents) < MIN_DOCUMENTS:
        raise DataError(f"{source}: {len(documents)} different documents; at least {MIN_DOCUMENTS} are needed.")
    logger.info("%d documents, %d copies left out", len(documents), len(texts) - len(documents))
    return documents


def hold_out(documents: list[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Documents to train on, and documents to measure on."""
    order = np.random.default_rng(seed).permutation(len(documents))
    count = max(MIN_HELD_OUT, round(fraction * len(documents)))
    return [documents[row] for row in sorted(order[count:])], [documents[row] for row in sorted(order[:count])]


def pack_blocks(documents: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict]:
    """Token ids in blocks of at most `max_length`, all of about the same length; no token is left out.

    As RoBERTa's full sentences: documents one after the other with a separator between, cut wherever a block is full,
    and each block within the two special tokens that the encoder knows from single texts.
    """
    separator = tokenizer.sep_token_id
    stream = []
    for ids in tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
        stream += [*ids, separator]
    stream.pop()
    special = list(tokenizer.all_special_ids)
    blocks = []
    for chunk in np.array_split(stream, math.ceil(len(stream) / (max_length - 2))):
        block = np.concatenate([[tokenizer.cls_token_id], chunk, [separator]])
        blocks.append({"input_ids": block, "special_tokens_mask": np.isin(block, special).astype(int)})
    return blocks


# ---- encoder -------------------------------------------------------------------------------------------------------


def build_new(arguments: PretrainArguments, documents: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder of random weights with a tokenizer of its own, learned on `documents`."""
    tokenizer = train_tokenizer(
        documents,
        family=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        max_length=arguments.max_length,
        min_documents=arguments.min_word_documents,
    )
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


def load_existing(arguments: PretrainArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and tokenizer of `--model`; lowers `arguments.max_length` to what the encoder takes."""
    arguments.model_revision = resolve_commit(find_backbone(arguments.model, arguments.model_revision))
    backbone = find_backbone(arguments.model, arguments.model_revision)
    config, tokenizer = load_config_and_tokenizer(backbone)
    if None in (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise BackboneError(
            f"{backbone.hub_id}: its tokenizer has no mask, cls or sep token; give a BERT-like encoder."
        )
    longest = longest_input(config)
    if longest and longest < arguments.max_length:
        logger.warning("max_length %d is more than the encoder takes: %d used", arguments.max_length, longest)
        arguments.max_length = longest
    model = AutoModelForMaskedLM.from_pretrained(backbone.hub_id, revision=backbone.revision, dtype=torch.float32)
    if backbone.revision is None:
        model.config.name_or_path = ""  # a path of this machine is nobody else's business
    return model, tokenizer


# ---- training ------------------------------------------------------------------------------------------------------


class MaskedLanguageModelTrainer(Trainer):
    # The models' loss is a mean over the micro-batch, whatever their signature suggests (transformers#47688).
    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Scores over the vocabulary at the masked tokens only: the others' are not in the loss, and cost the most."""
        masked = inputs["labels"] != -100  # (rows, tokens)
        decoder = self.accelerator.unwrap_model(model).get_output_embeddings()
        with decoder.register_forward_pre_hook(lambda module, hidden_states: (hidden_states[0][masked],)):
            return super().compute_loss(model, inputs | {"labels": inputs["labels"][masked]}, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """With the same tokens masked every time, so that losses compare, and training's random numbers untouched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)


def check_output(arguments: PretrainArguments, output: Path):
    """Refuse to replace a model unless told to, and never the one that is read."""
    if arguments.model is not None and Path(arguments.model).expanduser().resolve() == output.resolve():
        raise ArgumentError(f"--model and --output_dir are both {output}: choose another --output_dir.")
    # Beside checkpoints, a model without the report is our own, and its run was interrupted at the very end.
    holds_model = (output / REPORT_FILE).exists() or (
        (output / "config.json").exists() and not (output / "checkpoints").exists()
    )
    if holds_model and not arguments.overwrite:
        raise ArgumentError(f"{output} already holds a model: choose another --output_dir, or --overwrite.")
    (output / REPORT_FILE).unlink(missing_ok=True)


def describe_arguments(arguments: PretrainArguments) -> dict:
    """As pretrain.json holds them: files and folders by their names, since paths are this machine's business."""
    described = asdict(arguments)
    for name in ("model", "text", "dataset"):
        path = Path(described[name] or "").expanduser()
        if described[name] and path.exists():
            described[name] = path.resolve().name
    del described["overwrite"]
    return described


def pretrain(arguments: PretrainArguments, training_args: TrainingArguments) -> dict:
    """Train, save the encoder with its tokenizer, and return what pretrain.json says."""
    output = Path(training_args.output_dir)
    checkpoints = output / "checkpoints"
    with training_args.main_process_first(local=False):
        check_output(arguments, output)

    documents = read_documents(arguments)
    train, held_out = hold_out(documents, arguments.held_out_fraction, training_args.seed)
    parts = {"train": train, "held_out": held_out}
    set_seed(training_args.seed)  # before the model exists
    model, tokenizer = build_new(arguments, train) if arguments.model is None else load_existing(arguments)
    if arguments.stand_in_for is not None:
        model.config.stand_in_for = arguments.stand_in_for
    blocks = {name: pack_blocks(part, tokenizer, arguments.max_length) for name, part in parts.items()}

    settings = {
        "arguments": describe_arguments(arguments),
        "training": {name: getattr(training_args, name) for name in DECISIVE},
        "documents_sha256": hashlib.sha256(json.dumps(documents).encode()).hexdigest()[:16],
    }
    settings = json.loads(json.dumps(settings, default=str))
    with training_args.main_process_first(local=False):
        discard_foreign_checkpoints(checkpoints, settings)
    checkpoint = last_complete_checkpoint(checkpoints)
    trainer_args = copy.copy(training_args)
    trainer_args.output_dir = str(checkpoints)
    trainer = MaskedLanguageModelTrainer(
        model=model,
        args=trainer_args,
        data_collator=DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=arguments.mlm_probability, pad_to_multiple_of=8
        ),
        train_dataset=blocks["train"],
        eval_dataset=blocks["held_out"],
    )
    loss_before = trainer.evaluate()["eval_loss"]
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    hours = (time.perf_counter() - started) / 3600
    loss = trainer.evaluate()["eval_loss"]
    if not math.isfinite(loss):
        raise ArgumentError(f"The held-out loss is {loss}: training diverged; give a lower --learning_rate.")

    report = {
        **settings,
        "model": {
            "architecture": model.config.model_type,
            "parameters": model.num_parameters(),
            "vocabulary": len(tokenizer),
            "stand_in_for": arguments.stand_in_for,
        },
        "documents": {name: len(part) for name, part in parts.items()},
        "tokens": {name: sum(len(block["input_ids"]) for block in part) for name, part in blocks.items()},
        "held_out": {"loss_before": loss_before, "loss": loss, "perplexity": math.exp(loss)},
        "cost": {
            "training_hours": hours,  # of this process: without what came before `resumed_from`
            "steps": trainer.state.global_step,
            "resumed_from": checkpoint and Path(checkpoint).name,
        },
        "environment": describe_environment(),
    }
    if trainer.is_world_process_zero():
        # Not by Trainer.save_model, which adds a pickle of the arguments.
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(output)
        tokenizer.save_pretrained(output)
        shutil.rmtree(checkpoints)
        write_json(output / REPORT_FILE, report)
    logger.info(
        "%s: %s, %.1f M parameters, vocabulary %d; %d steps on %d documents in %.3f h; "
        "held-out loss %.3f -> %.3f (perplexity %.1f)",
        output,
        model.config.model_type,
        model.num_parameters() / 1e6,
        len(tokenizer),
        trainer.state.global_step,
        len(train),
        hours,
        loss_before,
        loss,
        math.exp(loss),
    )
    return report


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed with a line that says why."""
    try:
        arguments, training_args = parse_arguments(argv)
        logging.basicConfig(
            format="%(message)s", level=logging.INFO if training_args.process_index == 0 else logging.ERROR
        )
        transformers_logging.disable_progress_bar()
        pretrain(arguments, training_args)
        return 0
    except (ArgumentError, DataError, BackboneError, OSError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:  # its message may quote a note: only the frames and the type are shown, as in train.py
        print("".join(traceback.format_tb(error.__traceback__)), file=sys.stderr)
        print(f"error: {type(error).__name__} (message withheld: it may quote a note)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
