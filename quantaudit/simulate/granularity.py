"""Why an input is hard to quantize: INT8 with one scale, one a token, one a channel, on the same evaluation tokens.

What scales of tokens save was done by a few tokens, what scales of channels save by a few channels. Measured on the
inputs of groups while the unquantized model runs anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from quantaudit.common.ranks.team import gather, in_order, team
from quantaudit.measure.profile import Profile
from quantaudit.model.sites import Group
from quantaudit.quant.lookup import dynamic_scales, fake_quantize_rows
from quantaudit.quant.observers import QParams, in_dtype
from quantaudit.quant.ranges import model_dtype, site_qparams
from quantaudit.quant.schemes import INT8, INT8_PER_TOKEN
from quantaudit.simulate.records import Cause, GranularityRow
from quantaudit.simulate.replay.replay_groups import block_damage

BIT = 4.0
"""One bit more quarters a squared error: what finer scales must be worth, at least, to explain one."""


@dataclass(slots=True)
class InputErrors:
    """Sums over tokens of ‖Δx‖² / ‖x‖² at one input. channel_amax: float32 [channels], from calibration.

    terms: by name, what each call adds, with the index of its sample.
    """

    per_tensor_range: QParams
    channel_amax: Tensor
    tokens: int = 0
    terms: dict[str, list[tuple[int, Tensor]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def sums(self) -> dict[str, float]:
        """By name, added up in the order of samples."""
        ordered = {name: sorted(terms, key=lambda term: term[0]) for name, terms in self.terms.items()}
        return {name: in_order(torch.stack([term for _, term in terms]).tolist()) for name, terms in ordered.items()}

    def add(self, sample: int, x: Tensor) -> None:
        """x: [..., channels], an input of the unquantized model. sample: its index."""
        x = x.reshape(1, -1, x.shape[-1])
        if not x.numel():
            return
        amax = self.channel_amax.to(x.device, x.dtype)
        whole = in_dtype(self.per_tensor_range, x.dtype, INT8)
        scales = {
            "per_tensor": (whole.scale.to(x.device), whole.zero_point.to(x.device)),
            "per_token": dynamic_scales(x, INT8_PER_TOKEN),
            "per_channel": calculate_qparams(-amax, amax, INT8),
        }
        for name, (scale, zero_point) in scales.items():
            self.terms[name].append((sample, block_damage(x, fake_quantize_rows(x, scale, zero_point, INT8))))
        self.tokens += x.shape[1]


def watch_inputs(groups: Sequence[Group], profile: Profile) -> dict[str, InputErrors]:
    """Group name → what gathers its errors, for groups whose input has a finite calibrated range."""
    watched = {}
    for group in groups:
        qparams = site_qparams(profile, group.site, INT8, "absolute_maximum")
        calibration = profile.calibration(group.site)
        if qparams is not None and calibration is not None:
            amax = torch.from_numpy(calibration.channel_amax).to(model_dtype(profile))
            watched[group.name] = InputErrors(per_tensor_range=qparams, channel_amax=amax)
    return watched


def taps(groups: Sequence[Group], watched: Mapping[str, InputErrors]) -> dict[str, Callable[[int, Tensor], None]]:
    """Module path → what takes its input: one member for each tensor that a group reads."""
    return {
        members[0]: watched[group.name].add
        for group in groups
        if group.name in watched
        for members in (group.experts or (group.members,))
    }


def of_all_ranks(watched: Mapping[str, InputErrors]) -> dict[str, InputErrors]:
    """The same errors over what every rank has observed."""
    if team().size == 1:
        return dict(watched)
    own = {
        name: (
            errors.tokens,
            {key: [(sample, float(term)) for sample, term in terms] for key, terms in errors.terms.items()},
        )
        for name, errors in watched.items()
    }
    parts = gather(own)
    united = {name: replace(errors, tokens=0, terms=defaultdict(list)) for name, errors in watched.items()}
    for name, errors in united.items():
        for tokens, by_key in (part[name] for part in parts):
            errors.tokens += tokens
            for key, terms in by_key.items():
                errors.terms[key] += [(sample, torch.tensor(term, dtype=torch.float64)) for sample, term in terms]
    return united


def granularity_rows(groups: Sequence[Group], watched: Mapping[str, InputErrors]) -> list[GranularityRow]:
    """One row for each group whose input was observed, on any rank."""
    rows, watched = [], of_all_ranks(watched)
    for group in groups:
        errors = watched.get(group.name)
        if errors is not None and errors.tokens:
            means = {name: total / errors.tokens for name, total in errors.sums.items()}
            rows.append(GranularityRow(group=group.name, layer=group.layer, cause=cause(**means), **means))
    return rows


def cause(per_tensor: float, per_token: float, per_channel: float) -> Cause:
    """What makes one scale too coarse: the finer scales that are worth a bit, and a bit more than the others."""
    if min(per_token, per_channel) * BIT >= per_tensor:
        return "neither"
    if per_channel * BIT < per_token:
        return "outlier channel"
    return "massive token" if per_token * BIT < per_channel else "either"
