"""`quantaudit sites`: which tensors would be observed, from the configuration alone."""

from __future__ import annotations

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit sites demo"


def run(
    model: options.Model,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """List the observed tensors and fused groups of a model, without loading its weights."""
    from quantaudit.cli import console
    from quantaudit.model.loading.checkpoint import locate

    checkpoint = locate(model, revision=revision, weights=False)

    # From here on torch is needed.
    from quantaudit.model.loading.load import load_skeleton
    from quantaudit.model.sites import discover

    skeleton = load_skeleton(checkpoint, trust_remote_code=trust_remote_code)
    architecture = discover(skeleton, model_name=checkpoint.spec)
    console.show_sites(architecture)
    linears = sum(len(group.members) for group in architecture.groups)
    console.say(
        f"{len(architecture.sites):,} sites, {len(architecture.groups):,} fused groups of {linears:,} Linears, "
        f"{len(architecture.unmeasured):,} not measured"
    )
