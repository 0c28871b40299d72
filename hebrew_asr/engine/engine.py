"""The engine: one optimizer step over many micro-batches, and a change of phase that loses no optimizer state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hebrew_asr.config.batching import Batching, deepspeed_config
from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.data.loader import MicroBatch
from hebrew_asr.engine import garbage, zero
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.host_memory import HostMemory
from hebrew_asr.engine.optimizer_state import PartitionState, StateReader, capture, restore
from hebrew_asr.engine.phase_proof import PhaseProof
from hebrew_asr.errors import EnvironmentProblem, UsageError, first_line, on_one_line
from hebrew_asr.model.load import build_model
from hebrew_asr.model.phases import ParameterGroup, set_phase
from hebrew_asr.passes.absent_tokens import AbsentTokens
from hebrew_asr.passes.packed import PackedASR


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step was, the same on every rank."""

    loss: float
    """Nats per supervised token over the whole global batch."""
    num_labels: int
    """Supervised tokens of the global batch."""
    grad_norm: float
    """Global gradient norm before clipping."""
    applied: bool
    """False if non-finite gradients made every rank skip the step."""


class StepResult:
    """Figures of one optimizer step on their way to the host, which meanwhile queues the next step."""

    def __init__(self, loss: torch.Tensor, num_labels: int, norm: torch.Tensor | float, applied: bool):
        """Tensors of one element, on the device."""
        self._num_labels, self._applied, self._event = num_labels, applied, None
        norm = norm.to(loss.device) if isinstance(norm, torch.Tensor) else torch.full_like(loss, norm)
        values = torch.stack([part.double().reshape(()) for part in (loss, norm)])
        self._values = values.to("cpu", non_blocking=True)
        if loss.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def figures(self) -> StepFigures:
        """Waits for the device to end this step, if it has not, but for weights that the next pass reads late."""
        if self._event is not None:
            self._event.synchronize()
        loss, norm = self._values.tolist()
        applied = self._applied and math.isfinite(norm)
        return StepFigures(loss, self._num_labels, norm, applied)


class MicroBatchTooLarge(EnvironmentProblem):
    """Device memory ran out in a micro-batch, before the optimizer stepped; ``rebuild`` makes the engine whole again.

    After a pass without collectives (forward under ZeRO 0 to 2; backward under ZeRO 0 and 1, which reduce in the step,
    and under ZeRO 2 in bf16, which reduces after it) the ranks agree over the host group: all of them raise this, and
    the step can be run again in smaller micro-batches at once (``is_agreed``). In the others the ranks may wait inside
    a collective for the one that ran out, and under NCCL nothing calls them back: it raises this alone, and the job can
    only end and be resumed. One rank by itself has nobody to agree with.
    """

    def __init__(self, part: str, ranks: list[int], is_agreed: bool, reason: str):
        """``part``: forward or backward; ``ranks``: those that ran out; ``reason``: the allocator's, on such a rank."""
        why = f"rank {', '.join(map(str, ranks))}{reason and f': {reason}'}".rstrip(".")
        super().__init__(f"out of device memory in {part} on {why}; take a smaller train_micro_batch_size_per_gpu")
        self.part, self.ranks, self.is_agreed, self.reason = part, ranks, is_agreed, reason


