"""Every architecture, from a saved checkpoint to a profile: `python -m tests.sweep`, or `make sweep`.

For each model type that transformers maps to a causal or an image-text language model, a tiny random checkpoint is
saved, listed (`sites`), measured, compared with plain hooks (peaks, and every static scale), simulated on a few tokens
and put on a card. Each runs in a process of its own with a limit of time and memory; what was found before is not run
again (`--again` does).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT_S = 180
"""Of processor time; ten times as much on the clock."""
LIMIT_BYTES = 12 << 30
LENGTHS = [30, 21, 17, 12, 9, 6]
EVALUATION_TOKENS = 24


def main() -> int:
    """Run what is asked for and print a table. 1 where an architecture ended in an unexpected error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_types", nargs="*", help="all, if none is given")
    parser.add_argument("--results", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("--again", action="store_true", help="run those again that have a result")
    asked = parser.parse_args()

    from tests.tiny_architectures import model_types

    known = {} if asked.again or not asked.results.is_file() else _read(asked.results)
    context = multiprocessing.get_context("fork")
    _import_first()
    for model_type in asked.model_types or model_types():
        if model_type in known:
            continue
        row = known[model_type] = _limited(context, model_type)
        with asked.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['outcome']:12} {model_type:28} {row['detail'][:200]}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in Counter(r["outcome"] for r in known.values()).items()))
    return int(any(row["outcome"] == "fault" for row in known.values()))


def examine(model_type: str) -> tuple[str, str]:
    """(outcome, detail) of one architecture.

    `measured`: all is in order; `refused`: one clear sentence; `not built`: no tiny model of it could be made;
    `fault`: anything else.
    """
    from quantaudit.errors import MeasurementError, QuantauditError
    from tests.builders import load, random_corpus, save_checkpoint
    from tests.tiny_architectures import run_briefly, tiny_model

    try:
        model = tiny_model(model_type)
    except Exception as error:
        return "not built", _first_line(error)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_checkpoint(Path(folder), model)
        except Exception as error:
            return "not built", _first_line(error)
        try:
            run_briefly(model)
        except Exception as error:
            ran = _first_line(error)
        else:
            ran = ""
        del model
        try:
            from quantaudit.measure.run import measure

            loaded = load(Path(folder))
            corpus = random_corpus(LENGTHS)
            profile = measure(loaded, corpus)
        except QuantauditError as error:
            fault = "own forward pass fails" in str(error) and not _fails_alone(folder, model_type, corpus)
            return "fault" if fault else "refused", str(error).replace(folder, "…").splitlines()[0]
        except Exception as error:
            if ran:
                return "not built", f"does not run by itself: {ran}"
            return "fault", f"{_first_line(error)} at {_place(error)}"
        try:
            faults = compare(Path(folder), loaded, corpus, profile)
        except Exception as error:
            return "fault", f"{_first_line(error)} at {_place(error)}"
        if faults:
            return "fault", "; ".join(faults)
        try:
            simulated = simulate_briefly(loaded, profile, corpus)
        except MeasurementError as error:
            simulated = f"not simulated: {str(error).splitlines()[0]}"
        except Exception as error:
            return "fault", f"simulation: {_first_line(error)} at {_place(error)}"
    return "measured", f"{_summary(profile)}; {simulated}"


def _fails_alone(folder: str, model_type: str, corpus: Any) -> bool:
    """Whether transformers, without quantaudit, cannot run the checkpoint on these samples either."""
    import torch
    import transformers

    from tests.tiny_architectures import IMAGE_TEXT

    auto = transformers.AutoModelForImageTextToText if model_type in IMAGE_TEXT else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype="auto").eval()
    try:
        with torch.no_grad():
            for sample in corpus.samples:
                model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False)
    except Exception:
        return True
    return False


def simulate_briefly(loaded: Any, profile: Any, corpus: Any) -> str:
    """Simulate a few tokens under all schemes and build the card: what prices come from, and the verdicts.

    Raises ValueError where a scheme lacks a range although nothing counts as unmeasured.
    """
    from quantaudit.card.build import build_card
    from quantaudit.policy import load_policy
    from quantaudit.quant.schemes import SCHEMES
    from quantaudit.simulate.run import simulate

    schemes = list(SCHEMES.values())
    simulation = simulate(loaded, profile, corpus.samples, schemes, evaluation_tokens=EVALUATION_TOKENS)
    lacking = [row.name for row in simulation.recipes if row.nonfinite]
    if lacking and not any(row.weights for row in profile.provenance.unmeasured):
        raise ValueError(f"all is measured, and ranges or values are missing under {', '.join(lacking)}")
    card = build_card(profile, [], simulation, load_policy("default"), timings={})
    statuses = ", ".join(dict.fromkeys(_status(scheme) for scheme in card.verdict.schemes))
    source, note = simulation.evaluation.price_source, simulation.evaluation.note
    return f"{statuses}, prices from {source}" + (f" ({note})" if note else "")


def _status(scheme: Any) -> str:
    return f"INCONCLUSIVE: {scheme.reason}" if scheme.status == "INCONCLUSIVE" else str(scheme.status)


