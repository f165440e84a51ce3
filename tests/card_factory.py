"""A realistic card by arithmetic: 30 layers, two schemes, damage over decades, hostile tokens. No torch."""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

from quantaudit.card.schema import (
    AdviceChange,
    AdviceInfo,
    AdvicePoint,
    BucketRow,
    Card,
    Coverage,
    ExceedanceInfo,
    ExceedanceRow,
    Finding,
    GlobalPeak,
    MagnitudesRow,
    Peak,
    PeakStability,
    PeakSummary,
    PersistentChannel,
    PlaceRow,
    PlacesInfo,
    ScaleComparison,
    SchemeVerdict,
    SiteRow,
    StabilityInfo,
    SubsetRow,
    TailRow,
    Verdict,
    Verification,
    VerifiedScore,
    WorstGroup,
)
from quantaudit.card.sections.landscape import place
from quantaudit.provenance import CorpusInfo, EnvironmentInfo, ModelInfo, ModuleInfo, SplitInfo, Unmeasured
from quantaudit.simulate.records import (
    CorrelationRow,
    DomainScore,
    Evaluation,
    GranularityRow,
    GroupRow,
    Outcome,
    Predictor,
    RecipeRow,
    ScaleRow,
    SchemeInfo,
    Simulation,
    TensorErrorRow,
)

LAYERS = 30
STATIC, DYNAMIC = "int8_static_per_tensor", "int8_dynamic_per_token"
TITLES = {STATIC: "INT8 static per tensor", DYNAMIC: "INT8 dynamic per token"}
PROJECTIONS = {"qkv_proj": "self_attn", "o_proj": "self_attn", "gate_up_proj": "mlp", "down_proj": "mlp"}
DOMAINS = ("encyclopedic", "python", "law", "fiction", "mathematics", "dialogue")
HOSTILE_TOKENS = (
    "<script>alert(1)</script>",
    "|",
    "`",
    "\n",
    " the",
    "](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "\u202egnp.exe",
    "<|im_start|>",
    "{{ 7 * 7 }}",
    "漢字",
    "**bold** _it_ ~~gone~~ $x$",
    "\\|",
    "--><img src=x onerror=alert(1)>",
)
_TYPICAL = {"qkv_proj": 9.0, "o_proj": 2.5, "gate_up_proj": 14.0, "down_proj": 3.0}


def make_card(layers: int = LAYERS, **overrides: Any) -> Card:
    """The card of so many layers, with top-level parts replaced by `overrides`. Equal calls give equal cards."""
    sites = [site for layer in range(layers) for site in _layer_sites(layer)] + _outer_sites()
    overall, quantized = _summit(sites), _summit([site for site in sites if site.kind == "linear_input"])
    simulation = _simulation(sites)
    parts: dict[str, Any] = {
        "quantaudit_version": "0.1.0",
        "created": "2026-02-03T04:05:06Z",
        "model": _model(layers),
        "corpus": _corpus(),
        "environment": _environment(),
        "peak": PeakSummary(overall=overall, quantized=quantized, fp16_headroom=65504 / 15168),
        "coverage": _coverage(),
        "sites": sites,
        "scales": _scales(sites),
        "simulation": simulation,
        "verification": [make_verification()],
        "advice": [make_advice()],
        "correlation": _correlation(),
        "stability": _stability(overall, quantized),
        "places": _places(),
        "landscape": place(15168.0),
        "findings": make_findings(),
        "verdict": _verdict(sites, simulation),
    }
    return Card(**(parts | overrides))


def make_point(name: str, kept: float, kl: float | None, **options: int) -> AdvicePoint:
    return AdvicePoint(name=name, kept=kept, estimated_kl=kl, kl=kl, kl_stderr=0.001, top1=0.9, options=options)


def make_advice(recipe: str = "w8a8_static", **changed: object) -> AdviceInfo:
    values = {
        "recipe": recipe,
        "goal": "as good as dynamic everywhere",
        "budget": 0.04,
        "met": True,
        "tokens": 4096,
        "before": make_point("as written", 1.0, 1.3, as_written=8),
        "references": [make_point("dynamic everywhere", 0.0, 0.04, dynamic=8)],
        "curve": [
            make_point("85% kept", 0.85, 0.06, as_written=7, dynamic=1),
            make_point("50% kept", 0.5, 0.01, as_written=4),
        ],
        "advised": make_point("advised", 0.78, 0.039, as_written=6, unquantized=2),
        "changes": [
            AdviceChange(
                group="layers.1.mlp.down_proj",
                option="unquantized",
                title="left unquantized",
                keeps=False,
                price_before=0.4,
                price_after=0.0,
                amax=3584.0,
            )
        ],
    }
    return AdviceInfo.model_validate(values | changed)


