"""Further text for pretraining, and the check that no held-out note is in it.

Text needs no label to help a model: one that was pretrained on the text of a test note knows that note. So before any
text reaches a model or its tokenizer, whatever belongs to a validation or test note is taken out of it:

- by name: a document whose id is that of a held-out note, patient or document, or whose group is that of a held-out
  patient or document;
- by content: a document that holds a held-out note or half of its words, or half of whose words are of such a note,
  as where one was stored in pieces. What counts are words in runs of SHINGLE_WORDS and more that both have (shingles,
  Broder 1997), whatever their case, punctuation and spacing: so a passage is found within a long document, and a note
  whose names were taken out. A note of fewer words is too common to be looked for within others: it is compared as a
  whole.

Knows no model. Text leaves this file as text, for pretrain.py; messages carry file names, ids and counts.
"""

import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data import READERS, DataArguments, DataError, Notes, local_path, read_unlabeled
from tokenization import WORD

logger = logging.getLogger(__name__)

SHINGLE_WORDS = 8
LEAKING_SHARE = 0.5  # of a note's words: so many in common make a document a copy of it (ours)
# What one copy of a text may have and another not: soft hyphens, zero-width and direction marks, Arabic lengthening.
INVISIBLE = "\u00ad\u061c\u0640\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"


@dataclass
class Corpus:
    """Documents to pretrain on. `names` are the ids and groups that each goes by.

    What is a group and no id, of further text, has a slash at its end, as folders have.

    `owners`: whose each is, None where nobody knows. Default: the last name.
    """

    texts: list[str]
    names: list[tuple[str, ...]]
    owners: list[str | None] | None = None

    def __post_init__(self):
        if self.owners is None:
            self.owners = [names[-1] if names else None for names in self.names]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Iterable[int]) -> "Corpus":
        rows = list(rows)
        return Corpus(*([column[row] for row in rows] for column in (self.texts, self.names, self.owners)))

    def __add__(self, other: "Corpus") -> "Corpus":
        return Corpus(self.texts + other.texts, self.names + other.names, self.owners + other.owners)

    @property
    def groups(self) -> list[str]:
        """Whose each document is, for counting in how many documents a word occurs (tokenization.py)."""
        return [owner or f"document {number}" for number, owner in enumerate(self.owners)]

    def fingerprint(self) -> str:
        digest = blake2b(digest_size=8)
        for text, group in zip(self.texts, self.groups, strict=True):
            digest.update(json.dumps([text, group]).encode())  # the vocabulary depends on whose the documents are
        return digest.hexdigest()

    def identity(self) -> str:
        """Which documents these are, by text and all names, in whatever order."""
        documents = sorted(json.dumps(document) for document in zip(self.texts, self.names, strict=True))
        return blake2b("\n".join(documents).encode(), digest_size=8).hexdigest()


def of_notes(notes: Notes, rows: np.ndarray) -> Corpus:
    """These notes of a checked corpus, as documents."""
    names: list[tuple[str, ...]] = [() if notes.ids_are_rows else (str(notes.ids[row]),) for row in rows]
    if notes.groups is not None:
        names = [(*name, str(notes.groups[row])) for name, row in zip(names, rows, strict=True)]
    return Corpus([notes.texts[row] for row in rows], names)


def read_corpus(
    sources: Sequence[str], text_column: str = "text", group_column: str | None = None, id_column: str | None = None
) -> Corpus:
    """Every document of the sources, in their order; a table may lack the columns of groups and ids.

    A source is a UTF-8 text file with one document a line; a table as for `--dataset` (CSV, TSV, JSONL, Parquet, a Hub
    data set or synthetic), all of it whatever its splits; a folder of tables, whose `.txt` files do not count; or a
    folder of `.txt` files that are a document each.

    Raises:
        DataError: a source cannot be read or holds no text.
    """
    columns = dict(text_column=text_column, group_column=group_column, id_column=id_column)
    corpus = Corpus([], [])
    if not all(map(str.strip, sources)):
        raise DataError("--unlabeled is empty; give files or folders.")
    # The owner of a document that is a file: its folder where there are more folders than names of files, as in
    # patient7/letter.txt, else the file, as in 2024/p7.txt (ours).
    paths = {source: local_path(source) for source in sources}
    in_folders = {source: _find_files(path) for source, path in paths.items()}
    documents = [file for files, tables in in_folders.values() if not tables for file in files]
    by_folder = len({file.resolve().parent for file in documents}) > len({file.stem for file in documents})
    for source in sources:
        path = paths[source]
        if path.is_dir():
            files, tables = in_folders[source]
            if tables and files:
                logger.info("%s: tables read; beside them %d .txt files are not", source, len(files))
                files = []
            names, owners = _name_files(files, path, group_column is not None, by_folder)
            found = Corpus([_read_text(file) for file in files], names, owners)
            for table in tables:
                found = found + _read_table(str(table), columns)
        elif path.suffix.lower() == ".txt":
            # (splitlines would cut at the page breaks of a PDF too)
            lines = [line for line in _read_text(path).split("\n") if line.strip()]
            found = Corpus(lines, [()] * len(lines))
        else:
            found = _read_table(source, columns)
        if group_column and path.suffix.lower() == ".txt":
            _warn_of_unnamed(source, "no line names its patient")
        elif group_column and path.is_dir() and not tables:
            _warn_of_unnamed(source, "patients go by the names of files and folders alone")
        found = found.select(row for row, text in enumerate(found.texts) if text.strip())
        if not len(found):
            raise DataError(f"--unlabeled {source}: no text in it; give text files, tables with text, or folders.")
        corpus = corpus + found
    return corpus


