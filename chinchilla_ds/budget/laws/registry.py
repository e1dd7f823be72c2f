"""The published laws, each at full precision and in the convention in which it was fitted."""

import math

from chinchilla_ds.budget.laws.forms import FrontierLaw, Law, ParamsConvention, SurfaceLaw

PF_DAY_FLOPS = 1e15 * 24 * 3600
"""A petaflop/s-day, the unit of Kaplan et al."""

_CHINCHILLA_MIN_FLOPS = 6e18
_CHINCHILLA_MAX_FLOPS = 3e21
"""The IsoFLOP budgets of Hoffmann et al. 2022, figure 3; the three approaches share their runs."""

_MUENNIGHOFF_MIN_FLOPS = 4.2e15
"""7M parameters on 100M tokens; the other end, 8.7B on 178B, is the largest of its IsoFLOP budgets."""
_KAPLAN_MAX_FLOPS = 1.2e21
"""The largest model, 1.5B, for 250,000 steps of 512 sequences of 1024 tokens."""
_KAPLAN_MIN_FLOPS = _KAPLAN_MAX_FLOPS / 1e8
"""The paper's trends in C_min span eight orders of magnitude (section 1.2)."""

HOFFMANN_APPROACH_1 = FrontierLaw(
    name="hoffmann2022_approach1",
    params_scale=0.09935,
    params_exponent=0.49809,
    params_convention=ParamsConvention.TOTAL,
    source="Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1: the line through approach 1 of Table 3",
    notes="Minima over training curves. The 67B row of the table does not lie on the line.",
    min_flops=_CHINCHILLA_MIN_FLOPS,
    max_flops=_CHINCHILLA_MAX_FLOPS,
)
HOFFMANN_APPROACH_2 = FrontierLaw(
    name="hoffmann2022_approach2",
    params_scale=0.14557,
    params_exponent=0.48993,
    params_convention=ParamsConvention.TOTAL,
    source="Hoffmann et al. 2022 (arXiv:2203.15556), section 3.2: the line through approach 2 of Table A3",
    notes="Parabolas through IsoFLOP profiles, which are biased even without noise.",
    min_flops=_CHINCHILLA_MIN_FLOPS,
    max_flops=_CHINCHILLA_MAX_FLOPS,
)
HOFFMANN_APPROACH_3 = SurfaceLaw(
    name="hoffmann2022",
    irreducible_loss=math.exp(0.5267228),
    params_coefficient=math.exp(6.0073404),
    tokens_coefficient=math.exp(6.0179186),
    alpha=0.33917084,
    beta=0.2849083,
    params_convention=ParamsConvention.TOTAL,
    source="Hoffmann et al. 2022 (arXiv:2203.15556v1), approach 3, full precision from the TeX source",
    notes="Contradicts approaches 1 and 2 and the paper's own Table 3 at large budgets; its fit had not converged.",
    min_flops=_CHINCHILLA_MIN_FLOPS,
    max_flops=_CHINCHILLA_MAX_FLOPS,
)
_BESIROGLU_COVARIANCE = (
    (0.0666143134985726, -0.027757671461939564, 0.0021347822717492004, 0.003970850768718548, -0.0013902549735430405),
    (-0.027757671461939564, 0.17717694266816425, 0.00359895936044047, -0.0017232186983834467, 0.00866469903634701),
    (0.0021347822717492004, 0.00359895936044047, 0.000198764460133084, 0.00012608932914146944, 0.00017532613091466396),
    (
        0.003970850768718548,
        -0.0017232186983834467,
        0.00012608932914146944,
        0.0002370229636642687,
        -8.636351443006494e-05,
    ),
    (
        -0.0013902549735430405,
        0.00866469903634701,
        0.00017532613091466396,
        -8.636351443006494e-05,
        0.0004240137744205898,
    ),
)
"""Covariance of (log A, log B, log E, alpha, beta): `bootstrap_surface(runs, fit=fit_surface(runs), num_draws=4000,
seed=42)` of `budget.fitting` on the 240 points, sum of Huber losses at delta 1e-3, numpy's legacy generator. It has the
paper's own standard errors: 124.5 for A, 1293 for B, 0.0257 for E, 0.0154 for alpha, 0.0206 for beta."""

BESIROGLU = SurfaceLaw(
    name="besiroglu2024",
    irreducible_loss=1.8172,
    params_coefficient=482.01,
    tokens_coefficient=2085.43,
    alpha=0.3478,
    beta=0.3658,
    covariance=_BESIROGLU_COVARIANCE,
    params_convention=ParamsConvention.TOTAL,
    source="Besiroglu et al. 2024 (arXiv:2404.10102), refit of 240 points of Hoffmann et al. 2022",
    notes="Points read off a figure; 5 of 245 left out; with them, beta would be 0.45.",
    min_flops=_CHINCHILLA_MIN_FLOPS,
    max_flops=_CHINCHILLA_MAX_FLOPS,
)