def make_verification(recipe: str = "w8a8_static", *, agrees: bool = True, **changed: object) -> Verification:
    row = Verification(
        recipe=recipe,
        digest="0" * 64,
        pipeline="basic",
        calibration_samples=10,
        tokens=4096,
        input_scales=ScaleComparison(compared=8, worst=1e-6, module="model.layers.1.mlp.down_proj"),
        weight_scales=ScaleComparison(compared=8, worst=0.0, module=None),
        predicted=VerifiedScore(kl=1.31, top1=0.43, perplexity=60.0, perplexity_base=16.9),
        with_saved_scales=VerifiedScore(kl=1.32, top1=0.43, perplexity=60.5),
        actual=VerifiedScore(kl=1.32, top1=0.43, perplexity=60.5),
        kl_error=0.0076,
        unpredicted=[],
        findings=[],
        agrees=agrees,
        outcome="pass" if agrees else "fail",
        reason="What was saved agrees with the prediction.",
    )
    return row.model_copy(update=changed)


def make_findings() -> list[Finding]:
    """One finding of each severity, and one whose module name attacks."""
    rows = (
        ("QA301", "error", "model.layers.11.mlp.down_proj", "99.9 % of its input rounds to zero", 0.999, 0.5),
        ("QA302", "warning", "model.layers.<b>7</b>.mlp|x`y", "SQNR hides the damage", 25.6, 20.0),
        ("QA110", "warning", None, "expert saw few tokens\nsecond line", 12.0, 100.0),
        ("QA900", "info", "lm_head", "left alone by every recipe", None, None),
    )
    return [
        Finding(
            code=code,
            severity=severity,  # type: ignore[arg-type]
            module=module,
            message=message,
            value=value,
            threshold=threshold,
            reason="A static scale that covers the first token's peak leaves no levels for ordinary values.",
            remedy="Add `re:.*down_proj` to ignore, or quantize activations dynamically per token.",
        )
        for code, severity, module, message, value, threshold in rows
    ]


def make_site(name: str, kind: str, layer: int | None, amax: float | None, **overrides: Any) -> SiteRow:
    """One site with one peak of magnitude `amax`; the other statistics follow from it."""
    size = amax or 0.0
    index = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    peak = Peak(
        value=None if amax is None else -amax if index % 3 else amax,
        sample=f"{DOMAINS[index % 6]}-{index % 40:03d}",
        domain=DOMAINS[index % 6],
        position=0 if index % 2 else index % 900,
        token_id=index % 49152,
        token=HOSTILE_TOKENS[index % len(HOSTILE_TOKENS)],
        channel=index % 576,
    )
    parts: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "layer": layer,
        "module": f"model.{name.removesuffix('.input').removesuffix('.output')}",
        "tap": "input" if name.endswith(".input") else "output",
        "channels": 576,
        "amax": amax,
        "min": -size,
        "max": size * 0.8,
        "mean": 0.01,
        "rms": size**0.3,
        "median": size**0.2 / 2,
        "p99": size**0.5,
        "p999": size**0.6,
        "p9999": size**0.8,
        "tokens": 131072,
        "nonfinite": 0,
        "massive": 3 if size > 1000 else 0,
        "peaks": [peak],
        "domains": {domain: size * (1 - 0.1 * rank) for rank, domain in enumerate(DOMAINS)},
        "magnitudes": make_magnitudes(amax, size**0.2 / 2) if kind == "linear_input" and amax else None,
    }
    return SiteRow(**(parts | overrides))


def make_magnitudes(amax: float, median: float) -> MagnitudesRow:
    """A bell over the octaves around the median, and one element at the peak."""
    middle, last = math.floor(math.log2(median)), math.floor(math.log2(amax))
    first = max(middle - 9, last - 31)
    bell = [int(1e7 * math.exp(-(((octave - middle) / 2.5) ** 2) / 2)) for octave in range(first, last)]
    return MagnitudesRow(parts=1, first=first, zeros=400, below=7, counts=[*bell, 1])


