"""The built-in corpus `synthetic`: invented French notes of paediatric intensive care, made from a seed in seconds.

It stands in for the paper's private corpus, so that every command of this repository runs without a hospital's data:
the paper's public figures, and the difficulties of real notes. Scores on it say nothing about patients.

    python synthetic.py --num_notes 5444 --seed 0 --output notes.csv

A note is positive if its patient is in cardiac failure *at the time of the note*. What makes that hard to read:
positives which name the condition, only show it, or give nothing but a number; negatives which deny it, rule it out,
or tell of a relative, of the past or of another cause; the same drugs, signs and measurements in both; paragraphs
copied forward from the note before; abbreviations, misspellings, noise in the labels. No person or hospital is named.

Templates: [a|b] is a choice, <2-9> or <0.5-1.5> a number of that range, {slot} a fact of the note or a phrase.
"""

import argparse
import random
import re
import sys
import unicodedata
from itertools import accumulate, groupby
from pathlib import Path

import pandas as pd

# The corpus. The paper's figures are in its abstract (arXiv 2407.19299) and in the MoE paper (arXiv 2303.12892).
NUM_NOTES = 5444  # paper's
POSITIVE_SHARE = 1941 / 5444  # paper's: 36 %
WORDS_PER_NOTE = 107  # paper's: about 580,000 tokens in all
LABELS = ("no_cardiac_failure", "cardiac_failure")  # paper's two classes, our names

# From here on every figure is ours: the paper describes no note.
MIN_NOTES = 20  # fewer cannot be split into folds by patient
NOTES_PER_PATIENT = 2.9  # on average, geometric
PATIENT_SPREAD = 1.2  # of the tendency to failure between patients, over its spread between notes of one patient
LABEL_NOISE = 0.05  # share of notes labelled against their content, as many of either class
AIMED_WORDS = 92  # a note passes its aim by half a sentence and by its headings, to WORDS_PER_NOTE on average
WORDS_SPREAD = 30  # standard deviation of the aim
MIN_WORDS = 45  # shortest length aimed at
ABBREVIATION_RATE = 0.5  # mean share of the terms of ABBREVIATIONS that a note shortens; each note has its own
MISSPELLING_RATE = 0.015  # share of the words of five letters or more
UNACCENTED_RATE = 0.05  # share of notes typed without any accent
COPY_RATE = 0.2  # share of a patient's later notes that repeat the cardiac paragraph of the note before
CARDIAC_REASON_RATES = (0.35, 0.55)  # patients never, and ever, in failure who were admitted for a heart disease
BYSTANDER_RATE = 0.12  # notes without a statement that name the condition all the same, and leave the state open
NEUTRAL_RATE = 0.4  # examinations and treatments that are told in the same words without and with failure
# How a note tells the state, in weights, without and with failure.
PLANS = (
    {"silent": 42, "measured": 15, "denied": 15, "relative": 6, "ruled_out": 8, "past": 8, "other_cause": 8},
    {"named": 58, "shown": 25, "measured": 17},
)
# How often a note of a plan (or of any other) gives a trend, a measurement, an examination, a treatment, vital signs.
DETAIL_RATES = {
    "silent": (0.05, 0.3, 0.4, 0.35, 0.6),
    "measured": (0.4, 1, 0.3, 0.5, 0.6),
    "shown": (0.2, 0.3, 1, 1, 0.6),
}
OTHER_DETAIL_RATES = (0.2, 0.4, 0.5, 0.6, 0.5)
# Lowest and highest value without and with failure, on either side of what a clinician calls abnormal.
EJECTION_FRACTION = ((52, 72), (16, 43))  # percent
SHORTENING_FRACTION = ((29, 42), (9, 22))  # percent: normal here is low for an ejection fraction
NT_PROBNP = ((40, 890), (2400, 29000))  # ng/L

