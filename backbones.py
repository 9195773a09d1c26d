"""Pretrained encoders by short name, and the traps of loading them.

Knows the Hub and nothing of notes or training. A name is an alias of `BACKBONES`, any Hub id, or a local folder.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub import resolve_revision, try_to_load_from_cache
from safetensors import SafetensorError
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

logger = logging.getLogger(__name__)

# Position ids of these architectures begin after the padding id: so many positions fewer are usable.
OFFSET_POSITIONS = {"roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "ibert"}
OFFSET_POSITIONS |= {"longformer", "mpnet", "data2vec-text"}
# What tokenizers differ in: capitals, accents, an apostrophe, punctuation, spaces, symbols, other scripts.
PROBE = "Fièvre  à 39 °C : l'état de M. ÉTÉ (FEVG<25%), œdème; 3½ j.\nTA 12/8\tE\u0301tat « bon », dit-elle. Жар. 发热"
KEPT_MODELS = ("EncoderWithHeadForSequence", "ScratchForSequence")  # how the classes of our own classifiers begin
# Of tokenizer_config.json what changes a part of tokenizer.json, as in transformers 4.
SETTINGS = [
    (
        "normalizer",
        BertNormalizer,
        {
            "do_lower_case": "lowercase",
            "strip_accents": "strip_accents",
            "tokenize_chinese_chars": "handle_chinese_chars",
        },
    ),
    ("pre_tokenizer", ByteLevel, {"add_prefix_space": "add_prefix_space"}),
]


class BackboneError(RuntimeError):
    """The encoder cannot be had or cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Backbone:
    """Where an encoder comes from. `revision` None: the newest, whose commit is then written into every result."""

    hub_id: str
    revision: str | None = None


# The three encoders of arXiv 2407.19299, all of about 110 million parameters (12 layers, 768 wide).
BACKBONES = {
    "camembert-bio": Backbone("almanach/camembert-bio-base"),
    "alibert": Backbone("quinten-datalab/AliBERT-7GB"),
    "drbert": Backbone("Dr-BERT/DrBERT-7GB"),
}


def find_backbone(model: str, revision: str | None = None) -> Backbone:
    """What `--model` and `--model_revision` mean; a known encoder may go by its alias or its Hub id."""
    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        return Backbone(folder, revision)
    known = next((known for alias, known in BACKBONES.items() if model in (alias, known.hub_id)), Backbone(model))
    return Backbone(known.hub_id, revision or known.revision)


def is_local(backbone: Backbone) -> bool:
    return os.path.isdir(backbone.hub_id)


