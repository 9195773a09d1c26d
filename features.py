"""Hidden states of a frozen encoder, computed once and shared by every head, fold, seed and epoch.

A frozen encoder gives a note the same hidden states every time: one forward pass over all notes replaces one in every
epoch of every fold of every head. They lie on disk without padding, as bfloat16, tokens x hidden x 2 bytes (0.9 GB for
580,000 tokens of a base-size encoder), and are mapped into memory, not read: processes share one copy.

    CACHE_DIR/<key>/hidden_states.bfloat16   (tokens, hidden), the notes in the order of the corpus
    CACHE_DIR/<key>/index.npz                which tokens are which window of which note
    CACHE_DIR/<key>/features.json            written last: sizes, checksums, hours
    CACHE_DIR/<key>.partial/                 a pass that is going on, or was cut off and will be resumed

The key names everything that the numbers depend on: encoder, tokenizer, notes, maximum length, windows, precision. The
folder is derived from patients' text and may give it away: it is made for its owner alone (mode 0700), and deleting it
is always safe.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoModel, PreTrainedTokenizerBase

from backbones import Backbone, encoder_fingerprint, reading_weights
from batches import WindowCollator, round_up_width, tokenize_notes
from data import DataArguments, DataError
from locks import alone_with
from machine import bfloat16_is_fast, keep_freed_memory
from models import pack_weights, suit_cpu
from results import write_json

logger = logging.getLogger("train")

# Of the forward pass (ours). On two cores 4,096 gained nothing or lost; a GPU waits for Python where a batch is small.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768}
SECONDS_BETWEEN_SAVES = 30  # of a pass that is going on: what a kill may cost
STATES_FILE, INDEX_FILE, FACTS_FILE, PROGRESS_FILE = (
    "hidden_states.bfloat16", "index.npz", "features.json", "progress.json",
)  # fmt: skip


@dataclass
class FrozenFeatures:
    """The hidden states of all notes of a corpus. A note has one window, or several if it was cut into windows."""

    states: torch.Tensor  # (tokens, hidden) bfloat16, mapped from disk
    starts: np.ndarray  # (windows + 1,) the first token of each window
    first_window: np.ndarray  # (notes + 1,) the first window of each note
    is_long: np.ndarray  # (notes,) over max_length tokens
    hours: float  # of the forward pass: a cost that all heads, folds and seeds share

    def select(self, rows: np.ndarray, labels: np.ndarray) -> tuple[datasets.Dataset, np.ndarray]:
        """What `tokenize_notes` gives for these notes, with their index in the place of their token ids."""
        tokens = self.starts[self.first_window]
        lengths = tokens[rows + 1] - tokens[rows]
        columns = {"note": rows.tolist(), "length": lengths.tolist(), "labels": labels.tolist()}
        return datasets.Dataset.from_dict(columns), self.is_long[rows]

    def pool(self, pooling: str) -> "FrozenFeatures":
        """One float32 vector a window in the place of its tokens: all that a head without a structure looks at."""
        windows = len(self.starts) - 1
        if pooling == "cls":
            pooled = self.states[self.starts[:-1]].float()
        else:
            pooled = torch.empty(windows, self.states.shape[1])
            for window, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
                torch.mean(self.states[start:end], dim=0, dtype=torch.float32, out=pooled[window])
        return FrozenFeatures(pooled, np.arange(windows + 1), self.first_window, self.is_long, self.hours)

    def near(self, device: torch.device) -> "FrozenFeatures":
        """In a GPU's memory if it has twice the room, so that gathering a batch costs the processor nothing."""
        if device.type != "cuda" or torch.cuda.mem_get_info(device)[0] < 2 * self.states.nbytes:
            return self
        try:
            return replace(self, states=self.states.to(device))
        except torch.OutOfMemoryError:  # another run took the room meanwhile
            return self