ABBREVIATIONS = {
    "insuffisance cardiaque": "IC",
    "fraction d'éjection": "FEVG",
    "échographie cardiaque": "ETT",
    "fréquence cardiaque": "FC",
    "fréquence respiratoire": "FR",
    "communication interventriculaire": "CIV",
    "communication interauriculaire": "CIA",
    "ventilation non invasive": "VNI",
    "voie veineuse centrale": "VVC",
    "pression artérielle": "PA",
    "nt-probnp": "NTproBNP",
    "antécédent": "ATCD",
    "kinésithérapie": "kiné",
}
PHRASES = {
    "failure": "[insuffisance cardiaque|insuffisance cardiaque|insuffisance cardiaque|décompensation cardiaque|"
    "défaillance cardiaque]",
    "echo": "[échographie cardiaque|échographie cardiaque|échographie au lit]",
    "when": "[ce jour|ce matin|cette nuit|aujourd'hui|à midi]",
    "relative": "[mère|grand-mère maternelle|tante paternelle|sœur aînée]",
    "cardiac_reason": "[les suites de fermeture d'une [communication interventriculaire|communication "
    "interauriculaire]|les suites de réparation d'une T4F|une suspicion de myocardite|une cardiomyopathie dilatée "
    "connue|une tachycardie supraventriculaire|une coarctation de l'aorte opérée|un épanchement "
    "péricardique|un retour de cathétérisme]",
    "other_reason": "[une bronchiolite à VRS|une pneumopathie hypoxémiante|un sepsis à point de départ urinaire|un "
    "choc septique|un état de mal épileptique|une crise d'asthme sévère|une acidocétose inaugurale|un traumatisme "
    "crânien|les suites d'une chirurgie de scoliose|une méningite à pneumocoque|une coqueluche maligne|une anémie "
    "profonde|une gastro-entérite avec déshydratation|une insuffisance rénale aiguë|une intoxication médicamenteuse|"
    "une insuffisance respiratoire sur dysplasie bronchopulmonaire]",
    "background": "[[ancien prématuré de|prématurité à] <27-35> SA, dysplasie bronchopulmonaire|[communication "
    "interventriculaire|communication interauriculaire] [suivie, restrictive|opérée à <2-9> mois|large, non opérée]|"
    "T4F [corrigée à <4-9> mois|en attente de cure complète]|trisomie 21, hypothyroïdie substituée|épilepsie sous "
    "[valproate|lévétiracétam]|asthme sous corticoïdes inhalés|reflux gastro-œsophagien|drépanocytose homozygote|"
    "leucémie en rémission, anthracyclines reçues|cardiomyopathie [dilatée suivie|hypertrophique familiale]|maladie "
    "métabolique en cours d'exploration|aucune maladie connue, vaccins à jour|encéphalopathie, gastrostomie|"
    "syndrome néphrotique corticosensible]",
}
SIGNS = (
    "hépatomégalie|galop|œdèmes des membres inférieurs|œdèmes palpébraux|cardiomégalie|turgescence jugulaire|"
    "reflux hépato-jugulaire|crépitants des deux bases|sueurs aux repas|extrémités froides"
).split("|")

