"""The kernels at the heart of imagination, each behind one public function; STORMFAST_KERNELS decides what runs."""

import pkgutil
from importlib import import_module

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

# Every file, so that each kernel's trial and op are known before a device is tried, whoever imports its function.
for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
