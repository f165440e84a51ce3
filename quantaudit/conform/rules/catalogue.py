"""What every code of a finding about an artifact means; an artifact's readers and rules report by code."""

from __future__ import annotations

from quantaudit.card.schema import Finding
from quantaudit.common.findings import Hit, declare
from quantaudit.common.outcome import Severity

BROKEN = "A scale that is no positive finite number turns every activation behind it into NaN, infinity or zero."
RECALIBRATE = "Quantize again with calibration data that reaches this module; do not publish this artifact."
AGAIN = "Save the artifact again; if it was copied or edited by hand, start from the original."

declare("QA601", "A scale is NaN or infinite.", severity="error", why=BROKEN, remedy=RECALIBRATE)
declare(
    "QA602",
    "A scale is zero, negative, or what a library writes where it saw nothing.",
    severity="error",
    why=BROKEN,
    remedy=RECALIBRATE,
)
declare(
    "QA603",
    "A scale that no calibration yields: it clips most values, or spans far more than was ever measured.",
    severity="error",
    why="A weight's scale is held against the others of its tensor and against what its codes come to: memory that "
    "was never written, a scale stored as its inverse, or one of another tensor looks like this.",
    remedy=RECALIBRATE,
)
declare(
    "QA604",
    "A range that ends below the measured peak, or far above it.",
    severity="warning",
    why="A clipped peak loses more than rounding takes; a range far too wide wastes levels. Information where the "
    "range was averaged over calibration batches and still holds all but a thousandth of what was measured: such "
    "observers clip as designed.",
    remedy="Calibrate on text like the text that is served; where clipping is meant, measure what it does.",
)
declare(
    "QA605",
    "Members of a fused group, which read one tensor, have different scales.",
    severity="warning",
    why="Serving engines run a fused group with one input scale, the largest: what was evaluated member by member "
    "is not what is served.",
    remedy="Give all members of the group one scale.",
)
declare(
    "QA606",
    "The artifact says that a module is quantized, and does not hold its scale.",
    severity="error",
    why="An engine that trusts the configuration fails on this module, or runs it with whatever its memory held. "
    "The same holds for every other tensor that the scheme calls for: codes, zero points, global scales, scales of "
    "a cache.",
    remedy="Save the artifact again, or add the module to the configuration's `ignore`.",
)
declare(
    "QA607",
    "A static range where nothing was measured.",
    severity="inconclusive",
    why="What was not measured cannot be declared safe.",
    remedy="Measure with text that reaches this module, on the model that the artifact was made from.",
)
declare(
    "QA608",
    "No static range at all.",
    severity="info",
    why="Ranges that are computed as the model runs cannot miss a peak.",
    remedy="Nothing to do; what dynamic scales cost is on the card.",
)
declare(
    "QA609",
    "Calibration ran without a causal mask (found by `verify` and AuditModifier, as it runs).",
    severity="warning",
    why="Static scales are taken from activations that the deployed model never has.",
    remedy='Calibrate with pipeline="basic", in which no AuditModifier can take part.',
)
declare(
    "QA610",
    "A tensor of the model is not in the files.",
    severity="error",
    why="Loaders fill what they do not find with random numbers or zeros, some without a word.",
    remedy="Copy the artifact again with all its shards, or save it again.",
)
declare(
    "QA611",
    "The files hold quantized storage that the configuration does not call for.",
    severity="error",
    why="Where the configuration leaves a module unquantized, engines take its codes for weights or find no weight "
    "at all; scales that no scheme calls for are dropped or refused.",
    remedy="Take the module out of `ignore` and into its group, or save the artifact again.",
)
declare(
    "QA612",
    "A tensor has another shape than the scheme and the model call for.",
    severity="error",
    why="The group size, the strategy or the number of bits of the configuration is not that of the files, or the "
    "tensor was cut or transposed: it cannot be loaded, or is read as something else.",
    remedy="Correct the configuration if the files are right; else quantize again.",
)
declare(
    "QA613",
    "A tensor has another type than the scheme calls for.",
    severity="error",
    why="Codes are read as bits of the type that the configuration names: integers read as FP8 are other numbers.",
    remedy="Correct `type`, `num_bits` or `format` if the files are right; else quantize again.",
)
declare(
    "QA614",
    "A tensor is empty of content: all its values are equal.",
    severity="error",
    why="A weight whose values are all equal was never written, or was overwritten: it computes nothing.",
    remedy=AGAIN,
)
declare(
    "QA615",
    "Codes that the scheme does not admit, or leaves unused.",
    severity="error",
    why="Codes beyond `num_bits` are cut off by kernels that pack them; a grid of which most is never used is that "
    "of another scheme; zero points at the end of the grid say that a group has no values of one sign.",
    remedy="Correct `num_bits` of the configuration if the files are right; else quantize again.",
)
declare(
    "QA616",
    "Weights hold NaN or infinite values.",
    severity="error",
    why="One such value makes every output of its row NaN, and with it every later token.",
    remedy=AGAIN,
)
declare(
    "QA617",
    "A module is stored under another group's scheme.",
    severity="error",
    why="The configuration gives it one group, and the files hold exactly what another group calls for: targets "
    "were swapped, or two groups claim the same modules.",
    remedy="Correct the `targets` of the configuration.",
)
declare(
    "QA618",
    "Two groups of the configuration claim the same modules.",
    severity="error",
    why="compressed-tensors takes the later of two groups with one target, and the alphabetically first of two "
    "regular expressions; engines may take the other. A warning where expressions merely overlap.",
    remedy="Let the targets of groups exclude each other.",
)
declare(
    "QA619",
    "Members of a fused unit are under different schemes.",
    severity="error",
    why="Engines run query, key and value, gate and up, and all experts of a layer as one, and refuse a unit whose "
    "members differ or read it wrongly.",
    remedy="Quantize all members by one scheme, or none.",
)
declare(
    "QA620",
    "Members of a fused unit have different global scales.",
    severity="warning",
    why="Engines keep one global scale of a fused weight, and misread the members that had another.",
    remedy="Quantize again with a version of llm-compressor that fuses global scales.",
)
declare(
    "QA621",
    "The output embedding is quantized, and the configuration ties it to the input embedding.",
    severity="warning",
    why="Engines that tie them keep one of the two: the quantized head is dropped, or the embedding is.",
    remedy="Add `lm_head` to `ignore`, or set `tie_word_embeddings` to false and store both.",
)
declare(
    "QA622",
    "The configuration does not fit itself, or what is stored.",
    severity="error",
    why="A scheme that compressed-tensors stores in another format than is named, two formats that are named for one "
    "group, or a status that says that nothing was compressed: engines refuse it, or run something else. A warning "
    "for inputs that no engine combines with such weights, for caches that none holds, for packed 4-bit integers with "
    "quantized inputs, and under an older key.",
    remedy="Correct the configuration, or save the artifact again with the library that made it.",
)
declare(
    "QA623",
    "A tensor is unlike the same tensor of other layers.",
    severity="warning",
    why="One layer whose weights are a hundred times another's, or all zero where others are not, was seldom "
    "trained so; a weight that multiplies its input by more than thirty is none that a model learned.",
    remedy="Compare it with the unquantized checkpoint.",
)
declare(
    "QA624",
    "A setting of config.json is another than that of the card's model.",
    severity="error",
    why="The weights are then computed with as another model: other positions, another activation, other heads. A "
    "warning for what changes how a model is used and not what it computes (ids of special tokens), and for settings "
    "that transformers does not know.",
    remedy="Take the setting from the config.json of the model that the artifact was made from, or give the card of "
    "the model that is meant.",
)
declare(
    "QA625",
    "Tokenizer, chat template or generation config are others than those of the card's model.",
    severity="warning",
    why="Text becomes other token ids than those that were measured, or other tokens are drawn. An error where the "
    "vocabulary, or how text is split, is another: the model then reads nonsense; and where a tokenizer's file is "
    "damaged: nobody can use the model on text.",
    remedy="Copy the files from the model that the artifact was made from.",
)
declare(
    "QA626",
    "The files hold a tensor that no module of the model has.",
    severity="error",
    why="transformers passes it by, vLLM refuses the checkpoint: it was left by another model, or belongs to a part "
    "that the configuration does not have.",
    remedy=AGAIN,
)
declare(
    "QA627",
    "A weight is another than the model's.",
    severity="error",
    why="The card keeps random projections of every weight. Those of its quantized form come close to them, others do "
    "not: layers were exchanged, a matrix was transposed, scales were multiplied, or another checkpoint was quantized. "
    "How far rounding takes a weight follows from its codes and scales, of one weight and of a scheme's together. "
    "Information where norms "
    "show that weights were smoothed, which changes them and not what the model computes.",
    remedy="Quantize again, from the weights that the card is of.",
)
declare(
    "QA628",
    "The card does not hold what the artifact is to be compared with, weights are rotated, or outputs quantized.",
    severity="inconclusive",
    why="Older cards hold neither settings nor weights, and a rotation makes any weights look alike: that an artifact "
    "is of the card's model cannot be shown.",
    remedy="Make the card again with `quantaudit report`; of rotated weights, run the recipe again with "
    "`quantaudit verify`.",
)


def finding(
    code: str,
    module: str | None,
    message: str,
    *,
    severity: Severity | None = None,
    value: float | None = None,
    threshold: float | None = None,
    why: str | None = None,
    remedy: str | None = None,
) -> Finding:
    """A finding under a code, with the registered severity and texts where none are given."""
    hit = Hit(
        message=message,
        module=module,
        value=value,
        threshold=threshold,
        severity=severity,
        why=why,
        remedy=remedy,
    )
    return Finding.of(code, hit)
