"""What guessing without context achieves on a text: the bar that a model loaded whole must clear.

The baseline gives a token t the probability λ·(n_t − 1)/(N − 1) + (1 − λ)/V. N is the number of distinct pairs of
neighbours in the whole corpus, n_t how many of them end in t, V the size of the vocabulary. Three choices keep it fair:

- Pairs are counted once (as Kneser and Ney 1995 do for lower orders). A chat template or a system prompt that every
  sample repeats would otherwise teach the baseline what the model must find out again in each sample.
- The pair at hand is left out (−1): the baseline never profits from the very token it predicts.
- The rest is shared by the whole vocabulary, and λ is the likeliest for the corpus. On a few tokens the baseline comes
  down to uniform guessing; the plug-in entropy of so few would be a bar that no sane model clears.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Ids = NDArray[np.int64]


def unigram_perplexity(
    corpus: Sequence[Ids], evaluated: Sequence[Ids], vocabulary: int, *, unpredicted: Collection[int] = ()
) -> float:
    """Perplexity of the baseline, learned on `corpus`, over all but the first tokens of the `evaluated` samples.

    Both hold int64 [tokens] of each sample; the evaluated ones are (parts of) samples of the corpus. `vocabulary`: ids
    that the model knows; unpredicted: those that none has to predict. At most `vocabulary`, since uniform guessing is
    always to be had; NaN without a prediction.
    """
    targets = np.concatenate([ids[1:] for ids in evaluated]) if evaluated else np.empty(0, np.int64)
    targets = targets[~np.isin(targets, list(unpredicted))]
    if not len(targets):
        return math.nan
    ends = np.unique(np.concatenate([ids[:-1] * vocabulary + ids[1:] for ids in corpus])) % vocabulary
    share = (np.bincount(ends, minlength=vocabulary) - 1) / max(len(ends) - 1, 1)
    weight = best_weight(share[ends], vocabulary)
    loss = -float(np.log(weight * share[targets] + (1 - weight) / vocabulary).mean())
    return min(math.exp(loss), float(vocabulary))


def best_weight(share: NDArray[np.float64], vocabulary: int) -> float:
    """λ in [0, 1) of the highest likelihood, where tokens have these shares of the other pairs: a concave problem."""
    optimum = minimize_scalar(
        lambda weight: -np.log(weight * share + (1 - weight) / vocabulary).mean(),
        bounds=(0.0, 1 - 1e-6),
        method="bounded",
    )
    return float(optimum.x)
