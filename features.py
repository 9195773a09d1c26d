"""Hidden states of a frozen encoder, computed once and shared by every fold, epoch and seed of a run.

A frozen encoder gives a note the same hidden states every time: one forward pass over all notes replaces one in every
epoch of every fold. They are held in memory as bfloat16, without padding: tokens x hidden x 2 bytes, about 1 GB for
580,000 tokens of a base-size encoder.
"""

import logging
import time

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from batches import WindowCollator, tokenize_notes
from data import DataArguments

logger = logging.getLogger("train")

TOKENS_PER_BATCH = 4096  # of the forward pass; on two cores larger batches gain nothing (ours)


class FrozenFeatures:
    """The hidden states of all notes of a corpus, by note index; empty until `compute`."""

    def __init__(self):
        self.states: list[list[torch.Tensor]] = []  # for each note, for each of its windows, (tokens, hidden) bfloat16
        self.is_long = np.array([], dtype=bool)  # for each note: over max_length tokens
        self.hours = 0.0  # of the forward pass: a cost that all folds share

    def compute(
        self,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: list[str],
        arguments: DataArguments,
        device: torch.device,
    ):
        """One pass over all notes, shortest first so that a batch has little padding; does nothing the second time."""
        if self.states:
            return
        encoded, self.is_long = tokenize_notes(texts, None, tokenizer, arguments)
        collate = WindowCollator(tokenizer)
        encoder = encoder.to(device).eval()
        started = time.perf_counter()
        self.states = [[] for _ in texts]
        done, total, shown = 0, sum(encoded["length"]), started
        with torch.inference_mode():
            for notes in _batches_of_similar_length(np.array(encoded["length"])):
                batch = collate([encoded[int(note)] for note in notes])
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                hidden = encoder(**inputs).last_hidden_state.to(torch.bfloat16).cpu()
                tokens = batch["attention_mask"].sum(dim=1).tolist()
                row_notes = batch["window_note"].tolist() if "window_note" in batch else range(len(notes))
                for row, note in enumerate(row_notes):
                    # a copy, or every note would keep its whole padded batch in memory
                    self.states[notes[note]].append(hidden[row, : tokens[row]].clone())
                done += sum(tokens)
                now = time.perf_counter()
                if now - shown > 15:
                    shown, left = now, (now - started) * (total - done) / done
                    logger.info("  hidden states: %d of %d tokens, %.1f min left", done, total, left / 60)
        self.hours = (time.perf_counter() - started) / 3600
        logger.info("  hidden states of %d tokens in %.1f s, for all folds", total, self.hours * 3600)

    def select(self, rows: np.ndarray, labels: np.ndarray) -> tuple[datasets.Dataset, np.ndarray]:
        """What `tokenize_notes` gives for these notes, with their index in the place of their token ids."""
        lengths = [sum(len(window) for window in self.states[row]) for row in rows]
        columns = {"note": rows.tolist(), "length": lengths, "labels": labels.tolist()}
        return datasets.Dataset.from_dict(columns), self.is_long[rows]


def _batches_of_similar_length(lengths: np.ndarray) -> list[list[int]]:
    """Note indices by length, cut into batches of about TOKENS_PER_BATCH tokens."""
    batches, tokens = [[]], 0
    for note in np.argsort(lengths, kind="stable"):
        if tokens + lengths[note] > TOKENS_PER_BATCH and batches[-1]:
            batches.append([])
            tokens = 0
        batches[-1].append(int(note))
        tokens += lengths[note]
    return batches


class FeatureCollator:
    """What `WindowCollator` does, with `hidden_states` (rows, tokens, hidden) in the place of `input_ids`."""

    def __init__(self, features: FrozenFeatures):
        self.features = features

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([example["labels"] for example in examples])
        notes = [self.features.states[example["note"]] for example in examples]
        rows = [window for note in notes for window in note]
        batch = {
            "labels": labels.float() if labels.ndim == 2 else labels,
            "hidden_states": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(
                [torch.ones(len(row)) for row in rows], batch_first=True
            ),
        }
        batch["attention_mask"] = batch["attention_mask"].long()
        if len(rows) > len(notes):
            counts = torch.tensor([len(note) for note in notes])
            batch["window_note"] = torch.repeat_interleave(torch.arange(len(notes)), counts)
        return batch