INTROS = [
    "{subject}, admis{e} pour {reason}, J{day}. Antécédent : {background}.",
    "J{day} d'hospitalisation pour {reason}. {background}.",
    "{child} de {age}, hospitalisé{e} pour {reason}. [Terrain|Antécédent] : {background}. J{day}.",
    "[Transfert|Entrée] depuis [les urgences|la pédiatrie|le bloc] pour {reason}. {age}, {background}.",
    "[Garde|Visite|Relève], J{day}. {subject}, {age}, pris{e} en charge pour {reason}. {background}.",
]
# What a note says of the condition itself.
STATEMENTS = {
    "named": [
        "Tableau de {failure} [aiguë|globale|à prédominance droite|à prédominance gauche][| confirmé {when}].",
        "{failure} [persistante|non contrôlée|confirmée|réfractaire] {when}.",
        "On retient une {failure} [sur myocardite|sur cardiopathie congénitale|d'origine mixte|après avis].",
        "Pas d'amélioration de la {failure} [depuis hier|sous traitement|{when}].",
        "Signes [cliniques|échographiques|cliniques et échographiques] de {failure} {when}.",
        "{failure} en cours de traitement, évolution [lente|fluctuante].",
        "La {failure} n'est [toujours pas|pas encore] résolue.",
        "Pas de doute sur la {failure} [{when}|devant l'ensemble du tableau].",
        "[Absence de facteur déclenchant|Pas de cause infectieuse] à la {failure}, bilan étiologique en cours.",
        "{failure} écartée à l'admission, [diagnostic finalement retenu|hypothèse confirmée] {when}.",
        "Antécédent de {failure} à <1-3> mois, [récidive|nouvel épisode] {when}.",
        "{relative} suivie pour {failure}, [même tableau chez l'enfant|l'enfant est atteint à son tour].",
        "{failure} [évoquée hier|suspectée à l'entrée], [confirmée|étayée] par [l'{echo}|le dosage du NT-proBNP].",
        "Échec de sevrage : signes de {failure} à l'arrêt [du diurétique|des inotropes].",
    ],
    "denied": [
        "Pas de signe [|clinique ]de {failure}[| {when}].",
        "Absence de {failure}[| {when}].",
        "Aucun argument pour une {failure}[| aiguë].",
        "{failure} : non.",
        "{failure} non retenue {when}.",
        "[Ni trouble du rythme ni|Pas de trouble du rythme, d'épanchement ni de] {failure}.",
        "L'examen ne retrouve pas d'argument clinique, biologique ou échographique pour une {failure}.",
        "Bilan de {failure} négatif {when}.",
    ],
    "relative": [
        "{relative} suivie pour {failure}[|, dépistage de l'enfant normal].",
        "Dans la famille : {failure} chez [la mère|le père|un oncle|le grand-père], enquête génétique proposée.",
        "{relative} [hospitalisée|traitée] pour {failure}, l'enfant n'est pas atteint.",
    ],
    "ruled_out": [
        "{failure} évoquée puis écartée devant une fraction d'éjection à {ef} %.",
        "Devant la polypnée, {failure} suspectée, [hypothèse abandonnée|non confirmée à l'{echo}].",
        "{failure} discutée à l'admission, diagnostic redressé en [pneumopathie|bronchiolite|surcharge volémique].",
        "Suspicion de {failure} [levée|infirmée] par l'{echo}.",
        "{failure} redoutée devant les marbrures, [avis spécialisé rassurant|{echo} normale].",
    ],
    "past": [
        "Antécédent de {failure} à <1-3> mois, [résolue|guérie|sans récidive].",
        "{failure} [néonatale|postopératoire] [résolue|sans récidive].",
        "Épisode de {failure} à l'admission, [résolu {when}|réglé après <3-9> jours de traitement].",
        "Hospitalisation l'an dernier pour {failure}, fonction normalisée depuis.",
    ],
    "other_cause": [
        "Hépatomégalie [connue, d'origine métabolique|sur hépatite virale], cœur normal.",
        "Œdèmes [sur hypoalbuminémie|du syndrome néphrotique|post-transfusionnels], fonction cardiaque normale.",
        "Cardiomégalie radiologique rapportée [au thymus|à un cliché en expiration].",
        "NT-proBNP non interprétable [sur insuffisance rénale|en période néonatale], échographie normale.",
        "Choc d'origine septique, vasoplégie, contractilité conservée.",
    ],
}
BYSTANDERS = [
    "Parents informés [du risque de|des signes d'alerte d'une] {failure}.",
    "Conduite à tenir en cas de {failure} expliquée [à la famille|à l'équipe].",
    "Pas d'antécédent familial de {failure}.",
    "Prévenir le cardiologue en cas de signe de {failure}.",
]
# The same sentences without and with failure: only the value tells.
TRENDS = [
    "Fraction d'éjection passée de {past_ef} % à {ef} %.",
    "Fraction d'éjection {ef} % {when} ({past_ef} % [à l'admission|il y a <2-9> jours|au précédent examen]).",
    "Fraction d'éjection {past_ef} % [à l'entrée|à J1], {ef} % {when}.",
    "NT-proBNP {past_bnp} puis {bnp} ng/L.",
    "NT-proBNP {bnp} ng/L {when} contre {past_bnp} ng/L [à l'entrée|il y a <2-9> jours].",
]
MEASUREMENTS = [
    "{echo} : fraction d'éjection [à|mesurée à|estimée à] {ef} %[|, pas d'épanchement|, pas de shunt].",
    "Fraction d'éjection {ef} % [en visuel|{when}], pressions droites [normales|non évaluables].",
    "Fonction ventriculaire gauche [chiffrée|évaluée] à {ef} %, [TAPSE <9-19> mm|valves sans particularité].",
    "{echo} {when} : fraction de raccourcissement {sf} %, [fraction d'éjection {ef} %|péricarde sec].",
    "NT-proBNP [à|dosé à] {bnp} ng/L, troponine [<11-90> ng/L|en attente|stable].",
    "Biologie : NT-proBNP {bnp} ng/L, CRP <5-180> mg/L, créatinine <18-90> µmol/L.",
]
VITALS = [
    "Fréquence cardiaque {hr}/min, fréquence respiratoire {rr}/min, pression artérielle <70-118>/<36-70> mmHg.",
    "Constantes : fréquence cardiaque {hr}, fréquence respiratoire {rr}, SpO2 <91-100> %, T° <36.2-39.4>.",
    "Pouls à {hr}/min, pression artérielle moyenne <44-82> mmHg, SpO2 <91-100> % sous FiO2 <21-60> %.",
]
# Without failure, with failure, and in the same words in either case.
EXAMINATIONS = (
    [
        "[Pas de|Absence de] {sign}[| {when}].",
        "Ni {sign} ni {sign_2}.",
        "{sign} : non.",
        "Recherche de {sign} négative.",
        "Pas de {sign}, de {sign_2} ni de souffle.",
        "Signes disparus {when} : {sign}, {sign_2}.",
        "Bruits du cœur réguliers sans {sign}, auscultation normale.",
    ],
    [
        "{sign} et {sign_2} {when}.",
        "{sign} : oui.",
        "Recherche de {sign} positive.",
        "[Signes nouveaux|Signes présents] {when} : {sign}, {sign_2}.",
        "Pas de souffle mais {sign} et {sign_2}.",
        "Pas de changement : toujours {sign} et {sign_2}.",
        "Bruits du cœur réguliers avec {sign}, temps de recoloration <4-6> s.",
    ],
    [
        "Recherche de {sign} à chaque équipe.",
        "Souffle systolique [connu|<2-4>/6], pouls [perçus|symétriques].",
        "Surveillance [horaire|par équipe] : {sign}, diurèse, conscience.",
        "Radiographie : index cardiothoracique à 0,<46-56>, sonde en place.",
        "Polypnée à <36-70>/min avec tirage, [encombrement|geignement] {when}.",
    ],
)
TREATMENTS = (
    [
        "Milrinone [arrêtée|sevrée] [hier|depuis <2-6> jours|{when}].",
        "Furosémide per os au long cours pour [dysplasie bronchopulmonaire|syndrome néphrotique].",
        "Furosémide IV, une dose après transfusion.",
        "Captopril pour hypertension artérielle d'origine rénale.",
        "Pas de recours aux inotropes ni aux diurétiques.",
        "Arrêt [du furosémide|de la spironolactone|de la dobutamine] {when}.",
    ],
    [
        "Milrinone [débutée|majorée] à <0.3-0.8> µg/kg/min.",
        "Furosémide IV [majoré|continu] à <1-4> mg/kg/jour.",
        "Dobutamine <3-10> µg/kg/min [débutée|augmentée] {when}.",
        "Pas de sevrage possible de la [milrinone|dobutamine].",
        "Captopril et spironolactone introduits [{when}|hier], furosémide poursuivi.",
        "Furosémide IV, restriction hydrique, discussion [de lévosimendan|d'assistance].",
    ],
    [
        "Milrinone <0.2-0.7> µg/kg/min[| depuis le bloc| selon protocole].",
        "Furosémide <0.5-2.0> mg/kg [IV|per os], [<2-4> fois par jour|adapté au bilan des entrées].",
        "Dobutamine <3-9> µg/kg/min.",
        "Captopril [poursuivi|aux doses habituelles], spironolactone <1-3> mg/kg/jour.",
        "Furosémide IV {when}, bilan des entrées [positif|négatif] de <40-450> mL.",
        "Restriction hydrique à <60-90> % des besoins.",
    ],
)
# Everything else, by heading: drawn until the note has its length.
OTHER_SYSTEMS = {
    "[Respiratoire|Respi|Plan respiratoire]": [
        "[Ventilation non invasive|Lunettes à haut débit] à <1-3> L/kg/min, FiO2 <25-60> %.",
        "Ventilation mécanique : pression de pointe <16-28>, PEP <4-9>, FiO2 <25-70> %.",
        "Sibilants bilatéraux, salbutamol [en continu|toutes les <2-6> heures].",
        "Extubation [programmée demain|réalisée {when}|différée].",
        "Encombrement bronchique, kinésithérapie <2-4> fois par jour.",
        "Gaz du sang : pH 7,<22-44>, pCO2 <34-68> mmHg, lactates <0.7-3.9> mmol/L.",
        "Radiographie de thorax : [foyer de la base droite|atélectasie du lobe supérieur|syndrome interstitiel].",
        "Apnées : <1-6> dans la nuit, stimulation nécessaire.",
    ],
    "[Infectieux|Infectiologie]": [
        "Fièvre à <38.1-40.1>, hémocultures [prélevées|négatives à 48 heures|en cours].",
        "[Céfotaxime|Amoxicilline-acide clavulanique|Pipéracilline-tazobactam] J<1-8>, CRP <8-240> mg/L.",
        "Apyrexie depuis <2-5> jours, procalcitonine <0.2-9.5> µg/L.",
        "VRS [positif|négatif], isolement [gouttelettes|contact].",
        "ECBU [stérile|positif à Escherichia coli], [échographie rénale prévue|relais oral {when}].",
    ],
    "[Neurologique|Neuro]": [
        "Glasgow <8-15>, pupilles symétriques et réactives.",
        "Sédation par midazolam <30-120> µg/kg/h et morphine <10-40> µg/kg/h.",
        "Pas de nouvelle crise convulsive depuis <6-48> heures, lévétiracétam poursuivi.",
        "EEG [ralenti sans crise|normal pour l'âge|à contrôler].",
        "Douleur bien contrôlée, EVENDOL <1-6>/15.",
    ],
    "[Nutrition|Digestif]": [
        "Nutrition [entérale|parentérale] à <40-120> % des besoins, bien tolérée.",
        "Vomissements <2-5> fois, reprise prudente de l'alimentation.",
        "Transit repris, abdomen souple, poids en [hausse|baisse] de <20-220> g.",
        "Bilan hépatique : ASAT <22-310> UI/L, ALAT <15-290> UI/L.",
        "Glycémies entre <3.8-5.9> et <6.0-11.5> mmol/L, insuline [arrêtée|<0.02-0.09> UI/kg/h].",
    ],
    "[Rénal|Métabolique]": [
        "Diurèse <0.4-4.8> mL/kg/h, créatinine <18-140> µmol/L, urée <2-15> mmol/L.",
        "Natrémie <129-147>, kaliémie <2.9-5.4>, calcium ionisé <1.02-1.31> mmol/L.",
        "Insuffisance rénale aiguë [en amélioration|stable|non oligurique].",
        "Expansion volémique de <10-40> mL/kg reçue [aux urgences|au bloc|{when}].",
    ],
    "[Hématologie|Hémato]": [
        "Hémoglobine <65-138> g/L, plaquettes <45-420> G/L, hématocrite <21-45> %.",
        "Transfusion de culot globulaire <10-20> mL/kg {when}.",
        "Hémostase : TP <48-98> %, fibrinogène <1.4-5.2> g/L.",
        "Saturation veineuse centrale <48-78> %, hémoglobine à recontrôler.",
    ],
    "[Soins|Divers]": [
        "Voie veineuse centrale [jugulaire|fémorale] J<1-9>, [point propre|ablation {when}].",
        "Drain thoracique : <10-190> mL sur 24 heures, [retrait demain|à laisser en place].",
        "Cicatrice de sternotomie [propre|à surveiller], pansement refait.",
        "Mobilisation au fauteuil, kinésithérapie motrice quotidienne.",
        "Parents rencontrés {when}, [informations données|questions sur la durée du séjour].",
        "Passage de [l'assistante sociale|la psychologue|l'orthophoniste], suivi poursuivi.",
    ],
}
OUTLOOKS = [
    "Poursuite de la prise en charge, réévaluation [demain|ce soir|dans <6-24> heures].",
    "Au total : état [stable|préoccupant|globalement stable], [pas de changement|adaptation des doses].",
    "Bilan biologique [demain matin|ce soir], avis [cardiologique|pneumologique|infectiologique] demandé.",
    "{echo} prévue [demain|dans 48 heures|avant la sortie].",
    "Transfert en pédiatrie [envisagé|non envisageable] à ce stade.",
]
COPY = "[Report de J{past_day}|Rappel J{past_day}|Copié de J{past_day}] : {copied} [Réévaluation|État] à J{day} :"

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
RANGE = re.compile(r"<([\d.]+)-([\d.]+)>")
ELISION = re.compile(r"\b([dl])[ea] (?=[aeiouâéèêîôœh])", re.IGNORECASE)
SENTENCE_START = re.compile(r"(?:^|(?<=[.] ))[a-zà-öø-ÿœ]")
TERM = re.compile("|".join(map(re.escape, ABBREVIATIONS)), re.IGNORECASE)
LONG_WORD = re.compile(r"[^\W\d_]{5,}")


