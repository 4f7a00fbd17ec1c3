"""Pushing to a hub and pulling from it: the real clients against a server of the hub's protocol (hub_server.py).

Every client is a process of its own, as the hub library reads its address when it is imported.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

from conftest import cli, tiny_study
from hub_server import READER, client, running

pytestmark = pytest.mark.slow

PARTS = "---\nconfigs:\n" + "".join(
    f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}.jsonl\n" for name in ("sums", "more")
)


@pytest.fixture
def hub():
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_ref):
    """A finished run of one capability, two arms and one seed, whose data and model are paths; not to be changed."""
    folder = tmp_path_factory.mktemp("hub")
    rows = [
        {"prompt": f"What is {i} + {i}?", "response": f"Sure! It is {2 * i}, since {i} + {i} = {2 * i}."}
        for i in range(16)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = tiny_study(name="hubbed", models=[tiny_ref.path])
    math = study["capabilities"]["math"]
    math["data"] = {"source": str(folder / "sums.jsonl"), "held_out": 2}
    math["suites"] = [{"suite": "chain_sum", "limit": 4, "max_tokens": 4, "batch_size": 4}]
    study["capabilities"] = {"math": math}
    study["analysis"] = {"tokens": {"samples": 0}}
    study["arms"] = [{"prefixes": "reasoning", "position": "opening", "ratios": [0, 1], "controls": []}]
    study["seeds"] = [0]
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    cli("run", folder / "study.yaml", "--out", folder / "run", "--quiet", check=True)
    return folder / "run"


def python(code, *arguments, env):
    """Run a program; what it prints is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def refused(done, *words):
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("prefixlab: ")]
    assert all(word in line for word in words), line


# --- push, and pull back ---

LOAD_ADAPTER = """
import hashlib, json, sys
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
folder, repo, sub = sys.argv[1:4]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), repo, subfolder=sub or None)
weights = {k.replace(".default", ""): v.detach().clone() for k, v in model.state_dict().items() if "lora_" in k}
from safetensors.torch import save_file
save_file(weights, sys.argv[4])
file = hf_hub_download(repo, "adapter_model.safetensors", subfolder=sub or None)
print(json.dumps([hashlib.sha256(open(file, "rb").read()).hexdigest(),
                  PeftConfig.from_pretrained(repo, subfolder=sub or None).base_model_name_or_path]))
"""


def test_adapters_come_back_as_they_were(run, hub, tmp_path, tiny_ref):
    import hashlib

    server, address = hub
    env = client(address, tmp_path / "home")
    done = cli("push", run, "--what", "adapters", "--repo", "org/adapters", "--json", env=env, check=True)
    pushed = json.loads(done.stdout)
    repo = server.repos["model", "org/adapters"]
    assert repo.private and pushed["changed"] and pushed["commit"] == repo.branches["main"]
    assert repo.messages[-1].startswith("adapters of run hubbed, prefixlab ")

    (step,) = run.glob("steps/train-*-r000-s0-*")
    source = (step / "adapter" / "adapter_model.safetensors").read_bytes()
    sub = "tiny-random-math-r000-s0"
    sha, base = python(LOAD_ADAPTER, tiny_ref.path, "org/adapters", sub, tmp_path / "back", env=env)
    assert sha == hashlib.sha256(source).hexdigest() and base == "tiny-random"
    back, own = load_file(tmp_path / "back"), load_file(step / "adapter" / "adapter_model.safetensors")
    assert back.keys() == own.keys() and all(bool((back[k] == own[k]).all()) for k in own)

    files = repo.at("main")[1]
    texts = {p: b.data.decode() for p, b in files.items() if not p.endswith(".safetensors")}
    assert not [p for p, text in texts.items() if str(run.parent) in text or tiny_ref.path in text]
    assert json.loads(texts[f"{sub}/adapter_config.json"])["base_model_name_or_path"] == "tiny-random"
    assert "Treatment check" in texts[f"{sub}/README.md"] and "library_name: peft" in texts["README.md"]


def test_what_is_there_is_not_sent_again(run, hub, tmp_path):
    """A second push is no commit; one that broke off after the weights were sent sends none of them again."""
    server, address = hub
    env = client(address, tmp_path / "home")
    ask = ("push", run, "--what", "adapters", "--repo", "org/adapters")
    server.failing["commit"] = 503
    refused(cli(*ask, env=env), "'org/adapters' could not be written", "the hub is being mended", "goes on")
    sent = server.received
    assert sent > 0 and len(server.repos["model", "org/adapters"].messages) == 1
    server.failing.clear()
    assert "pushed: " in cli(*ask, env=env, check=True).stdout
    assert server.received == sent and len(server.repos["model", "org/adapters"].messages) == 2
    assert "nothing has changed" in cli(*ask, env=env, check=True).stdout
    assert len(server.repos["model", "org/adapters"].messages) == 2


