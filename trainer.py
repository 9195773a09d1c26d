"""Train one model on one split: the Hugging Face Trainer with our loss, our clock and a line of progress an epoch.

Knows nothing of folds, of result files or of the Hub.
"""

import copy
import gc
import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from backbones import encoder_fingerprint, find_backbone, load_config_and_tokenizer
from baseline import BASELINES, Settings, TfidfClassifier
from batches import WindowCollator, tokenize_notes
from callbacks import EarlyStopping, EpochLine, EvaluateEvery, ObedientTrainer, StopAfterEpoch, TrainingClock
from corpus import Corpus, of_notes, read_corpus
from data import DataArguments, Notes
from energy import measure_power
from features import FeatureCollator, FrozenFeatures, load_or_compute
from machine import keep_freed_memory
from memory import plan_memory
from metrics import (
    SELECTION_METRIC,
    NoteClassificationMetric,
    probabilities_from_logits,
    selecting_score,
    tune_thresholds,
)
from models import PRETRAINED_HERE, TUNINGS, ModelArguments, build_model, put_encoder_back, suit_cpu
from muon import create_muon
from ngrams import (
    ENCODER,
    FITS,
    FittedNgrams,
    choose_weights,
    count_ngrams,
    fit_ngrams,
    ngram_features,
    set_ngrams,
)
from predict import classify
from pretrain import (
    REPORT_FILE,
    SMALL,
    ArgumentError,
    PretrainArguments,
    describe_pretraining,
    gather_text,
    pretrain_in_house,
)
from results import last_complete_checkpoint, write_json
from scratch_model import NgramBranch
from splits import Split, balanced_class_weights

logger = logging.getLogger("train")

