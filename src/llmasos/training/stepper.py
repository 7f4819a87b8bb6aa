"""One optimiser step: its batch as the step sees it, forward, backward, clip and update.

A step is a function of the weights, the optimiser's state, the seed and its own number: all that is random in it
is drawn from generators that are seeded with that number. So a step that is repeated, after memory ran out or
after the process was killed, is the same step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..architectures._plain import transformers_outputs
from ..architectures.base import Dropout, Projected, pack
from ..core import hardware
from ..core.errors import TrainingError
from ..core.events import Note
from ..data.augment import augmented_order
from ..data.batching import Batch, encoded, gather, split
from ..tasks.base import Task
from .activations import ActivationCache
from .optimizer import Parameters, schedule
from .prepare import used_tokens
from .setup import Setup
from .sharded import Sharded

_FEW = 4  # rows of the larger of two measured steps
_SHARE = 0.8  # of the free memory that a step may take
_RESERVE = 300_000_000  # free bytes under which steps become smaller


def seen(setup: Setup, rows: np.ndarray[Any, Any], step: int) -> Batch:
    """Return the rows as a step sees them: noised by the task, with tokens dropped and swapped if asked for.

    The noise is from a generator of the step's own.
    """
    batch = gather(setup.train, rows)
    rate = setup.config.augment
    rng = np.random.default_rng((setup.config.seed, 1 + step))
    if rate > 0.0:
        whole = encoded(batch)
        spans = itertools.pairwise(whole.offsets)
        kept = [a + augmented_order(whole.ids[a:b], rate, setup.special_ids, rng) for a, b in spans]
        places = np.concatenate(kept)
        shorter = replace(
            whole,
            ids=whole.ids[places],
            types=None if whole.types is None else whole.types[places],
            offsets=np.concatenate([[0], np.cumsum([len(k) for k in kept], dtype=np.int64)]),
        )
        batch = replace(part := gather(shorter, np.arange(len(batch))), rows=batch.rows[part.rows])
    return setup.task.noised(batch, rng)


class Stepper:
    """One optimiser step: forward and backward in micro-batches, then clip and update.

    ``compute`` leaves the gradient of the batch's mean loss, whatever the micro-batches and the number of
    processes; ``update`` applies it; ``discard`` forgets it. ``write_back`` brings the model up to date for an
    evaluation, ``weights`` copies it; ``release`` gives it its parameters back. ``lost``: the weights of the last step
    are, as they can be in another process (``keras.py``).

    Where the loss of a row depends on the rows beside it, micro-batches still give the whole batch's gradient:
    all outputs are computed first, without a graph; the loss gives the gradient at each; then each micro-batch
    runs again, with the same dropout, and takes its part of it back (Gao et al. 2021, gradient cache).
    """

    lost = False

    def __init__(self, model: Any, setup: Setup) -> None:
        self.setup, self.backend = setup, setup.backend
        noise = type(setup.task).noised is not Task.noised  # it may bring tokens that the texts lack
        rows_alone = setup.architecture is not None and not setup.architecture.autocast and not noise
        self.model, self.parameters = model, _parameters(model, setup, rows_alone=rows_alone)
        if isinstance(self.parameters, Sharded):
            self.model = self.parameters.model
        self.discard = self.parameters.clear
        self.write_back, self.weights = self.parameters.write_back, self.parameters.weights
        self._config = model.config
        self._dropout = Dropout(setup.config.seed)
        self._forward, self._cache = _forward(self.model, setup, self.parameters, self._dropout)
        self.rows_at_once = setup.config.micro_batch_size
        """Examples computed at once; None for all. It falls when memory runs out."""
        self._notes: list[Note] = []

    def release(self) -> None:
        """Give the model its parameters back, and the memory and the disk that the steps took."""
        self.parameters.release()
        if self._cache is not None:
            self._cache.close()

    def notes(self) -> list[Note]:
        """Return what there is to say since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def rehearse(self) -> list[Note]:
        """Try the step of the longest rows first, so that memory runs out now or never; return notes.

        An accelerator computes it whole, forward and backward, and its parts become smaller until it fits. On a CPU
        nothing fails: the system kills. There two small steps are measured, and the memory of the largest is foreseen
        from them, if by the numbers of the model it could come near to what is free.
        """
        lengths = self.setup.train.lengths
        worst = np.argsort(-lengths, kind="stable")[: self.setup.config.batch_size]
        if self.parameters.master.device.type != "cpu":
            self.compute(seen(self.setup, worst, 0))
            self.discard()
        elif self._activations(lengths[worst]) > hardware.memory_available() / 4:
            self._foresee(worst, int(lengths[worst].sum()))
        return self.notes()

    def _activations(self, lengths: np.ndarray[Any, Any]) -> float:
        """Return about the most bytes that a step over such examples holds for its backward pass.

        34 x width and 5 x heads x length numbers of two bytes a token and layer (Korthikanti et al. 2022, equation 1),
        here of four, and three times the logits.
        """
        config, each = self._config, 1.0
        layers, heads = getattr(config, "num_hidden_layers", 12), getattr(config, "num_attention_heads", 12)
        each = layers * (68.0 * getattr(config, "hidden_size", 768) + 10.0 * heads * float(lengths.max()))
        if self.setup.task.output == "vocabulary":
            each += 12.0 * getattr(config, "vocab_size", 0)
        return each * float(lengths.sum()) * self.setup.train.group

    def _foresee(self, worst: np.ndarray[Any, Any], tokens: int) -> None:
        """Measure two small steps and set ``rows_at_once`` so that the largest part stays within what is free."""
        few = min(len(worst), _FEW)
        free = hardware.memory_available()
        hardware.free_memory()
        hardware.reset_peak()
        base, sizes, peaks = hardware.resident_memory(), [], []
        for count in sorted({1, few}):
            batch = seen(self.setup, worst[:count], 0)
            self._computed(batch, 0)
            self.discard()
            sizes.append(batch.tokens)
            peaks.append(hardware.peak_resident_memory() - base)
        slope = max(0.0, (peaks[-1] - peaks[0]) / max(1, sizes[-1] - sizes[0]))
        need = peaks[-1] + slope * max(0, tokens - sizes[-1])
        if slope == 0.0 or need <= _SHARE * free:
            return
        rows = max(1, int((_SHARE * free - peaks[-1]) / slope + sizes[-1]) // int(sizes[0]))
        if rows < (self.rows_at_once or len(worst)):
            self.rows_at_once = rows
            self._notes.append(Note(
                f"the largest step would need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: {rows} rows are "
                "computed at once, with the same result (micro_batch_size)"
            ))  # fmt: skip

    def _watch(self, batch: Batch) -> None:
        """Compute fewer rows at once when a CPU's memory is nearly used up, by whomever."""
        device, rows = self.parameters.master.device.type, min(self.rows_at_once or len(batch), len(batch))
        if device == "cpu" and rows > 1 and hardware.memory_available() < _RESERVE:
            self._split_more(batch)

    # -- forward and backward -----------------------------------------------------------------------

    def compute(self, batch: Batch, step: int = 0) -> tuple[float, float]:
        """Return the loss of the batch and the norm of its gradient.

        When memory runs out the step is done again in smaller parts: the gradient is the same.

        Raises:
            TrainingError: a single row needs more memory than there is.
        """
        self._watch(batch)
        while True:
            try:
                loss = self._computed(batch, step)
                break
            except (RuntimeError, MemoryError) as error:
                if not hardware.is_out_of_memory(error):
                    raise
            self._split_more(batch)  # outside of the handler, which holds on to the tensors of the failed step
        total = self.backend.sum_(torch.tensor([loss], dtype=torch.float64))
        self.parameters.reduce(self.backend)
        self.norm = self.parameters.norm()
        return float(total), self.norm

    def _computed(self, batch: Batch, step: int) -> float:
        """Leave this process's part of the gradient; return its part of the loss."""
        self._seed(step)
        task = self.setup.task
        weight = max(task.weight(batch), 1e-12)
        mine = self.backend.share(batch)
        divided = len(batch) >= self.backend.world > 1
        if task.joint and not divided:  # too few to be dealt out
            mine = np.arange(len(batch) if self.backend.is_main else 0)
        parts = self._parts(batch, mine)
        if task.joint and (len(parts) > 1 or divided):
            return self._cached(batch, mine, parts, weight, divided=divided)
        loss = 0.0
        for part, share in self._evened(batch, parts):
            part_loss = share * task.loss(self._forward(part), part) / weight
            part_loss.backward()  # type: ignore[no-untyped-call]
            self.parameters.absorb()
            loss += float(part_loss.detach())
        return loss

    def _parts(self, batch: Batch, mine: np.ndarray[Any, Any]) -> list[Batch]:
        """Return some examples of a batch in micro-batches."""
        if not len(mine):
            return []
        if len(mine) < len(batch):
            batch = replace(part := gather(encoded(batch), mine), rows=batch.rows[part.rows])
        return split(batch, self.rows_at_once or len(batch))

    def _evened(self, batch: Batch, parts: list[Batch]) -> list[tuple[Batch, float]]:
        """Return the parts, each to be counted once; where the model is cut up all processes make as many forwards."""
        counted = [(part, 1.0) for part in parts]
        if isinstance(self.parameters, Sharded):
            spare = parts[0] if parts else self._parts(batch, np.arange(1))[0]
            counted += [(spare, 0.0)] * (self.parameters.most(len(parts)) - len(parts))
        return counted

    def _seed(self, step: int) -> None:
        """Start all generators that dropout draws from anew for a step, apart for each process."""
        seeds = np.random.SeedSequence((self.setup.config.seed, step, self.backend.rank))
        self._dropout.generator = np.random.Generator(np.random.SFC64(seeds))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))  # for dropout inside transformers' modules

    def _split_more(self, batch: Batch) -> None:
        """Halve the examples that are computed at once."""
        self.discard()
        hardware.free_memory()
        before = min(self.rows_at_once or len(batch), len(batch))
        if before == 1:
            longest = self.setup.describe(int(batch.rows[0]))
            raise TrainingError(
                f"a single row needs more memory than there is: {longest}, {int(batch.lengths.max())} tokens",
                hint="a smaller max_length, adapter=lora, trainable=last-1, or a smaller model",
            )
        self.rows_at_once = -(-before // 2)
        self._notes.append(Note(
            f"memory is short: {self.rows_at_once} rows are computed at once from here on, with the same result",
            "warning",
        ))  # fmt: skip

    def _cached(
        self, batch: Batch, mine: np.ndarray[Any, Any], parts: list[Batch], weight: float, *, divided: bool
    ) -> float:
        """Leave the gradient of a joint loss, computed part by part; return this process's share of the loss."""
        states: list[list[Any]] = []
        outputs: list[torch.Tensor] = []
        with self._all_have_memory(divided):
            for part in parts:
                states.append(self._random_state())
                with torch.no_grad():
                    outputs.append(self._forward(part).detach())
        places = [torch.from_numpy(at).to(outputs[0].device) for at in _places(batch, mine, parts)]
        whole = outputs[0].new_zeros(len(batch.lengths), *outputs[0].shape[1:])
        for at, out in zip(places, outputs, strict=True):
            whole[at] = out
        if divided:
            self.backend.sum_(whole)
        with self._all_have_memory(divided):
            loss = self.setup.task.loss(whole.requires_grad_(), batch) / weight
            loss.backward()  # type: ignore[no-untyped-call]
            assert whole.grad is not None
            for part, at, state in zip(parts, places, states, strict=True):
                self._restore(state)
                self._forward(part).backward(whole.grad[at])
                self.parameters.absorb()
        return float(loss.detach()) / (self.backend.world if divided else 1)

    @contextmanager
    def _all_have_memory(self, divided: bool) -> Iterator[None]:
        """Raise MemoryError in all processes where memory runs out in one, so that all repeat the step together."""
        short = False
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not divided or not hardware.is_out_of_memory(error):
                raise
            short = True
        if divided and self.backend.any(short)[0]:
            raise MemoryError("in one of the processes")

    def _random_state(self) -> list[Any]:
        """Return the state of all generators that dropout draws from."""
        device = self.parameters.master.device
        accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None
        return [self._dropout.generator.bit_generator.state, torch.get_rng_state(), accelerator]

    def _restore(self, state: list[Any]) -> None:
        self._dropout.generator.bit_generator.state = state[0]
        torch.set_rng_state(state[1])
        if state[2] is not None:
            device = self.parameters.master.device
            torch.get_device_module(device).set_rng_state(state[2], device)

    # -- the update -----------------------------------------------------------------------------------

    def update(self, step: int) -> float:
        """Update the weights; return the learning rate used."""
        return self.parameters.step(schedule(self.setup.config, self.setup.steps, step), self.norm)


def _parameters(model: Any, setup: Setup, *, rows_alone: bool) -> Parameters | Sharded:
    """Return the parameters as the backend holds them: whole in one flat array, or cut up."""
    backend: Any = setup.backend
    if backend.needs_own_modules:
        return Sharded(model, setup.config, setup.learning_rate, backend, setup.dtype)
    return Parameters(
        model,
        setup.config,
        setup.learning_rate,
        architecture=setup.architecture,
        dtype=setup.dtype,
        used=used_tokens(setup.train) if rows_alone else None,
    )


def _places(batch: Batch, mine: np.ndarray[Any, Any], parts: list[Batch]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield, for each sequence of each part of ``mine``, where it is in the whole batch."""
    where = np.arange(len(batch.lengths)) if batch.places is None else batch.places
    where = where.reshape(-1, batch.group)[mine].reshape(-1)
    start = 0
    for part in parts:
        here = where[start : start + len(part.lengths)]
        start += len(part.lengths)
        if part.places is not None:  # example by example -> sorted by length, as the part is
            here = here[np.argsort(part.places)]
        yield here


def _forward(
    model: Any, setup: Setup, parameters: Parameters | Sharded, dropout: Dropout
) -> tuple[Callable[[Batch], Any], ActivationCache | None]:
    """Return batch -> outputs: the packed forward, or transformers' own under autocast.

    Where outputs of frozen layers are kept, the packed forward goes on from there; then they come second.
    """
    device, output = parameters.master.device, setup.task.output
    if setup.architecture is not None:
        assert isinstance(parameters, Parameters)
        packed: Any = setup.architecture.forward(model, parameters, output)
        if setup.activations is None:
            return lambda batch: packed(pack(batch, device, output), dropout), None
        cache = ActivationCache(setup, lambda batch: packed.below(pack(batch, device, output)))

        def above(batch: Batch) -> Any:
            made = pack(batch, device, output)
            return packed.above(cache.states(batch, len(made.ids)).to(device), made, dropout)

        return above, cache

    # for all shapes at once: compiled anew for each, nothing would be gained
    run: Any = torch.compile(model, dynamic=True) if setup.compiled else model

    def plain(batch: Batch) -> torch.Tensor | Projected:
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.dtype == torch.bfloat16):
            return transformers_outputs(run, batch, setup.pad_id, output)

    return plain, None
