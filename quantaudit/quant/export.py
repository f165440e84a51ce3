"""Static input scales as a file, under the names that llm-compressor saves and serving engines read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save

from quantaudit.common.choices import check_observer
from quantaudit.common.files import write_bytes
from quantaudit.measure.profile import Profile
from quantaudit.quant.ranges import site_qparams
from quantaudit.quant.schemes import INT8_STATIC, find_static


def save_scales(
    profile: Profile, path: Path, *, scheme: str = INT8_STATIC.name, observer: str = "absolute_maximum"
) -> int:
    """Write `scales`. Returns how many Linears have one. Raises UsageError, OutputError."""
    data, count = scales(profile, scheme=scheme, observer=observer)
    write_bytes(path, data)
    return count


def scales(
    profile: Profile, *, scheme: str = INT8_STATIC.name, observer: str = "absolute_maximum"
) -> tuple[bytes, int]:
    """A safetensors file with `<module>.input_scale` [1] for every Linear that was measured.

    `<module>.input_zero_point` is there too where the scheme is asymmetric. Every expert has its own, as `oneshot`
    saves them. Scales are in the checkpoint's dtype. Returns the file, and how many Linears have one. Raises
    UsageError.
    """
    args = find_static(scheme)
    check_observer(observer)
    unmeasured = {row.module for row in profile.provenance.unmeasured}
    tensors = {}
    for site in profile.sites:
        if site.kind not in ("linear_input", "expert_input") or site.parts or unmeasured.issuperset(site.members):
            continue
        qparams = site_qparams(profile, site.name, args, observer)
        if qparams is None:
            continue
        for member in site.members:
            # Members of a fused group read one tensor and share its scale; safetensors wants storage of their own.
            tensors[f"{member}.input_scale"] = qparams.scale.clone()
            if not args.symmetric:
                tensors[f"{member}.input_zero_point"] = qparams.zero_point.clone()
    metadata = {
        "scheme": scheme,
        "observer": observer,
        "model": profile.provenance.model.fingerprint,
        "profile": profile.digest,
    }
    if profile.experts is not None:
        metadata["experts"] = profile.experts
    data: bytes = save(tensors, metadata={"quantaudit": json.dumps(metadata, sort_keys=True)})
    return data, sum(name.endswith(".input_scale") for name in tensors)
