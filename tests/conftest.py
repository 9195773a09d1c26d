"""Tiny models and invented notes, made on the spot: the tests need no network and no patient."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# of several GPUs, which a scheduler may have named, one, as batches and refusals are expected
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import CamembertConfig, CamembertModel

from tokenization import train_tokenizer

torch.set_num_threads(1)  # pytest-xdist runs a process for each core
os.environ["OMP_NUM_THREADS"] = "1"  # of what a test starts
os.umask(0o022)  # the usual one: under a stricter the modes of files would be right by themselves

FINDINGS = {
    "failure": ["FEVG à 25 %", "œdèmes des chevilles", "galop à l’auscultation", "hépatomégalie", "milrinone débutée"],
    "other": ["toux grasse", "fièvre à 39 °C", "fracture du tibia", "bronchiolite à VRS", "crise d’asthme"],
}


def invent_notes(count: int, seed: int = 0) -> pd.DataFrame:
    """`count` short invented notes, a third of them positive, three to a patient; every text is unique."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = "failure" if number % 3 == 0 else "other"
        findings = " ; ".join(draw.sample(FINDINGS[label], 2) + draw.sample(sum(FINDINGS.values(), []), 1))
        # numbers here and there: no two notes share half of their words in a row, as a copy would (corpus.py)
        text = f"Note {number} : enfant de {draw.randint(1, 17)} ans. {findings}. Lit {number}. Pas d’autre plainte."
        rows.append({"id": f"n{number}", "patient": f"p{number // 3}", "text": text, "label": label})
    return pd.DataFrame(rows)


@pytest.fixture
def notes_file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.csv"
    invent_notes(90).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A random CamemBERT of 2 layers, 32 wide, with a tokenizer of its own, saved as a user would have it."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(invent_notes(300, seed=1)["text"].tolist(), "unigram", 400, 62)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = CamembertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64 + tokenizer.pad_token_id + 1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    CamembertModel(config).save_pretrained(folder)
    return folder