def _wave(layer: int, seed: int) -> float:
    return random.Random(1000 * seed + layer).uniform(0.6, 1.6)


def _layer_sites(layer: int) -> list[SiteRow]:
    prefix = f"layers.{layer}"
    massive = 2 < layer < LAYERS - 2
    amax = {
        "qkv_proj": _TYPICAL["qkv_proj"] * _wave(layer, 1),
        "o_proj": _TYPICAL["o_proj"] * _wave(layer, 2) * (1 + layer / 12),
        "gate_up_proj": _TYPICAL["gate_up_proj"] * _wave(layer, 3),
        "down_proj": {3: 3008.0, 11: 2960.0, 12: 840.0, 27: 412.0}.get(layer, 22 * _wave(layer, 4) * (1 + layer / 9)),
    }
    inputs = [
        make_site(f"{prefix}.{PROJECTIONS[projection]}.{projection}.input", "linear_input", layer, round(value, 2))
        for projection, value in amax.items()
    ]
    residual = 15168.0 - 8 * (layer - 3) if massive else 90 * _wave(layer, 5)
    return [
        *inputs,
        make_site(f"{prefix}.output", "residual", layer, residual),
        make_site(f"{prefix}.self_attn.output", "attention_output", layer, round(7 * _wave(layer, 6), 2)),
        make_site(
            f"{prefix}.mlp.output", "mlp_output", layer, 14976.0 if layer == 3 else round(60 * _wave(layer, 7), 1)
        ),
        make_site(f"{prefix}.mlp.gate", "gate", layer, round(30 * _wave(layer, 8), 1)),
    ]


def _outer_sites() -> list[SiteRow]:
    return [
        make_site("embedding", "embedding", None, 1.21),
        make_site("final_norm", "final_norm", None, 61.5),
        make_site("lm_head.input", "linear_input", None, 61.5),
    ]


def _group_sites(sites: list[SiteRow]) -> list[tuple[str, SiteRow]]:
    return [(site.name.removesuffix(".input"), site) for site in sites if site.kind == "linear_input"]


def _damage(site: SiteRow, scheme: str) -> float | None:
    """Grows with peak over median, over decades; dynamic scales escape most of it."""
    if site.layer is None:
        return None
    ratio = (site.amax or 0.0) / (site.median or 1.0)
    size = 2e-5 * (ratio / 8) ** 1.9 * _wave(site.layer, len(site.name))
    return min(size, 0.9) if scheme == STATIC else min(size, 0.9) ** 0.55 * 4e-3


def _simulation(sites: list[SiteRow]) -> Simulation:
    activations = {
        STATIC: {"strategy": "tensor", "observer": "static_minmax"},
        DYNAMIC: {"strategy": "token", "dynamic": True},
    }
    weights = {"strategy": "channel"}
    schemes = [
        SchemeInfo(
            name=name,
            title=TITLES[name],
            weights=weights,
            input_activations=activations[name],
            observer="absolute_maximum" if name == STATIC else None,
        )
        for name in (STATIC, DYNAMIC)
    ]
    inputs = _group_sites(sites)
    return Simulation(
        fingerprint=_model().fingerprint,
        corpus_sha256=_corpus().sha256,
        evaluation=Evaluation(
            tokens=4096,
            samples=[f"{domain}-{index:03}" for index in range(1, 5) for domain in DOMAINS],
            max_tokens_per_sample=512,
            left_out=0,
            overlapping=0,
            arithmetic="bfloat16",
            priced=True,
            unigram_perplexity=2400.0,
        ),
        schemes=schemes,
        sites=[_tensor_error(group, site) for group, site in inputs],
        groups=[_group_row(group, site, scheme) for scheme in (STATIC, DYNAMIC) for group, site in inputs],
        recipes=[
            _recipe("int8_weights_only", "INT8 weights only", 0.0071, 0.962, 17.31),
            _recipe(STATIC, TITLES[STATIC], 1.0132, 0.531, 46.92),
            _recipe(DYNAMIC, TITLES[DYNAMIC], 0.0462, 0.894, 17.94),
        ],
        granularity=[_granularity(group, site) for group, site in inputs if site.layer is not None],
    )