def fill(rng: random.Random, template: str, facts: dict[str, str]) -> str:
    """A template with its choices made from the innermost out, its slots filled from `facts`, its numbers drawn."""

    def draw_number(bounds: re.Match) -> str:
        decimals = len(bounds[1].partition(".")[2])
        return f"{rng.uniform(float(bounds[1]), float(bounds[2])):.{decimals}f}".replace(".", ",")

    text, before = template, None
    while text != before:
        before = text
        text = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)
        text = SLOT.sub(lambda match: facts[match[1]], text)
    return RANGE.sub(draw_number, text)


def write(rng: random.Random, template: str, facts: dict[str, str]) -> str:
    """A filled template as French: with elision ("d'insuffisance") and capitals."""
    text = ELISION.sub(r"\1'", fill(rng, template, facts))
    return SENTENCE_START.sub(lambda match: match[0].upper(), text)


def _draw_states(rng: random.Random, patients: list[int], num_positive: int) -> list[bool]:
    """Failure or not at each note: true for the `num_positive` highest sums of patient's and note's tendency."""
    tendencies = [rng.gauss(0, PATIENT_SPREAD) for _ in range(patients[-1] + 1)]
    scores = [tendencies[patient] + rng.gauss(0, 1) for patient in patients]
    threshold = sorted(scores)[-num_positive]
    return [score >= threshold for score in scores]


