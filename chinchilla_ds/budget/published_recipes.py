"""Published recipes: what teams trained released decoders with, the evidence where no law of hyperparameters reaches.

Listed are dense decoders, trained from scratch with AdamW in the standard parametrisation on at least ten tokens per
parameter, published since Hoffmann et al. 2022, whose source prints the learning rate, the batch and the tokens. Left
out are models that take their rates from GPT-3's table of 2020 (GPT-NeoX, OPT, BLOOM, Pythia, Cerebras-GPT), other
optimizers (MPT), muP (MiniCPM, BTLM), and sources that disagree (OLMo 2 13B: paper and released configuration).
Models with QK-norm have a table of their own: it makes rates stable that are not without it (Wortsman et al. 2023,
arXiv:2309.14322).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """Hyperparameters of one released model."""

    name: str
    num_params: float
    """N, all parameters."""
    num_tokens: float
    """D."""
    learning_rate: float
    """Peak."""
    batch_tokens: float
    """Tokens of one optimizer step; where the batch grew, that of most of the run."""
    warmup_tokens: float | None
    """Steps of warm-up times the batch; None: not printed."""
    weight_decay: float | None
    """None: not printed."""
    source: str


def _table(text: str) -> Iterator[PublishedRecipe]:
    """Yield the recipes of lines `name | N | D | learning rate | batch | warm-up | weight decay | source`."""
    for line in text.strip().splitlines():
        name, params, tokens, rate, batch, warmup, decay, source = (cell.strip() for cell in line.split("|"))
        yield PublishedRecipe(
            name=name,
            num_params=float(params),
            num_tokens=float(tokens),
            learning_rate=float(rate),
            batch_tokens=float(batch),
            warmup_tokens=None if warmup == "-" else float(warmup),
            weight_decay=None if decay == "-" else float(decay),
            source=source,
        )


# name | N | D | peak learning rate | batch in tokens | warm-up in tokens | weight decay | source
RECIPES = tuple(
    _table("""
Amber 7B | 6.74e9 | 1.26e12 | 3e-4 | 4.59e6 | 9.18e9 | 0.1 | arXiv:2312.06550, section 3
Chinchilla 70B | 70e9 | 1.4e12 | 1e-4 | 3e6 | - | - | arXiv:2203.15556, table 4
DeepSeek LLM 67B | 67e9 | 2e12 | 3.2e-4 | 18.9e6 | 37.7e9 | 0.1 | arXiv:2401.02954, table 2
DeepSeek LLM 7B | 6.9e9 | 2e12 | 4.2e-4 | 9.44e6 | 18.9e9 | 0.1 | arXiv:2401.02954, table 2
Falcon 180B | 180e9 | 3.5e12 | 1.25e-4 | 4.19e6 | 4e9 | 0.1 | model card; arXiv:2311.16867
Falcon 40B | 41e9 | 1e12 | 1.85e-4 | 2.36e6 | 4e9 | 0.1 | model card; arXiv:2311.16867
Falcon 7B | 7.2e9 | 1.5e12 | 6e-4 | 4.72e6 | 4e9 | 0.1 | model card; arXiv:2311.16867
Llama 13B | 13e9 | 1e12 | 3e-4 | 4e6 | 8e9 | 0.1 | arXiv:2302.13971, table 2
Llama 2 13B | 13e9 | 2e12 | 3e-4 | 4e6 | 8e9 | 0.1 | arXiv:2307.09288, table 1
Llama 2 34B | 34e9 | 2e12 | 1.5e-4 | 4e6 | 8e9 | 0.1 | arXiv:2307.09288, table 1
Llama 2 70B | 69e9 | 2e12 | 1.5e-4 | 4e6 | 8e9 | 0.1 | arXiv:2307.09288, table 1
Llama 2 7B | 6.7e9 | 2e12 | 3e-4 | 4e6 | 8e9 | 0.1 | arXiv:2307.09288, table 1
Llama 3 405B | 405e9 | 15.6e12 | 8e-5 | 16e6 | - | 0.1 | arXiv:2407.21783, table 3 and section 3.4
Llama 33B | 32.5e9 | 1.4e12 | 1.5e-4 | 4e6 | 8e9 | 0.1 | arXiv:2302.13971, table 2
Llama 65B | 65.2e9 | 1.4e12 | 1.5e-4 | 4e6 | 8e9 | 0.1 | arXiv:2302.13971, table 2
Llama 7B | 6.7e9 | 1e12 | 3e-4 | 4e6 | 8e9 | 0.1 | arXiv:2302.13971, table 2
MobileLLM 125M | 1.25e8 | 1e12 | 2e-3 | 2.1e6 | - | 0.1 | arXiv:2402.14905, section 3
MobileLLM 350M | 3.45e8 | 1e12 | 2e-3 | 2.1e6 | - | 0.1 | arXiv:2402.14905, section 3
OLMo 1B | 1.18e9 | 3.1e12 | 4e-4 | 4.19e6 | 8.39e9 | 0.1 | allenai/OLMo, configs/official/OLMo-1B.yaml
OLMo 7B | 6.89e9 | 2.46e12 | 3e-4 | 4.42e6 | 22.1e9 | 0.1 | allenai/OLMo, configs/official/OLMo-7B.yaml
Poro 34B | 34.2e9 | 1e12 | 1.5e-4 | 4.19e6 | 1e10 | 0.1 | model card; arXiv:2404.01856
Qwen 1.8B | 1.8e9 | 2.2e12 | 3e-4 | 4e6 | - | - | arXiv:2309.16609, table 1
Qwen 14B | 14e9 | 3e12 | 3e-4 | 4e6 | - | - | arXiv:2309.16609, table 1
Qwen 7B | 7e9 | 2.4e12 | 3e-4 | 4e6 | - | - | arXiv:2309.16609, table 1
SmolLM 135M | 1.345e8 | 6e11 | 3e-3 | 1.05e6 | 2.1e9 | 0.01 | huggingface/smollm, config_smollm1_135M.yaml
SmolLM2 1.7B | 1.71e9 | 11e12 | 5e-4 | 2e6 | 4e9 | - | arXiv:2502.02737, section 4
SmolLM3 3B | 3.08e9 | 11.2e12 | 2e-4 | 2.36e6 | 4.72e9 | 0.1 | huggingface/smollm, text/pretraining/README.md
StableLM 3B 4E1T | 2.8e9 | 4e12 | 3.2e-4 | 4.19e6 | 20e9 | 0.1 | Stability-AI/StableLM, configs/stablelm-3b-4e1t.yml
StarCoder 15.5B | 15.5e9 | 1e12 | 3e-4 | 4.19e6 | 8.39e9 | 0.1 | arXiv:2305.06161, section 5
TinyLlama 1.1B | 1.1e9 | 3e12 | 4e-4 | 2.1e6 | 4.2e9 | 0.1 | arXiv:2401.02385, section 2
""")
)
"""Without QK-norm, sorted by name."""

QK_NORM_RECIPES = tuple(
    _table("""