def _find_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Text files and tables in it, in order; none where it is no folder."""
    files = []
    for parent, folders, names in os.walk(folder) if folder.is_dir() else []:
        for within in [Path(parent, name) for name in folders]:
            try:
                if within.is_symlink():
                    logger.warning("--unlabeled %s: a link to a folder, not followed", within)
                else:
                    local_path(str(within))  # may it be entered?
            except DataError as error:
                logger.warning("--unlabeled %s; left out", str(error).removesuffix("."))
                folders.remove(within.name)
        files += [path for path in (Path(parent, name) for name in names) if path.is_file()]
    files.sort()
    tables = [file for file in files if file.suffix.lower() in READERS]
    return [file for file in files if file.suffix.lower() == ".txt"], tables


def _name_files(
    files: list[Path], folder: Path, has_groups: bool, by_folder: bool
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Names and owners of documents that are a file each: the file's name and, of groups, those of the folders around
    it, from `folder` on, which may be a patient's itself."""
    around = [folder.resolve().name / file.parent.relative_to(folder) for file in files]
    names = [
        (*(f"{part}/" for part in folders.parts if has_groups), file.stem)
        for folders, file in zip(around, files, strict=True)
    ]
    owners = [
        "/".join(folders.parts[1:] or folders.parts) if by_folder else file.stem
        for folders, file in zip(around, files, strict=True)
    ]
    return names, owners


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"--unlabeled {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"--unlabeled {path} cannot be opened ({error.strerror}).") from error


def _read_table(source: str, columns: dict[str, str | None]) -> Corpus:
    try:
        notes = read_unlabeled(DataArguments(dataset=source, split_column="none", **columns), is_further_text=True)
    except DataError as error:
        named = f"{source}: {error}" if source not in str(error) else str(error).removeprefix("--dataset ")
        raise DataError(f"--unlabeled {named}") from None
    if columns["group_column"] and notes.groups is None:
        _warn_of_unnamed(source, f"no column {columns['group_column']}")
    found = of_notes(notes, np.arange(len(notes)))
    if notes.groups is not None:  # a patient's number, which may be the id of another's note
        found.names = [(*ids, f"{group}/") for *ids, group in found.names]
    return found


def _warn_of_unnamed(source: str, why: str):
    logger.warning(
        "--unlabeled %s: %s; other letters of held-out patients are not known where nothing names them, and a name "
        "that is in five letters of one patient may come into the vocabulary",
        source, why,
    )  # fmt: skip


# ---- the check -----------------------------------------------------------------------------------------------------


@dataclass
class Removed:
    """How many documents were taken out, and why; goes into the result file."""

    by_name: int = 0  # of a held-out note, patient or document
    by_content: int = 0  # holding a held-out note, or half of it
    copies: int = 0  # of another document of the corpus

    def __str__(self) -> str:
        return f"{self.by_name} by id or group, {self.by_content} by content, {self.copies} copies"


def remove_held_out(corpus: Corpus, held_out: Corpus, training: int = 0) -> tuple[Corpus, Removed, int]:
    """What has nothing of the held-out notes, each document once; what was removed; how many training notes stay.

    The first `training` of them are training notes: the splits already keep their ids and patients apart, and the id
    of one may well be the patient number of another.
    """
    names = {_alike(name) for of_note in held_out.names for name in of_note}
    # the id of a document or the name of a file may be a patient's, but a patient's number, or a folder, is no note's
    names |= {f"{_alike(owner)}/" for owner in held_out.owners if owner is not None}
    named = np.array([not names.isdisjoint(map(_alike, of_document)) for of_document in corpus.names], dtype=bool)
    named[:training] = False
    leaking = find_leaking(corpus.texts, held_out.texts) & ~named
    seen, kept = set(), []
    for row in np.flatnonzero(~named & ~leaking):
        key = " ".join(split_words(corpus.texts[row]))
        if key not in seen:
            seen.add(key)
            kept.append(int(row))
    copies = len(corpus) - int(named.sum()) - int(leaking.sum()) - len(kept)
    further, gone = len(corpus) - training, int((named | leaking)[training:].sum())
    if gone > further / 2:
        logger.warning(
            "  %d of the %d --unlabeled documents belong to held-out notes or hold one: are they what a document is, "
            "as a letter? (of a folder, each .txt file is one)",
            gone, further,
        )  # fmt: skip
    left = sum(row < training for row in kept)
    return corpus.select(kept), Removed(int(named.sum()), int(leaking.sum()), copies), left


