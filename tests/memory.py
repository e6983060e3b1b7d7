"""How much memory tensors take."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Of the tensors made while it is on: the largest number of bytes alive at once (``peak``), and
    the bytes of them all, a measure of work that no other process disturbs (``made``).
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = self.made = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.alive += storage.nbytes()
                self.made += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())
        return out

    def drop(self, key, size):
        self.seen.discard(key)
        self.alive -= size
