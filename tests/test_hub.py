"""The model card, and the round trip: a model trained here, pushed to a Hub and loaded back from it elsewhere.

The client is the real one, so it runs in processes of its own: it reads HF_ENDPOINT once, when it is imported.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import invent_notes
from hub_server import TOKEN, USER, HubServer, Repo
from huggingface_hub import ModelCard
from result_factory import make_result
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import predict
import train
from hub import write_model_card
from results import MODEL_FACTS, write_json

ROOT = Path(__file__).parent.parent
DECOYS = ["optimizer.pt", "training_args.bin", "model.pkl", "pytorch_model.bin", "notes.csv", "predictions.parquet"]
DECOYS += ["checkpoint-1/config.json", "model-checkpoints/model.safetensors"]

# Pushes and then loads what it is asked on standard input; prints a line of JSON for each. "ours": with this
# repository at hand, else as anybody would load the model.
CLIENT = """
import importlib.util, json, sys
from pathlib import Path

asked = json.loads(sys.stdin.readline())
sys.stdin = None  # nobody answers a question
if asked["pushes"]:
    from hub import HubError, push_model
for folder, *arguments in asked["pushes"]:
    try:
        print(json.dumps({"url": push_model(Path(folder), *arguments)}))
    except HubError as error:
        print(json.dumps({"error": str(error)}))

if asked["repos"]:
    import torch
    from huggingface_hub import ModelCard
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if asked["ours"]:
        import heads, scratch_model
    else:
        assert not importlib.util.find_spec("heads") and not importlib.util.find_spec("scratch_model")