def _alike(name: str) -> str:
    """The name as another table or file system may have it.

    7.0 and 007 are 7, P7 is p7, and an accent may be a character of its own.
    """
    number = re.sub(r"^(-?)0*(\d+)(?:\.0)?(/?)$", r"\1\2\3", name)
    return unicodedata.normalize("NFC", number.casefold())


def find_leaking(texts: Sequence[str], held_out: Sequence[str]) -> np.ndarray:
    """For each text whether it holds LEAKING_SHARE of a held-out one or is made of one to that share; (texts,)."""
    hashes: dict[str, np.uint64] = {}
    of_notes, whole = [], set()
    for note in held_out:
        words = split_words(note)
        if len(words) < SHINGLE_WORDS:
            whole.add(" ".join(words))
        else:
            of_notes.append(_hash_shingles(words, hashes))
    leaking = np.zeros(len(texts), dtype=bool)
    if of_notes:
        # every different shingle with the number of its note and how many words it can account for there, at most
        counted = [_count_shingles(each) for each in of_notes]
        shingles, most = map(np.concatenate, zip(*counted, strict=True))
        owner = np.repeat(np.arange(len(of_notes)), [len(different) for different, _ in counted])
        order = np.argsort(shingles, kind="stable")
        shingles, owner, most = shingles[order], owner[order], most[order]
        needed = LEAKING_SHARE * np.array([len(each) + SHINGLE_WORDS - 1 for each in of_notes])
    for row, text in enumerate(texts):
        words = split_words(text)
        if len(words) < SHINGLE_WORDS:
            leaking[row] = " ".join(words) in whole
        elif of_notes:
            of_text = _hash_shingles(words, hashes)
            different, most_of_text = _count_shingles(of_text)
            first = np.searchsorted(shingles, different, "left")
            times = np.searchsorted(shingles, different, "right") - first  # a shingle may be of several notes
            places = np.repeat(first - times.cumsum() + times, times) + np.arange(times.sum())
            of_note = np.bincount(owner[places], most[places], minlength=len(of_notes))
            of_this = np.bincount(owner[places], np.repeat(most_of_text, times), minlength=len(of_notes))
            candidates = np.flatnonzero((of_note >= needed) | (of_this >= LEAKING_SHARE * len(words)))
            leaking[row] = any(
                max(_share(of_notes[note], different), _share(of_text, of_notes[note])) >= LEAKING_SHARE
                for note in candidates
            )
    return leaking


def _count_shingles(shingles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones, and how many words each can account for at most: those of all its places."""
    different, times = np.unique(shingles, return_counts=True)
    return different, SHINGLE_WORDS * times


def _share(shingles: np.ndarray, others: np.ndarray) -> float:
    """The share of a text's words, of which these are the shingles in their order, that are in one of the others."""
    shared = np.isin(shingles, others)
    covered = np.zeros(len(shingles) + SHINGLE_WORDS - 1, dtype=bool)
    for place in range(SHINGLE_WORDS):
        covered[place : place + len(shingles)] |= shared
    return float(covered.mean())


def split_words(text: str) -> list[str]:
    """In lower case and without punctuation: what two copies of a note share however they were stored."""
    # NFKC: an accent may be stored as a character of its own, at which \w+ would end a word
    text = re.sub(f"[{INVISIBLE}]", "", unicodedata.normalize("NFKC", text).casefold())
    text = re.sub(r"(?<=\w)-[ \t]*\r?\n\s*(?=\w)", "", text)  # a word that is parted at the end of a line
    return re.findall(WORD, text.replace("œ", "oe").replace("æ", "ae").replace("_", " "))


def _hash_shingles(words: list[str], hashes: dict[str, np.uint64]) -> np.ndarray:
    """A 64-bit number for every run of SHINGLE_WORDS words; `hashes` remembers the words'."""
    for word in set(words).difference(hashes):
        hashes[word] = np.uint64(int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little"))
    numbers = np.array([hashes[word] for word in words], dtype=np.uint64)
    count, total = len(numbers) - SHINGLE_WORDS + 1, np.uint64(0)
    with np.errstate(over="ignore"):
        for place in range(SHINGLE_WORDS):  # a polynomial in an odd number, modulo 2^64
            total = total * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + count]
    return total
