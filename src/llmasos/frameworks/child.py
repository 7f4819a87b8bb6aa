"""The process that a framework trains in: ``python -m ...frameworks.child jax``, told what to do on standard input.

Keras chooses its backend when it is imported, by ``KERAS_BACKEND``; so each has a process of its own, and torch's
process stays free of them. The first message brings the model and the rules of training, the others one batch each:
``compute`` leaves the gradient, ``update`` applies it. Weights come and go under transformers' names and shapes.
Nothing is chosen here that torch's trainer decides: order, padding, rate and clipping are all told.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.children import begun
from ..core.messages import receive, send
from . import losses, mapping, models

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""torch's AdamW. Keras's own adds its epsilon at another place, which at the first step is a factor of thirty."""


class Trainer:
    """A Keras model, its weights as a list of arrays, and AdamW's two moments of each.

    Args:
        settings: ``model``, ``loss``, ``seed``, ``clip``, ``decay``, ``threads``, and for each tensor under ``tensors``
            its factor on the learning rate and whether it decays.
        tensors: the weights under transformers' names.
    """

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Any]) -> None:
        self._compiled, self._differentiated = _framework(settings["threads"])
        self.model = models.build(settings["model"])
        self.loss, self.clip = settings["loss"], settings["clip"]
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.pairs = mapping.pairs(settings["model"]["model_type"], tensors)
        trained = self.model.trainable_variables
        places = {variable.path: tuple(variable.shape) for variable in trained}
        values: dict[str, Any] = {}
        self.rules: dict[str, tuple[float, float]] = {}
        for pair in self.pairs:
            values |= mapping.to_keras(pair, tensors[pair.tensor], places)
            scale, decays = settings["tensors"][pair.tensor]
            self.rules |= dict.fromkeys(pair.variables, (scale, settings["decay"] * decays))
        if left := set(places) ^ set(values):
            raise ValueError(f"weights without a counterpart: {', '.join(sorted(left))}")
        from keras import ops

        self.seed = settings["seed"]
        self.weights = [ops.convert_to_tensor(values[variable.path]) for variable in trained]
        self.seeds = self._drawn(0, 0)
        self.first, self.second = (
            [ops.convert_to_tensor(np.zeros(variable.shape, dtype=np.float32)) for variable in trained] for _ in BETAS
        )
        self.step = 0
        self.gradients: Any = None
        self._gradient = self._differentiated(self._mean_loss)
        # by variable: a program for each shape, however many layers there are
        self._add = self._compiled(ops.add, donate=(0, 1))
        self._square = self._compiled(lambda gradient: ops.sum(ops.square(gradient)))
        self._adamw = self._compiled(_adamw, donate=(0, 1, 2))
        self._logits = self._compiled(lambda weights, seeds, inputs: self._run(weights, seeds, inputs, False)[0])

    # -- what is asked ------------------------------------------------------------------------------

    def compute(self, content: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], None]:
        """Leave the gradient of the rows' share in the batch's mean loss, added to that of the parts before."""
        targets = arrays.pop("targets")
        self.seeds = self._drawn(content["step"], content["part"])
        weight = np.float32(content["weight"])
        (loss, self.seeds), gradients = self._gradient(self.weights, self.seeds, arrays, targets, weight)
        if content["part"]:
            gradients = [self._add(one, other) for one, other in zip(self.gradients, gradients, strict=True)]
        self.gradients = gradients
        self.norm = math.sqrt(sum(float(self._square(gradient)) for gradient in gradients))
        return {"loss": float(loss), "norm": self.norm}, None

    def update(self, content: dict[str, Any], _: dict[str, Any]) -> tuple[dict[str, Any], None]:
        """Clip the gradient and make one step of AdamW."""
        self.step += 1
        divisor = (self.norm + 1e-6) / self.clip if 0.0 < self.clip < self.norm else 1.0
        corrections = [1.0 - beta**self.step for beta in BETAS]
        for i, variable in enumerate(self.model.trainable_variables):
            scale, decay = self.rules[variable.path]
            rate = content["rate"] * scale
            numbers = np.asarray([rate, 1.0 - rate * decay, divisor, *corrections], dtype=np.float32)
            self.weights[i], self.first[i], self.second[i] = self._adamw(
                self.weights[i], self.first[i], self.second[i], self.gradients[i], numbers
            )
        self.gradients = None
        return {}, None

    def give(self, _: dict[str, Any], __: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all weights under transformers' names and in its shapes."""
        names = [variable.path for variable in self.model.trainable_variables]
        values = {name: np.asarray(weight) for name, weight in zip(names, self.weights, strict=True)}
        return {}, {pair.tensor: mapping.to_torch(pair, values, self.shapes[pair.tensor]) for pair in self.pairs}

    def logits(self, _: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return this framework's own logits, without dropout."""
        return {}, {"logits": np.asarray(self._logits(self.weights, self.seeds, arrays))}

    def state(self, _: dict[str, Any], __: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that a step changes."""
        kinds = {"weight": self.weights, "first": self.first, "second": self.second}
        arrays = {f"{kind}.{i}": np.asarray(value) for kind, values in kinds.items() for i, value in enumerate(values)}
        return {"step": self.step}, arrays

    def restore(self, content: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], None]:
        """Take over what ``state`` returned."""
        from keras import ops

        self.step = content["step"]
        self.weights, self.first, self.second = (
            [ops.convert_to_tensor(arrays[f"{kind}.{i}"]) for i in range(len(self.weights))]
            for kind in ("weight", "first", "second")
        )
        return {}, None

    def _drawn(self, step: int, part: int) -> list[Any]:
        """Return what dropout draws from: the same for a step that is made again."""
        from keras import ops

        rng = np.random.default_rng((self.seed, step, part))
        return [
            ops.convert_to_tensor(rng.integers(0, 1 << 31, variable.shape), variable.dtype)
            for variable in self.model.non_trainable_variables
        ]

    # -- what is compiled ---------------------------------------------------------------------------

    def _run(self, weights: Any, seeds: Any, inputs: Any, training: bool) -> tuple[Any, Any]:
        """Return the logits, and the state of the generators after them."""
        import keras

        state = self.model.non_trainable_variables
        values = [*zip(self.model.trainable_variables, weights, strict=True), *zip(state, seeds, strict=True)]
        with keras.StatelessScope(values, initialize_variables=False) as scope:
            logits = self.model(inputs, training=training)
        return logits, [scope.get_current_value(variable) for variable in state]

    def _mean_loss(self, weights: Any, seeds: Any, inputs: Any, targets: Any, weight: Any) -> tuple[Any, Any]:
        logits, seeds = self._run(weights, seeds, inputs, True)
        return losses.summed(self.loss, logits, targets) / weight, seeds


def _adamw(weight: Any, first: Any, second: Any, gradient: Any, numbers: Any) -> tuple[Any, Any, Any]:
    """Return a weight and its moments after a step of AdamW (Loshchilov & Hutter 2019) as torch makes it.

    numbers: the rate, what decay leaves of the weight, the gradient's divisor, and 1 - beta^step for both betas.
    """
    from keras import ops

    rate, left, divisor, *corrections = (numbers[i] for i in range(5))
    gradient = gradient / divisor
    first = first + (1.0 - BETAS[0]) * (gradient - first)
    second = BETAS[1] * second + (1.0 - BETAS[1]) * ops.square(gradient)
    move = (first / corrections[0]) / (ops.sqrt(second) / ops.sqrt(corrections[1]) + EPSILON)
    return weight * left - rate * move, first, second


def _framework(threads: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return how the chosen framework compiles a function, and the value and gradient of one."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        def jitted(function: Any, donate: tuple[int, ...] = ()) -> Any:
            return jax.jit(function, donate_argnums=donate)

        return jitted, lambda function: jax.jit(jax.value_and_grad(function, has_aux=True))
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def graph(function: Any, donate: tuple[int, ...] = ()) -> Any:
        del donate  # a graph frees what nobody holds
        return tf.function(function, reduce_retracing=False)

    def differentiated(function: Any) -> Any:
        def both(weights: Any, *more: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                value, other = function(weights, *more)
            return (value, other), [tf.convert_to_tensor(one) for one in tape.gradient(value, weights)]

        return tf.function(both)

    return graph, differentiated


def main() -> None:
    """Answer messages until standard input ends."""
    source, answers = begun()
    for name in {"tensorflow", "tensorflow_text"} - {f"{sys.argv[1]}{rest}" for rest in ("", "_text")}:
        sys.modules[name] = None  # type: ignore[assignment]  # KerasHub does without; importing it takes seconds
    first = receive(source)
    if first is None:
        return
    trainer = Trainer(*first)
    send(answers, {"ready": True})
    while (message := receive(source)) is not None:
        what: Callable[..., Any] = {
            "compute": trainer.compute, "update": trainer.update, "give": trainer.give, "logits": trainer.logits,
            "state": trainer.state, "restore": trainer.restore,
        }[message.content["do"]]  # fmt: skip
        send(answers, *what(*message))


if __name__ == "__main__":
    main()
