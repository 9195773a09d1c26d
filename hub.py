"""The model kept for use: its card, and the way to the Hub.

The card is generated from result files: counts, metrics with their averaging, hours, intended use and limits. Only
what `UPLOADED` names leaves the machine: no pickle, no optimizer, no training arguments, no note text, no local path.
"""

import json
import re
import statistics
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, validate_repo_id

from results import MODEL_FACTS

UPLOADED = ["README.md", MODEL_FACTS, "config.json", "heads.py", "scratch_model.py"]
UPLOADED += ["model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"]
UPLOADED += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]

HEADLINE = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_weighted", "f1_positive", "auroc")
CARD = """---
{front_matter}
---

# {title}

A classifier of clinical notes, trained with frugal-notes: {what}.

**Task:** {task}; classes: {classes}.{threshold}

## Evaluation

{evaluation} The averaging over classes is in the metric's name.

| metric | value |
|---|---|
{rows}

## Training data

{trained_on} Parts of the first fold: {parts}. The notes: {corpus}.

## Cost

{hours:.4g} hours of training in all on {hardware}; {trainable:,} of {total:,} parameters trained.

## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder", trust_remote_code=True)
inputs = tokenizer(note, truncation=True, return_tensors="pt")
probabilities = model(**inputs).logits.{activation}
```

The input is cut at {max_length} tokens{longer}. `config.thresholds` holds the decision threshold that was tuned on
validation notes, where there is one (with several labels a note, one a class); an argmax does not apply it.

## Intended use and limits

For notes like those it was trained on: same language, same kind of document, same label definition. It is a research
model, not a medical device: no decision about a patient should rest on it alone. Its figures come from one corpus and
may not hold for another hospital, period or population: measure before use. {vocabulary}Its weights were trained on
the notes and, as those of any model, may retain something of them: treat it with the same care as the notes before
making it public.
"""
LONGER = "; for the figures above longer notes were cut into windows of that length, as frugal-notes' predict.py does"
SCRATCH_VOCABULARY = "Its tokenizer was trained on {text}, without the words of few notes or patients. "
NGRAMS = (
    "It holds weights of hashed words and pairs of words that two notes share: who has it can test whether a name is "
    "likely to be among them. "
)


class HubError(Exception):
    """The model was not pushed; the message is one line for the user. The model stays in its folder."""


