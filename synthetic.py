"""The built-in corpus `synthetic`: invented French notes of paediatric intensive care, made from a seed in seconds.

Stands in for the paper's private corpus, so that every command of this repository runs without a hospital's data. It
has the paper's public figures and the difficulties of real notes; scores on it say nothing about patients.

    python synthetic.py --num_notes 5444 --seed 0 --output notes.csv

A note is positive if its patient shows cardiac failure *at the time of the note*. What makes that hard to read:
positives that name the condition, only show it, or give nothing but a number (PLANS); negatives that deny it, rule it
out, or tell of a relative or the past; the same drugs, signs and measurements in both; paragraphs copied forward from
an earlier note; abbreviations, misspellings, noise in the labels. No name of a person or hospital occurs.

Templates: [a|b] is a choice, <2-9> and <0.5-1.5> a number in that range, {slot} a fact of the note or a phrase.
"""

import argparse
import random
import re
import sys
import unicodedata
from pathlib import Path

import pandas as pd

# The corpus. The paper's figures are in its abstract and in the MoE paper, arXiv 2303.12892.
NUM_NOTES = 5444  # paper's
NUM_POSITIVE = 1941  # paper's
POSITIVE_SHARE = NUM_POSITIVE / NUM_NOTES  # paper's: 36 %
WORDS_PER_NOTE = 107  # paper's: about 580,000 tokens in all
MIN_NOTES = 20  # ours: fewer cannot be split into folds by patient
LABELS = ("no_cardiac_failure", "cardiac_failure")  # our names for the paper's two classes

# Everything below is ours: the paper describes no note.
LABEL_NOISE = 0.05  # share of notes labelled against their content, as many of either class
NOTES_PER_PATIENT = {1: 3, 2: 5, 3: 5, 4: 3, 5: 2, 6: 1}  # weights; 2.9 on average
STATE_PERSISTENCE = 1.3  # spread of a patient's tendency to failure over the spread from note to note
WORDS_SPREAD = 30  # standard deviation of a note's length in words
WORDS_RANGE = (45, 220)  # shortest and longest length aimed at
ABBREVIATION_RATE = 0.5  # mean share of the terms of ABBREVIATIONS that a note shortens; each note has its own
MISSPELLING_RATE = 0.015  # share of the words of six letters or more
UNACCENTED_RATE = 0.05  # share of the notes typed without any accent
COPY_RATE = 0.25  # share of a patient's later notes that repeat the cardiac paragraph of the note before

# How a note speaks of cardiac failure, as weights within its class; the state is always in the note for who reads well.
PLANS = {
    False: {"silent": 30, "measured": 20, "denied": 16, "relative": 8, "ruled_out": 9, "past": 10, "other_cause": 7},
    True: {"named": 50, "shown": 28, "measured": 22},
}
# (measurement, trend, examination, treatment): how often a note of that plan gives each; ours
DETAILS = {
    "silent": (0.35, 0.05, 0.45, 0.35),
    "measured": (1.0, 0.5, 0.2, 0.5),
    "other": (0.5, 0.25, 0.5, 0.6),
}
SAME_WORDS_RATE = 0.4  # examination and treatment sentences that either class could hold
BYSTANDER_RATE = 0.12  # notes of either class that name the condition without a word on the state
CARDIAC_REASON_RATES = (0.3, 0.55)  # patients never / ever in failure who came for a heart disease
# (lowest, highest) without and with failure. No ejection fraction or NT-proBNP lies between the two ranges.
EJECTION_FRACTION = ((52, 72), (16, 43))  # percent
SHORTENING_FRACTION = ((29, 42), (9, 22))  # percent: what is low for an ejection fraction is normal here
NT_PROBNP = ((40, 890), (2400, 29000))  # ng/L

PHRASES = {
    "failure": ["insuffisance cardiaque"] * 3 + ["décompensation cardiaque", "défaillance cardiaque"],
    "sign": [
        "hépatomégalie",
        "galop",
        "œdèmes des membres inférieurs",
        "œdèmes palpébraux",
        "cardiomégalie",
        "turgescence jugulaire",
        "reflux hépato-jugulaire",
        "crépitants des deux bases",
        "sueurs aux repas",
        "marbrures",
    ],
    "infection": ["bronchiolite", "pneumopathie", "infection urinaire", "gastro-entérite", "grippe A"],
    "when": ["ce jour", "ce matin", "cette nuit", "à l'examen", "au contrôle"],
    "relative": ["mère", "grand-mère maternelle", "tante paternelle", "sœur aînée"],
}

ABBREVIATIONS = {
    "insuffisance cardiaque": "IC",
    "fraction d'éjection": "FEVG",
    "fraction de raccourcissement": "FR VG",
    "échographie cardiaque": "ETT",
    "fréquence cardiaque": "FC",
    "fréquence respiratoire": "FR",
    "communication interventriculaire": "CIV",
    "communication interauriculaire": "CIA",
    "ventilation non invasive": "VNI",
    "ventilation mécanique": "VM",
    "voie veineuse centrale": "VVC",
    "pression artérielle": "PA",
    "NT-proBNP": "NTproBNP",
    "antécédents": "ATCD",
    "antécédent": "ATCD",
    "traitement": "ttt",
    "kinésithérapie": "kiné",
    "ventricule gauche": "VG",
}