def _flip_some(rng: random.Random, states: list[bool]) -> list[bool]:
    """The states with LABEL_NOISE of them turned, as many of either class, so that the positive share stays."""
    num_flips = round(len(states) * LABEL_NOISE / 2)
    rows = [rng.sample([row for row, at in enumerate(states) if at == state], num_flips) for state in (False, True)]
    flipped = {row for of_class in rows for row in of_class}
    return [state != (row in flipped) for row, state in enumerate(states)]


def _measure(rng: random.Random, state: bool, past_state: bool, years: int) -> dict[str, str]:
    """Values at this note and before. Heart and breathing rates only hint: fever and lungs raise them too."""

    def draw_nt_probnp(failing: bool) -> str:
        low, high = NT_PROBNP[failing]
        return f"{round(low * (high / low) ** rng.random(), -1):,.0f}".replace(",", rng.choice(["", " "]))

    strain = 22 * state + 18 * (rng.random() < 0.4)  # beats a minute
    return {
        "ef": str(rng.randint(*EJECTION_FRACTION[state])),
        "past_ef": str(rng.randint(*EJECTION_FRACTION[past_state])),
        "sf": str(rng.randint(*SHORTENING_FRACTION[state])),
        "bnp": draw_nt_probnp(state),
        "past_bnp": draw_nt_probnp(past_state),
        "hr": str(round(rng.gauss(max(78, 132 - 5 * years) + strain, 12))),
        "rr": str(round(rng.gauss(max(18, 38 - 2 * years) + strain / 3, 5))),
    }