for repo in asked["repos"]:
    tokenizer = AutoTokenizer.from_pretrained(repo)
    model = AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=not asked["ours"])
    batch = tokenizer(asked["texts"], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = {"module": type(model).__module__, "logits": logits.tolist(), "input_ids": batch["input_ids"].tolist()}
    found["config"] = json.loads(model.config.to_json_string(use_diff=False))
    # what the card tells its reader to do
    names = {"note": asked["texts"][0]}
    exec(ModelCard.load(repo).text.split("```python")[1].split("```")[0], names)
    found["as_the_card_says"] = names["probabilities"].tolist()[0]
    print("\\n" + json.dumps(found))  # after the question whether to trust the code, which has no end of line
"""


def hub_environment(home: Path, endpoint: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return inherited | hub | {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules")}


def run_client(home: Path, endpoint: str, pushes=(), repos=(), texts=(), ours=True, **environment) -> list[dict]:
    """Run CLIENT where `endpoint` is the Hub and `home` its cache; returns what it printed."""
    home.mkdir(exist_ok=True)
    process = subprocess.run(
        [sys.executable, *([] if ours else ["-I"]), "-c", CLIENT],
        input=json.dumps({"pushes": pushes, "repos": repos, "texts": texts, "ours": ours}),
        cwd=ROOT if ours else home,
        env=hub_environment(home, endpoint) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


# ---- round trip ----------------------------------------------------------------------------------------------------


@dataclass
class RoundTrip:
    hub: HubServer
    base: Path  # notes and models lie in it, the encoder beside it
    outputs: dict[str, Path]  # of train.py, by the name of the repository
    texts: list[str]
    urls: dict[str, str]  # of the commits
    loads: dict[str, dict[str, dict]]  # "ours" or "theirs" -> repository -> what CLIENT found


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory, encoder_folder):
    """Three models trained by train.py, pushed, and loaded with and without this repository at hand."""
    base = tmp_path_factory.mktemp("hub")
    notes = invent_notes(60)
    notes.to_csv(base / "notes.csv", index=False)
    options = {
        "frozen-grn": ["--model", str(encoder_folder), "--head", "grn"],
        "lora-adapter": ["--model", str(encoder_folder), "--head", "adapter", "--tuning", "lora"],
        "moe": ["--model", "moe-transformer", "--vocab_size", "400"],
    }
    common = ["--dataset", str(base / "notes.csv"), "--folds", "1", "--max_length", "48", "--num_train_epochs", "1"]
    outputs = {name: base / name for name in options}
    for name, output in outputs.items():
        # in float32, as the model is loaded again; the hidden states of a frozen encoder are bfloat16 all the same
        arguments = [*options[name], *common, "--use_cpu", "--bf16", "False", "--output_dir", str(output)]
        assert train.main(arguments) == 0
        for decoy in DECOYS:
            (output / "model" / decoy).parent.mkdir(exist_ok=True)
            (output / "model" / decoy).write_bytes(b"must stay here")
    test_ids = pd.read_parquet(base / "moe" / "fold-0" / "predictions.parquet")["id"]
    texts = notes.set_index("id").loc[test_ids, "text"].tolist()
    asked = {"repos": [f"{USER}/{name}" for name in outputs], "texts": texts}
    pushes = [[str(output / "model"), name, None, None, None] for name, output in outputs.items()]
    with HubServer() as hub:
        answers = run_client(base / "ours", hub.endpoint, pushes, **asked)
        ours = dict(zip(outputs, answers[len(pushes) :], strict=True))
        theirs = dict(zip(outputs, run_client(base / "theirs", hub.endpoint, ours=False, **asked), strict=True))
    urls = {name: answer["url"] for name, answer in zip(outputs, answers, strict=False)}
    return RoundTrip(hub, base, outputs, texts, urls, {"ours": ours, "theirs": theirs})


MODELS = pytest.mark.parametrize("name", ["frozen-grn", "lora-adapter", "moe"])


@MODELS
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_pushed_model_gives_the_logits_it_gave_here(round_trip, name, who):
    folder = round_trip.outputs[name] / "model"
    found = round_trip.loads[who][name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(round_trip.texts, padding=True, truncation=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert found["input_ids"] == batch["input_ids"].tolist()
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-6)
    assert np.ptp(found["logits"], axis=0).min() > 1e-4  # not the same for every note

    # the model as it was in memory when its test part was read: LoRA not yet merged, encoder not yet saved
    predictions = pd.read_parquet(round_trip.outputs[name] / "fold-0" / "predictions.parquet")
    probabilities = torch.tensor(found["logits"]).softmax(-1)
    np.testing.assert_allclose(probabilities, np.stack(predictions["probabilities"]), rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["as_the_card_says"], probabilities[0], rtol=0, atol=1e-5)


@MODELS
def test_pushed_model_brings_its_own_code(round_trip, name):
    module = "scratch_model" if name == "moe" else "heads"
    assert round_trip.loads["ours"][name]["module"] == module
    theirs = round_trip.loads["theirs"][name]["module"].split(".")
    assert theirs[:3] == ["transformers_modules", USER, name.replace("-", "_hyphen_")] and theirs[-1] == module
    assert round_trip.hub.repos[f"{USER}/{name}"].files("main")[f"{module}.py"] == (ROOT / f"{module}.py").read_bytes()


@MODELS
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_pushed_configuration(round_trip, name, who):
    config = round_trip.loads[who][name]["config"]
    result = json.loads((round_trip.outputs[name] / "fold-0" / "result.json").read_text())
    assert config["id2label"] == {"0": "other", "1": "failure"}
    assert config["label2id"] == {"other": 0, "failure": 1}
    assert config["thresholds"] == result["model"]["thresholds"]
    if name == "moe":
        assert config["num_experts"] == 4
    else:
        assert (config["head"], config["tuning"]) == (name.split("-")[1], name.split("-")[0])
        assert config["encoder_config"]["model_type"] == "camembert" and config["encoder_config"]["hidden_size"] == 32


@MODELS
def test_only_the_model_leaves_the_machine(round_trip, name):
    repo = round_trip.hub.repos[f"{USER}/{name}"]
    expected = {"README.md", MODEL_FACTS, "config.json", "model.safetensors", "tokenizer.json"}
    expected |= {"tokenizer_config.json", ".gitattributes", "scratch_model.py" if name == "moe" else "heads.py"}
    assert set(repo.files("main")) == expected
    for path, content in repo.files("main").items():
        assert str(round_trip.base.parent).encode() not in content, path
        assert not any(text.encode() in content for text in round_trip.texts), path
    assert repo.private
    created = [body for _, path, body in round_trip.hub.requests if path == "/api/repos/create"]
    assert [body["visibility"] for body in created] == ["private"] * len(created)
    assert round_trip.urls[name] == f"{round_trip.hub.endpoint}/{USER}/{name}/commit/{repo.branches['main']}"


@MODELS
def test_pushed_card_names_the_repository_it_is_in(round_trip, name):
    card = ModelCard(round_trip.hub.repos[f"{USER}/{name}"].files("main")["README.md"].decode())
    assert card.text.count(f'from_pretrained("{USER}/{name}"') == 2
    result = json.loads((round_trip.outputs[name] / "fold-0" / "result.json").read_text())
    assert f"The {result['data']['splits']['train']['notes']} notes of the training part." in card.text


# ---- what is asked of the Hub, and what it refuses -----------------------------------------------------------------


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """What push_model needs to see of a kept model."""
    folder = tmp_path / "model"
    folder.mkdir()
    card = '---\ntags: [invented]\n---\n# A model\nmodel = Model.from_pretrained("path/to/this/folder", more=True)\n'
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_prediction_by_a_branch_of_the_hub(round_trip, tmp_path):
    folder, notes = round_trip.outputs["moe"] / "model", round_trip.base / "notes.csv"
    asked = [str(folder), "--dataset", str(notes), "--output", str(tmp_path / "here.csv")]
    assert predict.main(asked) == 0
    with HubServer() as hub:
        hub.repos[f"{USER}/moe"] = Repo(private=True)
        hub.repos[f"{USER}/moe"].commit("v1", {path.name: path.read_bytes() for path in folder.glob("*.*")})
        environment = hub_environment(tmp_path / "home", hub.endpoint)
        for revision, status in (("v1", 0), ("main", 1)):
            told = ["--model_revision", revision, "--dataset", notes, "--output", tmp_path / f"{revision}.csv"]
            command = [sys.executable, ROOT / "predict.py", f"{USER}/moe", *told]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == status, done.stderr
            assert "HTTP" not in done.stderr  # an address of a request may be a signed one
    assert "no frugal_notes.json there" in done.stderr
    assert (tmp_path / "v1.csv").read_text() == (tmp_path / "here.csv").read_text()


def test_private_flag_branches_and_refusals(model_folder, tmp_path):
    bad_card = tmp_path / "bad"
    bad_card.mkdir()
    (bad_card / "README.md").write_text("---\n- a list\n---\n", encoding="utf-8")
    model_folder = str(model_folder)
    with HubServer() as hub:
        hub.repos[f"{USER}/public"] = Repo(private=False)
        pushes = {
            "public on purpose": [model_folder, f"{USER}/open", False, None, None],
            "branch": [model_folder, f"{USER}/branched", True, None, "v1"],
            "branch again": [model_folder, f"{USER}/branched", True, None, "v1"],
            "existing public": [model_folder, f"{USER}/public", None, None, None],
            "existing public on purpose": [model_folder, f"{USER}/public", False, None, None],
            "wrong token": [model_folder, f"{USER}/new", None, "hf_wrong", None],
            "other owner": [model_folder, "hospital/new", None, None, None],
            "bad name": [model_folder, "a/b/c", None, None, None],
            "bad card": [str(bad_card), f"{USER}/bad", None, None, None],
        }
        answers = dict(zip(pushes, run_client(tmp_path, hub.endpoint, list(pushes.values())), strict=True))

    assert not hub.repos[f"{USER}/open"].private and "url" in answers["public on purpose"]
    assert hub.repos[f"{USER}/branched"].private and "url" in answers["branch"]
    assert hub.repos[f"{USER}/branched"].branches["v1"] in answers["branch again"]["url"]
    assert set(hub.repos[f"{USER}/branched"].files("main")) == {".gitattributes"}
    assert set(hub.repos[f"{USER}/branched"].files("v1")) == {".gitattributes", "README.md", "config.json"}
    for name, branch, how in (("branched", "v1", ', revision="v1"'), ("public", "main", "")):  # the later push last
        card = hub.repos[f"{USER}/{name}"].files(branch)["README.md"].decode()
        assert f'from_pretrained("{USER}/{name}"{how}, more=True)' in card
    assert (
        "config.json" in hub.repos[f"{USER}/public"].files("main") and "url" in answers["existing public on purpose"]
    )
    # the push that was not meant to be public was refused before a file went there
    assert len([path for _, path, _ in hub.requests if path == f"/api/models/{USER}/public/preupload/main"]) == 1

    errors = {
        "existing public": "is public: say --hub_private_repo False",
        "wrong token": "answered 401 (Invalid username or password.); use `hf auth login` or --hub_token",
        "other owner": "answered 403 (You don't have the rights to write to hospital.); use `hf auth login`",
        "bad name": "a/b/c",
        "bad card": "Invalid metadata in README.md",
    }
    for case, message in errors.items():
        assert message in answers[case]["error"] and "\n" not in answers[case]["error"], case
    assert set(hub.repos) == {f"{USER}/{name}" for name in ("open", "branched", "public", "bad")}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "the Hub cannot be reached (ConnectError); check the network"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
    ],
    ids=["nobody answers", "offline mode"],
)
def test_no_hub(model_folder, tmp_path, environment, message):
    with HubServer() as hub:
        pass  # its port is free again
    started = time.perf_counter()
    push = [str(model_folder), f"{USER}/m", None, None, None]
    (answer,) = run_client(tmp_path, hub.endpoint, [push], **environment)
    assert message in answer["error"] and "\n" not in answer["error"]
    assert time.perf_counter() - started < 20  # of which most is the import: nothing is tried again and again


# ---- the card ------------------------------------------------------------------------------------------------------


@pytest.fixture
def write_card(tmp_path):
    """The card of a kept model with these results, as a ModelCard; `facts` go into the file that lies beside it."""

    def write(results: list[dict], repo="hospital/drbert-grn", trained_on="All 100 notes.", **facts) -> ModelCard:
        known = {"task": "binary", "class_names": ["absent", "present"], "thresholds": [0.42]}
        known |= {"max_length": 256, "long_notes": "truncate"}
        write_json(tmp_path / MODEL_FACTS, known | facts)
        write_model_card(tmp_path, results, trained_on, repo)
        return ModelCard.load(tmp_path / "README.md")

    return write


def test_card_says_what_was_measured(write_card):
    scores = [0.7, 0.8, 0.9]
    results = [make_result(fold=fold, score=score, cost__feature_hours=0.5) for fold, score in enumerate(scores)]
    card = write_card(results)  # whose pass over the notes was one
    assert card.data.base_model == "Dr-BERT/DrBERT-7GB"
    front_matter = card.data.to_dict()
    assert front_matter["pipeline_tag"] == "text-classification" and front_matter["library_name"] == "transformers"
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    names = ["accuracy", "precision macro", "recall macro", "f1 macro", "f1 weighted", "f1 positive", "auroc"]
    assert values == dict.fromkeys(names, pytest.approx(statistics.mean(scores)))
    for name in names:
        assert f"| {name} | 0.800 (sd 0.100) |" in card.text
    for said in (
        "Mean and sample standard deviation over 3 runs (folds: 3, seeds: 1); each fold has its own test part.",
        "drbert with the grn head, frozen tuning.",
        "classes: absent, present. Decision threshold: 0.42.",
        "All 100 notes. Parts of the first fold: train 60 notes, validation 20 notes, test 20 notes.",
        "1.25 hours of training in all on a processor; 1,771,778 of 112,000,000 parameters trained.",
        "not a medical device",
        "cut at 256 tokens. `config",
        "logits.softmax(-1)",
    ):
        assert said in card.text
    assert "stand-in" not in card.text and "tokenizer was trained on the notes" not in card.text


def test_card_says_how_longer_notes_were_read(write_card):
    card = write_card([make_result()], long_notes="windows")
    assert "cut at 256 tokens; for the figures above longer notes were cut into windows" in card.text


def test_card_of_a_single_split_claims_no_spread(write_card):
    card = write_card([make_result(score=0.8, run__num_folds=1)])
    assert "On one test part of 20 notes." in card.text
    assert "| f1 macro | 0.800 |" in card.text and "(sd" not in card.text


def test_card_leaves_out_what_a_fold_could_not_measure(write_card):
    results = [make_result(fold=0), make_result(fold=1, metrics__auroc=None)]
    card = write_card(results)
    assert "auroc" not in card.text and "auroc" not in {result.metric_name for result in card.data.eval_results}
    assert "| accuracy | 0.800 (sd 0.000) |" in card.text


def test_card_of_a_local_stand_in(write_card):
    changes = {"model__revision": None, "model__backbone": "/home/someone/encoders/tiny", "run__model": "tiny"}
    card = write_card([make_result(**changes, model__stand_in_for="Dr-BERT/DrBERT-7GB")])
    assert card.data.base_model is None and "/home" not in card.content
    assert "small stand-in for Dr-BERT/DrBERT-7GB" in card.text
    assert "notes: invented, a synthetic corpus" in card.content


def test_card_of_a_multi_label_model_from_scratch(write_card):
    results = [
        make_result(fold=fold, data__task="multi-label", model__kind="scratch", model__revision=None)
        | {"run": make_result()["run"] | {"model": "moe-transformer", "head": None, "dataset": "Dr_Martin.csv"}}
        for fold in range(2)
    ]
    classes = ['décès : "oui"', "{grave}", "| a"]
    card = write_card(results, task="multi-label", class_names=classes, thresholds=[0.5, 0.002, 0.4], repo="moe")
    assert "trained from scratch (moe-transformer)" in card.text and "logits.sigmoid()" in card.text
    assert "classes: " + ", ".join(classes) in card.text
    assert """Decision threshold: décès : "oui" 0.5, {grave} 0.002, | a 0.4.""" in card.text
    assert "tokenizer was trained on the notes" in card.text and "hashed words" not in card.text
    results[0]["model"]["pretraining"] = {"id": "pretrained-1", "training_notes": 0, "transductive": False}
    assert "tokenizer was trained on further text, without" in write_card(results, thresholds=None).text
    results[0]["model"] |= {"kind": "pretrained", "backbone": "ours"}  # an encoder that pretrain.py made
    for is_own in (True, False):
        results[0]["model"]["pretraining"]["own_tokenizer"] = is_own
        card = write_card(results, thresholds=None)
        assert ("tokenizer was trained on further text, without" in card.text) == is_own
    assert "f1 positive" not in card.text
    assert "Martin" not in card.content and "not published with the model" in card.text


def test_card_of_a_model_with_ngrams_says_what_they_hold(write_card):
    result = make_result(model__kind="in-house", model__revision=None, model__logit_weights={"encoder": 0.9})
    card = write_card([result])
    assert "weights of hashed words and pairs of words that two notes share" in card.text


def test_card_of_a_multi_class_model_has_no_threshold(write_card):
    card = write_card([make_result(data__task="multi-class")], task="multi-class", thresholds=None)
    assert "Decision threshold" not in card.text and "tuned on its validation" not in card.text
