"""Tensor by tensor, offline: scales from the calibration split, errors on the evaluation split, no model needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from compressed_tensors.quantization import QuantizationArgs

from quantaudit.common.ranks.team import deal, joint
from quantaudit.measure.profile import Profile
from quantaudit.provenance import SiteInfo
from quantaudit.quant.errors import tensor_errors
from quantaudit.quant.observers import OBSERVERS, Observed, QParams, applies, order_spread, qparams_from
from quantaudit.quant.ranges import observed, quantizable
from quantaudit.quant.schemes import STATIC_INPUTS
from quantaudit.simulate.records import ScaleRow, TensorErrorRow


def scale_rows(profile: Profile) -> list[ScaleRow]:
    """Scales for every quantizable tensor, static scheme and observer, from the calibration split."""
    return [
        ScaleRow(
            site=site.name,
            group=site.name.removesuffix(".input"),
            scheme=scheme,
            observer=observer,
            min=qparams.min,
            max=qparams.max,
            scale=float(qparams.scale),
            zero_point=int(qparams.zero_point),
            order_spread=order_spread(calibration, args) if observer == "minmax" else None,
        )
        for site in quantizable(profile)
        if (calibration := observed(profile, site.name)) is not None
        for scheme, args, observer, qparams in _derived(calibration)
    ]


def error_rows(profile: Profile) -> list[TensorErrorRow]:
    """What each of those scales does to the evaluation split. Ranks share the tensors."""
    sites = quantizable(profile)
    rows = joint({site.name: list(_errors(profile, site)) for site in deal(sites, lambda _site: 1)})
    return [row for site in sites for row in rows[site.name]]


def _errors(profile: Profile, site: SiteInfo) -> Iterator[TensorErrorRow]:
    evaluation, calibration = profile.split(site.name, "evaluation"), observed(profile, site.name)
    if evaluation is None or calibration is None:
        return
    for scheme, args, observer, qparams in _derived(calibration):
        yield TensorErrorRow(
            site=site.name,
            group=site.name.removesuffix(".input"),
            scheme=scheme,
            observer=observer,
            scale=float(qparams.scale),
            zero_point=int(qparams.zero_point),
            **asdict(tensor_errors(evaluation.distribution, qparams, args, evaluation.range)),
        )


def _derived(calibration: Observed) -> Iterator[tuple[str, QuantizationArgs, str, QParams]]:
    for scheme, args in STATIC_INPUTS.items():
        for observer in OBSERVERS:
            if applies(observer, args):
                qparams = qparams_from(calibration, args, observer)
                if qparams is not None:
                    yield scheme, args, observer, qparams