def test_of_an_unfinished_run_what_is_finished_goes(run, hub, tmp_path):
    server, address = hub
    env = client(address, tmp_path / "home")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (step,) = copy.glob("steps/train-*-reasoning-opening-r100-s0-*")
    (step / "DONE").unlink()
    ask = ("push", copy, "--what", "adapters", "--repo", "org/part")
    done = cli(*ask, env=env, check=True)
    missing = "tiny-random-math-reasoning-opening-r100-s0"
    assert f"not finished, left out: {missing}" in done.stdout
    files = server.repos["model", "org/part"].at("main")[1]
    assert not [p for p in files if p.startswith(missing)] and missing in files["README.md"].data.decode()
    shutil.copy(next(run.glob("steps/train-*-reasoning-opening-r100-s0-*")) / "DONE", step)
    cli(*ask, env=env, check=True)
    files = server.repos["model", "org/part"].at("main")[1]
    assert f"{missing}/adapter_model.safetensors" in files and "Not finished" not in files["README.md"].data.decode()


LOAD_ARMS = """
import json, sys
from datasets import load_dataset
from huggingface_hub import snapshot_download
found = {part: load_dataset(sys.argv[1], part)["train"].to_list() for part in sys.argv[2].split(",")}
print(json.dumps([found, snapshot_download(sys.argv[1], repo_type="dataset")]))
"""


