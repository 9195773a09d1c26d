"""From arguments to a model: which one, and what of it is trained.

Joins the encoders (backbones.py), the structures (heads.py), LoRA (peft) and the small Transformers
(scratch_model.py).
"""

import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AttentionInterface, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from backbones import (
    BACKBONES,
    Backbone,
    BackboneError,
    find_backbone,
    load_config_and_tokenizer,
    longest_input,
    reading_weights,
    resolve_commit,
)
from baseline import BASELINES
from data import DataArguments, Notes
from heads import HEADS, EncoderWithHeadConfig, EncoderWithHeadForSequenceClassification, attention_projections
from scratch_model import SCRATCH_MODELS, FastDropout, ScratchConfig, ScratchForSequenceClassification, attend
from tokenization import train_tokenizer

logger = logging.getLogger("train")

PRETRAINED_HERE = {f"{name}-pretrained": name for name in SCRATCH_MODELS}  # name -> architecture
OUR_MODELS = (EncoderWithHeadForSequenceClassification, ScratchForSequenceClassification)
TUNINGS = ("frozen", "lora", "full")
NGRAM_BUCKETS = 2**17  # (ours)


@dataclass
class ModelArguments:
    """Which model, and how it is trained beyond the TrainingArguments."""

    model: str = field(
        metadata={
            "help": "camembert-bio, alibert, drbert, any Hub id or local folder; transformer or moe-transformer (from "
            "scratch); transformer-pretrained or moe-transformer-pretrained (the same, pretrained in-house on notes); "
            "tfidf (the baseline) or tfidf-nb (the same with features weighed by naive Bayes)."
        }
    )
    model_revision: str | None = field(default=None, metadata={"help": "Commit or tag of the encoder on the Hub."})
    head: str = field(
        default="grn",
        metadata={"help": f"Structure on a pretrained encoder: {', '.join(HEADS)}.", "choices": [*HEADS]},
    )
    tuning: str = field(
        default="frozen",
        metadata={
            "help": "What is trained of a pretrained encoder beside its head: nothing (frozen; ours), LoRA on the "
            "attention projections (lora), everything (full).",
            "choices": [*TUNINGS],
        },
    )
    head_size: int = field(
        default=0, metadata={"help": "Inner width of the structure; 0: as in heads.py (grn as wide as the encoder)."}
    )
    pooling: str = field(
        default="mean",
        metadata={
            "help": "Pretrained encoders: tokens to one vector, mean (ours) or first (cls).",
            "choices": ["mean", "cls"],
        },
    )
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout in head and classifier, and in the small models (ours)."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of LoRA; its scale alpha is twice the rank (ours)."})
    vocab_size: int = field(
        default=6000,
        metadata={"help": "Largest vocabulary of a model from scratch; one pretrained in-house has at most 8,000."},
    )
    unlabeled: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further text for models pretrained in-house: files of one document a line (.txt), tables as for "
            "--dataset, folders of tables, or folders of .txt files that are a document each. What belongs to a "
            "validation or test note is left out."
        },
    )
    ngram_branch: bool = field(
        default=False,
        metadata={
            "help": "Small Transformers: add the logits of logistic regressions on hashed n-grams, in one model. On "
            "for those pretrained in-house unless --ngram_branch False."
        },
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Small Transformers: train the matrices of the layers with Muon and this learning rate, all else "
            "as --optim and --learning_rate say; 0: without Muon."
        },
    )
    pretrain_on: str = field(
        default="training-notes",
        metadata={
            "help": "Models pretrained in-house: on each fold's training notes and the unlabeled text, once a fold; "
            "or on the unlabeled text alone, once for all folds.",
            "choices": ["training-notes", "unlabeled"],
        },
    )
    pretraining_tokens: float = field(
        default=5e6, metadata={"help": "Models pretrained in-house: how many tokens, repeats counted, at most."}
    )
    transductive: bool = field(
        default=False,
        metadata={
            "help": "Pretrain in-house on validation and test text too (with --pretrain_on unlabeled: on further text "
            "that belongs to it); such models are marked in every table."
        },
    )
    ensemble: int = field(
        default=1,
        metadata={
            "help": "Models that begin pretrained and are trained as a whole (in-house, --tuning full): train so many "
            "times, in other orders of the notes, and average the weights (a model soup: one model, as fast as one)."
        },
    )
    class_weights: str = field(
        default="balanced",
        metadata={
            "help": "Weigh classes in the loss inversely to their size, or not.",
            "choices": ["balanced", "none"],
        },
    )
    early_stopping_patience: int = field(
        default=3,
        metadata={
            "help": "Looks at validation (one an epoch, fewer with --min_steps) without a better score before "
            "training stops; 0: never."
        },
    )
    min_steps: int = field(
        default=0,
        metadata={
            "help": "Plan for at least so many steps, by more epochs where notes are few, looked at as often in all; "
            "early stopping may end it sooner."
        },
    )
    memory_gb: float | None = field(
        default=None,
        metadata={
            "help": "Train within so much memory (10^9 bytes; the paper's card had 2), by smaller micro-batches and "
            "gradient checkpointing; the batch of a step stays what it is."
        },
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Train every fold once for each of these seeds (default: --seed alone)."}
    )
    keep_model: bool = field(
        default=True,
        metadata={
            "help": "Leave a model for use in OUTPUT_DIR/model: the single split's own, or with folds one more, "
            "trained on all notes for as long and with the thresholds that the folds chose."
        },
    )
    country_iso_code: str | None = field(
        default=None,
        metadata={"help": "Where the machine stands, as FRA: for the CO2 of its power. Default: the world's average."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where the hidden states of a frozen encoder, and models pretrained in-house, are kept for later "
            "runs; derived from the notes, safe to delete. Default: OUTPUT_DIR/features, OUTPUT_DIR/pretrained."
        },
    )
    features_only: bool = field(
        default=False, metadata={"help": "Compute the hidden states of a frozen encoder, then stop."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete earlier results in OUTPUT_DIR first."})

    def __post_init__(self):
        if self.cache_dir is not None:  # after an equals sign the shell leaves a tilde as it is
            self.cache_dir = os.path.expanduser(self.cache_dir)

    @property
    def kind(self) -> str:
        """The row of RECIPES."""
        if self.model in BASELINES:
            return "baseline"
        if self.model in PRETRAINED_HERE:
            return "in-house"
        return "scratch" if self.model in SCRATCH_MODELS else self.tuning

    @property
    def run_id(self) -> str:
        """The default name of the run's folder."""
        structure = [self.head, self.tuning] if self.kind in TUNINGS else []
        return "-".join([self.name.replace("/", "--"), *structure])

    @property
    def name(self) -> str:
        """How tables call the model: the alias or Hub id, or the folder's name."""
        path = Path(os.path.expanduser(self.model))
        return path.absolute().name if os.path.isdir(path) else self.model


def build_model(
    model_args: ModelArguments,
    data_args: DataArguments,
    notes: Notes,
    train: np.ndarray,
    folder: Path,
    main_first: AbstractContextManager,
    pretrained: Path | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, dict]:
    """The model and tokenizer of one fold, and what the result file says of the model.

    A model from scratch gets a tokenizer trained on the `train` notes alone, kept in `folder` for a resumed run; one
    that was pretrained in-house comes with its own from the folder `pretrained`.
    """
    labels = dict(
        id2label=dict(enumerate(notes.class_names)),
        label2id={name: number for number, name in enumerate(notes.class_names)},
        problem_type="multi_label_classification" if notes.task == "multi-label" else "single_label_classification",
    )
    described = {"kind": "scratch", "backbone": None, "revision": None, "stand_in_for": None, "transductive": False}
    small = dict(
        dropout=model_args.dropout,
        ngram_buckets=NGRAM_BUCKETS * model_args.ngram_branch,
        window_overlap=data_args.stride,
        **labels,
    )
    if pretrained is not None:
        # it learned from shorter blocks than the notes are (pretrain.py)
        tokenizer = AutoTokenizer.from_pretrained(pretrained, model_max_length=data_args.max_length)
        config = ScratchConfig.from_pretrained(pretrained, **small)
        model = ScratchForSequenceClassification.from_pretrained(pretrained, config=config)
        if model_args.ngram_branch:
            model.ngrams.requires_grad_(False)  # what a checkpoint lacks was made anew, for training
        described |= {"kind": "in-house", "transductive": getattr(config, "transductive", False)}
    elif model_args.model in SCRATCH_MODELS:
        with main_first:
            if not folder.is_dir():
                tokenizer = train_tokenizer(
                    [notes.texts[row] for row in train],
                    family="bpe",
                    vocab_size=model_args.vocab_size,
                    max_length=data_args.max_length,
                    groups=None if notes.groups is None else notes.groups[train],
                )
                partial = folder.with_name(f"{folder.name}.partial")
                tokenizer.save_pretrained(partial)
                partial.rename(folder)  # there as a whole or not at all
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = ScratchForSequenceClassification(
            ScratchConfig(
                vocab_size=len(tokenizer),
                num_experts=SCRATCH_MODELS[model_args.model],
                pad_token_id=tokenizer.pad_token_id,
                **small,
            )
        )
    else:
        backbone = find_backbone(model_args.model, model_args.model_revision)
        encoder_config, tokenizer = load_config_and_tokenizer(backbone)
        # of a folder the name alone: a result does not say where on this machine it is
        name = backbone.hub_id if backbone.revision else Path(backbone.hub_id).resolve().name
        described |= {"kind": "pretrained", "backbone": name, "revision": backbone.revision}
        described["stand_in_for"] = getattr(encoder_config, "stand_in_for", None)
        described["transductive"] = getattr(encoder_config, "transductive", False)
        config = dict(
            head=model_args.head,
            head_size=model_args.head_size,
            tuning=model_args.tuning,
            pooling=model_args.pooling,
            dropout=model_args.dropout,
            **labels,
        )
        if model_args.tuning == "frozen":
            # Only its hidden states are needed (features.py): without it, no memory, no loading, small checkpoints.
            config = EncoderWithHeadConfig(encoder_config=encoder_config, **config)
            model = EncoderWithHeadForSequenceClassification(config, encoder=nn.Identity())
            with torch.device("meta"):
                whole = EncoderWithHeadForSequenceClassification(config)
            return model, tokenizer, described | count_parameters(whole)
        with reading_weights(backbone):
            model = EncoderWithHeadForSequenceClassification.from_encoder(
                backbone.hub_id, revision=backbone.revision, **config
            )
        if model_args.tuning == "lora":
            model = add_lora(model, model_args.lora_r)
    return model, tokenizer, described | count_parameters(model)


def put_encoder_back(model: EncoderWithHeadForSequenceClassification, backbone: Backbone):
    """Complete a model that was trained on hidden states alone, in place."""
    with reading_weights(backbone):
        whole = EncoderWithHeadForSequenceClassification.from_encoder(backbone.hub_id, revision=backbone.revision)
    model.encoder = whole.encoder
    model.config.encoder_config = whole.config.encoder_config  # in float32, also where it is published in half of that


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Those that are trained, and those of the model in use, into which LoRA is merged."""
    # peft keeps the untrained originals of the parts that it trains as a whole; the model in use lacks them
    parameters = {name: p for name, p in model.named_parameters() if ".original_module." not in name}
    return {
        "trainable_parameters": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "total_parameters": sum(p.numel() for name, p in parameters.items() if ".lora_" not in name),
    }


def written_out_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """`attend` of the small Transformers in the form that `transformers` calls; what it cannot do goes to theirs."""
    if dropout or key.shape[1] != query.shape[1] or getattr(module, "is_causal", False):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    attended = attend(query, key, value, attention_mask, scaling)  # (rows, attention heads, tokens, width of one)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register("written-out", written_out_attention)
AttentionMaskInterface.register("written-out", sdpa_mask)


def suit_cpu(model: nn.Module):
    """Replace what takes long on a CPU by what computes the same faster, in place: dropout and attention.

    Of full fine-tuning of a base-size encoder in bfloat16 it takes a fifth of the time away.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
        is_encoder = isinstance(module, PreTrainedModel) and not isinstance(module, OUR_MODELS)
        if is_encoder and module.config._attn_implementation == "sdpa":
            module.set_attn_implementation("written-out")


def pack_weights(model: nn.Module, rows: int):
    """Lay the weights of linear layers out as a CPU multiplies them, once and not in every product; in place.

    For a model in bfloat16 that is only run forward, with its weights as they are now, on batches of about `rows`
    rows. PyTorch does this in models that it compiles; these are the operators that it calls there. The forward pass
    takes about an eighth less time (two cores with AMX).
    """
    for layer in model.modules():
        if type(layer) is nn.Linear:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
            bias = None if layer.bias is None else layer.bias.detach()
            layer.forward = partial(_packed_product, packed, bias)


def _packed_product(packed: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    """What `nn.Linear` gives for `inputs` (..., in) -> (..., out)."""
    return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")


def add_lora(model: EncoderWithHeadForSequenceClassification, rank: int) -> PeftModel:
    """LoRA on the encoder's attention projections, with all of our head and classifier trained and saved.

    `alpha = 2 rank` and a dropout of 0.05 are ours.
    """
    # peft freezes and forgets every part outside the encoder that is not named here.
    ours = [name for name in ("head", "classifier") if any(True for _ in model.get_submodule(name).parameters())]
    try:
        targets = attention_projections(model)
    except ValueError as error:
        raise BackboneError(str(error)) from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=targets, modules_to_save=ours)
    return get_peft_model(model, config)


def prepare_encoder(model_args: ModelArguments, data_args: DataArguments) -> PreTrainedConfig:
    """Settle what the encoder decides, once for all folds: its commit and the longest input.

    Returns its configuration. Writes the commit into `--model_revision`, so that a repository that changes meanwhile
    does not change the run, and lowers `--max_length` to what the encoder takes: past that it would fail with an index
    error.
    """
    backbone = find_backbone(model_args.model, model_args.model_revision)
    try:
        model_args.model_revision = resolve_commit(backbone)
    except BackboneError as error:
        known = [*BASELINES, *SCRATCH_MODELS, *PRETRAINED_HERE, *BACKBONES]
        alike = get_close_matches(model_args.model, known, n=1, cutoff=0.8) if model_args.model not in known else []
        hint = f" Did you mean {alike[0]}?" if alike else ""
        raise BackboneError(f"{error}{hint}") from None
    config, _ = load_config_and_tokenizer(find_backbone(model_args.model, model_args.model_revision))
    longest = longest_input(config)
    if longest and longest < data_args.max_length:
        logger.warning("max_length %d is more than the encoder takes: %d used", data_args.max_length, longest)
        data_args.max_length = longest
        data_args.check_windows()
    return config