MEMBER_SEED = 1000  # so far apart are the seeds of the members of an ensemble (ours)
MEMBER_FILE, MEMBER_WEIGHTS = "member.json", "member.safetensors"
DIVERGED = "Training diverged: its logits are no numbers any more; give a lower --learning_rate."


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean over notes of the class-weighted cross-entropy; binary cross-entropy for labels (notes, classes).

    The mean divides by the number of notes, not by the sum of their weights as `F.cross_entropy` would: so two batches
    of four give the gradient of one batch of eight.
    """
    if labels.ndim == 2:
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=class_weights)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return (losses if class_weights is None else losses * class_weights[labels]).mean()


def fit_into_memory(
    budget_gb: float,
    model: torch.nn.Module,
    train_notes: datasets.Dataset,
    collator: WindowCollator,
    arguments: TrainingArguments,
    copies: int,
):
    """Choose micro-batch, accumulation and checkpointing in `arguments`, the notes of a step staying as many.

    `copies` of the model wait beside it.
    """
    longest = np.argsort(train_notes["length"])[::-1]
    plan = plan_memory(
        model.to(arguments.device),
        lambda count: collator([train_notes[int(note)] for note in np.resize(longest, count)]),
        arguments.per_device_train_batch_size,
        arguments.gradient_accumulation_steps,
        budget_gb,
        torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None,
        copies,
        arguments.world_size,
    )
    if arguments.device.type == "cuda":  # what planning took is no training's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    arguments.per_device_train_batch_size = plan.micro_batch
    arguments.per_device_eval_batch_size = plan.micro_batch  # without gradients it needs less
    arguments.gradient_accumulation_steps = plan.accumulation
    arguments.activation_checkpointing = plan.gradient_checkpointing
    arguments.activation_checkpointing_kwargs = {"use_reentrant": False}
    logger.info(
        "  memory: %d notes at a time, %d times a step%s: %.2f GB expected",
        plan.micro_batch,
        plan.accumulation,
        ", with gradient checkpointing" if plan.gradient_checkpointing else "",
        plan.expected_gb,
    )


class BatchesOfLikeLength(LengthGroupedSampler):
    """Batches of notes of like length, in an order of their own for each epoch: so a resumed run has the same.

    The library's batches go from the longest notes to the shortest, four times an epoch. Where length says something
    of the class, training runs after it: `grn` lost five points of F1. Here whole batches are shuffled (ours).
    """

    def __init__(self, arguments: TrainingArguments, dataset: datasets.Dataset):
        self.seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
        # a list: the column of a dataset would be looked up row by row in every sorting
        super().__init__(batch, lengths=list(dataset["length"]), generator=torch.Generator().manual_seed(self.seed))

    def __iter__(self) -> Iterator[int]:
        notes = list(super().__iter__())
        batches = [notes[start : start + self.batch_size] for start in range(0, len(notes), self.batch_size)]
        whole = len(notes) // self.batch_size  # what is left over stays last: it would shift the batches after it
        order = [*torch.randperm(whole, generator=self.generator).tolist(), *range(whole, len(batches))]
        return chain.from_iterable(batches[number] for number in order)

    def set_epoch(self, epoch: int):
        # of the pair: with their sum, neighbouring seeds would have one sequence of orders, shifted
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))


class NoteTrainer(ObedientTrainer):
    """A Trainer whose loss weighs classes and adds the experts' load-balancing loss.

    With a `muon_learning_rate` the matrices of the layers are trained by Muon (muon.py).
    """

    # The loss below is a micro-batch's share of the mean over the notes of a step: there is nothing left to divide.
    loss_is_scaled_for_ga = True
    batches: BatchesOfLikeLength | None = None

    def __init__(self, *args, class_weights: torch.Tensor | None = None, muon_learning_rate: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.muon_learning_rate = muon_learning_rate
        self.class_weights = None if class_weights is None else class_weights.to(self.args.device)
        self.add_callback(TrainingClock())
        self.add_callback(EpochLine())
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None or not self.muon_learning_rate:
            return super().create_optimizer(model)
        self.optimizer = create_muon(self, self.model if model is None else model, self.muon_learning_rate)
        return self.optimizer

    def get_batch_samples(self, *args) -> tuple[list, torch.Tensor | int | None]:
        micro_batches, items = super().get_batch_samples(*args)
        self.notes_in_step = sum(len(batch["labels"]) for batch in micro_batches)
        return micro_batches, items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted_loss(outputs.logits, labels, self.class_weights, self.args.label_smoothing_factor)
        if "auxiliary_loss" in outputs:
            loss = loss + outputs["auxiliary_loss"]
        if self.model.training:
            loss = loss * (len(labels) / self.notes_in_step)  # the last micro-batch of an epoch may have fewer notes
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs) -> int:
        """Not counted: counting goes through all parameters in every step, and nobody reads it."""
        return 0

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler | None:
        """Grouped by length, in an order that `--data_seed` decides, or `--seed` where that is not given.

        The library's own takes that order from the random numbers of everything else, whatever the seed of the data.
        """
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        self.batches = BatchesOfLikeLength(self.args, train_dataset or self.train_dataset)
        return self.batches

    def _run_epoch(self, *args, epoch: int, **kwargs):
        # in a resumed epoch of several processes it is wrapped once more than the library looks
        if self.batches is not None:
            self.batches.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _get_eval_sampler(self, eval_dataset) -> SequentialSampler:
        """Predictions in the order of the notes: grouping by length, meant for training, would permute them."""
        return SequentialSampler(eval_dataset)

    @property
    def training_seconds(self) -> float:
        """Seconds spent in training and in selecting on validation, those before an interruption included."""
        return TrainingClock.of(self).seconds

    @property
    def best_epoch(self) -> float:
        """The epoch, counted from 1, whose weights were kept; the last one where none was selected."""
        selected = self.state.best_global_step if self.args.load_best_model_at_end else None
        step = selected or self.state.global_step
        return next(entry["epoch"] for entry in self.state.log_history if entry["step"] == step)


@dataclass
class Run:
    """One model on one corpus: what its folds and seeds share."""

    model_args: ModelArguments
    data_args: DataArguments
    training_args: TrainingArguments
    notes: Notes
    fingerprint: str = ""  # of the notes and all splits, where results are compared or runs resumed
    held_out_anywhere: np.ndarray | None = None  # the notes of some fold's validation or test part
    pretrained: dict[bytes, Path] = field(default_factory=dict)  # by the notes held out: seeds share it
    ngrams: dict[tuple, FittedNgrams] = field(default_factory=dict)  # by fold and tokenizer: seeds share them

    @property
    def output(self) -> Path:
        return Path(self.training_args.output_dir)

    @cached_property
    def encoder(self) -> str:
        """Which pretrained encoder it is: a folder may hold another one tomorrow."""
        return encoder_fingerprint(find_backbone(self.model_args.model, self.model_args.model_revision))

    @cached_property
    def features(self) -> FrozenFeatures:
        """The hidden states of all notes, for a frozen encoder: made or read when first asked for."""
        backbone = find_backbone(self.model_args.model, self.model_args.model_revision)
        _, tokenizer = load_config_and_tokenizer(backbone)
        features = load_or_compute(
            backbone,
            tokenizer,
            self.notes.texts,
            self.data_args,
            Path(self.model_args.cache_dir or self.output / "features"),
            self.training_args.device,
            torch.bfloat16 if self.training_args.bf16 else torch.float32,
        )
        features = features.pool(self.model_args.pooling) if self.model_args.head == "linear" else features
        # the processes of a data loader may not touch a GPU
        return features if self.training_args.dataloader_num_workers else features.near(self.training_args.device)

    @cached_property
    def not_kept_out(self) -> bool:
        """Whether a given encoder was pretrained here, and nothing shows that these held-out notes were kept from it.

        One that was made with --transductive says so itself, in its configuration.
        """
        pretraining, _ = read_pretraining(self, None)
        if pretraining is None or pretraining["transductive"]:
            return False
        held_out, given = [np.arange(len(self.notes))], self.notes.given_splits
        if given is not None and "validation" in given:  # else it is drawn from notes that the encoder may have read
            held_out.append(np.flatnonzero(given != "train"))
        if pretraining["kept_out"] in [of_notes(self.notes, rows).identity() for rows in held_out]:
            return False
        logger.warning(
            "  nothing shows that the held-out notes were kept out of the text that %s was pretrained on: it counts "
            "as transductive; one that pretrain.py makes anew, from the same --dataset, splits and columns, does not",
            self.model_args.name,
        )
        return True

    def pretrain(self, split: Split) -> Path | None:
        """The folder of the model pretrained in-house for this split, made or found; None for other models."""
        model_args, data_args, notes = self.model_args, self.data_args, self.notes
        if model_args.kind != "in-house":
            return None
        on_notes = model_args.pretrain_on == "training-notes"
        held_out = np.union1d(split.validation, split.test)
        # a model for use is trained on the training part of a single split, whose test part its card goes by
        if not on_notes or (not len(held_out) and len(split.train) < len(notes)):
            held_out = self.held_out_anywhere
        if model_args.transductive:
            held_out = held_out[:0]  # every fold reads all notes, or none but all of the further text
        if (key := held_out.tobytes()) in self.pretrained:
            return self.pretrained[key]
        # all notes outside the held-out parts, also those that --train_size leaves without their label
        training = np.setdiff1d(np.arange(len(notes)), held_out) if on_notes else []
        text = gather_text(
            of_notes(notes, training), of_notes(notes, held_out), self.unlabeled, model_args.transductive
        )
        arguments = PretrainArguments(
            architecture=PRETRAINED_HERE[model_args.model],
            dataset=data_args.dataset,
            dataset_config=data_args.dataset_config,
            dataset_revision=data_args.dataset_revision,
            unlabeled=model_args.unlabeled,
            group_column=data_args.group_column,
            transductive=model_args.transductive,
            **SMALL,
        )
        cache_dir = Path(model_args.cache_dir or self.output / "pretrained")
        self.pretrained[key] = pretrain_in_house(
            arguments, text, model_args.pretraining_tokens, cache_dir, self.training_args
        )
        return self.pretrained[key]

    def fit_ngrams(
        self,
        branch: NgramBranch,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        encoded: dict[str, tuple[datasets.Dataset, np.ndarray]],
        names: list[str],
    ) -> FittedNgrams:
        """The regressions with these names, fitted on the training part, or as an earlier seed has them.

        Sets up `branch`, in place, but for its weights. `encoded` are the tokenized notes of each part.
        """
        key = (tokenizer.backend_tokenizer.to_str(), split.train.tobytes(), split.validation.tobytes(), *names)
        if (fitted := self.ngrams.get(key)) is not None:
            branch.spelling.copy_(fitted.spelling)
            branch.idf.data.copy_(fitted.idf)
            return fitted
        started = time.perf_counter()
        features = count_ngrams(branch, tokenizer, encoded["train"][0]["input_ids"])
        fits = fit_ngrams(branch, features, self.notes.labels[split.train], names)
        validation = {}
        if len(split.validation):
            features = ngram_features(branch, encoded["validation"][0]["input_ids"])
            validation = {name: fit.logits(features) for name, fit in fits.items()}
        seconds = time.perf_counter() - started
        fitted = FittedNgrams(branch.spelling.clone(), branch.idf.detach().clone(), fits, validation, seconds)
        if len(self.model_args.seeds) > 1:
            self.ngrams[key] = fitted
        return fitted

    @cached_property
    def unlabeled(self) -> Corpus:
        """The further text for models pretrained in-house."""
        columns = self.data_args.text_column, self.data_args.group_column, self.data_args.id_column
        return read_corpus(self.model_args.unlabeled, *columns)


def read_pretraining(run: Run, pretrained: Path | None) -> tuple[dict | None, float]:
    """What a result says of the pretraining of one's own that the run's model begins with, and its hours.

    None and 0 where there was none, or where the model only stands in for an encoder that others have pretrained.

    Raises:
        ArgumentError: its report is not one that pretrain.py writes.
    """
    folder = pretrained
    if folder is None and run.model_args.kind in TUNINGS:
        folder = Path(find_backbone(run.model_args.model, run.model_args.model_revision).hub_id)
    if folder is None or not (folder / REPORT_FILE).is_file():
        return None, 0.0
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        if report["model"]["stand_in_for"]:
            return None, 0.0
        described = describe_pretraining(run.encoder if pretrained is None else pretrained.name, report)
        return described, report["cost"]["training_hours"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{folder / REPORT_FILE} is not one that pretrain.py of this version writes: pretrain the encoder anew, "
            "or, if it is another's and its hours are not to count, delete that file."
        ) from error


def epochs_to_train(model_args: ModelArguments, arguments: TrainingArguments, notes: int) -> float:
    """`--num_train_epochs`, or as many as `--min_steps` takes with so few notes; `--max_steps` has its own."""
    if arguments.max_steps > 0:
        return arguments.num_train_epochs
    return max(arguments.num_train_epochs, math.ceil(model_args.min_steps / steps_an_epoch(arguments, notes)))


def steps_an_epoch(arguments: TrainingArguments, notes: int) -> int:
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return math.ceil(notes / batch)


@dataclass
class Trained:
    """A trained model as the result file and the next steps need it."""

    model: dict  # the result file's section of that name
    cost: dict  # likewise
    predict: Callable[[np.ndarray], np.ndarray]  # note indices -> probabilities (notes, classes)
    save: Callable[[Path, list[float] | None], None]  # write it to a folder, with these thresholds
    too_long: dict[str, int]  # notes over max_length, per part
    deploy: Callable[[str], np.ndarray]  # of one note, as predict.py would; spoils `predict`
    count_bytes: Callable[[], int]  # of the model on disk; spoils `predict` too


def train_baseline(run: Run, split: Split, settings: Settings | None = None) -> Trained:
    """TF-IDF; with `settings` it is fitted to them instead of choosing on validation."""
    notes = run.notes
    classifier = TfidfClassifier(notes.task, notes.class_names)
    texts = {part: [notes.texts[row] for row in rows] for part, rows in split.parts()}
    with measure_power(run.model_args.country_iso_code) as power:
        started = time.perf_counter()  # the meter's own start takes seconds
        if settings is None:
            validation = texts["validation"], notes.labels[split.validation]
            powers, selection = BASELINES[run.model_args.model], run.training_args.metric_for_best_model
            settings = classifier.fit_and_select(
                texts["train"], notes.labels[split.train], *validation, powers, selection
            )
        else:
            classifier.fit(texts["train"], notes.labels[split.train], settings)
        seconds = time.perf_counter() - started

    parameters = classifier.count_parameters()
    described = {"kind": "baseline", "backbone": None, "revision": None, "stand_in_for": None}
    described |= {"transductive": False, "pretraining": None, "logit_weights": None}
    return Trained(
        model=described | {"trainable_parameters": parameters, "total_parameters": parameters, **asdict(settings)},
        cost={
            "training_hours": seconds / 3600,
            "feature_hours": 0.0,
            "pretraining_hours": 0.0,
            "epochs": None,
            "best_epoch": None,
            **power.as_cost(),
        },
        predict=lambda rows: classifier.predict_probabilities([notes.texts[row] for row in rows]),
        save=lambda folder, thresholds: classifier.save(folder),
        deploy=lambda text: classifier.predict_probabilities([text]),
        count_bytes=classifier.count_bytes,
        too_long={part: 0 for part, _ in split.parts()},
    )


def train_network(
    run: Run,
    split: Split,
    seed: int,
    folder: Path,
    epochs: float | None = None,
    logit_weights: dict[str, float] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train by the Hugging Face Trainer, resuming from the last checkpoint in `folder` if there is one.

    With `epochs`, it trains for so long and selects nothing: `split.validation` is then not looked at, and an encoder
    with an n-gram branch gets the `logit_weights` that are given.
    """
    model_args, data_args, training_args, notes = run.model_args, run.data_args, run.training_args, run.notes
    frozen = model_args.kind == "frozen"
    pretrained = run.pretrain(split)
    set_seed(seed)  # before the model exists, so that its head depends on the seed; 0 is a seed like any other
    main_first = training_args.main_process_first(local=False)
    model, tokenizer, described = build_model(
        model_args, data_args, notes, split.train, folder / "tokenizer", main_first, pretrained
    )
    pretraining, pretraining_hours = read_pretraining(run, pretrained)
    if pretrained is None:
        described["transductive"] |= run.not_kept_out
    if training_args.device.type == "cpu":
        keep_freed_memory()
        suit_cpu(model)
    collator = FeatureCollator(run.features) if frozen else WindowCollator(tokenizer)

    def encode(rows: np.ndarray) -> tuple[datasets.Dataset, np.ndarray]:
        if frozen:
            return run.features.select(rows, notes.labels[rows])
        return tokenize_notes([notes.texts[row] for row in rows], notes.labels[rows], tokenizer, data_args)

    encoded = {part: encode(rows) for part, rows in split.parts() if len(rows)}
    too_long = {part: int(is_long.sum()) for part, (_, is_long) in encoded.items()}
    if any(too_long.values()):
        done = "cut into windows" if data_args.long_notes == "windows" else "truncated"
        logger.info("  notes over %d tokens, %s: %s", data_args.max_length, done, too_long)

    arguments = copy.copy(training_args)
    arguments.output_dir = str(folder)
    arguments.seed = seed
    arguments.hub_token = None  # checkpoints hold the arguments
    arguments.push_to_hub = False  # the Trainer would push every checkpoint, pickles included: hub.py pushes the model
    arguments.metric_for_best_model = arguments.metric_for_best_model or SELECTION_METRIC[notes.task]
    arguments.greater_is_better = not arguments.metric_for_best_model.endswith("loss")
    if frozen and run.features.states.is_cuda:
        arguments.dataloader_pin_memory = False  # its batches are there already
    if model_args.memory_gb and not frozen:
        waiting = int(model_args.ensemble > 1)  # the start of the members after the first
        fit_into_memory(model_args.memory_gb, model, encoded["train"][0], collator, arguments, waiting)
    arguments.num_train_epochs = epochs_to_train(model_args, arguments, len(split.train))
    if arguments.num_train_epochs > training_args.num_train_epochs:
        logger.info(
            "  %g epochs instead of %g, for --min_steps %d",
            arguments.num_train_epochs, training_args.num_train_epochs, model_args.min_steps,
        )  # fmt: skip
    class_weights = None
    if model_args.class_weights == "balanced":
        class_weights = torch.tensor(balanced_class_weights(notes, split.train), dtype=torch.float32)

    metric = NoteClassificationMetric(notes.task, notes.class_names)

    def train_member(network: PreTrainedModel | PeftModel, number: int, output: Path) -> NoteTrainer:
        """The trainer of one training from the start, done; the selected weights are in its model."""
        its_arguments, its_callbacks = copy.copy(arguments), [*callbacks]
        its_arguments.output_dir = str(output)
        its_arguments.seed += number * MEMBER_SEED
        if its_arguments.data_seed is not None:
            its_arguments.data_seed += number * MEMBER_SEED
        if arguments.num_train_epochs > training_args.num_train_epochs:
            its_callbacks.append(EvaluateEvery(round(arguments.num_train_epochs / training_args.num_train_epochs)))
        if epochs is not None:
            its_arguments.eval_strategy, its_arguments.load_best_model_at_end = "no", False
            its_arguments.eval_on_start = False
            within = arguments.eval_strategy == "steps" or arguments.max_steps > 0
            its_callbacks.append(StopAfterEpoch(epochs, within))
        elif model_args.early_stopping_patience and arguments.eval_strategy != "no":
            its_callbacks.append(EarlyStopping(model_args.early_stopping_patience))
        trainer = NoteTrainer(
            model=network,
            args=its_arguments,
            data_collator=collator,
            train_dataset=encoded["train"][0],
            eval_dataset=by_length(encoded["validation"][0])[0] if epochs is None else None,
            compute_metrics=lambda prediction: score_validation(prediction, metric, arguments.metric_for_best_model),
            callbacks=its_callbacks,
            class_weights=class_weights,
            muon_learning_rate=model_args.muon_learning_rate,
        )
        logs = folder.parent / "tensorboard"
        trainer.log_to(logs / f"member-{number}" if number else logs)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(output))
        if not all(weights.isfinite().all() for weights in network.parameters() if weights.requires_grad):
            raise ArgumentError(DIVERGED)  # which validation would have told, had it been looked at
        trainer.compute_metrics = None  # from here on it only predicts: nothing is tuned on what it sees
        return trainer

    with measure_power(model_args.country_iso_code, on_gpu=arguments.device.type != "cpu") as power:
        folders = [folder / f"member-{number}" for number in range(1, model_args.ensemble)]
        for number, output in enumerate(folders, start=1):  # each begins with the same weights, else they had no mean
            if not (output / MEMBER_FILE).is_file():  # else it was done before an interruption
                keep_member(train_member(copy.deepcopy(model), number, output), output)
                gc.collect()  # trainer and optimiser are cycles, and would stay beside the next ones
        trainer = train_member(model, 0, folder)
        members = [*map(Member.load, folders), Member.of(trainer)]
    if folders:
        average_weights(trainer.accelerator.unwrap_model(trainer.model), folders)

    def predict(data: datasets.Dataset) -> np.ndarray:
        """Logits (notes, classes)."""
        ordered, order = by_length(data)
        return trainer.predict(ordered).predictions[np.argsort(order)]

    fitting_seconds = 0.0
    if model_args.ngram_branch:
        small = trainer.accelerator.unwrap_model(trainer.model)
        names = [name for name in FITS if logit_weights is None or logit_weights[name]]
        fitted = run.fit_ngrams(small.ngrams, split, tokenizer, encoded, names)
        started = time.perf_counter()
        if logit_weights is None:
            logits = {ENCODER: predict(encoded["validation"][0])} | fitted.validation  # the branch counts nothing yet
            logit_weights = choose_weights(logits, notes.labels[split.validation], notes.task)
            counting = [f"{name} {weight:.2f}" for name, weight in logit_weights.items() if weight >= 0.005]
            logger.info("  weights of the logits: %s", ", ".join(counting))
        set_ngrams(small.ngrams, fitted.fits, logit_weights)
        small.config.encoder_weight = logit_weights[ENCODER]
        fitting_seconds = fitted.seconds + time.perf_counter() - started

    @cache
    def whole() -> PreTrainedModel:
        """The model as it is kept, with its encoder; the trainer's is not to be used any more."""
        # without the wrapper that computes in bfloat16: in use it is a model of float32
        network = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if isinstance(network, PeftModel):
            network = network.merge_and_unload()
        if frozen:
            put_encoder_back(network, find_backbone(model_args.model, model_args.model_revision))
        return network.cpu()

    def save(target: Path, thresholds: list[float] | None):
        network = whole()
        network.config.thresholds = thresholds
        tokenizer.model_max_length = data_args.max_length
        for config in (network.config, getattr(network.config, "encoder_config", None)):
            if config is not None and described["revision"] is None:
                config.name_or_path = ""  # a path of this machine is nobody else's business
        network.save_pretrained(target)
        tokenizer.save_pretrained(target)

    return Trained(
        model=described
        | {
            "pretraining": pretraining,
            "logit_weights": logit_weights,
        },
        cost={
            "training_hours": (fitting_seconds + sum(member.seconds for member in members)) / 3600,
            "feature_hours": run.features.hours if frozen else 0.0,
            "pretraining_hours": pretraining_hours,
            "epochs": round(sum(member.epochs for member in members), 2),
            "best_epoch": round(statistics.median(member.best_epoch for member in members), 6),
            **power.as_cost(),
        },
        predict=lambda rows: probabilities_from_logits(predict(encode(rows)[0]), notes.task),
        save=save,
        too_long=too_long,
        deploy=lambda text: classify(whole(), tokenizer, [text], data_args, batch_size=1)[0],
        count_bytes=lambda: sum(each.numel() * each.element_size() for each in whole().state_dict().values()),
    )


