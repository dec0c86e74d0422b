"""Choosing a kernel's launch configuration: `tuned`, Triton's autotuner with a memory and a switch.

What is chosen is kept in Triton's own cache folder, by device, shapes and source of the kernel, and
logged. It knows no kernel. Importing it imports Triton.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

logger = logging.getLogger(__name__)

_is_on = True


def switch_tuning(is_on: bool) -> None:
    """From now on time the configurations of kernels, or take the first one of each."""
    global _is_on
    _is_on = is_on


def is_tuning() -> bool:
    """Whether new shapes are timed."""
    return _is_on


def tuned(
    *,
    configs: Sequence[triton.Config],
    key: Sequence[str],
    reset_to_zero: Sequence[str] | None = None,
) -> Callable[[Any], "TunedKernel"]:
    """Decorate a `triton.jit` kernel: the fastest configuration for each shape, timed once.

    The first one is taken, and nothing timed, where tuning is switched off, where Triton
    interprets, and for a shape that first comes while a CUDA graph is being captured.

    Args:
        configs: to choose from, the best guess first.
        key: names of the kernel's arguments; whenever their values or the dtype of a tensor change,
            the choice is made anew.
        reset_to_zero: names of tensors that the kernel adds to, so that timing leaves no trace.
    """

    def decorate(kernel: Any) -> TunedKernel:
        return TunedKernel(
            kernel,
            kernel.arg_names,
            list(configs),
            list(key),
            None if reset_to_zero is None else list(reset_to_zero),
            None,
            cache_results=True,
        )

    return decorate


class TunedKernel(Autotuner):  # type: ignore[misc]  # Triton has no types
    """A kernel that is launched as `kernel[grid](...)`, without the arguments that are tuned."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if not self._may_time():
            self._log_once(None, self.configs[0])
            return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())
        num_known = len(self.cache)
        done = super().run(*args, **kwargs)
        if len(self.cache) > num_known:
            self._log_once(*next(reversed(self.cache.items())))
        return done

    def check_disk_cache(
        self, tuning_key: Any, configs: list[triton.Config], bench_fn: Callable[[], object]
    ) -> Any:
        """Triton tells architectures apart, but an H200 is no H100: the name is in the key."""
        on_device = (torch.cuda.get_device_name(), *tuning_key)
        is_hit = super().check_disk_cache(on_device, configs, bench_fn)
        if on_device in self.cache:
            self.cache[tuning_key] = self.cache.pop(on_device)
        return is_hit

    def _may_time(self) -> bool:
        is_compiled = isinstance(self.fn, JITFunction)
        return is_compiled and _is_on and not torch.cuda.is_current_stream_capturing()

    def _log_once(self, key: Any, config: triton.Config) -> None:
        name = self.base_fn.__name__
        logged = self.__dict__.setdefault("logged", set())
        if key in logged:
            return
        logged.add(key)
        if key is None:
            logger.info("kernel %s, not tuned: %s", name, config)
        else:
            logger.info("kernel %s for %s: %s", name, ", ".join(map(str, key)), config)