def _write_cardiac(rng: random.Random, state: bool, facts: dict[str, str], is_copying: bool) -> list[str]:
    """The sentences that tell the state, and those that seem to; after a copied paragraph, always a measurement."""
    plan = rng.choices(list(PLANS[state]), PLANS[state].values())[0]
    details = [rng.random() < rate for rate in DETAIL_RATES.get(plan, OTHER_DETAIL_RATES)]
    has_trend, has_measurement, has_examination, has_treatment, has_vitals = details
    templates = []
    if plan in STATEMENTS:
        templates.append(rng.choice(STATEMENTS[plan]))
    elif rng.random() < BYSTANDER_RATE:
        templates.append(rng.choice(BYSTANDERS))
    if has_trend:
        templates.append(rng.choice(TRENDS))
    elif has_measurement or is_copying:
        templates.append(rng.choice(MEASUREMENTS))
    for wanted, by_state in ((has_examination, EXAMINATIONS), (has_treatment, TREATMENTS)):
        if wanted:
            neutral = plan == "measured" or plan != "shown" and rng.random() < NEUTRAL_RATE
            templates.append(rng.choice(by_state[2 if neutral else state]))
    if has_vitals:
        templates.append(rng.choice(VITALS))
    rng.shuffle(templates)
    return [write(rng, template, facts) for template in templates]