def by_length(notes: datasets.Dataset) -> tuple[datasets.Dataset, np.ndarray]:
    """The notes from short to long, and which they were: batches of like length have little padding."""
    order = np.argsort(notes["length"], kind="stable")
    return notes.select(order), order


def score_validation(prediction: EvalPrediction, metric: NoteClassificationMetric, selection: str) -> dict[str, float]:
    """Validation scores at the threshold that is best there: what the result file reports, on the test part.

    Raises:
        ArgumentError: the logits are no numbers.
        DataError: the score `selection` is not defined here.
    """
    if not np.isfinite(prediction.predictions).all():
        raise ArgumentError(DIVERGED)
    task = metric.config_name
    probabilities = probabilities_from_logits(prediction.predictions, task)
    labels = prediction.label_ids.astype(np.int64)
    thresholds = tune_thresholds(probabilities, labels, task)
    scores = metric.compute(predictions=probabilities, references=labels, thresholds=thresholds)
    if selection.removeprefix("eval_") != "loss":  # which the Trainer adds
        selecting_score(scores, selection)
    return {name: value for name, value in scores.items() if isinstance(value, float)}


@dataclass
class Member:
    """What one training of an ensemble took."""

    epochs: float
    best_epoch: float
    seconds: float

    @classmethod
    def of(cls, trainer: NoteTrainer) -> "Member":
        return cls(trainer.state.epoch, trainer.best_epoch, trainer.training_seconds)

    @classmethod
    def load(cls, folder: Path) -> "Member":
        return cls(**json.loads((folder / MEMBER_FILE).read_text(encoding="utf-8")))


def keep_member(trainer: NoteTrainer, folder: Path):
    """Write its weights and what it took; the file that says it is whole comes last."""
    if trainer.is_world_process_zero():
        network = trainer.accelerator.unwrap_model(trainer.model)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in network.named_parameters()}
        save_file(weights, folder / MEMBER_WEIGHTS)
        write_json(folder / MEMBER_FILE, asdict(Member.of(trainer)))
    trainer.args.distributed_state.wait_for_everyone()  # another process may still load its best weights
    if trainer.is_world_process_zero():
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


@torch.no_grad()
def average_weights(network: torch.nn.Module, folders: list[Path]):
    """Give the network the mean of its weights and those of the members in `folders`, in place.

    (Wortsman et al. 2022, arXiv 2203.05482.) A weight at a time: none of the others is in memory as a whole.
    """
    with ExitStack() as stack:
        members = [stack.enter_context(safe_open(folder / MEMBER_WEIGHTS, framework="pt")) for folder in folders]
        for name, weight in network.named_parameters():
            theirs = [member.get_tensor(name).float() for member in members]
            weight.copy_(torch.stack([*theirs, weight.cpu().float()]).mean(dim=0))
