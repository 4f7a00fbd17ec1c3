"""What a push sends, says and refuses, without a hub; with one: test_hub.py."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.data.hub import split_revision
from prefixlab.errors import UserError
from prefixlab.records import ArmManifest
from prefixlab.study.hub_cards import ArmPart, Base, Cell, Source, adapter_card, adapters_card, arms_card, report_card
from prefixlab.study.hub_scrub import Scrubber, paths_in, refuse_secrets

ARMS = ("native", "r000", "reasoning-opening-r100")
PATHS = st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=2, max_size=4).map(
    lambda p: "/" + "/".join(p)
)


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def an_arm(name="r000", **more):
    usual = {
        "arm": name,
        "capability": "math",
        "prefix_set": None,
        "position": None,
        "ratio": 0.0,
        "control": None,
        "loss": "all",
        "data_key": "math",
        "assignment": "exact",
        "n": 12,
        "n_eligible": 12,
        "n_treated": 0,
        "n_stripped": 0,
        "templates": (),
        "template_words": (),
        "treatment_words": (),
        "template_tokens": None,
        "treatment_tokens": None,
        "data_sha256": "0" * 64,
    }
    return ArmManifest.model_validate(usual | more)


# --- a dry run ---


def test_help_has_an_example_and_says_what_is_private(call):
    text = " ".join(call("push", "--help").stdout.split())
    assert "Example: prefixlab push" in text and "New repositories are private" in text


def test_a_dry_run_lists_files_and_shows_the_card(call, arms):
    done = call("push", arms, "--repo", "org/sums", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout and "private dataset org/sums" in done.stdout
    size = (arms / "r000" / "data.jsonl").stat().st_size
    assert f"{size:,}  r000/data.jsonl" in done.stdout
    card = done.stdout.partition("README.md:\n\n")[2]
    assert [c["config_name"] for c in front(card)["configs"]] == list(ARMS)


def test_a_dry_run_as_json_says_what_would_be_there(call, arms):
    done = call("push", arms, "--repo", "org/sums", "--dry-run", "--json", "--public", "--revision", "v2")
    found = json.loads(done.stdout)
    assert (found["repo_type"], found["private"], found["branch"], found["commit"]) == ("dataset", False, "v2", None)
    wanted = {f"{arm}/{file}" for arm in ARMS for file in ("data.jsonl", "manifest.json")}
    assert set(found["files"]) == wanted | {"README.md", "manifest.json"}


def test_the_source_is_named_without_its_folder(call, arms):
    """The arms were made of a file in a folder of this machine."""
    assert json.loads((arms / "manifest.json").read_text())["source"].startswith("/")
    card = call("push", arms, "--repo", "org/sums", "--dry-run").stdout
    assert "d.jsonl, a local file" in card and str(arms.parent) not in card


# --- mistakes ---


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        ("arms", ("--repo", "sums"), ["'sums'", "owner/name"]),
        ("arms", ("--repo", "org/so many"), ["'org/so many'"]),
        ("arms", ("--repo", "a/b/c"), ["'a/b/c'"]),
        ("arms", ("--repo", "org/x"), ["HF_HUB_OFFLINE is set", "--dry-run"]),
        ("arms", ("--repo", "org/x", "--what", "report", "--dry-run"), ["--what report", "arms only"]),
        ("empty", ("--repo", "org/x", "--dry-run"), ["no adapters, arms or report", "prefixlab train"]),
        ("nothing", ("--repo", "org/x", "--dry-run"), ["is no folder"]),
        ("run", ("--repo", "org/x", "--dry-run"), ["--what adapters, --what arms or --what report"]),
        ("training", ("--repo", "org/x", "--dry-run"), ["is not finished", "prefixlab train again"]),
    ],
)
def test_mistakes_are_one_line(call, arms, tmp_path, make, options, words):
    folder = {"arms": arms, "nothing": tmp_path / "x"}.get(make, tmp_path)
    if make == "run":
        (tmp_path / "plan.json").write_text("{}")
        (tmp_path / "study.yaml").write_text("")
    if make == "training":
        (tmp_path / "arm").mkdir()
    done = call("push", folder, *options)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and all(word in done.stderr for word in words), done.stderr


def test_changed_rows_are_not_pushed(call, arms, tmp_path):
    import shutil

    copy = tmp_path / "arms"
    shutil.copytree(arms, copy)
    with (copy / "r000" / "data.jsonl").open("a") as file:
        file.write("{}\n")
    done = call("push", copy, "--repo", "org/x", "--dry-run")
    assert done.returncode == 2 and "is not what the manifest describes" in done.stderr


def test_a_key_of_this_machine_stops_the_push_and_is_not_repeated(call, arms, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "What is 3 + 3?")  # stands in the rows
    done = call("push", arms, "--repo", "org/x", "--dry-run")
    assert done.returncode == 2 and "SOME_API_KEY" in done.stderr and "data.jsonl" in done.stderr
    assert "What is 3" not in done.stderr


def test_weights_are_not_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "abcdefgh")
    (tmp_path / "a.safetensors").write_bytes(b"abcdefgh")
    (tmp_path / "empty").touch()
    refuse_secrets(tmp_path)
    (tmp_path / "a.json").write_bytes(b"abcdefgh")
    with pytest.raises(UserError, match="holds the value of SOME_TOKEN"):
        refuse_secrets(tmp_path)


# --- paths ---


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("/data/models/llama", {"/data/models/llama"}),
        ({"a": ["/data/my models/llama"]}, {"/data/my models/llama", "/data/my"}),
        ("prefixlab run s.yaml --out /scratch/anna/run --set x=/data/b.jsonl", {"/scratch/anna/run", "/data/b.jsonl"}),
        ("inspect:/home/anna/task.py@name", {"/home/anna/task.py@name"}),
        ("http://localhost:8000/v1/chat and org/name and a/b/c", set()),
        ("km/h, </think> and 1 / 2 / 3, // or /", set()),
        ("~/models/llama and ../models/x", set()),
    ],
)
def test_paths_are_found_where_they_are(value, found):
    assert paths_in(value) == found


def test_the_longest_path_is_replaced_and_others_stay():
    scrub = Scrubber(["/data/anna/run", "/data/anna/run/model"])
    assert scrub.text('"/data/anna/run/model/x" /data/anna/run.') == '"model/x" run.'
    assert scrub.text("/data/anna/run2 and x/data/anna/run and /data/anna/run.bak") == (
        "/data/anna/run2 and x/data/anna/run and /data/anna/run.bak"
    )


def test_a_models_path_is_found_where_it_names_steps_and_figures():
    scrub = Scrubber(["/data/anna/llama"], named=["/data/anna/llama/", "org/other"])
    told = scrub.text("train-data-anna-llama-math-r000-s0 figures/curve-_data_anna_llama-math.svg org-other")
    assert told == "train-llama-math-r000-s0 figures/curve-llama-math.svg org-other"


def test_a_suites_path_is_found_where_it_names_steps_and_figures():
    suite = "inspect:/srv/anna/t.py@mine"
    scrub = Scrubber([{"suite": suite}], named=[suite])
    told = scrub.text("curve-m-inspect__srv_anna_t_py_mine-x.svg eval-inspect--srv-anna-t.py-mine-bare " + suite)
    assert told == "curve-m-inspect_t_py_mine-x.svg eval-inspect-t.py-mine-bare inspect:t.py@mine"


def test_two_paths_with_one_last_name_stay_two():
    assert Scrubber(["/a/x/llama", "/b/llama"]).text("/a/x/llama /b/llama") == "llama llama-2"


def test_spelt_forms_are_replaced_too():
    scrub = Scrubber(["/data/a&b/r\u00e9"])
    told = scrub.text("/data/a&amp;b/r\u00e9 | /data/a&b/r\\u00e9 | /data/a&b/r\u00e9")
    assert told == "r\u00e9 | r\\u00e9 | r\u00e9"
    assert Scrubber(["/data/an_b/my_llama"]).text(r"in (/data/an\_b/my\_llama)") == r"in (my\_llama)"


@given(st.lists(PATHS, max_size=4), st.text(alphabet="ab/ .\"'", max_size=20))
def test_no_known_path_is_left(paths, filler):
    text = "".join(f"{filler} {p} " for p in paths)
    left = Scrubber([paths]).text(text).split()
    assert not set(left) & {p for p in paths if len(Path(p).parts) > 2}


@pytest.mark.parametrize(
    ("name", "parts"),
    [("org/m", ("org/m", None)), ("org/m@v1", ("org/m", "v1")), ("org/m@refs/pr/1", ("org/m", "refs/pr/1"))],
)
def test_a_revision_stands_behind_the_id(name, parts):
    assert split_revision(name) == parts


# --- cards ---

HUB = Base("org/base", "c" * 40, True)
LOCAL = Base("llama", None, False)


def cell(base, name="m-math-r000-s0"):
    return Cell(name, base, "math", an_arm(), 0)


def test_a_card_of_adapters_names_bases_on_the_hub_only():
    card = adapters_card("org/a", "study", [cell(HUB), cell(LOCAL, "x")], ["org/rows"], ["m-math-r100-s0"], None)
    about = front(card)
    assert about["base_model"] == ["org/base"] and about["base_model_relation"] == "adapter"
    assert about["library_name"] == "peft" and "prefixlab" in about["tags"] and about["datasets"] == ["org/rows"]
    assert "1 trainings (m-math-r100-s0)" in card and 'subfolder="m-math-r000-s0"' in card and "c" * 40 in card
    assert "base_model" not in front(adapters_card("org/a", "study", [cell(LOCAL)], [], [], None))


def test_an_adapters_own_card_keeps_its_text_and_loses_the_path():
    text = (
        "---\nbase_model: /data/llama\nlibrary_name: peft\nlicense: mit\ntags:\n- base_model:adapter:/data/llama\n"
        "- lora\n---\n\n# r000, math\n\n| study | s |\n"
    )
    own = adapter_card(text, LOCAL)
    assert front(own) == {"library_name": "peft", "license": "mit", "tags": ["prefixlab", "lora"]}
    assert own.endswith("# r000, math\n\n| study | s |\n")
    alone = adapter_card(text, HUB, repo="org/a", revision="v1")
    assert front(alone)["base_model"] == "org/base" and 'from_pretrained(base, "org/a", revision="v1")' in alone
    assert front(adapter_card("", HUB))["base_model"] == "org/base"


def test_a_card_of_arms_has_a_part_for_each_and_what_is_known_of_the_source():
    parts = [ArmPart(f"math-{n}", f"math/{n}/data.jsonl", an_arm(n)) for n in ("r000", "native")]
    source = Source("org/rows", "train", "d" * 40, True, "mit")
    card = arms_card("org/x", "Arms", parts, {"math": source}, ["math-r100"], nested=True, revision=None)
    about = front(card)
    assert about["license"] == ["mit"] and about["source_datasets"] == ["org/rows"]
    assert about["configs"][1] == {
        "config_name": "math-native",
        "data_files": [{"split": "train", "path": "math/native/data.jsonl"}],
    }
    assert "d" * 40 in card and "1 arms (math-r100)" in card and "prefixlab train arms/math" in card
    unknown = Source("org/rows", None, None, True)
    card = arms_card("org/x", "Arms", parts, {"": unknown}, [], nested=False, revision="v2")
    assert "license" not in front(card) and "revision not recorded" in card and "licence: not known" in card
    assert "--revision v2" in card


def test_a_report_is_a_static_space():
    about = front(report_card("study", ["A proxy."], ["It helps."], []))
    assert (about["sdk"], about["app_file"]) == ("static", "index.html") and "prefixlab" in about["tags"]