def _write_others(rng: random.Random, facts: dict[str, str], num_words: int) -> dict[str, list[str]]:
    """Sentences on other systems, by heading, until they have `num_words`."""
    pool = [(heading, template) for heading, templates in OTHER_SYSTEMS.items() for template in templates]
    parts = {}
    for heading, template in rng.sample(pool, len(pool)):
        if num_words <= 0:
            break
        parts.setdefault(heading, []).append(write(rng, template, facts))
        num_words -= len(parts[heading][-1].split())
    return parts


def _lay_out(rng: random.Random, parts: dict[str, list[str]], facts: dict[str, str]) -> str:
    """The note as running text, as a list, or under headings."""
    style = rng.choice(["text", "list", "headings", "capitals"])
    sentences = [sentence for part in parts.values() for sentence in part]
    if style == "text":
        return " ".join(sentences)
    if style == "list":
        return "\n".join(f"- {sentence}" for sentence in sentences)
    headings = [write(rng, heading, facts) for heading in parts]
    headings = [heading.upper() for heading in headings] if style == "capitals" else headings
    return "\n".join(f"{heading} : {' '.join(part)}" for heading, part in zip(headings, parts.values(), strict=True))


def _strip_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text.replace("œ", "oe").replace("Œ", "Oe"))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _type(rng: random.Random, text: str) -> str:
    """The text as a hurried hand types it: terms shortened, words misspelt, at times no accents. Numbers stay."""

    def misspell(match: re.Match) -> str:
        word = match[0]
        if rng.random() >= MISSPELLING_RATE:
            return word
        place = rng.randint(1, len(word) - 2)
        before, letter, following, rest = word[:place], word[place], word[place + 1], word[place + 2 :]
        typed = rng.choice([following, letter * 2 + following, following + letter])  # left out, doubled, swapped
        return rng.choice([before + typed + rest, _strip_accents(word)])

    rate = rng.uniform(0, 2 * ABBREVIATION_RATE)
    text = TERM.sub(lambda match: ABBREVIATIONS[match[0].lower()] if rng.random() < rate else match[0], text)
    text = LONG_WORD.sub(misspell, text)
    return _strip_accents(text) if rng.random() < UNACCENTED_RATE else text


