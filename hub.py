"""The model kept for use: its card, and the way to the Hub.

The card is generated from result files: counts, metrics with their averaging, hours, intended use and limits. Only
what `UPLOADED` names leaves the machine: no pickle, no optimizer, no training arguments, no note text, no local path.
"""

import logging
import statistics
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

logger = logging.getLogger("train")

UPLOADED = ["README.md", "config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
UPLOADED += [
    "heads.py",
    "scratch_model.py",
    "frugal_notes.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]


class HubError(RuntimeError):
    """The model was not pushed; the message is one line for the user. The model stays in its folder."""


HEADLINE = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_weighted", "f1_positive", "auroc")
CARD = """# {title}

A classifier of clinical notes, trained with frugal-notes: {what}

**Task:** {task}; classes: {classes}.{threshold}

## Evaluation

{evaluation}

| metric | value |
|---|---|
{rows}

## Training data

{data} The notes are private and not part of this repository.

## Cost

{cost}

## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForSequenceClassification.from_pretrained("{repo}", trust_remote_code=True)
```

`config.thresholds` holds the decision threshold that was tuned on validation notes; an argmax does not apply it.

## Intended use and limits

For notes like those it was trained on: same language, same kind of document, same label definition. It is a research
model, not a medical device: no decision about a patient should rest on it alone. Its figures come from one corpus and
may not hold for another hospital, period or population: measure before use. {privacy}
"""
SCRATCH_PRIVACY = (
    "Its tokenizer was trained on the notes, with words found for few patients left out of the vocabulary; its "
    "weights were trained on the notes and, as those of any model, may retain something of them. Treat it with the "
    "same care as the notes before making it public."
)
ENCODER_PRIVACY = (
    "Its weights were trained on the notes and, as those of any model, may retain something of them. Treat it with "
    "the same care as the notes before making it public."
)


def write_model_card(folder: Path, fold_results: list[dict], trained_on: str, repo: str):
    """Write README.md into the model's folder from the results of its folds.

    `trained_on` says in words what the kept model was trained on; `repo` is its Hub id or name.
    """
    first = fold_results[0]
    model, run, data = first["model"], first["run"], first["data"]
    names = [name for name in HEADLINE if name in first["metrics"]]
    means, rows = {}, []
    for name in names:
        values = [result["metrics"][name] for result in fold_results if result["metrics"][name] is not None]
        if values:
            means[name] = statistics.mean(values)
            spread = f" (sd {statistics.stdev(values):.3f})" if len(values) > 1 else ""
            rows.append(f"| {name.replace('_', ' ')} | {means[name]:.3f}{spread} |")
    what = {
        "pretrained": f"{run['model']} with the {run['head']} head, {run['tuning']} tuning",
        "scratch": f"a small Transformer trained from scratch ({run['model']})",
    }[model["kind"]]
    if model["stand_in_for"]:
        what += f"; the encoder is a small stand-in for {model['stand_in_for']}, made for a demonstration"
    counts = {part: values["notes"] for part, values in data["splits"].items()}
    if len(fold_results) > 1:
        evaluation = f"Mean and standard deviation over the {len(fold_results)} test parts of cross-validation"
    else:
        evaluation = f"On one test part of {counts['test']} notes"
    hardware = first["environment"]["hardware"]
    hours = sum(result["cost"]["training_hours"] for result in fold_results)
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["clinical-notes", "frugal-notes", "custom_code"],
        # A stand-in or local encoder has no public name.
        base_model=model["backbone"] if model["revision"] else None,
        model_name=repo,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="private",
                dataset_name="private clinical notes",
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in means.items()
        ],
    )
    threshold = f" Decision threshold: {model['thresholds'][0]:.2f}." if model["thresholds"] else ""
    text = CARD.format(
        title=repo.split("/")[-1],
        what=what,
        task=data["task"],
        classes=", ".join(data["class_names"]),
        threshold=threshold,
        evaluation=f"{evaluation}, at the threshold tuned on validation. The averaging is in the metric's name.",
        rows="\n".join(rows),
        data=f"{trained_on} Notes per part in the first fold: "
        + ", ".join(f"{part} {count}" for part, count in counts.items())
        + ".",
        cost=f"{hours:.4g} hours of training over all folds on {hardware['gpu'] or hardware['cpu']}; "
        f"{model['trainable_parameters']:,} of {model['total_parameters']:,} parameters trained.",
        repo=repo,
        privacy=SCRATCH_PRIVACY if model["kind"] == "scratch" else ENCODER_PRIVACY,
    )
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def push_model(folder: Path, repo: str, private: bool | None, token: str | None, revision: str | None) -> str:
    """Create the repository, private unless `private` is False, and upload the model. Returns the commit's address.

    Raises:
        HubError: no access, no network, or a repository that is public although nobody asked for that.
    """
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo, private=private is not False, exist_ok=True).repo_id
        if private is not False and not api.model_info(repo_id).private:
            raise HubError(f"{repo_id} is public: say --hub_private_repo False if that is meant, or make it private.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=UPLOADED,
            revision=revision,
            commit_message="Add the model and its card",
        )
    except (HfHubHTTPError, OSError, LocalTokenNotFoundError) as error:
        raise HubError(
            f"{repo} was not pushed ({type(error).__name__}): check `hf auth login` and the network."
        ) from error
    return commit.commit_url