class FeatureCollator:
    """What `WindowCollator` does, with `hidden_states` (rows, tokens, hidden) in the place of `input_ids`.

    Padding repeats a window's last token: finite numbers, which the attention mask keeps out of every result.
    """

    def __init__(self, features: FrozenFeatures):
        self.features = features

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        features, states = self.features, self.features.states
        labels = torch.tensor([example["labels"] for example in examples])
        notes = np.array([example["note"] for example in examples])
        counts = features.first_window[notes + 1] - features.first_window[notes]
        window_note = np.repeat(np.arange(len(notes)), counts)
        # windows of a note follow each other: its first one, then one more for each
        rank = np.arange(len(window_note)) - np.repeat(counts.cumsum() - counts, counts)
        rows = features.first_window[notes][window_note] + rank
        starts, lengths = features.starts[rows], features.starts[rows + 1] - features.starts[rows]
        longest = int(lengths.max())
        places = np.arange(1 if longest == 1 else round_up_width(longest))  # 1: pooled vectors
        tokens = torch.from_numpy(starts[:, None] + np.minimum(places, lengths[:, None] - 1))  # (rows, tokens)
        batch = {
            "labels": labels.float() if labels.ndim == 2 else labels,
            "hidden_states": states.index_select(0, tokens.flatten().to(states.device)).view(*tokens.shape, -1),
            "attention_mask": torch.from_numpy((places < lengths[:, None]).astype(np.int64)),
        }
        if len(rows) > len(notes):
            batch["window_note"] = torch.from_numpy(window_note)
        return batch


# ---- the cache -----------------------------------------------------------------------------------------------------


