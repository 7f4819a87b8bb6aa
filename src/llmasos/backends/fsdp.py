"""Fully sharded data parallelism: no process holds the whole model, torch's ``fully_shard`` (FSDP2) cuts it up.

Each module gathers its weights as it computes, so the model's own modules must compute: transformers' forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from ..core.errors import UsageError
from ._parallel import DataParallel

PLAIN = "fsdp cuts the model up, and its modules gather their weights as transformers' own forward calls them"


class FullySharded(DataParallel):
    """Rows are dealt out as in ``ddp``; weights, gradients and the optimiser's state are divided too."""

    needs_own_modules = PLAIN

    def check(self, model: Any, *, joint: bool, adapter: str) -> None:
        """Refuse what cannot be cut up.

        Raises:
            UsageError: an encoder with a decoder, an adapter, or a loss over several rows.
        """
        wrong = {
            "an encoder with a decoder": getattr(model.config, "is_encoder_decoder", False),
            f"adapter={adapter}": adapter != "none",
            "a loss that compares rows with one another": joint,
        }
        for what, is_so in wrong.items():
            if is_so:
                raise UsageError(f"backend=fsdp does not train {what}", hint="backend=ddp does")

    def wrap(self, model: Any, dtype: torch.dtype) -> Any:
        """Return a copy of the model of which each process has a part; the model itself gives its weights up."""
        from torch import nn
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        kind = next(model.parameters()).device.type
        mesh = init_device_mesh(kind, (self.world,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        sharded = deepcopy(model)
        stacks = [name for name, module in sharded.named_modules() if isinstance(module, nn.ModuleList)]
        for name in stacks:
            if not any(name.startswith(f"{other}.") for other in stacks):
                for layer in sharded.get_submodule(name):
                    fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(sharded, mesh=mesh, mp_policy=policy)
        for module in sharded.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(1.0)  # losses are parts of the whole step's: they add up
                module.set_force_sum_reduction_for_comms(True)
                if kind == "cpu" and self.world > 1:
                    module.set_custom_all_gather(GlooAllGather())
                    module.set_custom_reduce_scatter(GlooReduceScatter())
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(0)
        return sharded

    def whole(self, model: Any) -> dict[str, torch.Tensor]:
        """Return all weights of a model that was cut up; every process takes part."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True)
        state: dict[str, Any] = get_model_state_dict(model, options=options)
        return {name: tensor.cpu() for name, tensor in state.items()}

    def most(self, count: int) -> int:
        """Return the largest of the processes' numbers."""
        return max(int(one) for one in self.gather(torch.tensor([count])))

    def save(self, tensors: Mapping[str, Any], folder: Path) -> None:
        """Write tensors of which each process holds a part, as safetensors; all take part."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))

    def load(self, tensors: Mapping[str, Any], folder: Path) -> None:
        """Read into tensors of which each process holds a part, whatever the number of processes that wrote them."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


class _Allocating:
    """Where torch asks for the memory of a collective."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for a call."""
        return torch.empty(*size, dtype=dtype, device=device)


class GlooAllGather(_Allocating):
    """Gather the parts of a tensor from all processes by messages straight to their places.

    Gloo's own takes four times the processor's time: it gathers into a list first.
    """

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any,
        async_op: bool = False,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Fill ``output_tensor`` with the ``input_tensor`` of every process; done on return."""
        import torch.distributed as dist

        rank, parts = group.rank(), output_tensor.chunk(group.size())
        others = [other for other in range(group.size()) if other != rank]
        works = [dist.isend(input_tensor, group=group, group_dst=other) for other in others]
        works += [dist.irecv(parts[other], group=group, group_src=other) for other in others]
        if parts[rank].data_ptr() != input_tensor.data_ptr():
            parts[rank].copy_(input_tensor)
        for work in works:
            work.wait()  # type: ignore[union-attr]


class GlooReduceScatter(_Allocating):
    """Add a tensor up over all processes, of which each gets its part.

    Gloo's own takes three times the processor's time: it gives the whole sum to all.
    """

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any,
        async_op: bool = False,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Fill ``output_tensor`` with this process's part of the sum; done on return."""
        import torch.distributed as dist

        assert op == dist.ReduceOp.SUM
        parts = torch.empty_like(input_tensor)
        dist.all_to_all_single(parts, input_tensor, group=group)
        torch.sum(parts.view(group.size(), -1), 0, out=output_tensor)


PLUGIN = FullySharded
