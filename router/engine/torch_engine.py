"""The engine: one base on the device, many adapters, one batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from router.config import Settings
from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    EngineStatus,
    Job,
    PoolingRequest,
    Prompt,
    check_job,
    check_pooling,
    tokens_before,
)
from router.engine.beside import beside
from router.engine.checkpoint import BaseFiles
from router.engine.constrained.compiler import CompiledGrammar, Grammars
from router.engine.constrained.source import spec_of
from router.engine.decoder import head_size, why_not_packed
from router.engine.drafts import Speculation
from router.engine.generic import GenericBackbone
from router.engine.labels import Labelled, LabelNotes, LabelTrees
from router.engine.loader import (
    LoadedBase,
    LoadedModel,
    OpenBase,
    context_length,
    open_base,
    pick_device,
    pick_dtype,
    use_device,
)
from router.engine.loop import StepLoop
from router.engine.lora import DeviceSlots, HostStore, mix_adapters, pack_adapter, uploads
from router.engine.native import load_ops
from router.engine.native.ops import NativeStack
from router.engine.ops import BLOCK, Stack
from router.engine.output import Detokenizer, EventStream, PendingPooling, shared_vocabulary
from router.engine.prompt import PromptEncoder
from router.engine.resources import (
    CPU_CACHE_TOKENS,
    adapters_at_most,
    blocks_of,
    in_ending_thread,
    measure_cuda,
    usable_cpus,
    use_one_thread,
)
from router.engine.rows import AnswerRow, BlockPool, PoolingRow
from router.engine.runner import Backbone, PackedBackbone, Runner, fill_with_cache
from router.engine.sampling import Sampler, SamplingState
from router.engine.scheduler import POOLING_TOKENS, Scheduler
from router.errors import (
    ConfigError,
    FailedPrecondition,
    NotLoaded,
    Overloaded,
    ResourceExhausted,
)
from router.types import Constraint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
ATTENTION_RATE = 0.7  # of the rate at which the linear layers multiply


class TorchEngine:
    """Implements `router.engine.base.Engine` with torch."""

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel | None = None,
        files: BaseFiles | None = None,
        *,
        prefix_cache: bool = True,
        speculation: bool = True,
    ) -> None:
        """`loaded`: the base in place of that of the settings. `files`: those of the settings' base, open.
        For measurements and tests: without `prefix_cache` every prompt is computed whole, without
        `speculation` a step computes no likely next tokens."""
        self._settings = settings
        self._prefix_cache, self._speculates = prefix_cache, speculation
        self._loaded, self._files = loaded, files
        self._host = HostStore()
        self._live: set[EventStream] = set()
        self._background: set[EventStream] = set()  # background jobs, which take no place in the queue
        self._pooling: set[PendingPooling] = set()
        self._beside: set[PendingPooling] = set()  # pooling requests of answers' labels
        self._loop: StepLoop | None = None
        self._info: BaseInfo | None = None
        self._stack: Stack | None = None

    @property
    def info(self) -> BaseInfo:
        """The base; raises NotLoaded before `start` is done."""
        if self._info is None:
            raise NotLoaded("the base model is still loading")
        return self._info

    @property
    def stack(self) -> Stack | None:
        """What runs the layers of a step, if they are packed."""
        return self._stack

    def start(self) -> None:
        """Load the base, pack it for the device and start the step loop. Blocks for seconds."""
        in_ending_thread(self._start)

    def _start(self) -> None:
        settings = self._settings
        threads = settings.threads or usable_cpus()
        torch.set_num_threads(threads)
        self._device = pick_device(settings.device)
        _check_quantize(settings.quantize, self._device)
        use_device(self._device)
        self._dtype = pick_dtype(settings.dtype, self._device)
        base = self._opened()
        encoder = beside(lambda: PromptEncoder(base.tokenizer), "prompt encoder")
        config, context = base.config, context_length(base.config, settings.max_context)
        ahead = Path(settings.native_dir) if settings.native_dir else None
        self._ops, kernels = load_ops(
            settings.native, str(self._device), self._dtype, head_size(config), threads, ahead
        )
        self._blocks = self._first_blocks(context)
        reach = context if self._fills else min(context, self._blocks * BLOCK)
        backbone = self._backbone(base, reach)
        self._encoder, self._tokenizer = encoder.result(), base.tokenizer
        self._eos = base.ends | self._encoder.end_ids
        self._vocabulary = base.vocabulary
        self._grammars = Grammars(lambda: spec_of(self._tokenizer, self._vocabulary, self._eos))
        self._labels = LabelTrees(
            lambda text: self._encoder.encode(Prompt(raw=text, follows=True)), sorted(self._eos)
        )
        self._groups, self._layers = backbone.groups, backbone.layers
        products = sum(group.in_features * group.out_offsets[-1] for group in backbone.groups)
        attention = 4 * config.num_attention_heads * head_size(config) * config.num_hidden_layers
        self._even_context = ATTENTION_RATE * 2 * products / attention
        if self._fills:
            self._fill(backbone, min(settings.max_step_tokens, context))
        self._context = self._longest(context)
        self._stack = backbone.stack if isinstance(backbone, PackedBackbone) else None
        self._info = BaseInfo(
            name=base.name,
            digest=base.digest(),
            architecture=base.architecture,
            dtype=str(self._dtype).removeprefix("torch."),
            device=str(self._device),
            context_length=self._context,
            vocab_size=self._vocabulary,
            sites=_sites(backbone),
            size_bytes=base.parameters * self._dtype.itemsize - backbone.saved,
            kernels=f"{backbone.kind} layers, {kernels}",
            weights="" if settings.quantize == "none" else settings.quantize,
            chat_template=self._encoder.has_chat_template,
            tool_form=self._encoder.has_tool_form,
        )
        self._loop = self._step_loop(backbone, self._info.digest)
        self._loop.start()

    def _opened(self) -> OpenBase:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            return LoadedBase(loaded)
        from router.models import resolve_model

        files, self._files = self._files, None
        folder = files.folder if files is not None else resolve_model(self._settings.model)
        return open_base(folder, self._settings.model, files)

    def _backbone(self, base: OpenBase, context: int) -> Backbone:
        quantize = self._settings.quantize
        reason = why_not_packed(base.config, context)
        if not reason:
            weights = base.weights(self._device, self._dtype)
            try:
                return PackedBackbone(base.config, weights, self._ops, self._blocks, context, quantize)
            finally:
                weights.close()
        log.info("the generic path runs this model: %s", reason)
        return GenericBackbone(base.whole(self._device, self._dtype), self._ops, self._blocks, quantize)

    def close(self) -> None:
        """Stop the step loop; running jobs end as CANCELLED."""
        if self._loop is not None:
            self._loop.stop()
            self._grammars.close()

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """Token ids of a prompt, PromptTooLong if they are certain to be more than `most`. Thread-safe."""
        tokens = self._encoder.encode(prompt, most, check)
        if prompt.raw is None:
            self._encoder.beginning(prompt.template)  # `shared` finds it made
        return tokens

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """How many of its `tokens` every prompt under its template begins with."""
        return self._encoder.shared(prompt, tokens)

    async def load(self, artifact: AdapterArtifact) -> int:
        """Pack an adapter into host memory in a worker thread; returns its bytes."""
        self._running()
        known = self._host.get(artifact.digest)
        if known is not None:
            return known.nbytes
        return await asyncio.to_thread(self._pack, artifact)

    async def unload(self, digest: str) -> int:
        """Drop an adapter from its slot and from host memory; returns the bytes freed."""
        freed = self._host.pop(digest)
        await asyncio.wrap_future(self._running().drop(digest))
        return freed

    async def compile(self, constraint: Constraint, tenant: str = "") -> CompiledGrammar:
        """The grammar of a constraint, made in a worker thread or kept from an earlier request."""
        self._running()
        return await self._grammars.compile(constraint, tenant)

    def submit(self, job: Job) -> EventStream | Labelled:
        """Queue a job; refuses at once what cannot be served."""
        loop = self._running()
        inactive = self._check(job)
        notes = None if job.labels is None else self._labels.notes(job)
        live = self._background if job.background else self._live
        stream = EventStream(loop.cancel, live.discard)
        live.add(stream)
        loop.add(partial(self._row, job, stream, inactive, notes), stream)
        if job.labels is None:
            return stream
        return Labelled(stream, partial(self._labels.probabilities, job, self.read, notes))

    async def read(self, request: PoolingRequest) -> NDArray[np.float32]:
        """Hidden states or logits of candidates, computed in the steps of the others."""
        loop = self._running()
        # Those beside answers are as few as these allow, and must not crowd out the others.
        held = self._beside if request.candidates else self._pooling
        check_pooling(request, self._context, 0 if request.candidates else len(held))
        prompt = [*request.context, *request.tokens[:1]] if request.candidates else ()
        inactive = self._inactive(request.adapter, prompt)
        answer = PendingPooling(loop.cancel, held.discard)
        held.add(answer)
        layer = None if request.candidates else round(request.depth * self._layers)
        loop.add(lambda: PoolingRow(stream=answer, request=request, layer=layer, inactive=inactive), answer)
        return await answer.wait()

    def status(self) -> EngineStatus:
        """A snapshot taken after the last step."""
        digests, total = self._host.snapshot()
        if self._loop is None:
            return EngineStatus(host_adapters=digests, host_bytes=total)
        return replace(self._loop.status, host_adapters=digests, host_bytes=total)

    def _running(self) -> StepLoop:
        if self._loop is None:
            raise NotLoaded("the base model is still loading")
        return self._loop

    def _check(self, job: Job) -> int:
        """How many of its tokens come before its adapter acts, if it can be served."""
        settings = self._settings
        check_job(job, self._context)
        inactive = self._inactive(job.adapter, job.tokens)
        if job.background and len(self._background) >= settings.max_running:
            raise Overloaded("enough runs in the background", bound="engine")
        if not job.background and len(self._live) >= settings.max_running + settings.max_queue:
            raise Overloaded("the queue is full", bound="engine")
        return inactive

    def _inactive(self, digest: str | None, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt come before the adapter acts. Raises FailedPrecondition."""
        if digest is None:
            return 0
        adapter = self._host.get(digest)
        if adapter is None:
            raise FailedPrecondition("the adapter is not loaded")
        return tokens_before(prompt, adapter.invocation)

    @property
    def _fills(self) -> bool:
        """Whether the KV cache takes what the device has left."""
        return self._settings.cache_tokens == "auto" and self._device.type == "cuda"

    def _first_blocks(self, context: int) -> int:
        """Blocks of the KV cache; where it is to fill the device, those of the largest step for now."""
        wanted = self._settings.cache_tokens
        if wanted != "auto":
            return blocks_of(wanted)
        return blocks_of(min(self._settings.max_step_tokens, context) if self._fills else CPU_CACHE_TOKENS)

    def _fill(self, backbone: Backbone, step_tokens: int) -> None:
        settings, sites = self._settings, _sites(backbone)
        host = settings.host_memory_mb << 20
        adapters = adapters_at_most(sites, settings.slots, settings.max_rank, self._dtype.itemsize, host)
        copies = 2 if self._ops.name == "torch" else 1  # plain torch lays those that run side by side
        scored = settings.max_running + POOLING_TOKENS
        self._blocks = fill_with_cache(
            backbone, step_tokens, scored, copies * adapters, self._device, measure_cuda
        )
        log.info("the KV cache holds %d tokens: what is free on %s", self._blocks * BLOCK, self._device)

    def _longest(self, context: int) -> int:
        """Tokens that one request can ever have here: those of the context that the KV cache holds."""
        held = self._blocks * BLOCK
        if held < context:
            log.info("the KV cache holds %d of the context's %d tokens: raise cache_tokens", held, context)
        return min(held, context)

    def _pack(self, artifact: AdapterArtifact) -> int:
        use_one_thread()
        pin = self._device.type == "cuda"
        use_device(self._device)
        try:
            if artifact.parts:
                return self._host.put(mix_adapters(artifact, self._host, self._groups, self._ops, pin=pin))
            return self._host.put(pack_adapter(artifact, self._groups, self._ops, self._dtype, pin=pin))
        except MemoryError as error:
            raise ResourceExhausted(f"no memory for adapter {artifact.name!r}") from error

    def _step_loop(self, backbone: Backbone, digest: str) -> StepLoop:
        settings = self._settings
        slots = DeviceSlots(settings.slots, self._host, uploads(self._device))
        scheduler = Scheduler(
            BlockPool(self._blocks, prefix_cache=self._prefix_cache),
            slots,
            base_digest=digest,
            max_running=settings.max_running,
            max_step_tokens=settings.max_step_tokens,
            even_context=self._even_context,
        )
        runner = Runner(backbone, slots, self._device)
        spell = shared_vocabulary(self._tokenizer).logprob
        sampler = Sampler(self._vocabulary, spell, self._ops.choose)
        enter = partial(use_device, self._device)
        ring = self._stack.ring if isinstance(self._stack, NativeStack) else None
        return StepLoop(scheduler, runner, sampler, enter, self._speculation(scheduler), ring)

    def _speculation(self, scheduler: Scheduler) -> Speculation | None:
        """None where a row's result depends on how many tokens are computed together."""
        if not self._speculates or not isinstance(self._stack, NativeStack):
            return None
        return Speculation(shared_vocabulary(self._tokenizer).spell, scheduler.room)

    def _row(
        self, job: Job, stream: EventStream, inactive: int, labels: LabelNotes | None = None
    ) -> AnswerRow:
        params, grammar = job.params, None
        if isinstance(job.grammar, CompiledGrammar):
            # A forced token has no probabilities.
            grammar = job.grammar.start(forcing=not params.logprobs)
        return AnswerRow(
            job=job,
            stream=stream,
            inactive=inactive,
            sampling=SamplingState(params, job.tokens, self._eos, constrained=grammar is not None),
            detokenizer=Detokenizer(self._tokenizer, params.stop, params.min_tokens),
            eos=self._eos,
            grammar=grammar,
            labels=labels,
        )


def _check_quantize(wanted: str, device: torch.device) -> None:
    """Raises ConfigError where weights in few bits cannot be served."""
    if wanted != "none" and device.type != "cpu":
        raise ConfigError(
            f"quantize = {wanted} is for the CPU, and this engine runs on {device}: leave it out, "
            "or say --device cpu"
        )


def _sites(backbone: Backbone) -> dict[str, tuple[int, int]]:
    return {
        name: (group.out_offsets[i + 1] - group.out_offsets[i], group.in_features)
        for group in backbone.groups
        for i, name in enumerate(group.names)
    }