def load_or_compute(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    arguments: DataArguments,
    cache_dir: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> FrozenFeatures:
    """The features of these texts from `cache_dir`, computed first if they are not there or are damaged.

    Of several processes that ask for the same at once, one computes and the others wait. `dtype` is what the encoder
    computes in. A pass that was cut off goes on where it was.

    Raises:
        DataError: the disk has not the room, or the folder cannot be written.
    """
    folder = cache_dir / features_key(backbone, tokenizer, texts, arguments, dtype)
    with alone_with(folder, "hidden states"):
        features = _read(folder)
        if features is None:
            _compute(backbone, tokenizer, texts, arguments, folder, device, dtype)
            features = _read(folder)
        else:
            logger.info("  hidden states: computed earlier, read from %s", folder)
    return features


def features_key(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    arguments: DataArguments,
    dtype: torch.dtype,
) -> str:
    """A name for all that the hidden states depend on; of the texts it holds nothing but a hash."""
    content = hashlib.sha256()
    for text in texts:
        content.update(hashlib.sha256(text.encode()).digest())
    facts = {
        "encoder": encoder_fingerprint(backbone),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "texts": content.hexdigest(),
        "max_length": arguments.max_length,
        "window_stride": arguments.stride if arguments.long_notes == "windows" else None,
        "precision": str(dtype),
        "transformers": transformers.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _read(folder: Path) -> FrozenFeatures | None:
    """The features in `folder`; None if they are not whole, which a checksum over every byte tells.

    Raises:
        DataError: there is no telling, as where there is no memory to map them.
    """
    if not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        if _checksums(folder) != facts["checksums"]:
            raise ValueError
        states = np.memmap(folder / STATES_FILE, np.int16, mode="c", shape=(facts["tokens"], facts["hidden_size"]))
        index = np.load(folder / INDEX_FILE)
        # mode "c" is for torch, which warns of a read-only array; nothing is ever written
        return FrozenFeatures(torch.from_numpy(states).view(torch.bfloat16), **index, hours=facts["hours"])
    except (FileNotFoundError, ValueError, KeyError):
        logger.warning("  hidden states: %s is damaged; computing them again", folder)
        shutil.rmtree(folder)
        return None
    except OSError as error:  # they may well be whole
        raise DataError(
            f"--cache_dir {folder.parent}: hidden states cannot be read ({error.strerror}); they are kept."
        ) from error


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of the two data files (4 GB a second where this was measured)."""
    checksums = {}
    for name in (STATES_FILE, INDEX_FILE):
        checksum = 0
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
        checksums[name] = checksum
    return checksums


def _compute(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    arguments: DataArguments,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
):
    """One forward pass over all windows, those of like length together so that a batch has little padding."""
    encoded, is_long = tokenize_notes(texts, None, tokenizer, arguments)
    windows = [window for note in encoded["input_ids"] for window in note]
    lengths = np.array([len(window) for window in windows])
    starts = np.concatenate([[0], lengths.cumsum()])
    first_window = np.concatenate([[0], np.cumsum([len(note) for note in encoded["input_ids"]])])

    tokens_per_batch = TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"])
    with reading_weights(backbone):
        encoder = AutoModel.from_pretrained(backbone.hub_id, revision=backbone.revision, dtype=dtype)
    if device.type == "cpu":
        keep_freed_memory()
        suit_cpu(encoder)
        if dtype == torch.bfloat16 and bfloat16_is_fast(use_cpu=True):
            pack_weights(encoder, tokens_per_batch)
    encoder = encoder.to(device).eval()
    total, hidden_size = int(starts[-1]), encoder.config.hidden_size
    size = total * hidden_size * 2
    partial = folder.with_name(f"{folder.name}.partial")
    batches = _batches_of_like_length(lengths, tokens_per_batch)
    done, seconds = _progress(partial, size, tokens_per_batch)
    logger.info(
        "  hidden states of %d tokens, %s, to %s: %.2f GB, derived from the notes; `rm -r %s*` deletes them",
        total, str(dtype).removeprefix("torch."), folder, size / 1e9, shlex.quote(str(folder)),
    )  # fmt: skip
    if not done:
        _reserve(partial / STATES_FILE, size)
    states = np.memmap(partial / STATES_FILE, np.int16, mode="r+", shape=(total, hidden_size))
    collate = WindowCollator(tokenizer)
    began = saved = time.perf_counter()
    begun_with = lengths[np.concatenate(batches[:done])].sum() if done else 0
    tokens = begun_with
    with torch.inference_mode():
        for number, batch in enumerate(batches[done:], start=done + 1):
            inputs = collate([{"input_ids": [windows[window]]} for window in batch])
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            hidden = encoder(**inputs).last_hidden_state.to(torch.bfloat16)
            hidden = hidden[inputs["attention_mask"].bool()].cpu().view(torch.int16).numpy()  # without padding
            ends = lengths[batch].cumsum()
            for window, end in zip(batch, ends, strict=True):
                states[starts[window] : starts[window + 1]] = hidden[end - lengths[window] : end]
            tokens += lengths[batch].sum()
            now = time.perf_counter()
            if now - saved > SECONDS_BETWEEN_SAVES:
                saved = now
                states.flush()
                progress = {"batches": number, "tokens_per_batch": tokens_per_batch, "size": size}
                write_json(partial / PROGRESS_FILE, progress | {"seconds": seconds + now - began})
                left = (now - began) * (total - tokens) / (tokens - begun_with)
                logger.info("  hidden states: %d of %d tokens, %.1f min left", tokens, total, left / 60)
    seconds += time.perf_counter() - began
    np.savez(partial / INDEX_FILE, starts=starts, first_window=first_window, is_long=is_long)
    facts = {"tokens": total, "hidden_size": hidden_size, "hours": seconds / 3600, "checksums": _checksums(partial)}
    write_json(partial / FACTS_FILE, facts)
    os.replace(partial, folder)  # what is not on the disk yet, should the machine stop now, the checksums will miss
    (folder / PROGRESS_FILE).unlink(missing_ok=True)  # until here a kill costs no more than seconds
    logger.info("  hidden states: done in %.1f s (%.0f tokens/s)", seconds, total / seconds)


def _progress(partial: Path, size: int, tokens_per_batch: int) -> tuple[int, float]:
    """Batches and seconds of a pass that was cut off; nothing of it counts unless its files are as it says.

    Nor does one whose batches were others, as on another device.
    """
    try:
        progress = json.loads((partial / PROGRESS_FILE).read_text(encoding="utf-8"))
        if progress["tokens_per_batch"] != tokens_per_batch:
            raise ValueError
        if progress["size"] == size == (partial / STATES_FILE).stat().st_size:
            return progress["batches"], progress["seconds"]
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    return 0, 0.0


def _reserve(path: Path, size: int):
    """Make a file of `size` bytes that the disk has room for: a mapped file that finds none would end the process."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        shutil.rmtree(path.parent)
        raise DataError(
            f"--cache_dir {path.parent.parent}: the hidden states take {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
            f"free ({error.strerror}); choose a folder with more room."
        ) from error


def _batches_of_like_length(lengths: np.ndarray, tokens_per_batch: int) -> list[list[int]]:
    """Window numbers by length, longest first so that the estimate errs on the safe side, in batches of few shapes.

    A batch is as wide as its longest window, rounded up, and has as many rows as `tokens_per_batch` gives that width.
    """
    order, batches = np.argsort(-lengths, kind="stable").tolist(), []
    while order:
        rows = max(tokens_per_batch // round_up_width(int(lengths[order[0]])), 1)
        batches.append(order[:rows])
        order = order[rows:]
    return batches
