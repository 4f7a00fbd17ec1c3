"""How often the intervals cover, how often nothing is called something, and whether the promised power is there.

    python benchmarks/calibration.py                    the whole grid (half an hour on two slow cores)
    python benchmarks/calibration.py --quick            a smaller grid, fewer repetitions
    python benchmarks/calibration.py --from RUN         discordance, difficulty and seed variance of a finished run

The studies are those of simulated_studies.py. All configurations are made from the same draws, so that their errors go
together. Prints one JSON object.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from prefixlab.analysis import contrasts, crossed, stats
from prefixlab.model.machine import describe
from prefixlab.study.run import open_run
from simulated_studies import Design, Noise, Sums, Tally, differences, family_outcomes, outcomes, sums

ALPHA = 0.05
SEED = 6
PROMPTS, SEEDS = (60, 100, 313, 1319), (3, 5, 8)
SEED_SDS, EFFECTS, SAMPLES = (0.0, 0.01, 0.02, 0.04), (0.0, 0.05), (1, 5)
ACCURACIES, DISCORDANCES, SHARED = (0.12, 0.5, 0.88), (0.1, 0.2, 0.4), (0.25, 0.75)
CHUNK = 100
ONE_WAY = 0.85
"""Beyond this share of the discordance an effect leaves hardly a prompt that differs the other way; what is left of the
variance then hangs on how the effect falls on the prompts."""


def designs(quick: bool) -> tuple[list[Design], int]:
    """Configurations of the two arms, and how many were left out since the numbers exclude each other."""
    every = [Design(a, e, d, shared) for a, e, d, shared in product(ACCURACIES, EFFECTS, DISCORDANCES, SHARED)]
    possible = [d for d in every if d.correlation() is not None]
    return possible[:: 3 if quick else 1], len(every) - len(possible)


Key = tuple[Any, ...]
RATIO = "half_width_vs_known_variance"
AXES = ("kind", "prompts", "seeds", "seed_sd", "accuracy", "effect", "discordance", "shared", "samples")


def coverage(options: argparse.Namespace) -> dict[str, Any]:
    """Pooled differences and levels, and intervals of one seed, over the grid."""
    rng, cells = np.random.default_rng(SEED), {}
    chosen, excluded = designs(options.quick)
    prompts = PROMPTS[:3] if options.quick else PROMPTS
    seeds = (2, *SEEDS)
    for done in range(0, options.reps, CHUNK):
        noise = Noise(rng, CHUNK, max(seeds), prompts[-1], max(SAMPLES))
        for design, samples in product(chosen, SAMPLES):
            for sd, treated, reference in outcomes(noise, design, SEED_SDS, samples):
                setting = (sd, design.accuracy, design.effect, design.discordance, design.shared, samples)
                _tally(cells, sums(treated - reference, prompts, seeds), setting, prompts, seeds)
                if samples == 1 and design.shared == SHARED[0]:
                    _tally_levels(cells, sums(treated, prompts, seeds), setting, prompts)
                if design.shared == SHARED[0]:
                    _tally_one_seed(cells, noise, design, setting, treated, reference, prompts)
        print(f"coverage: {done + CHUNK} of {options.reps} repetitions", file=sys.stderr, flush=True)
    return _coverage_figures(cells, excluded)


def _tally(cells: dict[Key, Tally], found: Sums, setting: Key, prompts: Sequence[int], seeds: Sequence[int]) -> None:
    for (at, n), s in product(enumerate(prompts), seeds):
        mean, table = differences(found, at, n, s, setting[-1])
        kind = "difference" if s > 2 else "difference, two seeds"
        cells.setdefault((kind, n, s, *setting), Tally()).add(mean, crossed.half_width(table, ALPHA), setting[2])


def _tally_levels(cells: dict[Key, Tally], found: Sums, setting: Key, prompts: Sequence[int]) -> None:
    """Levels of the treatment over several seeds, as `level` has them."""
    for (at, n), s in product(enumerate(prompts), SEEDS):
        more = crossed.AGRESTI_COULL
        rows = found.rows[:, :s, at]
        columns, whole = found.columns[s][:, at] + more * s**2, found.cells[:, :s, at].sum(1) + more * s
        table = crossed.squares_of_sums(rows + more, columns, whole, s, n + 2 * more)
        centre = (rows.sum(1) + more * s) / (s * (n + 2 * more))
        tally = cells.setdefault(("level", n, s, *setting), Tally())
        tally.add(centre, crossed.half_width(table, ALPHA), setting[1] + setting[2])


def _tally_one_seed(
    cells: dict[Key, Tally],
    noise: Noise,
    design: Design,
    setting: Key,
    treated: Any,
    reference: Any,
    prompts: Sequence[int],
) -> None:
    """The first seed by itself; the truth is that of this seed."""
    sigma, mean = design.shift(setting[0])
    level = special.ndtr(mean + sigma * noise.seeds[:, 0, 0])
    for n in prompts:
        d = treated[:, 0, :n] - reference[:, 0, :n]
        if setting[-1] == 1:
            right, up, down = treated[:, 0, :n].sum(1), (d > 0).sum(1), (d < 0).sum(1)
            found = {
                "Wilson": ([_share(int(k), n, False) for k in right], level),
                "Clopper-Pearson": ([_share(int(k), n, True) for k in right], level),
                "Bonett-Price": (
                    [_pairs(int(u), int(v), n) for u, v in zip(up, down, strict=True)],
                    level - design.accuracy,
                ),
            }
        else:
            shares = d / setting[-1]
            centre, half = shares.mean(1), special.stdtrit(n - 1, 1 - ALPHA / 2) * shares.std(1, ddof=1) / n**0.5
            found = {"paired t": (np.stack([centre - half, centre + half], 1), level - design.accuracy)}
        for name, (ends, truth) in found.items():
            low, high = np.array(ends).T
            tally = cells.setdefault((f"one seed, {name}", n, 1, *setting), Tally())
            tally.add((low + high) / 2, (high - low) / 2, truth)


@cache
def _share(right: int, n: int, exact: bool) -> tuple[float, float]:
    found = (stats.clopper_pearson if exact else stats.proportion)(right, n, ALPHA)
    assert found.low is not None and found.high is not None
    return found.low, found.high


@cache
def _pairs(up: int, down: int, n: int) -> tuple[float, float]:
    return stats.bonett_price(up, down, n, ALPHA)


def _coverage_figures(cells: dict[Key, Tally], excluded: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind in dict.fromkeys(key[0] for key in cells):
        mine = sorted(((t.coverage, key) for key, t in cells.items() if key[0] == kind), key=lambda x: x[0])
        values = [c for c, _ in mine]
        figures[f"coverage of {kind}"] = summary(values, "of repetitions") | {
            "mean": float(np.mean(values)),
            "below_0.94": sum(c < 0.94 for c in values),
            "lowest": [dict(zip(AXES[1:], key[1:], strict=True)) | {"coverage": c} for c, key in mine[:5]],
        }
    means = {}
    for place, axis in enumerate(AXES[1:], start=1):
        pooled = [(key[place], t.coverage) for key, t in cells.items() if key[0] == "difference"]
        means[axis] = {str(v): round(float(np.mean([c for w, c in pooled if w == v])), 4) for v, _ in pooled}
    figures["mean coverage of difference, by axis"] = means
    reps = next(iter(cells.values())).n
    figures["Monte Carlo error"] = {
        "repetitions": reps,
        "standard_error_at_0.95": float(np.sqrt(0.95 * 0.05 / reps)),
        "standard_error_at_0.94": float(np.sqrt(0.94 * 0.06 / reps)),
        "impossible_combinations_left_out": excluded,
    }
    prices = [t.price for key, t in cells.items() if key[0] == "difference"]
    return figures | {RATIO: summary(prices, "")}


ARMS = ("r000", "r050", "r100", "neutral-r050", "neutral-r100", "shuffled-r050", "shuffled-r100")
PAIRS = [(i, 0) for i in range(1, 7)] + [(1, 3), (1, 5), (2, 4), (2, 6)]
"""Every arm against r000, and each ratio against its controls: positions in ARMS."""


def families(options: argparse.Namespace) -> dict[str, Any]:
    """Studies whose arms are all alike: how many announce a difference after Holm."""
    rng, found = np.random.default_rng(SEED + 1), {}
    for (n, s, sd), (accuracy, discordance), capabilities in product(
        ((60, 1, 0.0), (313, 1, 0.0), (60, 3, 0.0), (60, 3, 0.04), (313, 3, 0.0), (313, 3, 0.02), (313, 5, 0.02)),
        ((0.12, 0.1), (0.5, 0.2), (0.5, 0.4)),
        (2, 4),
    ):
        design = Design(accuracy, 0.0, discordance, 0.5)
        called = studies = 0
        while studies < options.families:
            p = np.concatenate([_family_p(rng, design, sd, n, s) for _ in range(capabilities)], axis=1)
            # Holm's first step decides whether anything is announced: the smallest p against alpha over the family.
            called += int((p.min(1) * p.shape[1] < ALPHA).sum())
            studies += len(p)
        name = f"{capabilities} capabilities, {n} prompts, {s} seeds, seed sd {sd}, discordance {discordance}"
        found[name] = called / studies
    values = list(found.values())
    error = float(np.sqrt(0.05 * 0.95 / options.families))
    return {
        "families called different": summary(values, "of families")
        | {"mean": float(np.mean(values)), "contrasts": [2 * len(PAIRS), 4 * len(PAIRS)], "repetitions": studies}
        | {"standard_error_at_0.05": error, "highest": dict(sorted(found.items(), key=lambda x: -x[1])[:3])}
    }


def _family_p(rng: np.random.Generator, design: Design, sd: float, n: int, s: int) -> Any:
    """Tests (R, contrasts) of one capability in CHUNK studies without any effect."""
    arms = family_outcomes(rng, design, sd, len(ARMS), CHUNK, s, n)
    columns = []
    for first, second in PAIRS:
        d = arms[first] - arms[second]
        if s == 1:
            ups, downs = (d[:, 0] > 0).sum(1), (d[:, 0] < 0).sum(1)
            columns.append([_exact_p(int(u), int(v)) for u, v in zip(ups, downs, strict=True)])
        else:
            mean, table = differences(sums(d, (n,), (s,)), 0, n, s, 1)
            columns.append(crossed.p_values(table, mean))
    return np.array(columns).T


@cache
def _exact_p(up: int, down: int) -> float:
    """As `paired` has it for so many discordant pairs."""
    treatment, reference = np.repeat([1.0, 0.0, 0.0], [up, down, 1]), np.repeat([0.0, 1.0, 0.0], [up, down, 1])
    p = stats.paired(treatment, reference, ALPHA).p
    assert p is not None
    return p


def power(options: argparse.Namespace) -> dict[str, Any]:
    """Simulated power at the effect that is promised to be detected with a given power."""
    rng, one = np.random.default_rng(SEED + 2), []
    for n, discordance, wanted in product(PROMPTS, DISCORDANCES, (0.5, 0.8, 0.9)):
        effect = stats.detectable(n, discordance, ALPHA, wanted)
        if effect is None:
            continue
        shares = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
        drawn = rng.multinomial(n, np.maximum(shares, 0), size=options.power)
        found = float(np.mean([_exact_p(int(u), int(v)) < ALPHA for u, v, _ in drawn]))
        row = {"prompts": n, "seeds": 1, "discordance": discordance, "effect": effect}
        one.append(row | {"predicted": stats.mcnemar_power(n, *shares[:2], ALPHA), "simulated": found})
    sizes = ((60, 3), (100, 5), (313, 3), (313, 5), (1319, 3), (1319, 8))
    grid = product(sizes, DISCORDANCES, (0.0, 0.02, 0.04), SHARED, (0.5, 0.8))
    if options.quick:
        grid = product(sizes[:3], DISCORDANCES[1:], (0.0, 0.04), SHARED[:1], (0.8,))
    tried = [_power_with_seeds(rng, *size, *rest, options.power_seeds) for size, *rest in grid]
    several = [row for row in tried if row is not None]
    usual = [row for row in several if row["effect"] <= ONE_WAY * row["discordance"]]
    found = {"power minus prediction, one seed": _off(one, "predicted", options.power)}
    for name, rows in ((f", effect at most {ONE_WAY} of the discordance", usual), ("", several)):
        found |= {
            f"power minus prediction, several seeds{name}": _off(rows, "predicted", options.power_seeds),
            f"power minus prediction from studies without an effect, several seeds{name}": _off(
                rows, "predicted_without_effect", options.power_seeds
            ),
        }
    return found


def _off(rows: Sequence[dict[str, Any]], prediction: str, reps: int) -> dict[str, Any]:
    """How far simulated power is from a prediction, and where it is furthest."""
    ordered = sorted(rows, key=lambda row: -abs(row["simulated"] - row[prediction]))
    off = [row["simulated"] - row[prediction] for row in ordered]
    more = {"beyond_0.03": sum(abs(x) > 0.03 for x in off), "repetitions": reps, "standard_error": 0.5 / reps**0.5}
    return summary(off, "share") | {"largest": abs(off[0])} | more | {"furthest": ordered[:5]}


def _power_with_seeds(
    rng: np.random.Generator, n: int, s: int, discordance: float, sd: float, shared: float, wanted: float, reps: int
) -> dict[str, Any] | None:
    """One design: the effect it promises to detect by studies without an effect, and studies that have it."""
    effect = stats.mde(_variances(rng, Design(0.4, 0.0, discordance, shared), sd, n, s), n, s, ALPHA, wanted)
    if effect is None:
        return None
    design = Design(0.4, effect, discordance, shared)
    if effect > 0.5 or design.correlation() is None:
        return None  # so large a difference needs more discordant pairs
    hits, done = 0, 0
    while done < reps:
        mean, table = differences(_draw(rng, design, sd, n, s), 0, n, s, 1)
        hits += int((np.abs(mean) > crossed.half_width(table, ALPHA)).sum())
        done += len(mean)
    return {
        "prompts": n,
        "seeds": s,
        "discordance": discordance,
        "seed_sd": sd,
        "shared": shared,
        "effect": effect,
        "predicted_without_effect": wanted,
        "predicted": stats.crossed_power(effect, _variances(rng, design, sd, n, s), n, s, ALPHA),
        "simulated": hits / done,
    }


def _variances(rng: np.random.Generator, design: Design, sd: float, n: int, s: int) -> stats.Components:
    """What many pilots would say of a design."""
    found = [_draw(rng, design, sd, n, s) for _ in range(40)]
    tables = [
        crossed.squares_of_sums(f.rows[:, :, 0], f.columns[s][:, 0], f.cells[:, :, 0].sum(1), s, n) for f in found
    ]
    seed, prompt, error = (float(np.mean([getattr(t, name) for t in tables])) for name in ("seed", "prompt", "error"))
    return stats.Components(
        seed=max(0.0, (seed - error) / n),
        prompt=max(0.0, (prompt - error) / s),
        error=error,
        differing=float(np.mean([f.differing[s] for f in found])) / n,
        discordant=float(np.mean([f.cells[:, :, 0] for f in found])) / n,
        effect=design.effect,
    )


def _draw(rng: np.random.Generator, design: Design, sd: float, n: int, s: int) -> Sums:
    """Sums of CHUNK studies of one size."""
    _, treated, reference = next(outcomes(Noise(rng, CHUNK, s, n, 1), design, (sd,), 1))
    return sums(treated - reference, (n,), (s,))


def from_run(folder: Path) -> dict[str, Any]:
    """Discordance, difficulty and variances of the primary suites of a run, one entry a comparison."""
    data = open_run(folder)
    figures = {}
    groups = contrasts.group(data.cells)
    for row in data.contrasts:
        if not row.primary or row.diff is None or row.comparison == "trend":
            continue
        arms = groups[(row.model, row.capability, row.suite, row.protocol, row.condition)]
        pair = contrasts.match(arms[row.arm], arms[row.reference], row.metric)
        parts = stats.components(pair.first_S_N - pair.second_S_N)
        whole = np.concatenate([pair.first_S_N, pair.second_S_N])
        figures[f"{row.model} {row.capability} {row.suite} {row.metric}: {row.arm} - {row.reference}"] = {
            "prompts": row.n_prompts,
            "seeds": row.n_seeds,
            "discordance": float((pair.first_S_N != pair.second_S_N).mean()),
            "accuracy": float(whole.mean()),
            "prompts_always_the_same": float((whole == whole[0]).all(0).mean()),
            "effect": row.diff,
            "seed_sd": None if parts is None else float(np.sqrt(parts.seed)),
            "shared_by_seeds": None
            if parts is None or parts.prompt + parts.error == 0
            else parts.prompt / (parts.prompt + parts.error),
            "why_none": "one seed says nothing about the variance of training" if parts is None else None,
        }
    return figures


def summary(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range."""
    return {
        "median": float(np.median(values)),
        "min": float(min(values)),
        "max": float(max(values)),
        "n": len(values),
        "unit": unit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=10_000, help="studies a configuration of the coverage grid")
    parser.add_argument("--families", type=int, default=4_000, help="studies without an effect a configuration")
    parser.add_argument("--power", type=int, default=40_000, help="studies with one seed a design")
    parser.add_argument("--power-seeds", type=int, default=5_000, help="studies with several seeds a design")
    parser.add_argument("--only", choices=("coverage", "families", "power"), help="one part")
    parser.add_argument("--quick", action="store_true", help="within a minute: a part of the grid, large errors")
    parser.add_argument("--from", dest="run", type=Path, help="a run folder; nothing is simulated")
    options = parser.parse_args()
    if options.quick:
        options.reps, options.families, options.power, options.power_seeds = 300, 100, 2_000, 200
    figures: dict[str, Any] = {}
    if options.run:
        figures = from_run(options.run)
    else:
        for part in (coverage, families, power):
            if options.only in (None, part.__name__):
                figures |= part(options)
    ratios = {RATIO: figures.pop(RATIO)} if RATIO in figures else {}
    names = ("prefixlab", "numpy", "scipy", "statsmodels")
    versions = {n: version(n) for n in names} | {"python": platform.python_version()}
    about = {"benchmark": "calibration", "machine": describe(), "versions": versions}
    print(json.dumps(about | {"figures": figures, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
