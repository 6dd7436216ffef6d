"""What an engine decides about the time of a step; with a device's kernels it makes step times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine_models.cost.drafting import Speculation, SpeculativeTimes
from engine_models.cost.lockstep import DataParallelTimes
from engine_models.cost.sampling import Sampler
from engine_models.cost.step_time import Formats, Fp32Router, HostOverhead, StepTimeModel
from engine_models.model.architecture import Architecture
from hardware_profiles.ops import Ops


@dataclass(frozen=True)
class StepCosts:
    """The cost of a step up to the device's kernels; the fields as the parameters of `StepTimeModel`.

    `ranks` are data-parallel ranks that share experts and step together, 1 where there are none.
    """

    arch: Architecture
    formats: Formats
    host: HostOverhead
    max_step_tokens: int
    max_rows: int
    max_context_tokens: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    ranks: int = 1
    graph_sizes: tuple[int, ...] = ()
    truncated_sampling: bool = False
    sampler: Sampler = "sort"
    moe_backend: str | None = None
    fixed_grid_attention: bool = False
    fp32_router: Fp32Router = "cublas"
    speculation: Speculation | None = None

    def over(self, kernels: Ops) -> StepTimeModel | DataParallelTimes | SpeculativeTimes:
        """Step times of one replica on a device with these kernels."""
        drafts = self.speculation
        tables: dict[str, Any] = {
            "graph_sizes": self.graph_sizes,
            "max_step_tokens": self.max_step_tokens,
            "max_rows": self.max_rows,
            "max_context_tokens": self.max_context_tokens,
        }
        shape: dict[str, Any] = {
            "tensor_parallel": self.tensor_parallel,
            "pipeline_parallel": self.pipeline_parallel,
            "expert_parallel": self.expert_parallel,
            "truncated_sampling": self.truncated_sampling,
            "sampler": self.sampler,
            "fixed_grid_attention": self.fixed_grid_attention,
            "moe_backend": self.moe_backend,
            "fp32_router": self.fp32_router,
        }
        arch, formats, host = self.arch, self.formats, self.host
        if self.ranks > 1:
            return DataParallelTimes(
                arch, kernels, formats, host, data_parallel=self.ranks, **shape, **tables
            )
        row_tokens = 1 if drafts is None else 1 + drafts.tokens
        model = StepTimeModel(
            arch,
            kernels,
            formats,
            host,
            query_tokens=row_tokens,
            sampled_tokens=row_tokens,
            **shape,
            **tables,
        )
        return model if drafts is None else SpeculativeTimes(model, drafts, kernels, tables)