PORIAN = FrontierLaw(
    name="porian2024",
    params_scale=0.1189,
    params_exponent=0.4969,
    params_convention=ParamsConvention.WITH_HEAD,
    min_flops=1.25e16,
    max_flops=2.56e19,
    source="Porian et al. 2024 (arXiv:2406.19146), RefinedWeb with tuned hyperparameters",
    notes="IsoFLOP minima, constant learning rate, batch and rate tuned per size; small budgets only.",
)
MUENNIGHOFF = SurfaceLaw(
    name="muennighoff2023",
    irreducible_loss=math.exp(0.6254804),
    params_coefficient=math.exp(6.255414),
    tokens_coefficient=math.exp(7.3049974),
    alpha=0.3526596,
    beta=0.3526596,
    params_convention=ParamsConvention.TOTAL,
    min_flops=_MUENNIGHOFF_MIN_FLOPS,
    max_flops=9.3e21,
    source="Muennighoff et al. 2023 (arXiv:2305.16264), C4, constants of github.com/huggingface/datablations",
    notes="alpha = beta was imposed, so D/N is the same at every budget. Repetition: budget.laws.repetition.",
)
DEEPSEEK = FrontierLaw(
    name="deepseek2024",
    params_scale=0.1715 / 6,
    params_exponent=0.5243,
    params_convention=ParamsConvention.FLOPS_EQUIVALENT,
    min_flops=1e17,
    max_flops=3e20,
    source="DeepSeek-AI 2024 (arXiv:2401.02954), section 3.2: M* = 0.1715 C^0.5243, D* = 5.8316 C^0.4757",
    notes="C = M D with M in FLOPs per token, so N = M / 6. The better the data, the larger the exponent of M.",
)
KAPLAN = FrontierLaw(
    name="kaplan2020",
    params_scale=1.3e9 / PF_DAY_FLOPS**0.73,
    params_exponent=0.73,
    params_convention=ParamsConvention.NON_EMBEDDING,
    min_flops=_KAPLAN_MIN_FLOPS,
    max_flops=_KAPLAN_MAX_FLOPS,
    source="Kaplan et al. 2020 (arXiv:2001.08361), appendix A: N* = 1.3e9 (C_min / PF-day)^0.73",
    notes="C_min is compute at a batch far below the critical one and is used here as C; D* is C / 6 N*, about half of "
    "the paper's own 2e10 C_min^0.27 tokens. One long schedule for all runs: superseded by Hoffmann et al.",
)
KAPLAN_DATASET = SurfaceLaw(
    name="kaplan2020_dataset",
    irreducible_loss=0.0,
    params_coefficient=6.4e13 ** (0.076 / 0.103),
    tokens_coefficient=1.8e13,
    alpha=0.076 / 0.103,
    beta=1.0,
    outer_exponent=0.103,
    params_convention=ParamsConvention.NON_EMBEDDING,
    min_flops=_KAPLAN_MIN_FLOPS,
    max_flops=_KAPLAN_MAX_FLOPS,
    source="Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5 with the constants of table 2",
    notes="D is the size of a dataset trained on to early stopping, not the tokens of one pass; its optimum on "
    "6 N D = C is not one that the paper draws. For comparison, not for planning.",
)
LLAMA3 = FrontierLaw(
    name="llama3_2024",
    params_scale=1 / (6 * 0.29),
    params_exponent=1 - 0.53,
    params_convention=ParamsConvention.TOTAL,
    min_flops=6e18,
    max_flops=1e22,
    source="Llama Team 2024 (arXiv:2407.21783), section 3.2.1: D* = 0.29 C^0.53",
    notes="The printed constants give 10.5T tokens at 3.8e25 FLOPs, the paper states 16.55T, for which the exponent "
    "would have to be 0.538. The paper does not say what N counts.",
)
SARDANA = SurfaceLaw(
    name="sardana2024",
    irreducible_loss=1.69,
    params_coefficient=406.4,
    tokens_coefficient=410.7,
    alpha=0.336,
    beta=0.283,
    params_convention=ParamsConvention.TOTAL,
    min_flops=_CHINCHILLA_MIN_FLOPS,
    max_flops=_CHINCHILLA_MAX_FLOPS,
    source="Sardana et al. 2023 (arXiv:2401.00448), the constants behind its examples of inference demand",
    notes="Hoffmann et al.'s approach 3 with exponents to three digits; included to reproduce the paper's examples.",
)

PUBLISHED: tuple[Law, ...] = (
    BESIROGLU,
    HOFFMANN_APPROACH_3,
    HOFFMANN_APPROACH_1,
    HOFFMANN_APPROACH_2,
    PORIAN,
    MUENNIGHOFF,
    DEEPSEEK,
    LLAMA3,
    SARDANA,
    KAPLAN,
    KAPLAN_DATASET,
)
