"""Notes to token ids, and token ids to batches."""

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from data import DataArguments

WIDTH_STEP = 8  # tokens


def tokenize_notes(
    texts: list[str], labels: np.ndarray | None, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments
) -> tuple[Dataset, np.ndarray]:
    """Token ids, and for each note whether it is longer than `max_length` tokens.

    Returns a data set in memory with `input_ids` (a list of windows a note, one unless `--long_notes windows`),
    `length` (tokens of all windows, for batches of similar length) and, if given, `labels`.
    """
    windows = arguments.long_notes == "windows"
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=arguments.max_length,
        stride=arguments.stride,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    input_ids: list[list[list[int]]] = [[] for _ in texts]
    for note, ids in zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True):
        input_ids[note].append(ids)
    too_long = np.array([len(note) > 1 for note in input_ids])
    if not windows:
        input_ids = [note[:1] for note in input_ids]
    columns = {"input_ids": input_ids, "length": [sum(map(len, note)) for note in input_ids]}
    if labels is not None:
        columns["labels"] = labels.tolist()
    return Dataset.from_dict(columns), too_long


def round_up_width(tokens: int) -> int:
    """Batches come in few widths: products of a shape that is new to it cost a CPU milliseconds (scratch_model.py)."""
    return -(-tokens // WIDTH_STEP) * WIDTH_STEP


class WindowCollator:
    """A batch of tokenised notes: windows stacked as rows and padded to the longest of the batch.

    The width is a multiple of WIDTH_STEP, except where the model does not take so many tokens.

    Gives `labels` (notes,) or (notes, classes), `input_ids` and `attention_mask` (rows, tokens), and, when any note
    has several windows, `window_note` (rows,): which note of the batch a row belongs to.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, examples: list[dict]) -> dict:
        batch = {}
        if "labels" in examples[0]:  # first, because the Trainer reads the batch size off the first tensor
            labels = torch.tensor([example["labels"] for example in examples])
            batch["labels"] = labels.float() if labels.ndim == 2 else labels
        # (`tokenizer.pad` does the same in five milliseconds, a third of a small model's step on a GPU.)
        rows = [torch.tensor(window) for example in examples for window in example["input_ids"]]
        longest = max(map(len, rows))
        width = max(longest, min(round_up_width(longest), self.tokenizer.model_max_length))
        for name, values, padding in (
            ("input_ids", rows, self.tokenizer.pad_token_id),
            ("attention_mask", [torch.ones_like(row) for row in rows], 0),
        ):
            padded = pad_sequence(values, batch_first=True, padding_value=padding)
            batch[name] = F.pad(padded, (0, width - longest), value=padding)
        if len(rows) > len(examples):
            counts = torch.tensor([len(example["input_ids"]) for example in examples])
            batch["window_note"] = torch.repeat_interleave(torch.arange(len(examples)), counts)
        return batch
