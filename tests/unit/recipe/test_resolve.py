"""Resolution against compressed-tensors itself: what `apply_quantization_config` does to a model, module by module."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from compressed_tensors.quantization import QuantizationScheme
from llmcompressor.modifiers.quantization import QuantizationMixin
from llmcompressor.recipe import Recipe

from quantaudit.errors import RecipeError
from quantaudit.model.loading.info import module_info
from quantaudit.recipe.parse import parse_recipe, read_recipe
from quantaudit.recipe.resolve import Resolution, resolve
from tests.skeletons import FAMILIES, RECIPES, module_infos, shell_of, skeleton, stem

MODIFIER = "s_stage: {q_modifiers: {QuantizationModifier: %s}}"
STATIC = "{num_bits: 8, strategy: tensor, observer: static_minmax}"
DYNAMIC = "{num_bits: 8, strategy: token, dynamic: true}"

model_of = cache(skeleton)


def applied(recipe: str, family: str) -> dict[str, QuantizationScheme]:
    """By module path, the schemes that compressed-tensors' own initialization leaves on a model."""
    copy = skeleton(family)
    for modifier in Recipe.create_instance(recipe).modifiers:
        if isinstance(modifier, QuantizationMixin):
            modifier.initialize_quantization(copy)
    by_name = {name: getattr(module, "quantization_scheme", None) for name, module in copy.named_modules()}
    return {name: scheme for name, scheme in by_name.items() if scheme and (scheme.weights or scheme.input_activations)}