def _write_patient(rng: random.Random, states: list[bool]) -> list[str]:
    """The notes of one patient in order of time, one for each state."""
    years = rng.randint(0, 16)
    noun, child, e = rng.choice([("le patient", "ce garçon", ""), ("la patiente", "cette fille", "e")])
    if years < 2:
        noun, child, e = "le nourrisson", "ce nourrisson", ""
    reason = "cardiac_reason" if rng.random() < CARDIAC_REASON_RATES[any(states)] else "other_reason"
    patient = {
        "subject": noun,
        "child": child,
        "e": e,
        "age": f"{years} ans" if years >= 2 else f"{rng.randint(4, 23)} mois",
        "reason": fill(rng, PHRASES[reason], PHRASES),
        "background": fill(rng, PHRASES["background"], PHRASES),
    }
    texts, day, paragraph, past_state = [], 0, None, rng.random() < 0.5
    for state in states:
        past_day, day = day, day + rng.randint(1, 4)
        facts = PHRASES | patient | _measure(rng, state, past_state, years)
        sign, sign_2 = rng.sample(SIGNS, 2)
        facts |= {"day": str(day), "past_day": str(past_day), "sign": sign, "sign_2": sign_2}
        copied = [write(rng, COPY, facts | {"copied": paragraph})] if paragraph and rng.random() < COPY_RATE else []
        cardiac = _write_cardiac(rng, state, facts, is_copying=bool(copied))
        intro, outlook = (write(rng, rng.choice(templates), facts) for templates in (INTROS, OUTLOOKS))
        num_words = sum(len(text.split()) for text in [intro, *copied, *cardiac, outlook])
        length = max(MIN_WORDS, rng.gauss(AIMED_WORDS, WORDS_SPREAD))
        middle = list(_write_others(rng, facts, length - num_words).items())
        if cardiac:
            middle.append(("[Hémodynamique|Cardio|Circulatoire]", copied + cardiac))
        rng.shuffle(middle)
        parts = {"[Motif|Contexte]": [intro], **dict(middle), "[Conduite à tenir|Conclusion]": [outlook]}
        texts.append(_type(rng, _lay_out(rng, parts, facts)))
        past_state, paragraph = state, " ".join(cardiac)
    return texts


def generate_notes(num_notes: int = NUM_NOTES, seed: int = 0) -> pd.DataFrame:
    """The corpus: note_id, patient_id, text and label, a patient's notes in a row and in order of time.

    Raises:
        ValueError: on fewer notes than MIN_NOTES, or a negative seed.
    """
    if num_notes < MIN_NOTES:
        raise ValueError(f"num_notes {num_notes}: too few to be split by patient; give at least {MIN_NOTES}.")
    if seed < 0:  # random.Random(-1) is random.Random(1): two seeds, one corpus
        raise ValueError(f"seed {seed}: give 0 or more.")
    rng = random.Random(seed)
    patients = list(accumulate(int(rng.random() < 1 / NOTES_PER_PATIENT) for _ in range(num_notes)))
    states = _draw_states(rng, patients, round(num_notes * POSITIVE_SHARE))
    texts = []
    for _, rows in groupby(range(num_notes), key=patients.__getitem__):
        texts += _write_patient(rng, [states[row] for row in rows])
    of_seed = f"s{seed}-" if seed else ""  # by another seed there are other patients
    return pd.DataFrame(
        {
            "note_id": [f"{of_seed}n{number:05d}" for number in range(1, num_notes + 1)],
            "patient_id": [f"{of_seed}p{patient:05d}" for patient in patients],
            "text": texts,
            "label": [LABELS[label] for label in _flip_some(rng, states)],
        }
    )


WRITERS = {
    ".csv": lambda notes, path: notes.to_csv(path, index=False),
    ".jsonl": lambda notes, path: notes.to_json(path, orient="records", lines=True, force_ascii=False),
    ".parquet": lambda notes, path: notes.to_parquet(path, index=False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_notes", type=int, default=NUM_NOTES, help=f"default: {NUM_NOTES}, as in the paper")
    parser.add_argument("--seed", type=int, default=0, help="default: 0; another seed, other notes")
    parser.add_argument("--output", type=Path, required=True, help=f"file to write: {', '.join(WRITERS)}")
    arguments = parser.parse_args()
    output = arguments.output
    write_notes = WRITERS.get(output.suffix.lower())
    if write_notes is None:
        sys.exit(f"--output {output}: cannot write this kind of file; give {', '.join(WRITERS)}.")
    if output.exists():
        sys.exit(f"--output {output}: exists already; remove it or give another name.")
    if not output.parent.is_dir():
        sys.exit(f"--output {output}: no folder {output.parent}; create it first.")
    try:
        notes = generate_notes(arguments.num_notes, arguments.seed)
    except ValueError as error:
        sys.exit(f"--{error}")
    try:
        write_notes(notes, output)
    except OSError as error:
        sys.exit(f"--output {output}: cannot be written ({error.strerror}).")
    print(f"{output}: {len(notes)} notes of {notes.patient_id.nunique()} patients")


if __name__ == "__main__":
    main()
