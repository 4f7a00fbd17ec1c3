"""Intervals, tests and detectable effects for paired designs: all of them under one name. No torch.

Every comparison is made on the same prompts. With one training seed the unit is the prompt, and the interval says
nothing about the variance of training (intervals.py); with several, seeds and prompts are crossed random factors
(crossed.py). What a design can detect: power.py. What is drawn at random takes its generator. Formulas and sources:
docs/methods.md, "Statistics".
"""

from prefixlab.analysis.crossed import Components, bootstrap, compare, components, crossed, level, trend
from prefixlab.analysis.intervals import (
    NONE,
    ROUNDING,
    Array,
    Contrast,
    Equivalence,
    Estimate,
    bonett_price,
    clopper_pearson,
    equivalence,
    estimate,
    holm,
    mean_interval,
    paired,
    proportion,
)
from prefixlab.analysis.power import (
    assumed,
    crossed_power,
    detectable,
    mcnemar_power,
    mde,
    one_way,
    pairs_needed,
    prompts_needed,
    seeds_needed,
)

__all__ = [
    "NONE",
    "ROUNDING",
    "Array",
    "Components",
    "Contrast",
    "Equivalence",
    "Estimate",
    "assumed",
    "bonett_price",
    "bootstrap",
    "clopper_pearson",
    "compare",
    "components",
    "crossed",
    "crossed_power",
    "detectable",
    "equivalence",
    "estimate",
    "holm",
    "level",
    "mcnemar_power",
    "mde",
    "mean_interval",
    "one_way",
    "paired",
    "pairs_needed",
    "prompts_needed",
    "proportion",
    "seeds_needed",
    "trend",
]