def resolution(text: str, family: str = "llama") -> Resolution:
    return resolve(parse_recipe(text, "r.yaml"), model_of(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_shipped_recipes_resolve_as_the_toolkit_applies_them(family: str, path: Path) -> None:
    model, recipe = model_of(family), read_recipe(path)
    expected = applied(str(path), family)
    assert resolve(recipe, model).schemes == expected
    assert resolve(recipe, shell_of(model)).schemes == expected
    assert bool(expected) == (family != "gpt2")  # GPT-2's projections are Conv1D, which no recipe reaches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_lists_what_the_shell_needs(family: str) -> None:
    model = model_of(family)
    assert [module_info(name, module) for name, module in model.named_modules() if name] == module_infos(model)
    shell = shell_of(model)
    assert module_infos(shell) == module_infos(model)


@pytest.mark.parametrize(
    "arguments",
    [
        "{scheme: W8A8}",
        "{scheme: W8A8, targets: ['re:.*mlp.*'], ignore: ['re:.*gate']}",
        "{scheme: {W8A8: ['re:.*attn.*'], W4A16: [Linear]}, ignore: [lm_head]}",
        "{scheme: W8A8, targets: [Linear, Embedding, LlamaMLP], ignore: [model.layers.0.mlp, LlamaAttention]}",
        "{scheme: W8A8, targets: [model.layers.1.mlp.down_proj, lm_head]}",
        f"{{config_groups: {{a: {{targets: [Linear], input_activations: {STATIC}}},"
        f" b: {{targets: [Linear], input_activations: {DYNAMIC}}}}}}}",
        f"{{config_groups: {{a: {{targets: ['re:.*_proj'], input_activations: {STATIC}}},"
        f" b: {{targets: ['re:.*[a-z]_proj', model.layers.0.mlp.up_proj], input_activations: {DYNAMIC}}}}}}}",
        "{targets: [Linear]}",
        "{scheme: UNQUANTIZED}",
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_precedence_is_the_toolkits(arguments: str, family: str) -> None:
    text, model = MODIFIER % arguments, model_of(family)
    expected = applied(text, family)
    assert resolve(parse_recipe(text, "r.yaml"), model).schemes == expected
    assert resolve(parse_recipe(text, "r.yaml"), shell_of(model)).schemes == expected


def test_later_modifiers_take_modules_over() -> None:
    text = """
a_stage:
  q_modifiers:
    QuantizationModifier: {scheme: W8A8, targets: [Linear], ignore: [lm_head]}
b_stage:
  q_modifiers:
    QuantizationModifier: {scheme: W4A16, targets: ['re:.*down_proj']}
"""
    resolved = resolution(text)
    assert resolved.schemes == applied(text, "llama")
    assert set(resolved.requantized) == {f"model.layers.{i}.mlp.down_proj" for i in range(3)}
    assert resolved.origins["model.layers.0.mlp.down_proj"].modifier == 1


@pytest.mark.parametrize(
    ("arguments", "field", "text", "effect", "nearest"),
    [
        ("{scheme: W8A8, ignore: [lm_head, head]}", "ignore", "head", "nothing", ("re:.*head",)),
        ("{scheme: W8A8, ignore: ['re:lm_haed']}", "ignore", "re:lm_haed", "nothing", ("re:.*lm_head",)),
        ("{scheme: W8A8, ignore: ['.*down_proj']}", "ignore", ".*down_proj", "nothing", ("re:.*down_proj",)),
        ("{scheme: W8A8, ignore: ['re:down_proj']}", "ignore", "re:down_proj", "nothing", ("re:.*down_proj",)),
        ("{scheme: W8A8, targets: [linear, Linear]}", "targets", "linear", "nothing", ("Linear",)),
        (
            "{scheme: W8A8, ignore: [model.layers.0.mlp.down_porj]}",
            "ignore",
            "model.layers.0.mlp.down_porj",
            "nothing",
            ("model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj", "model.layers.1.mlp.down_proj"),
        ),
        ("{scheme: W8A8, ignore: [LlamaMLP]}", "ignore", "LlamaMLP", "container", ("re:LlamaMLP",)),
        ("{scheme: W8A8, ignore: ['re:.*norm']}", "ignore", "re:.*norm", "not quantizable", ()),
        (
            "{scheme: W8A8, targets: ['re:.*mlp.*'], ignore: ['re:.*q_proj']}",
            "ignore",
            "re:.*q_proj",
            "not targeted",
            (),
        ),
        (
            "{scheme: {W8A8: ['re:.*down_proj'], W4A16: ['re:.*n_proj']}}",
            "targets",
            "re:.*n_proj",
            "overruled",
            (),
        ),
    ],
)
def test_patterns_without_effect_are_named(
    arguments: str, field: str, text: str, effect: str, nearest: tuple[str, ...]
) -> None:
    (pattern,) = [row for row in resolution(MODIFIER % arguments).unmatched if row.text == text]
    if effect == "container":  # the repaired pattern is offered only where it matches a Linear
        assert (pattern.field, pattern.effect) == (field, effect)
    else:
        assert (pattern.field, pattern.effect, set(pattern.suggestions)) == (field, effect, set(nearest))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_shipped_recipes_have_no_idle_patterns(family: str, path: Path) -> None:
    idle = {row.text for row in resolve(read_recipe(path), model_of(family)).unmatched}
    # Only the mixed recipe names a projection, and GPT-2 has none of that name.
    assert idle == ({"re:.*down_proj$"} if family == "gpt2" and path.stem == "w8a8_mixed" else set())


def test_the_alphabet_deciding_between_targets_is_told() -> None:
    text = MODIFIER % (
        f"{{config_groups: {{a: {{targets: ['re:.*down_proj'], input_activations: {DYNAMIC}}},"
        f" b: {{targets: ['re:.*[a-z]_proj', Linear], input_activations: {STATIC}}}}}}}"
    )
    (overlap,) = resolution(text).overlaps
    assert (overlap.chosen, overlap.others) == ("re:.*[a-z]_proj", ("re:.*down_proj",))
    assert overlap.modules == tuple(f"model.layers.{i}.mlp.down_proj" for i in range(3))


def test_a_broken_pattern_is_named_with_its_line() -> None:
    with pytest.raises(RecipeError, match=r"r.yaml:1: `re:\*proj` is no regular expression"):
        resolution(MODIFIER % "{scheme: W8A8, ignore: ['re:*proj']}")


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ("QuantizationModifier: {scheme: W8A8, ignore: [lm_head]}", []),
        ("GPTQModifier: {scheme: W8A8, ignore: [lm_head]}", ["GPTQ"]),
        ("AutoRoundModifier: {scheme: W4A16}", ["AutoRound"]),
        ("SmoothQuantModifier: {}, QuantizationModifier: {scheme: W8A8}", []),
        ("QuantizationModifier: {scheme: W8A8}, SmoothQuantModifier: {}", ["after a modifier that quantizes"]),
        ("SmoothQuantModifier: {num_calibration_steps: 4}, QuantizationModifier: {scheme: W8A8}", ["num_calibration"]),
        ("SmoothQuantModifier: {mappings: [[['re:.*query_key_value'], 're:.*input_layernorm']]}", ["do not fit"]),
        ("AWQModifier: {}, QuantizationModifier: {scheme: W4A16}", ["AWQ"]),
        ("SpinQuantModifier: {}, QuantizationModifier: {scheme: W8A8}", ["SpinQuant"]),
        ("QuIPModifier: {}, QuantizationModifier: {scheme: W8A8}", ["QuIP"]),
        ("SparseGPTModifier: {sparsity: 0.5}", ["not simulated"]),
        ("QuantizationModifier: {scheme: W8A8, kv_cache_scheme: {num_bits: 8}}", ["key-value cache"]),
        ("QuantizationModifier: {scheme: W8A8, targets: [Linear, Embedding]}", ["embedding"]),
        (
            f"QuantizationModifier: {{config_groups: {{a: {{targets: [Linear], output_activations: {STATIC}}}}}}}",
            ["outputs"],
        ),
        (
            "QuantizationModifier: "
            f"{{config_groups: {{a: {{targets: [LlamaAttention], input_activations: {STATIC}}}}}}}",
            ["queries, keys and values"],
        ),
    ],
)
def test_what_cannot_be_simulated_is_named(arguments: str, reasons: list[str]) -> None:
    text = f"s_stage: {{q_modifiers: {{{arguments}}}}}"
    live, shell = (resolve(parse_recipe(text, "r.yaml"), m) for m in (model_of("llama"), shell_of(model_of("llama"))))
    assert live == shell
    assert len(live.unsimulated) == len(reasons)
    assert all(reason in row.reason for reason, row in zip(reasons, live.unsimulated, strict=True))


@pytest.mark.parametrize(
    "target", ["LlamaAttention", "re:.*self_attn$", "re:.*self_attn.*", "re:.*layers.0.*", "re:.*mlp"]
)
def test_attention_is_quantized_where_the_toolkit_says_so(target: str) -> None:
    text = MODIFIER % f"{{config_groups: {{a: {{targets: ['{target}'], input_activations: {STATIC}}}}}}}"
    attended = any(name.endswith("self_attn") for name in applied(text, "llama"))
    assert attended == (target in ("LlamaAttention", "re:.*self_attn$"))
    assert bool(resolution(text).unsimulated) == attended
    assert (
        resolve(parse_recipe(text, "r.yaml"), shell_of(model_of("llama"))).unsimulated == resolution(text).unsimulated
    )


def digest(arguments: str, family: str = "llama") -> str:
    return resolution(MODIFIER % arguments, family).digest


def test_recipes_that_do_the_same_have_one_digest() -> None:
    weights = "weights: {num_bits: 8, strategy: channel}"
    written = (
        f"{{ignore: [lm_head], config_groups: {{x: {{targets: [Linear], {weights}, input_activations: {DYNAMIC}}}}}}}"
    )
    assert digest("{scheme: W8A8, ignore: [lm_head]}") == digest(written)
    assert digest("{scheme: W8A8, ignore: [lm_head]}") == digest("{scheme: INT8, ignore: ['re:.*head$']}")
    assert digest("{scheme: W8A8, ignore: [lm_head]}") == digest("{scheme: W8A8, targets: ['re:model.*_proj']}")
    assert digest("{scheme: W8A8, weight_observer: minmax}") == digest("{scheme: W8A8}")


@pytest.mark.parametrize(
    "arguments",
    [
        "{scheme: W8A8}",
        "{scheme: FP8_DYNAMIC, ignore: [lm_head]}",
        "{scheme: W4A16, ignore: [lm_head]}",
        "{scheme: W8A8, weight_observer: mse, ignore: [lm_head]}",
        "{scheme: W8A8, ignore: [lm_head], kv_cache_scheme: {num_bits: 8}}",
        "{scheme: W8A8, ignore: [lm_head, model.layers.1.mlp.up_proj]}",
    ],
)
def test_recipes_that_differ_have_other_digests(arguments: str) -> None:
    assert digest(arguments) != digest("{scheme: W8A8, ignore: [lm_head]}")


def test_observers_of_static_inputs_tell_recipes_apart() -> None:
    group = "{config_groups: {x: {targets: [Linear], input_activations: {num_bits: 8, observer: %s}}}}"
    digests = {digest(group % observer) for observer in ("minmax", "static_minmax", "mse")}
    assert len(digests) == 3
    assert digest("{config_groups: {x: {targets: [Linear], input_activations: {num_bits: 8}}}}") in digests


def test_a_transform_tells_recipes_apart() -> None:
    quant = "QuantizationModifier: {scheme: W8A8}"
    texts = [quant, f"SmoothQuantModifier: {{}}, {quant}", f"SmoothQuantModifier: {{smoothing_strength: 0.8}}, {quant}"]
    assert len({resolution(f"s_stage: {{q_modifiers: {{{text}}}}}").digest for text in texts}) == 3


def test_a_smoothing_written_differently_is_the_same() -> None:
    quant = "QuantizationModifier: {scheme: W8A8}"
    default = "SmoothQuantModifier: {}"
    attention = "[['re:.*self_attn.q_proj', 're:.*k_proj', 're:.*v_proj'], 're:.*input_layernorm']"
    mlp = "[['re:.*mlp.gate_proj', 're:.*up_proj'], 're:.*post_attention_layernorm']"
    spelled = f"SmoothQuantModifier: {{smoothing_strength: 0.5, mappings: [{attention}, {mlp}]}}"
    level = "SmoothQuantModifier: {algorithm: log_equalization, smoothing_strength: %s}"
    nothing = "SmoothQuantModifier: {mappings: [[['re:.*fc1'], 're:.*final_layer_norm']]}"
    other = "SmoothQuantModifier: {mappings: [%s]}"
    digests = {
        text: resolution(f"s_stage: {{q_modifiers: {{{text}, {quant}}}}}").digest
        for text in (default, spelled, level % 0.5, level % 0.8, nothing, other % attention, other % mlp)
    }
    assert digests[default] == digests[spelled]
    assert digests[level % 0.5] == digests[level % 0.8]
    assert digests[nothing] == resolution(f"s_stage: {{q_modifiers: {{{quant}}}}}").digest
    assert len(set(digests.values())) == 5
