"""The kernels at the heart of imagination, each behind one public function; STORMFAST_KERNELS decides what runs."""

from stormfast_kernels.attention import cached_attention_step
from stormfast_kernels.categorical import sample_categorical, sample_categorical_with_log_probs, unimix_log_probs
from stormfast_kernels.dispatch import backend, report

__all__ = [
    "backend",
    "cached_attention_step",
    "report",
    "sample_categorical",
    "sample_categorical_with_log_probs",
    "unimix_log_probs",
]
