"""Train a tokenizer on notes, for a small Transformer (train.py) or an encoder of one's own (pretrain.py).

Three families: `unigram` (SentencePiece, as CamemBERT and AliBERT), `bpe` (byte-level, as RoBERTa), `wordpiece`
(as BERT). None lowercases or strips accents, and all compose characters (Unicode NFC), so that "é" is one token
whether it came as one character or as "e" and an accent (ours: a cased vocabulary suits French).

A vocabulary is a list of words that anyone who gets the model can read. So it is learned only from words that several
documents, or patients, share; a rarer word, such as a name, is encoded by smaller pieces and nowhere spelled out.

    tokenizer = train_tokenizer(texts, family="bpe", vocab_size=6000, max_length=256, groups=patient_ids)
"""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from unicodedata import category

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from data import DataError

# In the order of their ids, which are those of the architectures' own configurations.
ROBERTA_SPECIAL = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
BERT_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
# The characters, for a regular expression, of scripts that put no spaces between words: Thai and Lao, Burmese, Khmer,
# Japanese, Chinese. Each is taken for a word (ours): else a whole clause would be one, which no other note has.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
UNSPACED += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Signs at a letter, such as the vowels of Hindi and Arabic: to Python's regular expressions no part of a word.
MARKS = re.sub(f"[{UNSPACED}]", "", "".join(mark for mark in map(chr, range(0x20000)) if category(mark)[0] == "M"))
WORD = f"[{UNSPACED}]|[^\\W{UNSPACED}]+(?:[{MARKS}]+[^\\W{UNSPACED}]*)*"


def train_tokenizer(
    texts: Sequence[str],
    family: str,
    vocab_size: int,
    max_length: int,
    groups: Sequence | None = None,
    min_documents: int = 5,
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of at most `vocab_size` tokens; the same texts always give the same one.

    Args:
        family: "unigram", "bpe" or "wordpiece".
        max_length: tokens that the model takes, special tokens included.
        groups: the patient or document of each text; a word's documents are then counted as distinct groups.
        min_documents: a word in fewer documents than this teaches the vocabulary nothing but its characters (ours).

    Raises:
        DataError: `vocab_size` does not even hold the characters of the texts.
    """
    learn, pre_tokenizer, decoder, special = FAMILIES[family]
    normalizer = normalizers.NFC()
    split_texts = [
        [word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))] for text in texts
    ]
    words_of = defaultdict(set)
    for words, group in zip(split_texts, range(len(texts)) if groups is None else groups, strict=True):
        words_of[group].update(words)
    documents = Counter(word for words in words_of.values() for word in words)
    shared = [[word for word in words if documents[word] >= min_documents] for words in split_texts]

    # The trainers get the words already split as the tokenizer will split them: no token spans two of them.
    tokenizer = Tokenizer(learn(shared, set(documents), vocab_size))
    mask = AddedToken(special["mask"], lstrip=True, special=True)  # takes the space before it, as RoBERTa's
    tokenizer.add_special_tokens([*list(special.values())[:-1], mask])
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
    ends = [(special[name], tokenizer.token_to_id(special[name])) for name in ("cls", "sep")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special['cls']} $A {special['sep']}", special_tokens=ends
    )
    roles = {f"{name}_token": token for name, token in special.items()} | {"mask_token": mask}
    if special is ROBERTA_SPECIAL:
        roles |= {"bos_token": special["cls"], "eos_token": special["sep"]}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        **roles,
    )


def _check_size(vocab_size: int, needed: int):
    if vocab_size < needed:
        raise DataError(f"--vocab_size {vocab_size}: single characters and special tokens alone take {needed}.")


RESERVED = "\u2585"  # SentencePiece's own: it leaves out every line that holds one, such as a redaction's black bar


def _learn_unigram(shared: list[list[str]], words: set[str], vocab_size: int) -> models.Unigram:
    """By the SentencePiece library, whose training is deterministic where that of `tokenizers` is not."""
    alphabet = sorted(set("".join(words)) - {RESERVED})
    _check_size(vocab_size, len(ROBERTA_SPECIAL) + len(alphabet))
    # SentencePiece itself splits at "▁" alone: a word without one, after an apostrophe or a slash, begins a line. (A
    # line for each word would not do: the first candidates are strings that are followed by different characters.)
    lines = (
        line
        for words in shared
        for line in "".join(word if word.startswith("▁") else f"\n{word}" for word in words)
        .replace(RESERVED, "\n")
        .split("\n")
        if line
    )
    serialized = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=chain(["▁".join(alphabet)], lines),  # so every character is known
        max_sentence_length=2**20,  # longer ones are left out
        model_writer=serialized,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # few texts give fewer tokens
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        control_symbols=[ROBERTA_SPECIAL["mask"]],  # 4
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=serialized.getvalue())
    return models.Unigram([(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))], unk_id=3)


def _learn_bpe(shared: list[list[str]], words: set[str], vocab_size: int) -> models.BPE:
    _check_size(vocab_size, len(ROBERTA_SPECIAL) + len(BYTES))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(ROBERTA_SPECIAL.values()),
        initial_alphabet=BYTES,
        show_progress=False,
    )
    learned = Tokenizer(models.BPE())
    learned.train_from_iterator(shared, trainer)
    return learned.model


def _learn_wordpiece(shared: list[list[str]], words: set[str], vocab_size: int) -> models.WordPiece:
    # Left to itself the trainer numbers the ##-characters in the order of a hash table, which changes the vocabulary
    # from process to process, and knows only those of `shared`: a word with another would become [UNK] as a whole.
    inside = ["##" + character for character in sorted({character for word in words for character in word[1:]})]
    characters = sorted(set("".join(words))) + inside
    _check_size(vocab_size, len(BERT_SPECIAL) + len(characters))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*BERT_SPECIAL.values(), *characters],
        show_progress=False,
    )
    learned = Tokenizer(models.WordPiece(unk_token=BERT_SPECIAL["unk"]))
    learned.train_from_iterator(shared, trainer)
    return models.WordPiece(learned.get_vocab(), unk_token=BERT_SPECIAL["unk"])  # without `characters` as special


_OF_UNSPACED = pre_tokenizers.Split(Regex(f"[{UNSPACED}]"), "isolated")

# How to learn, how to split a text into words, how to join tokens into a text, and the special tokens.
FAMILIES = {
    "unigram": (
        _learn_unigram,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace("▁"),
                pre_tokenizers.Punctuation("isolated"),
                _OF_UNSPACED,
            ]
        ),
        decoders.Metaspace("▁"),
        ROBERTA_SPECIAL,
    ),
    "bpe": (
        _learn_bpe,
        pre_tokenizers.Sequence([_OF_UNSPACED, pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        decoders.ByteLevel(),
        ROBERTA_SPECIAL,
    ),
    "wordpiece": (
        _learn_wordpiece,
        pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), _OF_UNSPACED]),
        decoders.WordPiece(),
        BERT_SPECIAL,
    ),
}