def encoder_fingerprint(backbone: Backbone) -> str:
    """Tells one encoder from another: by Hub id and revision, or by the content of a folder, which has no revision."""
    digest = hashlib.sha256()
    if is_local(backbone):
        files = [path for path in Path(backbone.hub_id).iterdir() if path.is_file() and path.name[0] != "."]  # a lock
        for path in sorted(files):
            with open(path, "rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(f"{backbone.hub_id}@{backbone.revision}".encode())
    return digest.hexdigest()[:16]


def resolve_commit(backbone: Backbone) -> str | None:
    """The commit that the encoder's revision, or its newest state, means now; None for a local folder.

    Raises:
        BackboneError: neither the cache nor the Hub knows it; a revision of a folder.
    """
    if is_local(backbone):
        if backbone.revision is not None:
            raise BackboneError(
                f"--model_revision {backbone.revision}: {backbone.hub_id} is a folder, which has none; leave it out."
            )
        return None
    try:
        return resolve_revision(backbone.hub_id, revision=backbone.revision).resolved
    except Exception as error:  # offline, unknown, gated, not an id at all: the remedy is the same
        raise _unreachable(backbone) from error


def _unreachable(backbone: Backbone) -> BackboneError:
    if backbone.hub_id.startswith((".", "/", "~")):
        return BackboneError(f"--model {backbone.hub_id}: no such folder.")
    return BackboneError(
        f"{backbone.hub_id} is not in the cache and the Hub did not give it. Where there is a network, run `hf "
        f"download {backbone.hub_id}`, then copy the cache or give the folder as --model; or try `bash run_all.sh "
        "--demo`."
    )


def load_config_and_tokenizer(backbone: Backbone) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The encoder's configuration and tokenizer, checked to fit each other.

    Raises:
        BackboneError: unreachable, incomplete, or padding and vocabulary of the two do not agree.
    """
    name = backbone.hub_id
    try:
        config = AutoConfig.from_pretrained(name, revision=backbone.revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=backbone.revision)
        tokenizer = as_saved(tokenizer, backbone)
    except Exception as error:  # offline, unknown, incomplete, damaged
        if not isinstance(error, OSError | ValueError | KeyError) and not is_of_tokenizers(error):
            raise
        if is_local(backbone):
            problem = f"not a folder with a model and its tokenizer ({type(error).__name__})"
            raise BackboneError(f"{name}: {problem}.") from error
        if isinstance(error, OSError):
            raise _unreachable(backbone) from error
        # its text may be pages of what the library knows, and begin with a path
        problem = f"its configuration or its tokenizer cannot be read ({type(error).__name__})"
        raise BackboneError(f"{name}: {problem}: code of its own is not run, nor every kind of vocabulary.") from error
    if config.is_encoder_decoder:
        raise BackboneError(f"{name}: it has a decoder, which notes give nothing to say; give an encoder alone.")
    if any(name.startswith(KEPT_MODELS) for name in config.architectures or []):
        raise BackboneError(
            f"{name}: a model that train.py kept, which has learned its notes with their labels, held-out ones too; "
            "give an encoder, as the one that it was made from."
        )
    tokenizer.padding_side = "right"  # what pooling by the first token and the cached hidden states rely on
    if not tokenizer.is_fast:
        raise BackboneError(
            f"{name}: a fast tokenizer is needed, to cut long notes; found {type(tokenizer).__name__}."
        )
    if not knows_words(tokenizer):
        raise BackboneError(f"{name}: its tokenizer knows no word; is its tokenizer.json or vocabulary missing?")
    if tokenizer.pad_token_id is None:
        raise BackboneError(f"{name}: its tokenizer has no padding token, which batches of notes need.")
    if config.pad_token_id is not None and tokenizer.pad_token_id != config.pad_token_id:
        # RoBERTa-like encoders number their positions by the padding id: a different one changes every hidden state.
        raise BackboneError(
            f"{name}: the tokenizer pads with id {tokenizer.pad_token_id}, the model expects {config.pad_token_id}."
        )
    if len(tokenizer) > config.vocab_size:
        raise BackboneError(f"{name}: {len(tokenizer)} tokens in the tokenizer, {config.vocab_size} in the model.")
    # by which batches know how far they may be padded; not every tokenizer says it
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest_input(config) or tokenizer.model_max_length)
    return config, tokenizer


@contextmanager
def reading_weights(backbone: Backbone) -> Iterator[None]:
    """Around the loading of a model whose configuration and tokenizer are there.

    Raises:
        BackboneError: its weights are not, or are damaged.
    """
    try:
        yield
    except (OSError, SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise  # not of the file, as where memory ran out
        why = getattr(error, "strerror", None) or type(error).__name__  # as a full disk
        raise BackboneError(
            f"{backbone.hub_id}: its weights are missing, damaged or cannot be read ({why}); copy or download it "
            "again (a clone of the Hub's repository has them with Git LFS alone)."
        ) from error


def as_saved(tokenizer: PreTrainedTokenizerBase, backbone: Backbone) -> PreTrainedTokenizerBase:
    """The tokenizer as its tokenizer.json says, where the class named beside it makes another one of that.

    transformers 5 builds a tokenizer anew from the name of its class, and of tokenizer.json takes little more than the
    vocabulary: AliBERT's, which names AlbertTokenizer, then lowercases and drops accents, and so does one of one's own
    that names BertTokenizer.
    """
    name, revision = backbone.hub_id, backbone.revision
    if is_local(backbone):
        is_there = (Path(name) / "tokenizer.json").is_file()
    else:
        is_there = isinstance(try_to_load_from_cache(name, "tokenizer.json", revision=revision), str)
    if not is_there or not tokenizer.is_fast:
        return tokenizer
    # what its class alone may know
    known = tokenizer.special_tokens_map | {"model_input_names": tokenizer.model_input_names}
    saved = PreTrainedTokenizerFast.from_pretrained(name, revision=revision, **known)
    backend, said = saved.backend_tokenizer, get_tokenizer_config(name, revision=revision)
    for part, kind, settings in SETTINGS:  # what is said beside tokenizer.json goes first
        for setting, attribute in settings.items():
            if setting in said and isinstance(getattr(backend, part), kind):
                setattr(getattr(backend, part), attribute, said[setting])
    if not saved("")["input_ids"]:  # as tokenizers that were trained and never had a class are saved
        backend.post_processor = tokenizer.backend_tokenizer.post_processor
    if saved(PROBE)["input_ids"] == tokenizer(PROBE)["input_ids"]:
        return tokenizer
    logger.info("%s: its tokenizer.json is no %s; taken as it is", name, type(tokenizer).__name__)
    return saved


def knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has a vocabulary: where its files are missing, transformers 5 makes an empty one without a word."""
    return not set(tokenizer("Le patient tousse.", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}


def is_of_tokenizers(error: Exception) -> bool:
    """Whether the tokenizers library raised it, as of a damaged tokenizer.json: an Exception of no kind of its own."""
    return type(error) is Exception


def longest_input(config: PreTrainedConfig) -> int | None:
    """Tokens that the encoder can take, special tokens included; None where its positions are not counted out."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in OFFSET_POSITIONS:
        return positions - config.pad_token_id - 1
    return positions