def test_arms_load_as_a_data_set_and_as_a_folder_to_train_on(arms, hub, tmp_path):
    server, address = hub
    env = client(address, tmp_path / "home")
    cli("push", arms, "--repo", "org/sums", env=env, check=True)
    found, folder = python(LOAD_ARMS, "org/sums", "r000,reasoning-opening-r100", env=env)
    for name, rows in found.items():
        assert rows == [json.loads(line) for line in (arms / name / "data.jsonl").read_text().splitlines()]
    options = ("--arm", "r000", "--model", "tiny-random", "--out", tmp_path / "a", "--set", "training.epochs=1")
    cli("train", folder, *options, env=env, check=True)

    done = cli("push", tmp_path / "a", "--repo", "org/one", env=env, check=True)
    assert "private model org/one" in done.stdout
    files = server.repos["model", "org/one"].at("main")[1]
    assert set(files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    own = (tmp_path / "a" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"].data == own


def test_arms_of_a_run_have_a_folder_for_each_capability(run, hub, tmp_path):
    server, address = hub
    env = client(address, tmp_path / "home")
    cli("push", run, "--what", "arms", "--repo", "org/arms", "--revision", "v2", env=env, check=True)
    repo = server.repos["dataset", "org/arms"]
    assert set(repo.at("main")[1]) == {".gitattributes"}
    files = repo.at("v2")[1]
    assert "sums.jsonl, a local file" in files["README.md"].data.decode()
    assert not [p for p, b in files.items() if str(run.parent).encode() in b.data]
    code = LOAD_ARMS.replace("sys.argv[1], part", 'sys.argv[1], part, revision="v2"').replace(
        'repo_type="dataset"', 'repo_type="dataset", revision="v2"'
    )
    found, folder = python(code, "org/arms", "math-r000,math-reasoning-opening-r100", env=env)
    plain, treated = found["math-r000"], found["math-reasoning-opening-r100"]
    assert len(plain) == len(treated) == 14 and not any(r["prefix_end"] for r in plain)
    for row in treated:
        said, (start, end) = row["messages"][-1]["content"], (row["prefix_start"], row["prefix_end"])
        assert end and said[:start] + said[end:] in {r["messages"][-1]["content"] for r in plain}
    cli("check", f"{folder}/math", "--model", "tiny-random", env=env, check=True)


def test_a_report_is_shown_by_a_static_space(run, hub, tmp_path, tiny_ref):
    server, address = hub
    done = cli(
        "push", run, "--what", "report", "--repo", "org/shown", env=client(address, tmp_path / "home"), check=True
    )
    assert "private space org/shown" in done.stdout
    repo = server.repos["space", "org/shown"]
    assert repo.sdk == "static" and repo.private
    files = repo.at("main")[1]
    here = {
        str(f.relative_to(run / "report")) for f in (run / "report").rglob("*") if f.is_file() and f.name != ".lock"
    }
    assert not [p for p in files if p.endswith(".pdf")], "the model is a path, which a PDF cannot lose"
    assert len(files) == len([p for p in here if not p.endswith(".pdf")]) + 4, "and two tables, card, .gitattributes"
    page = (run / "report" / "index.html").read_text()
    assert str(run.parent) in page and tiny_ref.path in page, "the test needs paths to look for"
    assert not [p for p, b in files.items() if str(run.parent).encode() in b.data or tiny_ref.path.encode() in b.data]
    assert not [p for p in files if "cache" in p], "nor flattened, in the name of a figure"
    assert "sums.jsonl" in files["index.html"].data.decode()


def test_comparisons_stay_and_a_report_of_other_steps_is_refused(run, hub, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    other = copy / "report" / "compare-b"
    other.mkdir()
    (other / "index.html").write_text("<p>another run</p>")
    env = client(hub[1], tmp_path / "home")
    ask = ("push", copy, "--what", "report", "--repo", "org/kept")
    assert "compare-b" not in cli(*ask, "--dry-run", env=env, check=True).stdout
    (step,) = copy.glob("steps/eval-*-r000-s0-*")
    (step / "DONE").unlink()
    refused(cli(*ask, env=env), "are not those of its finished steps")


# --- what the hub refuses ---


def test_tokens_rights_and_networks(arms, hub, tmp_path):
    server, address = hub
    home = tmp_path / "home"

    def push(repo="org/x", *options, token=None, **more):
        env = client(address, home, **({} if token is None else {"token": token}), **more)
        return cli("push", arms, "--repo", repo, *options, env=env)

    refused(push(token=""), "no token", "hf auth login")
    refused(push(token="hf_wrong"), "does not accept your token")
    refused(push(token=READER), "may not write to dataset 'org/x'")
    refused(push("other/x"), "may not write to dataset 'other/x'")
    refused(push(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    refused(push(HF_ENDPOINT="http://127.0.0.1:9"), "cannot be reached", "goes on")
    assert not server.repos, "nothing was made on the way"


def test_repositories_of_others_and_public_ones_are_left_alone(arms, hub, tmp_path):
    server, address = hub
    env = client(address, tmp_path / "home")
    server.add("dataset", "org/theirs", {"README.md": b"# theirs", "rows.csv": b"a\n1\n"}, private=True)
    refused(cli("push", arms, "--repo", "org/theirs", env=env), "was not made by prefixlab", "'rows.csv'")
    server.add("dataset", "org/seen", {"README.md": b"---\ntags:\n- prefixlab\n---\n", "rows.csv": b"a\n1\n"})
    refused(cli("push", arms, "--repo", "org/seen", env=env), "'org/seen' is public", "--public")
    assert all(len(repo.messages) == 1 for repo in server.repos.values())
    done = cli("push", arms, "--repo", "org/seen", "--public", env=env, check=True)
    assert "public dataset org/seen" in done.stdout
    assert "rows.csv" in server.repos["dataset", "org/seen"].at("main")[1], "nothing is deleted"


# --- pull by revision ---

READ_ROWS = """
import json, sys
from prefixlab.data.rows import iter_rows
from prefixlab.errors import UserError
found = []
for part, revision in json.loads(sys.argv[1]):
    try:
        found.append([r.value["n"] for r in iter_rows("org/rows", revision=revision, config=part)])
    except UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_rows_are_those_of_the_revision_also_offline(hub, tmp_path):
    """`datasets` by itself gives whichever revision it cached last when the hub is out of reach."""
    server, address = hub
    env = client(address, tmp_path / "home")

    def read(*asked, **more):
        return python(READ_ROWS, json.dumps(asked), env={**env, **more})

    def version(n):
        rows = {f"{name}.jsonl": json.dumps({"n": n + i}).encode() + b"\n" for i, name in enumerate(("sums", "more"))}
        return server.add("dataset", "org/rows", {"README.md": PARTS.encode() + b"---\n", **rows})

    first = version(10)
    server.repos["dataset", "org/rows"].branches["v1"] = first
    version(20)
    assert read(("sums", "v1"), ("sums", None), ("more", None)) == [[10], [20], [21]]
    offline = read(("sums", "v1"), ("sums", first), ("sums", None), ("more", "v1"), ("more", "v9"), HF_HUB_OFFLINE="1")
    assert offline[:3] == [[10], [10], [20]]
    assert all(
        "HF_HUB_OFFLINE is set" in said and "load_dataset('org/rows', 'more', revision=" in said for said in offline[3:]
    )
    asked = len(server.asked)
    gone = read(("sums", "v1"), ("sums", None), HF_ENDPOINT="http://127.0.0.1:9")
    assert gone == [[10], [20]] and len(server.asked) == asked
    (said,) = read(("sums", "v9"))
    assert "Invalid rev id: v9" in said and "check the id and the revision" in said


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"odd.py": b"raise SystemExit\n"}, "Dataset scripts are no longer supported"),
        ({"a.jsonl": b'{"n": 1}\n', "b.jsonl": b'{"other": "x"}\n'}, "could not be read from the hub"),
        ({"a.jsonl": b'{"n": 1}\n{"n": \n'}, "could not be read from the hub"),
    ],
)
def test_data_sets_that_cannot_be_made_into_rows_are_one_line(hub, tmp_path, files, words):
    server, address = hub
    server.add("dataset", "org/odd", files)
    refused(cli("audit", "org/odd", env=client(address, tmp_path / "home")), "org/odd", words)


def test_the_manifest_of_arms_has_the_commit_that_was_read(hub, tmp_path):
    server, address = hub
    env = client(address, tmp_path / "home")
    card = b"---\nlicense: cc-by-4.0\n---\n"
    rows = "".join(
        json.dumps({"prompt": f"What is {i}?", "response": f"It is {i}, as {i} says."}) + "\n" for i in range(9)
    )
    commit = server.add("dataset", "org/asked", {"README.md": card, "train.jsonl": rows.encode()})
    options = ("--prefixes", "reasoning", "--position", "opening", "--ratios", "0,1", "--out", tmp_path / "arms")
    cli("arms", "org/asked", *options, env=env, check=True)
    about = json.loads((tmp_path / "arms" / "manifest.json").read_text())
    assert (about["source"], about["revision"], about["split"]) == ("org/asked", commit, "train")
    cli("push", tmp_path / "arms", "--repo", "org/made", env=env, check=True)
    card = server.repos["dataset", "org/made"].at("main")[1]["README.md"].data.decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == ["cc-by-4.0"] and front["source_datasets"] == ["org/asked"] and commit in card


RESOLVE = """
import json, sys
from prefixlab.config import HardwareConfig
from prefixlab.errors import UserError
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
found = []
for name in sys.argv[1:]:
    try:
        ref = resolve_model(name)
        load_tokenizer(ref)
        model = load_model(ref, resolve(HardwareConfig(device="cpu", dtype="float32", threads=1)))
        found.append([ref.revision, float(model.get_output_embeddings().weight.detach().sum())])
    except UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_a_model_is_the_revision_s_also_offline(hub, arms, tmp_path, tiny_ref):
    from pathlib import Path

    import torch
    from safetensors.torch import save

    server, address = hub
    env = client(address, tmp_path / "home")
    files = {f.name: f.read_bytes() for f in Path(tiny_ref.path).iterdir() if f.name != "prefixlab.json"}
    weights = load_file(Path(tiny_ref.path) / "model.safetensors")
    other = save({k: v + torch.ones_like(v) for k, v in weights.items()}, {"format": "pt"})
    old = server.add("model", "org/tiny", {**files, "model.safetensors": other}, private=True)
    server.repos["model", "org/tiny"].branches["v1"] = old
    new = server.add("model", "org/tiny", files)

    first, second = python(RESOLVE, "org/tiny@v1", "org/tiny", env=env)
    assert first[0] == old and second[0] == new and abs(first[1] - second[1]) > 1
    off = {**env, "HF_HUB_OFFLINE": "1"}
    again = python(RESOLVE, "org/tiny@v1", f"org/tiny@{old}", "org/tiny", "org/tiny@v2", "org/none", env=off)
    assert again[:3] == [first, first, second]
    assert "HF_HUB_OFFLINE is set" in again[3] and "hf download org/tiny --revision v2" in again[3]
    assert "hf download org/none" in again[4]
    (wrong,) = python(RESOLVE, "org/tiny@v2", env=env)
    assert "Invalid rev id: v2" in wrong and "hf auth login" in wrong

    study = tiny_study(models=["org/tiny@v1"])
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    for where in (env, off):
        planned = cli("plan", tmp_path / "study.yaml", "--out", tmp_path / "run", "--json", env=where, check=True)
        plan = json.loads(planned.stdout)
        assert plan["models"][0]["revision"] == old and plan["models"][0]["path"] == "org/tiny"
    options = ("--arm", "r000", "--model", "org/tiny@v1", "--out", tmp_path / "a", "--set", "training.epochs=1")
    cli("train", arms, *options, env=off, check=True)
    made = json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())
    assert (made["base_model_name_or_path"], made["revision"]) == ("org/tiny", old), "which PEFT leaves out"
    nowhere = client(address, tmp_path / "elsewhere", HF_HUB_OFFLINE="1")
    planned = cli("plan", tmp_path / "study.yaml", "--out", tmp_path / "run", "--json", env=nowhere, check=True)
    assert "hf download org/tiny --revision v1" in json.loads(planned.stdout)["estimated_because"]