def _granularity(group: str, site: SiteRow) -> GranularityRow:
    """Massive tokens where peaks are high, outlier channels in one projection; elsewhere finer scales save little."""
    error = min(0.99, ((site.amax or 0.0) / (site.median or 1.0) / 700) ** 1.5)
    token, channel = (300, 40) if (site.amax or 0.0) > 100 else (9, 90) if "gate_up" in group else (3, 3)
    return GranularityRow(
        group=group,
        layer=site.layer,
        per_tensor=error,
        per_token=error / token,
        per_channel=error / channel,
        cause="massive token" if token == 300 else "outlier channel" if channel == 90 else "neither",
    )


def _tensor_error(group: str, site: SiteRow) -> TensorErrorRow:
    ratio = (site.amax or 1.0) / (site.median or 1.0)
    return TensorErrorRow(
        site=site.name,
        group=group,
        scheme=STATIC,
        observer="absolute_maximum",
        scale=(site.amax or 0.0) / 127.5,
        zero_point=0,
        sqnr_db=max(8.0, 42 - 4 * math.log10(ratio)),
        bulk_sqnr_db=42 - 14 * math.log10(ratio),
        relative_mae=min(1.0, ratio / 900),
        zeroed_fraction=min(1.0, ratio / 700),
        effective_levels=max(1.01, 120 / ratio**0.55),
        clip_rate=0.0,
    )


def _group_row(group: str, site: SiteRow, scheme: str) -> GroupRow:
    projection = group.rsplit(".", 1)[-1]
    members = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    stem = ("" if site.layer is None else "model.") + group.removesuffix(projection)
    damage = _damage(site, scheme)
    return GroupRow(
        group=group,
        projection=projection,
        members=[stem + member for member in members.get(projection, (projection,))],
        layer=site.layer,
        scheme=scheme,
        damage=damage,
        damage_weights_only=None if damage is None else 3e-5 * _wave(site.layer or 0, 9),
        price=None if damage is None else damage * 0.6,
    )


