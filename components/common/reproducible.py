"""The same numbers twice: threads, algorithms and seeds, fixed in one place for training, scoring and evaluation."""

from __future__ import annotations


def set_reproducible(threads: int, seed: int | None = None) -> None:
    """Fix the number of threads, the choice of algorithms, and every seed.

    Args:
        threads: CPU threads of this process.
        seed: For Python, NumPy and torch; None where nothing random happens.
    """
    import torch
    import torch.utils.deterministic

    torch.set_num_threads(threads)
    # A GPU kernel without a deterministic form warns rather than fails: only the CPU's promise is bitwise.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Filling every new tensor with NaN finds programs that read what they never wrote; it took a third of one.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by a property
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