def compare(folder: Path, loaded: Any, corpus: Any, profile: Any) -> list[str]:
    """What is wrong with a profile: compared with the skeleton's sites, and with plain hooks on every Linear."""
    from quantaudit.model.loading.checkpoint import locate
    from quantaudit.model.loading.load import load_skeleton
    from quantaudit.model.sites import discover

    faults = []
    if discover(load_skeleton(locate(str(folder)))) != discover(loaded.model):
        faults.append("a skeleton has other sites")
    ranges = plain_ranges(loaded.model, corpus)
    listed = {row.module for row in profile.provenance.unmeasured}
    sites = {member: site for site in profile.sites for member in site.members if not site.parts}
    for name, by_split in ranges.items():
        site = sites.get(name)
        if site is None:
            if name not in listed:
                faults.append(f"{name} is in silence")
            continue
        whole = profile.whole(site.name)
        peak = max(max(-low, high) for low, high in by_split.values())
        if whole is None:
            if name not in listed:
                faults.append(f"{name} ran and is not listed")
        elif float(whole.channel_amax.max()) != peak:
            faults.append(f"{name}: peak {float(whole.channel_amax.max())}, by a plain hook {peak}")
    over_all = {name for name, site in sites.items() if site.all_tokens is not None}
    everywhere = plain_ranges(loaded.model, corpus, all_tokens=True) if over_all else {}
    references = {n: (everywhere if n in over_all else ranges)[n] for n in ranges if n not in listed}
    calibrated = {name: splits["calibration"] for name, splits in references.items() if "calibration" in splits}
    faults += compare_scales(profile, calibrated, folder)
    return faults[:3]


def compare_scales(profile: Any, ranges: dict[str, tuple[float, float]], folder: Path) -> list[str]:
    """Where a scale that is saved, or its zero point, is not what compressed_tensors makes of a plain hook's range."""
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import load_file

    from quantaudit.quant.export import save_scales
    from quantaudit.quant.schemes import STATIC_INPUTS

    dtype, faults = getattr(torch, profile.provenance.model.dtype), []
    for scheme, args in STATIC_INPUTS.items():
        path = folder / "scales" / f"{scheme}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_scales(profile, path, scheme=scheme)
        saved = load_file(path)
        for name, ends in ranges.items():
            scale, zero_point = calculate_qparams(*(torch.tensor([end], dtype=dtype) for end in ends), args)
            reference = {"input_scale": scale} | ({} if args.symmetric else {"input_zero_point": zero_point})
            for key, value in reference.items():
                found = saved.pop(f"{name}.{key}", None)
                if found is None or found.dtype != value.dtype or not torch.equal(found, value):
                    faults.append(f"{name}: {scheme} {key} {found}, by a plain hook {value}")
        faults += [f"{name} of {scheme} has no input" for name in saved]
    return faults


def plain_ranges(model: Any, corpus: Any, *, all_tokens: bool = False) -> dict[str, dict[str, tuple[float, float]]]:
    """Smallest and largest input of each Linear that ran, split by split, by nothing but a forward hook.

    all_tokens: whether experts are given all tokens, by llm-compressor's own context, as it calibrates them.
    """
    from contextlib import nullcontext

    import torch
    from llmcompressor.modeling.moe.context import moe_calibration_context
    from transformers.pytorch_utils import Conv1D

    ranges: dict[str, dict[str, tuple[float, float]]] = {}
    split = ""

    def watch(name: str) -> Any:
        def hook(_module: Any, args: Any) -> None:
            if args and args[0].numel():
                low, high = float(args[0].min()), float(args[0].max())
                known = ranges.setdefault(name, {}).get(split, (low, high))
                ranges[name][split] = min(low, known[0]), max(high, known[1])

        return hook

    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    order = sorted(corpus.samples, key=lambda sample: (-len(sample.ids), sample.index))
    with torch.no_grad(), moe_calibration_context() if all_tokens else nullcontext():
        for sample in order:
            split = sample.split
            model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return ranges


def _summary(profile: Any) -> str:
    rows = [row for row in profile.provenance.unmeasured if row.weights]
    linears = sum(len(site.members) for site in profile.sites if not site.parts)
    text = f"{linears - len(rows)} of {linears} Linears"
    kinds = Counter(row.reason for row in profile.provenance.unmeasured if not row.absent)
    return text + "".join(f"; {count} {reason}" for reason, count in kinds.most_common(4))


def _limited(context: Any, model_type: str) -> dict[str, Any]:
    """One architecture in a process of its own."""
    receive, send = context.Pipe(duplex=False)
    start = time.monotonic()
    process = context.Process(target=_child, args=(send, model_type))
    process.start()
    send.close()
    outcome, detail = "fault", f"took more than {LIMIT_S} s or {LIMIT_BYTES >> 30} GiB"
    try:
        if receive.poll(10 * LIMIT_S):
            outcome, detail = receive.recv()
    except EOFError:
        pass
    process.kill()
    process.join()
    return {
        "model_type": model_type,
        "outcome": outcome,
        "detail": detail,
        "seconds": round(time.monotonic() - start, 1),
    }


def _child(send: Any, model_type: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    send.send(examine(model_type))


def _import_first() -> None:
    """What every architecture needs, once: forks have it."""
    import torch
    import transformers

    import tests.builders  # noqa: F401

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["model_type"]: row for row in rows}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


if __name__ == "__main__":
    sys.exit(main())
