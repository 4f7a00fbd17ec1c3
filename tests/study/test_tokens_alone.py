"""`prefixlab tokens` on the random model: tables, adapters, and what a user gets wrong."""

import json

import polars
import pytest

from prefixlab.analysis.token_columns import TOKENS


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"prompt": f"What is {i} plus 2?", "response": f"Sure! It is {i + 2}, since {i} and 2 add up."}
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_model_and_two_adapters_are_read_under_every_text(call, rows, tmp_path, arms):
    adapters = []
    for seed in (0, 1):
        out = tmp_path / f"cell{seed}"
        done = call("train", arms, "--arm", "r000", "--model", "tiny-random", "--out", out, "--seed", seed, "-q")
        assert done.returncode == 0, done.stderr
        adapters += ["--adapter", out / "adapter"]
    options = ("--prefixes", "safety", "--control", "neutral", "--control", "shuffled", "--gradients", "positions")
    done = call(
        "tokens", rows, "--model", "tiny-random", *options, *adapters, "--samples", 3, "--out", tmp_path / "t", "-q"
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    table = polars.read_parquet(tmp_path / "t" / "token_loss.parquet")
    assert table.columns == ["arm", *TOKENS]
    assert set(table["arm"]) == {"base", "cell0", "cell1"}
    assert set(table["rendering"]) == {"r000", "safety", "neutral", "shuffled"}
    assert table["sample"].n_unique() == 3
    base, cell = table.filter(arm="base"), table.filter(arm="cell0")
    assert base["kl"].null_count() == len(base)
    assert cell["kl"].min() >= 0 and cell["kl"].max() > 0
    assert base["contribution"].null_count() == 0  # of the adapter that training would start from
    assert set(base.filter(rendering="r000")["span"]) == {"answer", "end"}
    assert base.filter(rendering="safety", span="prefix")["word"].str.len_chars().max() > 0
    spans = polars.read_parquet(tmp_path / "t" / "spans.parquet")
    shares = spans.group_by("arm", "sample", "rendering").agg(polars.col("influence").sum())
    assert shares["influence"].to_list() == pytest.approx([1.0] * len(shares), abs=1e-4)
    assert json.loads((tmp_path / "t" / "frequency.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--adapter", "nowhere"), "is no PEFT folder"),
        (("--prefixes", "safty"), "Did you mean 'safety'"),
        (("--weights", "model.layers.0.mlp.down_proj"), "need gradients: positions or tokens"),
        (("--weights", "model.layer.0.mlp", "--gradients", "positions"), "unknown"),
        (("--control", "bland"), "neutral"),
        (("--control", "masked"), "masked"),
        (("--samples", "0"), "samples"),
        (("--adapter", "one/adapter", "--adapter", "two/adapter"), "one/adapter"),
    ],
)
def test_mistakes_are_one_line(call, rows, tmp_path, options, said):
    given = ("--prefixes", "safety", *options) if "--prefixes" not in options else options
    done = call("tokens", rows, "--model", "tiny-random", *given, "--out", tmp_path / "t", "-q")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1
