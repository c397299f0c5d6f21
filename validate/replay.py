"""Run one decoder layer of any transformers model inside the model's own forward, with no other weights in memory.

    network  built once, parameters on the meta device (no memory), buffers real (`inv_freq`, embedding scales)
    layer i  the network's forward runs; layers before i pass through; layer i computes; an exception ends the forward
    head     all layers pass through; the output matrix holds a slice of vocabulary rows

So masks, rotary angles, sliding windows, position offsets, soft caps and scales are transformers' and nothing here knows
a family. Models that hand more than the hidden state from layer to layer are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.model import Config
from ..errors import ModelError
from .device import to_device

Forward = Callable[..., Any]  # as a decoder layer: the hidden state comes first, or is named hidden_states

# What a config says of storing, generating and reporting. The weights come decoded, so none of it is the forward pass's
# business, and some of it stops one: a padding id outside the vocabulary, a kind of attention that is not installed.
_NOT_ARITHMETIC = frozenset(
    (
        *("model_type", "architectures", "auto_map", "quantization_config", "tokenizer_class", "torchscript"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "keys_to_ignore_at_inference", "gradient_checkpointing"),
        *("use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states"),
        *("_attn_implementation", "attn_implementation", "problem_type", "id2label", "label2id", "num_labels"),
    )
)


# Facts of training and of sizes that no forward pass computes with; the tied head is resolved when a model is opened.
_NOT_COMPARED = _NOT_ARITHMETIC | {
    *("dtype", "torch_dtype", "transformers_version", "_name_or_path", "initializer_range", "tie_word_embeddings"),
    *("attention_dropout", "hidden_dropout", "dropout", "layerdrop", "init_std", "pretraining_tp", "sep_token_id"),
    *("max_position_embeddings", "seq_length", "is_decoder", "chunk_size_feed_forward", "output_router_logits"),
}


class _ForwardEndsError(Exception):
    """Raised by the layer that was wanted, so that nothing after it runs."""


class Replay:
    """A network of meta parameters; `layers[i]` are its decoder layers, to hang hooks on."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        """`config`: Hugging Face's config.json as a dict; ModelError where transformers cannot build a decoder from it.

        `device` computes. What goes in may lie anywhere; what comes out is the CPU's.
        """
        self.device = torch.device(device)
        self.network = empty_network(config)
        _move_buffers(self.network, self.device)
        prefix, self.layers = _decoder_layers(self.network)
        self.embedding = self.network.get_input_embeddings()
        self.head = self.network.get_output_embeddings()
        if self.head is None:
            raise ModelError(f"{config['model_type']}: the model has no output matrix, so it gives no next-token odds")
        # The forward checks this index against the few rows that are loaded; it matters to training alone.
        self.embedding.padding_idx = None
        self._name(prefix)
        self._layer_meta = [dict(layer.state_dict()) for layer in self.layers]
        self._embedding_meta = self.embedding.weight
        self._forwards: list[Forward] = [layer.forward for layer in self.layers]
        for index, layer in enumerate(self.layers):
            layer.forward = _stand_in(self, index)
        self._target = -1
        self._act: Forward = self._as_returned
        self.returns: int | None = None  # None: a layer returns its tensor; n: a tuple of n that starts with it

    def _name(self, prefix: str) -> None:
        shapes = {name: tuple(value.shape) for name, value in self.network.named_parameters()}
        names = {id(value): name for name, value in self.network.named_parameters()}
        self.embedding_name: str = names[id(self.embedding.weight)]
        self.head_name: str = names[id(self.head.weight)]  # the embedding's name where the two are tied
        bias = getattr(self.head, "bias", None)
        self.head_bias_name: str | None = None if bias is None else names[id(bias)]
        self.shapes: dict[str, tuple[int, ...]] = shapes
        self.layer_prefixes = [f"{prefix}.{index}." for index in range(len(self.layers))]
        self.layer_names = [[name for name in shapes if name.startswith(start)] for start in self.layer_prefixes]
        apart = {self.embedding_name, self.head_name, self.head_bias_name, *chain.from_iterable(self.layer_names)}
        self.outer_names = [name for name in shapes if name not in apart]

    @property
    def on_cpu(self) -> bool:
        """True where weights and states need not be sent anywhere."""
        return self.device == torch.device("cpu")

    def placed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights on the device; called by one thread while another computes."""
        return to_device(weights, self.device)

    def load_outer(self, weights: Mapping[str, Tensor]) -> None:
        """Take what is neither layer, embedding nor head: final norm, learned positions. It stays loaded."""
        self.network.load_state_dict(self.placed(weights), strict=False, assign=True)

    def load(self, layer: int, weights: Mapping[str, Tensor]) -> None:
        """Take the float32 weights of one layer, by full name."""
        start = len(self.layer_prefixes[layer])
        self.layers[layer].load_state_dict({n[start:]: w for n, w in weights.items()}, strict=False, assign=True)

    def release(self, layer: int) -> None:
        """Give one layer's weights back; non-persistent buffers stay, as `.to("meta")` would not let them."""
        self.layers[layer].load_state_dict(self._layer_meta[layer], strict=False, assign=True)

    def embed(self, rows: Tensor, places: Tensor) -> Tensor:
        """Rows of the embedding float32[n, width] and, for each token, its row there int64[T] -> hidden [1, T, d]."""
        self.embedding.weight = nn.Parameter(rows.to(self.device), requires_grad=False)

        def capture(*args: Any, **kwargs: Any) -> Any:
            found.append(_hidden_in(args, kwargs))
            raise _ForwardEndsError

        found: list[Tensor] = []
        try:
            self._replay(0, capture, input_ids=places[None].to(self.device))
        finally:
            self.embedding.weight = self._embedding_meta
        return found[0].cpu()

    def run_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """hidden float32[1, T, d] before the layer -> after it. The layer's weights must be loaded."""
        hidden = hidden.to(self.device)

        def compute(*args: Any, **kwargs: Any) -> Any:
            self._refuse_second_stream(_hidden_in(args, kwargs), [*args, *kwargs.values()])
            if args:
                args = (hidden, *args[1:])
            else:
                kwargs = {**kwargs, "hidden_states": hidden}
            found.append(self._hidden_of(self._forwards[layer](*args, **kwargs)))
            raise _ForwardEndsError

        found: list[Tensor] = []
        self._replay(layer, compute, inputs_embeds=self._blank(hidden.shape[1]))
        return found[0].cpu()

    def logits(self, hidden: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """hidden float32[1, n, d] after the last layer, rows float32[Vs, d] of the head -> logits float32[n, Vs].

        Final norm and head act on each position alone, so `hidden` may hold just the scored positions.
        """
        hidden = hidden.to(self.device)
        self.head.weight = nn.Parameter(rows.to(self.device), requires_grad=False)
        if bias is not None:
            self.head.bias = nn.Parameter(bias.to(self.device), requires_grad=False)
        last = len(self.layers) - 1
        output = self._replay(
            last, lambda *_, **__: self._as_returned(hidden), inputs_embeds=self._blank(hidden.shape[1])
        )
        logits: Tensor = output.logits[0]
        return logits.cpu()

    def _blank(self, n: int) -> Tensor:
        """Stands for the embedded tokens where only their number matters; takes no memory."""
        return torch.zeros(1, 1, 1, device=self.device).expand(1, n, self.embedding.embedding_dim)

    def _replay(
        self, target: int, act: Forward, *, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Any:
        self._target, self._act = target, act
        try:
            with torch.no_grad():
                # No attention mask: the model then makes its own causal one. The cache is off by name, not by default.
                return self.network(input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=False)
        except _ForwardEndsError:
            return None
        finally:
            self._target, self._act = -1, self._as_returned

    def _refuse_second_stream(self, hidden: Tensor, given: list[Any]) -> None:
        """Where a layer gets another tensor shaped like its input (Zamba: the embedded tokens), a replay would give it
        blanks, and wrong numbers without a word."""
        alike = [value for value in given if isinstance(value, Tensor) and value.shape == hidden.shape]
        if len(alike) > 1:
            raise ModelError(
                f"{self.network.config.model_type}: its layers are given more than the hidden state, "
                "so it cannot be run one layer at a time"
            )

    def _as_returned(self, hidden: Tensor) -> Any:
        return hidden if self.returns is None else (hidden, *[None] * (self.returns - 1))

    def _hidden_of(self, output: Any) -> Tensor:
        if isinstance(output, Tensor):
            return output
        self.returns = len(output)
        hidden: Tensor = output[0]
        return hidden


def _move_buffers(network: nn.Module, device: torch.device) -> None:
    """Rotary frequencies and their like; parameters stay on meta."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def arithmetic_facts(replay: Replay) -> dict[str, Any]:
    """What the network computes with, as transformers understood the config, defaults filled in."""
    found: dict[str, Any] = replay.network.config.to_dict()
    return {key: value for key, value in found.items() if key not in _NOT_COMPARED and value is not None}


def _hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _stand_in(replay: Replay, index: int) -> Forward:
    """What layer `index` does when the network's forward calls it. The instance's forward is replaced, not the module:
    networks read attributes of their layers, such as `attention_type`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if index == replay._target:
            return replay._act(*args, **kwargs)
        return replay._as_returned(_hidden_in(args, kwargs))

    return forward


def empty_network(config: Config) -> Any:
    """transformers' network for this config, its parameters on the meta device; ModelError where there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("the model's config has no model_type, so transformers cannot know its forward pass")
    fields = {key: value for key, value in config.items() if key not in _NOT_ARITHMETIC}
    try:
        settings = AutoConfig.for_model(model_type, **fields)
        _refuse_what_layers_share(model_type, settings)
        with _parameters_on_meta():
            network = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, AssertionError, ImportError, _strict_error()) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{model_type}: transformers cannot build a decoder from this config: {reason}") from error
    return network.eval()


def _strict_error() -> type[Exception]:
    """What transformers 5 raises for a field of the wrong type; before, it was a ValueError."""
    from huggingface_hub import errors

    found: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)
    return found


def _refuse_what_layers_share(model_type: str, settings: Any) -> None:
    if settings.get_text_config() is not settings:
        raise ModelError(f"{model_type}: models of several modalities cannot be run one layer at a time")
    if settings.is_encoder_decoder or getattr(settings, "num_kv_shared_layers", 0):
        raise ModelError(f"{model_type}: its layers share more than the hidden state, so they cannot be run one by one")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters take no memory, buffers stay real: under `torch.device("meta")` buffers that no file holds are lost."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is on meta already keeps its identity, or a tied head would no longer be the embedding.
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _decoder_layers(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, layers): the shortest-named list of as many modules as the config counts layers."""
    count = network.config.num_hidden_layers  # type: ignore[union-attr]
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise ModelError(f"{network.config.model_type}: no list of {count} layers in this model")  # type: ignore[union-attr]
    return min(found, key=lambda item: len(item[0]))
