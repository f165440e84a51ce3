"""Whether the number of evaluation tokens that an undecided verdict names does decide it: on how many of ten seeds.

The KL of dynamic INT8 is taken at every token of every sample, once. No range is calibrated, so that a sample's KLs are
the same in whichever split it is, and those of a sample that is cut are the first of the whole one's. For every seed,
the split, the selection of samples and the judgement are then the product's own, at two numbers of tokens: few ones,
and as many as the judgement of those asks for. The limit is put at several distances from the KL of the whole corpus.

    python benchmarks/deciding_tokens.py [MODEL] [--few 1024] [--seeds 10] [--kept SCORES.npz] [--out RESULT.json]

Exits with 1 where fewer than nine in ten of the cases that the corpus has the text for are decided. What one seed asks
for is also tried with the others, of which it knows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.corpus.split import assign
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.model.forward.batches import batches, forward
from quantaudit.model.loading.load import LoadedModel
from quantaudit.pipeline.prepare import prepare
from quantaudit.policy import Policy, judge, load_policy
from quantaudit.policy.evidence import Enough, enough
from quantaudit.provenance import CorpusInfo, SplitInfo
from quantaudit.quant.schemes import INT8_DYNAMIC
from quantaudit.settings import Settings
from quantaudit.simulate import evaluation
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.logits.aggregate import SampleScore, recipe_row
from quantaudit.simulate.logits.kl import Scratch, compare, token_stats
from quantaudit.simulate.quantized.modules import quantized_modules
from quantaudit.simulate.quantized.plan import Plan, PlanWeights
from quantaudit.simulate.records import RecipeRow

DISTANCES = (0.7, 0.8, 0.87, 1.15, 1.25, 1.4, 1.6)
"""Where the limit is put, as a multiple of the KL on the whole corpus."""
WANTED = 0.9


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One sample under dynamic INT8: KL in nats and whether the most likely token stays, by token."""

    kl: NDArray[np.float64]
    agreed: NDArray[np.bool_]


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    few: int = 1024,
    seeds: int = 10,
    kept: Path | None = None,
    out: Path | None = None,
) -> None:
    """Judge few tokens, then as many as that asks for, over seeds and limits."""
    inputs = prepare(Settings.of(model=model, corpus="builtin"))
    with inputs.computed():
        scores = _kept(kept, inputs.loaded, inputs.corpus.samples)
    bench = Bench(corpus=load_corpus("builtin"), tokenized=inputs.corpus, scores=scores)
    whole = bench.row(inputs.corpus.samples)
    typer.echo(f"whole corpus: KL {whole.kl:.4f} ± {whole.kl_stderr:.4f} on {whole.tokens:,} tokens")
    cases = []
    for distance in DISTANCES:
        policy = _policy((whole.kl or 0.0) * distance)
        rows = [bench.case(seed, few, policy, seeds) for seed in range(seeds)]
        cases += [{"limit": policy.kl.ready, "distance": distance, **row} for row in rows]
        _say(distance, policy, rows)
    asked = [case for case in cases if case["asks_for"] and not case["beyond_corpus"]]
    share = sum(case["decided"] for case in asked) / max(len(asked), 1)
    least = min((case["decided_over_seeds"] for case in asked), default=0.0)
    typer.echo(
        f"of {len(asked)} undecided cases that ask for no more than the corpus holds, {share:.0%} are decided by what "
        f"they ask for; with other seeds, so many tokens decide in {least:.0%} at least"
    )
    if out is not None:
        result = {"few": few, "seeds": seeds, "decided": share, "least_over_seeds": least, "cases": cases}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(share < WANTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A corpus with the scores of its samples, to be split and judged again and again."""

    corpus: Corpus
    tokenized: TokenizedCorpus
    scores: Sequence[TokenScores]

    def split(self, seed: int) -> tuple[list[TokenizedSample], CorpusInfo]:
        """All samples as this seed splits them, and what is said of them."""
        splits = assign(self.corpus.rows, seed)
        placed = [replace(sample, split=split) for sample, split in zip(self.tokenized.samples, splits, strict=True)]
        held = [sample for sample in placed if sample.split == "evaluation"]
        evaluated = SplitInfo(samples=len(held), tokens=sum(len(sample.ids) for sample in held))
        return placed, self.tokenized.info.model_copy(update={"evaluation": evaluated})

    def judged(self, seed: int, tokens: int, policy: Policy) -> tuple[RecipeRow, str, Enough | None]:
        """The row on so many tokens, its status, and how many would decide it."""
        placed, text = self.split(seed)
        row = self.row(evaluation.select(placed, tokens))
        status, _ = judge(policy, row, [], corpus=text)
        return row, status, enough(policy, row, text) if status == "INCONCLUSIVE" else None

    def case(self, seed: int, few: int, policy: Policy, seeds: int) -> dict[str, Any]:
        """One seed: what few tokens say, how many they ask for, and whether these decide, with this seed and others."""
        row, status, wanted = self.judged(seed, few, policy)
        case = {"seed": seed, "few": row.tokens, "kl": row.kl, "stderr": row.kl_stderr, "first": status}
        if wanted is None or wanted.held is None:
            return {**case, "asks_for": None}
        case |= {"asks_for": wanted.tokens, "beyond_corpus": wanted.tokens > wanted.held}
        if case["beyond_corpus"]:
            return case
        then, second, _ = self.judged(seed, wanted.tokens, policy)
        others = [self.judged(other, wanted.tokens, policy)[1] for other in range(seeds)]
        return {
            **case,
            "tokens_then": then.tokens,
            "kl_then": then.kl,
            "stderr_then": then.kl_stderr,
            "second": second,
            "decided": second != "INCONCLUSIVE",
            "decided_over_seeds": sum(other != "INCONCLUSIVE" for other in others) / seeds,
        }

    def row(self, samples: Sequence[TokenizedSample]) -> RecipeRow:
        """The row of these samples, cut as they are. Of their scores KL and top-1 alone are real."""
        cut = [
            SampleScore(
                sample=sample,
                kl=self.scores[sample.index].kl[: len(sample.ids)],
                agreed=self.scores[sample.index].agreed[: len(sample.ids)],
                confident=np.zeros(len(sample.ids), np.bool_),
                loss=np.zeros(len(sample.ids) - 1),
                loss_base=np.zeros(len(sample.ids) - 1),
                drift=np.zeros(0),
            )
            for sample in samples
        ]
        return recipe_row(Plan(name="dynamic", title="dynamic INT8", schemes={}, qparams={}, groups=0), cut)


def _kept(path: Path | None, loaded: LoadedModel, samples: Sequence[TokenizedSample]) -> list[TokenScores]:
    """Scores of all samples, from a file where they were kept."""
    if path is not None and path.exists():
        with np.load(path) as file:
            return [TokenScores(file[f"kl{i}"], file[f"agreed{i}"]) for i in range(len(samples))]
    scores = list(_token_scores(loaded, samples))
    if path is not None:
        arrays: dict[str, Any] = {f"kl{i}": one.kl for i, one in enumerate(scores)}
        arrays |= {f"agreed{i}": one.agreed for i, one in enumerate(scores)}
        np.savez(path, **arrays)
    return scores


@torch.no_grad()
def _token_scores(loaded: LoadedModel, samples: Sequence[TokenizedSample]) -> Iterator[TokenScores]:
    groups = [group for group in loaded.architecture.groups if group.layer is not None]
    experiment = Experiment(
        model=loaded.model,
        architecture=loaded.architecture,
        samples=samples,
        schemes=[INT8_DYNAMIC],
        ranges=InputRanges(),
    ).only(groups)
    plan = Plan.of_groups(experiment, name="d", title="d", schemes={g.name: INT8_DYNAMIC for g in groups})
    weights, scratch = PlanWeights(), Scratch()
    with typer.progressbar(samples, label="samples") as bar:
        for sample in bar:
            (batch,) = batches([sample], device=loaded.device)
            targets = torch.from_numpy(sample.ids[1:])
            clean = forward(loaded.model, batch)[0]
            stats = token_stats(clean, targets, scratch)
            with quantized_modules(loaded.model, weights.of(loaded.model, plan), plan.inputs(loaded.device)):
                changed = forward(loaded.model, batch)[0]
            other, kl = compare(clean, stats, changed, targets, scratch)
            yield TokenScores(kl.double().numpy(), (other.top == stats.top).numpy())


def _policy(limit: float) -> Policy:
    """READY up to a KL, whatever top-1 is."""
    policy = load_policy()
    kl = policy.kl.model_copy(update={"ready": limit, "care": 10 * limit})
    return policy.model_copy(update={"kl": kl, "top1": policy.top1.model_copy(update={"ready": 0.0, "care": 0.0})})


def _say(distance: float, policy: Policy, rows: Sequence[dict[str, Any]]) -> None:
    asked = [row for row in rows if row["asks_for"]]
    within = [row for row in asked if not row["beyond_corpus"]]
    typer.echo(
        f"limit {policy.kl.ready:.4f} ({distance} of it): {len(asked)} of {len(rows)} seeds undecided, {len(within)} "
        f"of them ask for no more than the corpus holds: {[row['asks_for'] for row in within]}; decided "
        f"{sum(row['decided'] for row in within)}, with other seeds {[row['decided_over_seeds'] for row in within]}"
    )


if __name__ == "__main__":
    typer.run(main)