def domain_scores(kl: float, top1: float, tokens: int = 4096) -> dict[str, DomainScore]:
    """Scores by domain, four samples each, whose means over tokens are those of the whole."""
    sizes = [tokens // len(DOMAINS) + (rank < tokens % len(DOMAINS)) for rank in range(len(DOMAINS))]
    kls = [kl * (0.7 + 0.12 * rank) for rank in range(len(DOMAINS))]
    kept = [top1 + 0.03 * min(1 - top1, 1) - 0.012 * min(1 - top1, 1) * rank for rank in range(len(DOMAINS))]
    for means, whole in ((kls, kl), (kept, top1)):
        means[-1] += (whole * tokens - sum(map(math.prod, zip(means, sizes, strict=True)))) / sizes[-1]
    rows = zip(DOMAINS, sizes, kls, kept, strict=True)
    return {name: DomainScore(tokens=size, samples=4, kl=part, top1=share) for name, size, part, share in rows}


def _recipe(name: str, title: str, kl: float, top1: float, perplexity: float) -> RecipeRow:
    return RecipeRow(
        name=name,
        title=title,
        kl=kl,
        kl_stderr=kl / 14,
        top1=top1,
        top1_stderr=0.006,
        perplexity=perplexity,
        perplexity_base=17.18,
        tokens=4096,
        samples=24,
        nonfinite=False,
        groups=120,
        domains=domain_scores(kl, top1),
    )


def _scales(sites: list[SiteRow]) -> list[ScaleRow]:
    return [
        ScaleRow(
            site=site.name,
            group=group,
            scheme=STATIC,
            observer="absolute_maximum",
            min=site.min,
            max=site.max,
            scale=(site.amax or 0.0) / 127.5,
            zero_point=0,
        )
        for group, site in _group_sites(sites)
    ]


def _correlation() -> list[CorrelationRow]:
    rows: tuple[tuple[Predictor, Outcome, float, str], ...] = (
        ("amax", "sqnr_db", -0.41, "Across all groups a higher peak goes with a lower SQNR, but loosely (ρ = −0.41)."),
        ("amax", "damage", 0.52, "Across all groups the peak explains the damage only in part (ρ = 0.52)."),
        ("amax", "relative_mae", 0.71, "Across all groups a higher peak goes with a higher relative MAE (ρ = 0.71)."),
    )
    return [
        CorrelationRow(
            scheme=STATIC,
            scope="all",
            predictor=predictor,
            outcome=outcome,
            n=120,
            spearman=rho,
            spearman_low=rho - 0.11,
            spearman_high=rho + 0.09,
            kendall=rho * 0.7,
            kendall_low=rho * 0.7 - 0.09,
            kendall_high=rho * 0.7 + 0.08,
            reading=reading,
        )
        for predictor, outcome, rho, reading in rows
    ]


def _verdict(sites: list[SiteRow], simulation: Simulation) -> Verdict:
    return Verdict(
        policy="default",
        headline="INT8 works with dynamic per-token activations; static per-tensor scales break three down_proj.",
        schemes=[
            SchemeVerdict(
                scheme=STATIC,
                title=TITLES[STATIC],
                status="NOT READY",
                kl=1.0132,
                top1=0.531,
                perplexity=46.92,
                perplexity_base=17.18,
                reason="KL 1.01 nats is far above the limit of 0.1, and nearly half of the predictions change.",
                remedy="Leave the three worst groups unquantized (KL 0.24), or quantize per token (KL 0.046).",
                worst_groups=_worst(sites, simulation, STATIC),
            ),
            SchemeVerdict(
                scheme=DYNAMIC,
                title=TITLES[DYNAMIC],
                status="READY WITH CARE",
                kl=0.0462,
                top1=0.894,
                perplexity=17.94,
                perplexity_base=17.18,
                reason="KL 0.046 nats is within the limit of 0.1, but above the 0.02 at which nothing is noticed.",
                remedy="Usable unchanged; leaving layers.3.mlp.down_proj unquantized removes most of that loss.",
                worst_groups=_worst(sites, simulation, DYNAMIC),
            ),
        ],
    )


def _worst(sites: list[SiteRow], simulation: Simulation, scheme: str) -> list[WorstGroup]:
    rows = [row for row in simulation.groups if row.scheme == scheme and row.damage is not None]
    total = sum(row.damage or 0.0 for row in rows)
    by_name = {site.name: site for site in sites}
    errors = {row.group: row for row in simulation.sites}
    worst = sorted(rows, key=lambda row: -(row.damage or 0.0))[:3]
    return [
        WorstGroup(
            group=row.group,
            damage=row.damage,
            share=(row.damage or 0.0) / total,
            amax=by_name[f"{row.group}.input"].amax,
            zeroed_fraction=errors[row.group].zeroed_fraction,
            explanation="One token's peak sets the scale, and ordinary values round to zero.",
        )
        for row in worst
    ]


def _summit(sites: list[SiteRow]) -> GlobalPeak:
    site = max(sites, key=lambda row: row.amax or 0.0)
    peak = site.peaks[0]
    return GlobalPeak(
        site=site.name,
        kind=site.kind,
        layer=site.layer,
        amax=site.amax,
        value=peak.value,
        domain=peak.domain,
        position=peak.position,
        token=peak.token,
        channel=peak.channel,
    )


def _stability(overall: GlobalPeak, quantized: GlobalPeak) -> StabilityInfo:
    return StabilityInfo(
        overall=_peak_stability(overall, few=False),
        quantized=_peak_stability(quantized, few=True),
        exceedance=ExceedanceInfo(
            compared=121,
            beyond=37,
            worst=[
                ExceedanceRow(
                    site="layers.12.mlp.down_proj.input",
                    calibration_amax=712.0,
                    evaluation_amax=840.0,
                    ratio=840 / 712,
                    samples=40,
                    samples_beyond=2,
                    elements_beyond=3e-8,
                )
            ],
            reading="At 37 of 121 inputs of Linears the evaluation split leaves the calibration range.",
        ),
    )


def _peak_stability(peak: GlobalPeak, *, few: bool) -> PeakStability:
    amax = peak.amax or 0.0
    samples = 120 if few else 600
    return PeakStability(
        site=peak.site,
        samples=samples,
        left_out=1,
        amax=amax,
        subsets=[
            SubsetRow(samples=samples // 10, mean=amax * 0.9, variation=0.071),
            SubsetRow(samples=samples // 5, mean=amax * 0.94, variation=0.034),
        ],
        by_domain=[BucketRow(name=domain, samples=20, amax=amax * (1 - 0.1 * i)) for i, domain in enumerate(DOMAINS)],
        by_length=[
            BucketRow(name="64 to 255 tokens", samples=50, amax=amax * 0.8),
            BucketRow(name="1,024 tokens and more", samples=70, amax=amax),
        ],
        tail=TailRow(
            samples=samples,
            exceedances=20 if few else 60,
            horizon=10 * samples,
            coverage=0.95,
            shape=0.21,
            low=amax * 1.02,
            median=amax * 1.3,
            high=amax * 3,
            few_samples=few,
            reading="Ten times the samples would peak about a third higher.",
        ),
        reading="Over all subsets of a fifth of the samples the peak varies by 3.4%.",
    )


def _places() -> PlacesInfo:
    kinds = ("residual", "linear_input", "gate")
    return PlacesInfo(
        kinds=[
            PlaceRow(
                kind=kind,
                tensors=LAYERS,
                peaks=100,
                first_position=0.9 - 0.4 * i,
                special_tokens=0.3,
                delimiters=0.1 * i,
                channels=1 + 3 * i,
            )
            for i, kind in enumerate(kinds)
        ],
        layers=LAYERS,
        channels=[
            PersistentChannel(
                channel=507, layers=29, amax=15168.0, layer=3, tokens_at_most=0.003, nature="massive activation"
            ),
            PersistentChannel(channel=31, layers=16, amax=96.0, layer=20, tokens_at_most=0.4, nature="many tokens"),
        ],
    )


def _model(layers: int = LAYERS) -> ModelInfo:
    digest = hashlib.sha256(b"weights").hexdigest()
    return ModelInfo(
        spec="demo",
        name="SmolLM2-135M-Instruct",
        architecture="LlamaForCausalLM",
        model_type="llama",
        dtype="bfloat16",
        parameters=134_515_008,
        layers=LAYERS,
        hidden_size=576,
        vocab_size=49152,
        context_length=8192,
        revision=None,
        files={"model.gguf": digest},
        fingerprint=hashlib.sha256(digest.encode()).hexdigest(),
        config_sha256=hashlib.sha256(b"config").hexdigest(),
        notes=["dequantized from GGUF Q4_1 to bfloat16"],
        modules=[
            ModuleInfo(name=name, classes=["Linear", "Module"], weight_shape=shape) for name, shape in _linears(layers)
        ],
    )


def _linears(layers: int) -> list[tuple[str, list[int]]]:
    shapes = {"q_proj": [576, 576], "k_proj": [192, 576], "v_proj": [192, 576], "o_proj": [576, 576]}
    shapes |= {"gate_proj": [1536, 576], "up_proj": [1536, 576], "down_proj": [576, 1536]}
    inside = [
        (f"model.layers.{layer}.{'mlp' if shape[0] == 1536 or shape[1] == 1536 else 'self_attn'}.{name}", shape)
        for layer in range(layers)
        for name, shape in shapes.items()
    ]
    return [*inside, ("lm_head", [49152, 576])]


def _corpus() -> CorpusInfo:
    return CorpusInfo(
        spec="builtin",
        name="quantaudit built-in corpus",
        sha256=hashlib.sha256(b"corpus").hexdigest(),
        samples=120,
        tokens=131_072,
        truncated=3,
        max_length=2048,
        seed=0,
        calibration=SplitInfo(samples=80, tokens=87_400),
        evaluation=SplitInfo(samples=40, tokens=43_672),
        domains={domain: SplitInfo(samples=20, tokens=21_845 + (rank < 2)) for rank, domain in enumerate(DOMAINS)},
    )


def _environment() -> EnvironmentInfo:
    return EnvironmentInfo(
        python="3.11.7",
        platform="Linux-6.1-x86_64",
        packages={"torch": "2.13.0", "transformers": "5.17.0", "compressed-tensors": "0.19.0"},
        device="cpu",
        attention="sdpa",
        batch_size=4,
        seed=0,
        timings={"measure": 61.2, "simulate": 148.9},
    )


def _coverage() -> Coverage:
    return Coverage(
        sites=243,
        sites_measured=242,
        linears=211,
        linears_measured=210,
        tokens=131_072,
        unmeasured=[Unmeasured(module="model.vision|tower.<i>proj</i>", reason="no image reached it")],
    )