DCLM 7B | 6.89e9 | 2.5e12 | 2e-3 | 4.19e6 | - | 0.05 | arXiv:2406.11794; model card of DCLM-7B
OLMo 2 1B | 1.48e9 | 4e12 | 4e-4 | 2.1e6 | 8.39e9 | 0.1 | allenai/OLMo, configs/official-0425
OLMo 2 32B | 32.2e9 | 6.06e12 | 6e-4 | 8.39e6 | 16.8e9 | 0.1 | allenai/OLMo-core, OLMo-2-0325-32B-train.py
OLMo 2 7B | 7.3e9 | 3.9e12 | 3e-4 | 4.19e6 | 8.39e9 | 0.1 | arXiv:2501.00656, table 3
OLMo 3 32B | 32.2e9 | 5.5e12 | 6e-4 | 8.39e6 | 16.8e9 | 0.1 | allenai/OLMo-core, OLMo-3-1025-32B-pretrain.py
OLMo 3 7B | 7.3e9 | 5.93e12 | 3e-4 | 4.19e6 | 8.39e9 | 0.1 | allenai/OLMo-core, OLMo-3-1025-7B-pretrain-1.py
OpenELM 1.1B | 1.08e9 | 1.47e12 | 2.4e-3 | 4.19e6 | 21e9 | 0.1 | apple/corenet, openelm_1_1B.yaml
OpenELM 270M | 2.7e8 | 1.47e12 | 5.3e-3 | 4.19e6 | 21e9 | 0.1 | apple/corenet, openelm_270M.yaml
OpenELM 3B | 3.04e9 | 1.47e12 | 1.2e-3 | 4.19e6 | 21e9 | 0.1 | apple/corenet, openelm_3B.yaml
OpenELM 450M | 4.6e8 | 1.47e12 | 3.9e-3 | 4.19e6 | 21e9 | 0.1 | apple/corenet, openelm_450M.yaml
""")
)
"""With QK-norm, sorted by name; no rule is fitted on them."""

FITTED, SCORED = RECIPES[0::2], RECIPES[1::2]
"""Alternate rows: the power laws in N are fitted on the first half, and everything is scored on the second."""
PARAMS_RANGE = min(recipe.num_params for recipe in FITTED), max(recipe.num_params for recipe in FITTED)
TOKENS_RANGE = min(recipe.num_tokens for recipe in FITTED), max(recipe.num_tokens for recipe in FITTED)


def recipe_learning_rate(*, num_params: float) -> float:
    """Return the peak learning rate that teams take at a size, 8.7e-4 (N / 1e9)^-0.40.

    The line of least absolute deviations in logarithms through FITTED. A power of D adds nothing: with D as well, the
    mean error of the recipes left out one at a time rises from 0.31 to 0.44 in the logarithm.

    Source: `benchmarks/recipes.py`, which fits it.
    """
    return float(8.669e-4 * (num_params / 1e9) ** -0.4021)


def recipe_batch_tokens(*, num_params: float) -> float:
    """Return the batch in tokens that teams take at a size, 2.8M (N / 1e9)^0.14; fitted as `recipe_learning_rate`.

    Source: `benchmarks/recipes.py`, which fits it.
    """
    return float(2.802e6 * (num_params / 1e9) ** 0.1387)


def nearest_recipes(
    *, num_params: float, num_tokens: float, qk_norm: bool = False, count: int = 2
) -> tuple[PublishedRecipe, ...]:
    """Return the recipes nearest to a run in the logarithms of N and D.

    Args:
        num_params: N, all parameters.
        num_tokens: D.
        qk_norm: whether to look among the models with QK-norm.
        count: how many.
    """

    def distance(recipe: PublishedRecipe) -> float:
        return math.hypot(math.log(recipe.num_params / num_params), math.log(recipe.num_tokens / num_tokens))

    return tuple(sorted(QK_NORM_RECIPES if qk_norm else RECIPES, key=distance)[:count])
