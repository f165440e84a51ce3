"""Profile: what was measured, and on what. Its file, its digest, and how shards of it add up; without torch."""

from quantaudit.measure.profile.arrays import statistics_arrays, statistics_from
from quantaudit.measure.profile.file import FORMAT_VERSION, check_whole, load_profile, profile_bytes, save_profile
from quantaudit.measure.profile.merging import merge
from quantaudit.measure.profile.record import EXPERT_TOKENS, Profile, tokens, undersampled_experts, undersampled_inputs

__all__ = [
    "EXPERT_TOKENS",
    "FORMAT_VERSION",
    "Profile",
    "check_whole",
    "load_profile",
    "merge",
    "profile_bytes",
    "save_profile",
    "statistics_arrays",
    "statistics_from",
    "tokens",
    "undersampled_experts",
    "undersampled_inputs",
]