class TrainEngine:
    """A DeepSpeed engine that can change which weights it trains.

    ZeRO fixes its partitions when it is built: a later ``requires_grad = True`` trains nothing and says nothing. So
    ``enter_phase`` builds a new engine over the new param groups and carries the fp32 masters, Adam moments and step
    counts of the old groups into it, bit for bit. Groups may join, but none may leave: a recipe that asks for that is
    refused.
    """

    def __init__(
        self,
        module: PackedASR,
        asr: Any,
        recipe: Recipe,
        profile: Profile,
        batching: Batching,
        ranks: Ranks,
        present_V: torch.Tensor,
    ):
        """No DeepSpeed engine exists yet: ``enter_phase`` builds it.

        Args:
            module: gives the SUM of a micro-batch's token cross-entropies, from its packed batch and features.
            asr: the native model inside it, whose parameters are trained.
            recipe: what is learned.
            profile: on what hardware.
            batching: how a step is cut into micro-batches.
            ranks: all of them.
            present_V: (rows of the head,) bool in host memory, the tokens that occur in training; the same on every
                rank.
        """
        self.module, self.asr, self.ranks = module, asr, ranks
        self.groups: list[ParameterGroup] = []
        self._recipe, self._profile = recipe, profile
        self._config = deepspeed_config(profile, recipe, batching)
        self._engine: Any = None
        frozen = recipe.optimizer.absent_tokens == "frozen"
        self._absent = AbsentTokens(asr, present_V, ranks.device, frozen=frozen)
        self._host_memory = HostMemory()
        self._proof: PhaseProof | None = None
        self._last: StepResult | None = None
        self._part: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()

    # ---- phases

    def enter_phase(self, index: int, resume: StateReader | None = None) -> None:
        """Train the groups of phase ``index`` from now on. Call this only between optimizer steps.

        Args:
            index: phase of the recipe.
            resume: a checkpoint's state, for the first engine of a resumed run.
        """
        states = self._take_apart()
        self.groups = set_phase(self.asr, self._recipe, self._recipe.phases[index])
        self._absent.hold(self.module)
        if resume is not None:
            resume.load_weights(dict(self.asr.named_parameters()))
        self._assemble(states, resume)
        self._proof = PhaseProof(self.asr, self.groups, self._profile.zero_stage, self.ranks)

    def rebuild(self, batching: Batching) -> None:
        """A new engine over the same phase and state, for other micro-batches; an unfinished step leaves no trace."""
        garbage.take_back()  # what is left of that step holds the old engine
        states = self._take_apart()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self._config = deepspeed_config(self._profile, self._recipe, batching)
        self._assemble(states, None)
        if self._proof is not None:
            self._proof = PhaseProof(self.asr, self.groups, self._profile.zero_stage, self.ranks)

    def _take_apart(self) -> list[PartitionState]:
        """Let go of the engine, if there is one; returns all optimizer state of this rank."""
        if self._engine is None:
            return []
        self.module.seam.wait()
        states = capture(self._engine, zero.partitions(self._engine, self.asr))
        self._let_go()
        garbage.set_aside()  # DeepSpeed collects some 30 times while it builds the next
        return states

    def _assemble(self, states: list[PartitionState], resume: StateReader | None) -> None:
        options, profile = self._recipe.optimizer, self._profile
        self.module.find_seam()
        try:
            self._engine = zero.build(self.module, self.groups, self._config, options, profile)
        except Exception as error:
            # DeepSpeed's own checks are of every other type; torch, its devices and its network raise these.
            if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
                raise
            raise UsageError(
                f"DeepSpeed cannot build an engine from hardware profile {profile.source}: {on_one_line(error)}"
            ) from error
        partitions = zero.partitions(self._engine, self.asr)
        for partition in partitions:
            zero.adam_state(self._engine, partition)  # step 0, unless a state is carried over or read below
        if resume is None:
            restore(self._engine, partitions, states)
        else:
            resume.load_partitions(self._engine, partitions)
        self._host_memory.reserve(self._saved_state())

    def head_row_norms(self) -> dict[str, float | None]:
        """Mean L2 norm of the head's rows, of tokens ``present`` in training and of ``absent`` ones; collective."""
        import deepspeed

        self.module.seam.wait()
        weight = self.asr.lm_head.weight
        with deepspeed.zero.GatheredParameters([weight], enabled=self._profile.zero_stage == 3):
            return self._absent.row_norms(weight)

    # ---- steps

    def step(self, micro_batches: list[MicroBatch], learning_rates: dict[str, float]) -> StepResult:
        """One optimizer step, queued on the device: this returns once the step before it has ended.

        The loss is the sum of token cross-entropies over the whole global batch divided by its supervised tokens, so
        neither accumulation nor rank count changes it. ZeRO averages over ranks, hence the factor ``ranks.size``.

        Args:
            micro_batches: this rank's; as many on every rank.
            learning_rates: of each module group, for this step.

        Raises:
            MicroBatchTooLarge: device memory ran out before anything was applied; see there who learns of it.
        """
        zero.set_learning_rates(self._engine, {group.name: learning_rates[group.module_group] for group in self.groups})
        own_labels = sum(micro_batch.num_labels for micro_batch in micro_batches)
        labels_of_all = self.ranks.begin_sum(torch.tensor(own_labels))  # on the host, while the forward pass is queued
        total = torch.zeros(1, dtype=torch.float64, device=self.ranks.device)
        if not self.asr.training:  # an evaluation ran; walking all modules at every step would cost a millisecond
            self._engine.train()
        self.module.needs_hooks = self._proof is not None
        if self._proof is not None:
            self.module.seam.wait()
        with nullcontext() if self._proof is None else self._proof.watch(self._engine):
            for micro_batch in micro_batches:
                self._learn(micro_batch, labels_of_all, total)
        labels = int(labels_of_all())
        # Before the step: behind it, this would wait until weights have arrived that the next pass reads late.
        loss = self.ranks.sum(total) / max(labels, 1)
        with self._part("step"):
            self._engine.step()
        norm = self._engine.get_global_grad_norm()
        applied = bool(self._engine.was_step_applied())
        result = StepResult(loss, labels, norm, applied)
        if self._last is not None:
            self._last.figures()
        self._last = result
        return result

    def _learn(self, micro_batch: MicroBatch, labels_of_all: Callable[[], torch.Tensor], total: torch.Tensor) -> None:
        """Both passes of a micro-batch; its loss is added to ``total``.

        Raises:
            MicroBatchTooLarge: a pass ran out of device memory.
        """
        loss_sum, reason = self._tried("forward", self._engine, micro_batch.packed, micro_batch.mel_CBF)
        is_local = zero.has_local_backward(self._engine)
        if not is_local:
            self._settle("forward", reason, agreed=self._profile.zero_stage < 3)
        part = "forward" if reason else "backward"
        if not reason:
            per_token = self.ranks.size / max(int(labels_of_all()), 1)
            weighted = loss_sum.double() * (per_token if micro_batch.num_labels else 0.0)
            total += loss_sum.detach() * bool(micro_batch.num_labels)
            weighted = weighted.to(loss_sum.dtype)
            _, reason = self._tried("backward", self._engine.backward, weighted, scale_wrt_gas=False)
        self._settle(part, reason, agreed=is_local)
        with self._part("backward"):
            zero.reduce_micro_batch(self._engine)

    def _tried(self, part: str, run: Callable[..., Any], *inputs: Any, **options: Any) -> tuple[Any, str]:
        """``run(*inputs, **options)``, and why it ran out of device memory, if it did.

        The error's frames hold activations, and the optimizer where its methods ran out, so it is let go of here.
        """
        with self._part(part):
            try:
                return run(*inputs, **options), ""
            except torch.OutOfMemoryError as error:
                return None, first_line(error)

    def _settle(self, part: str, reason: str, *, agreed: bool) -> None:
        """MicroBatchTooLarge if ``reason`` says that this rank ran out of device memory in ``part``, or another did.

        ``agreed``: passes without collectives are over, so every rank arrives here and hears of the others.
        """
        ranks, parts = self.ranks, ("", "forward", "backward")
        ran_out = torch.zeros(ranks.size, dtype=torch.int32)
        ran_out[ranks.rank] = parts.index(part) if reason else 0
        found = ranks.max(ran_out).tolist() if agreed and ranks.size > 1 else ran_out.tolist()
        short = [rank for rank, where in enumerate(found) if where]
        if short:
            reason = next(filter(None, ranks.gather(reason))) if agreed else reason
            error = MicroBatchTooLarge(parts[found[short[0]]], short, agreed or ranks.size == 1, reason)
            raise ranks.in_common(error) if agreed else error

    @contextmanager
    def timed(self, part: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
        """Run ``forward``, ``backward`` and ``step`` of every step within ``part(name)``, to see where time goes."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def prove_phase(self) -> dict[str, int] | None:
        """After the phase's first effective step: what should train did, and nothing else; collective.

        Returns:
            The counts of ``PhaseProof.conclude``, once per phase; None when there is nothing to prove.

        Raises:
            TrainingFault: naming the parameters at fault.
        """
        if self._proof is None or self._last is None or not self._last.figures().applied:
            return None
        self.module.seam.wait()
        proof, self._proof = self._proof, None
        garbage.set_aside()  # all is compiled
        return proof.conclude(self._engine)

    # ---- state

    def host_state(self) -> list[PartitionState]:
        """This rank's optimizer state, copied to host memory; the next call overwrites it."""
        self.module.seam.wait()
        return self._host_memory.copy(self._saved_state())

    def _saved_state(self) -> list[PartitionState]:
        """What this rank writes into a checkpoint, where it lies."""
        if self._profile.zero_stage == 0 and not self.ranks.is_main:
            return []  # without sharding every rank holds all of it: one copy is enough
        return capture(self._engine, zero.partitions(self._engine, self.asr))

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        """The native model with all its weights on this rank, to decode with or to save; collective.

        ZeRO-3 gathers weights layer by layer, on all ranks together, so ranks that decode different clips would wait
        for each other for ever. There it is a copy without the engine's hooks, for as long as the context lasts.
        """
        self.module.seam.wait()
        if self._profile.zero_stage < 3:
            yield self.asr
            return
        import deepspeed

        asr: Any = self.asr
        with torch.device(self.ranks.device):
            copy = build_model(asr.config, asr.dtype)
        copy.generation_config = asr.generation_config
        sources = list(asr.parameters())
        with deepspeed.zero.GatheredParameters(sources, modifier_rank=None), torch.no_grad():
            for target, source in zip(copy.parameters(), sources, strict=True):
                target.copy_(source)
        yield copy.eval()

    def close(self) -> None:
        """Let go of the engine."""
        self.module.seam.wait()
        if self._engine is not None:
            self._let_go()

    def _let_go(self) -> None:
        engine, self._engine = self._engine, None
        zero.release(engine)
        self.module.release()  # recordings too: NCCL's group waits to end for those with its collectives