def write_model_card(folder: Path, fold_results: list[dict], trained_on: str, repo: str, more_hours: float = 0.0):
    """Write README.md into the kept model's folder, from the results of its folds.

    `trained_on` says in words what the kept model was trained on; `repo` is its Hub id or name; `more_hours` is what
    it took beyond the folds.
    """
    facts = json.loads((folder / MODEL_FACTS).read_text(encoding="utf-8"))
    first = fold_results[0]
    model, run, splits = first["model"], first["run"], first["data"]["splits"]
    means, rows = {}, []
    for name in HEADLINE:
        values = [result["metrics"].get(name) for result in fold_results]
        if None not in values:  # not of this task, or not defined, as the AUROC of a test part with one class
            means[name.replace("_", " ")] = statistics.mean(values)
            spread = f" (sd {statistics.stdev(values):.3f})" if len(values) > 1 else ""
            rows.append(f"| {name.replace('_', ' ')} | {statistics.mean(values):.3f}{spread} |")
    is_scratch = model["kind"] in ("scratch", "in-house")
    what = f"{run['model']} with the {run['head']} head, {run['tuning']} tuning"
    if is_scratch:
        what = f"a small Transformer trained from scratch ({run['model']})"
    further_alone = model["pretraining"] and not model["pretraining"].get("training_notes", True)
    read = "further text" if further_alone else "the notes too"
    has_own_tokenizer = model["pretraining"] is not None and model["pretraining"].get("own_tokenizer", False)
    if model["pretraining"] and not is_scratch:
        what += "; the encoder was pretrained in-house"
    elif model["pretraining"]:
        what = f"a small Transformer ({run['model']}), pretrained in-house"
        what += "" if model["transductive"] else " (for the figures below without the text of held-out notes)"
    if model["transductive"] and model["pretraining"] and not model["pretraining"]["transductive"]:
        what += "; nothing shows that its test notes were kept from its pretraining: its figures may flatter it"
    elif model["transductive"]:
        what += "; it was pretrained on the text of its test notes too, so that its figures flatter it"
    if model["stand_in_for"]:
        what += f"; the encoder is a small stand-in for {model['stand_in_for']}, made for a demonstration"
    evaluation = f"On one test part of {splits['test']['notes']} notes."
    if len(fold_results) > 1:
        seeds = len({result["run"]["seed"] for result in fold_results})
        runs = f"{len(fold_results)} runs (folds: {run['num_folds']}, seeds: {seeds})"
        evaluation = f"Mean and sample standard deviation over {runs}; each fold has its own test part."
    pretraining = {
        result["model"]["pretraining"]["id"]: result["cost"]["pretraining_hours"]
        for result in fold_results
        if result["model"]["pretraining"]
    }
    threshold = ""
    if facts["thresholds"]:
        values = [f"{value:.3g}" for value in facts["thresholds"]]
        if facts["task"] == "multi-label":
            values = [f"{name} {value}" for name, value in zip(facts["class_names"], values, strict=True)]
        threshold = f" Decision threshold: {', '.join(values)}."
        evaluation += " Each at the threshold tuned on its validation part."
    hardware = first["environment"]["hardware"]
    corpus = "clinical, not published with the model"
    if run["dataset"].split(":")[0] == "synthetic":
        corpus = "invented, a synthetic corpus"
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["clinical-notes", "frugal-notes"],
        base_model=model["backbone"] if model["revision"] else None,  # without a revision it is a local folder
        model_name=repo,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="clinical-notes",
                dataset_name=f"notes: {corpus}",
                metric_type=name.split()[0],
                metric_name=name,
                metric_value=round(mean, 4),
            )
            for name, mean in means.items()
        ],
    )
    card = CARD.format(
        front_matter=card_data.to_yaml(),
        title=repo.split("/")[-1],
        what=what,
        task=facts["task"],
        classes=", ".join(facts["class_names"]),
        threshold=threshold,
        evaluation=evaluation,
        rows="\n".join(rows),
        trained_on=trained_on,
        parts=", ".join(f"{part} {counted['notes']} notes" for part, counted in splits.items()),
        corpus=corpus,
        hours=more_hours
        + sum(result["cost"]["training_hours"] for result in fold_results)
        + sum(pretraining.values())
        + max(result["cost"]["feature_hours"] for result in fold_results),  # one pass serves all folds
        hardware=hardware["gpu"] or hardware["cpu"],
        trainable=model["trainable_parameters"],
        total=model["total_parameters"],
        activation="sigmoid()" if facts["task"] == "multi-label" else "softmax(-1)",
        max_length=facts["max_length"],
        longer=LONGER * (facts["long_notes"] == "windows"),
        vocabulary=SCRATCH_VOCABULARY.format(text=read) * (is_scratch or has_own_tokenizer)
        + NGRAMS * (model["logit_weights"] is not None),
    )
    ModelCard(card).save(folder / "README.md")


def check_name(repo: str):
    """Before hours of training.

    Raises:
        HubError: the Hub takes no model of that name.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise HubError(
            f"--push_to_hub: {repo} is no name for a model on the Hub (letters, digits, '-', '_' and '.', at most 96, "
            "an owner and '/' before it if you like); give --hub_model_id NAME."
        ) from None


def push_model(folder: Path, repo: str, private: bool | None, token: str | None, revision: str | None) -> str:
    """Create the repository, private unless `private` is False, and upload the model. Returns the commit's address.

    Raises:
        HubError: no access, no network, or a repository that is public although nobody asked for that.
    """
    api = HfApi(token=token)
    try:
        # The client waits without limit: a firewall that drops packets would hold it for minutes.
        get_session().head(api.endpoint, timeout=10)
        repo_id = api.create_repo(repo, private=private is not False, exist_ok=True).repo_id
        if private is not False and not api.model_info(repo_id).private:
            raise HubError(f"{repo_id} is public: say --hub_private_repo False if that is meant, or make it private.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # The card was written before the repository had its name: it names the folder.
        card = folder / "README.md"
        where = f'from_pretrained("{repo_id}"' + ("" if revision is None else f', revision="{revision}"')
        named = r'from_pretrained\("[^"]*"(, revision="[^"]*")?'  # by this pushing or one before
        text = re.sub(named, lambda _: where, card.read_text(encoding="utf-8"))
        card.write_text(text, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=UPLOADED,
            revision=revision,
            commit_message="Add the model and its card",
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # what the client raises, its transfers included
        raise HubError(
            f"{repo} was not pushed: {_explain(error)}. The same command again, without --overwrite, will push it."
        ) from error
    return commit.commit_url


def _explain(error: Exception) -> str:
    """What went wrong and what to do, on one line."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, HfHubHTTPError):
        answer = f"the Hub answered {error.response.status_code} ({error.server_message or type(error).__name__})"
        if error.response.status_code in (401, 403, 404):
            answer += "; use `hf auth login` or --hub_token with a token that may write there"
        return " ".join(answer.split())
    if isinstance(error, HTTPError):
        return f"the Hub cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT"
    return " ".join(f"{type(error).__name__}: {error}".split())
