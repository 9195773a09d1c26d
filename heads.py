"""The paper's four structures as final layers on a pretrained encoder, and the model that carries them.

    note -> tokenizer -> encoder -> structure -> pooling -> dropout -> classifier -> logits

The structures are those of arXiv 2407.19299: Adapter, Lightweight, TinyAttention and Gated Residual Network;
`linear` (no structure) is the control. Notation in the docstrings: `h` is the encoder's last hidden state, H its
width, r the structure's narrow width, `attention_mask` is 1 for a real token and 0 for padding, `pool` makes of
(rows, tokens, any width) one vector a row (rows, that width). "Ours" marks what the public text of the paper leaves
open.

Every structure is given `pool` and returns pooled vectors. Pooling is a weighted mean over tokens, so it commutes with
a last affine layer: Adapter and TinyAttention pool their narrow branch and project it once a note instead of once a
token, which gives the same numbers for a fraction of the work.

This file is uploaded with every such model (custom code on the Hub), so it imports nothing of this repository.

    model = EncoderWithHeadForSequenceClassification.from_encoder("Dr-BERT/DrBERT-7GB", head="grn", num_labels=2)
"""

from collections.abc import Callable

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import SequenceClassifierOutput

Pool = Callable[[torch.Tensor], torch.Tensor]


class LinearHead(nn.Module):
    """No structure: pooling and the classifier see `h` itself. The control of the comparison (ours).

    Parameters: 0.
    """

    default_size = 0

    def __init__(self, hidden_size: int, head_size: int, dropout: float):
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, pool: Pool) -> torch.Tensor:
        """`hidden_states` (rows, tokens, H), `attention_mask` (rows, tokens) -> (rows, H)."""
        return pool(hidden_states)


class AdapterHead(nn.Module):
    """Bottleneck adapter: `h + W_up ReLU(W_down h + b_down) + b_up`.

    Source: AdaptFormer (Chen et al. 2022, arXiv 2205.13535, eq. 3), after Houlsby et al. 2019 (arXiv 1902.00751).
    Ours: r = 64, dropout after the ReLU, no scale on the branch.
    Parameters: 2 H r + r + H.
    """

    default_size = 64

    def __init__(self, hidden_size: int, head_size: int, dropout: float):
        super().__init__()
        self.down = nn.Linear(hidden_size, head_size)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(head_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, pool: Pool) -> torch.Tensor:
        """`hidden_states` (rows, tokens, H), `attention_mask` (rows, tokens) -> (rows, H)."""
        return pool(hidden_states) + self.up(pool(self.dropout(F.relu(self.down(hidden_states)))))


class LightweightHead(nn.Module):
    """Lightweight adapter: `LayerNorm(W_2 (W_1 h + b_1) + b_2)`.

    Source: lightweight adapter tuning (Le et al. 2021, arXiv 2106.01463), as the paper describes it: a linear
    down-projection, a second linear layer, LayerNorm.
    Ours: r = 64, dropout between the two layers; neither a residual nor an activation, since the text names none.
    Parameters: 2 H r + r + 3 H.
    """

    default_size = 64

    def __init__(self, hidden_size: int, head_size: int, dropout: float):
        super().__init__()
        self.down = nn.Linear(hidden_size, head_size)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(head_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, pool: Pool) -> torch.Tensor:
        """`hidden_states` (rows, tokens, H), `attention_mask` (rows, tokens) -> (rows, H)."""
        return pool(self.norm(self.up(self.dropout(self.down(hidden_states)))))


class TinyAttentionHead(nn.Module):
    """Attention with a very small head: `h + W_o softmax(q k^T / sqrt(r)) v + b_o`, with `q, k, v = W_qkv h + b`.

    Source: Tiny-Attention Adapter (Zhao, Tan and Mei, EMNLP 2022, arXiv 2211.01979, section 2.2).
    Padding is masked, so a note's result does not depend on the batch it is in.
    Ours: r = 16, one attention head, a token may attend to itself, no dropout inside the attention (it would push
    `scaled_dot_product_attention` off its fast path) but on its output.
    Parameters: 4 H r + 3 r + H.
    """

    default_size = 16

    def __init__(self, hidden_size: int, head_size: int, dropout: float):
        super().__init__()
        self.qkv = nn.Linear(hidden_size, 3 * head_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(head_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, pool: Pool) -> torch.Tensor:
        """`hidden_states` (rows, tokens, H), `attention_mask` (rows, tokens) -> (rows, H)."""
        query, key, value = self.qkv(hidden_states).unsqueeze(1).chunk(3, dim=-1)  # each (rows, 1, tokens, r)
        keys_to_see = attention_mask[:, None, None, :].bool()  # (rows, 1, 1, tokens), True = may be attended to
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys_to_see).squeeze(1)
        return pool(hidden_states) + self.output(pool(self.dropout(attended)))


class GRNHead(nn.Module):
    """Gated Residual Network, with a = h:

        eta2   = ELU(W_2 a + b_2)                        (4)
        eta1   = W_1 eta2 + b_1                          (3)
        GLU(g) = sigmoid(W_4 g + b_4) * (W_5 g + b_5)    (5)
        GRN(a) = LayerNorm(a + GLU(dropout(eta1)))       (2)

    Source: Temporal Fusion Transformer (Lim et al. 2021, arXiv 1912.09363, equations 2 to 5, without context vector).
    Ours: applied to each token before pooling; eta1 and eta2 are H wide as in the source, or r wide where r is given.
    Parameters: 3 H r + r^2 + 2 r + 4 H, which is 4 H^2 + 6 H for r = H.
    """

    default_size = 0  # H

    def __init__(self, hidden_size: int, head_size: int, dropout: float):
        super().__init__()
        width = head_size or hidden_size
        self.w2 = nn.Linear(hidden_size, width)
        self.w1 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        # W_5 and W_4 in one product: F.glu gates with the second half
        self.gate = nn.Linear(width, 2 * hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, pool: Pool) -> torch.Tensor:
        """`hidden_states` (rows, tokens, H), `attention_mask` (rows, tokens) -> (rows, H)."""
        eta1 = self.w1(F.elu(self.w2(hidden_states)))
        return pool(self.norm(hidden_states + F.glu(self.gate(self.dropout(eta1)), dim=-1)))


HEADS = {
    "linear": LinearHead,
    "adapter": AdapterHead,
    "lightweight": LightweightHead,
    "tiny-attention": TinyAttentionHead,
    "grn": GRNHead,
}


@strict
class EncoderWithHeadConfig(PreTrainedConfig):
    """What is needed to rebuild the model without its encoder's original repository.

    `head_size` is r in the docstrings above (0: the structure's default). `tuning` says which parameters were trained:
    `frozen` (structure and classifier), `lora` (the same, with LoRA on the encoder's attention) or `full` (all).
    `thresholds` are the decision thresholds tuned on validation: one probability for a binary model, one a class for a
    multi-label model, none for a multi-class one.
    """

    model_type = "encoder-with-head"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta")}

    encoder_config: PreTrainedConfig | dict | None = None
    head: str = "linear"
    head_size: int = 0
    tuning: str = "full"
    pooling: str = "mean"
    dropout: float = 0.1
    initializer_range: float = 0.02
    thresholds: list[float] | None = None


class EncoderWithHeadForSequenceClassification(PreTrainedModel):
    """Any `AutoModel` encoder, one structure of `HEADS`, pooling and a linear classifier.

    Pooling is the mean over real tokens (ours; the paper does not say), or with `pooling="cls"` the first token.
    """

    config_class = EncoderWithHeadConfig
    # Without this the Trainer takes the loss for a sum over the accumulated batch and multiplies it by the
    # accumulation steps (transformers#47688).
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: EncoderWithHeadConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if config.head not in HEADS:
            raise ValueError(f"Unknown head {config.head!r}; choose one of: {', '.join(HEADS)}.")
        self.encoder = encoder if encoder is not None else AutoModel.from_config(config.encoder_config)
        if hasattr(self.encoder, "pooler"):
            # Its output is not used: without this, BERT-like encoders would carry untrained parameters.
            self.encoder.pooler = None
        hidden_size = config.encoder_config.hidden_size
        structure = HEADS[config.head]
        self.head = structure(hidden_size, config.head_size or structure.default_size, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(hidden_size, config.num_labels)
        self.post_init()
        if config.tuning == "frozen":
            self.encoder.requires_grad_(False)

    @classmethod
    def from_encoder(
        cls, encoder_id: str, *, revision: str | None = None, attn_implementation: str | None = None, **config
    ):
        """Put a new head on the pretrained encoder `encoder_id` (Hub id or folder), in float32.

        `from_pretrained` of this class is for our own checkpoints only: called on an encoder's checkpoint it would
        leave the head's parameters uninitialised. `config` goes to `EncoderWithHeadConfig`. The encoder trains without
        dropout inside its attention, which would push `scaled_dot_product_attention` off its fast path (ours).
        """
        encoder_config = AutoConfig.from_pretrained(encoder_id, revision=revision)
        for name in ("attention_probs_dropout_prob", "attention_dropout"):  # BERT-like; DistilBERT, ModernBERT
            if hasattr(encoder_config, name):
                setattr(encoder_config, name, 0.0)
        encoder = AutoModel.from_pretrained(
            encoder_id,
            config=encoder_config,
            revision=revision,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
        )
        # Said again, because a new outer config resets what its encoder's config says of attention.
        chosen = encoder.config._attn_implementation
        config = EncoderWithHeadConfig(encoder_config=encoder.config, attn_implementation=chosen, **config)
        return cls(config, encoder)

    def _init_weights(self, module: nn.Module):
        """Initialise our own layers; the encoder is a `PreTrainedModel` and looks after itself."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def train(self, mode: bool = True):
        """A frozen encoder stays in evaluation mode: its hidden states are the same in every epoch (ours)."""
        super().train(mode)
        if self.config.tuning == "frozen":
            self.encoder.eval()
        return self

    def pool(self, attention_mask: torch.Tensor) -> Pool:
        """Mean over the real tokens of `attention_mask` (rows, tokens), as one batched product; or the first token."""
        if self.config.pooling == "cls":
            return lambda states: states[:, 0]
        tokens = attention_mask.sum(dim=1, keepdim=True)  # (rows, 1)
        # The weights are 0 and 1, which bfloat16 holds exactly; the division is in float32.
        return lambda states: (
            torch.bmm(attention_mask.to(states.dtype).unsqueeze(1), states).squeeze(1).float() / tokens
        ).to(self.classifier.weight.dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        window_note: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        hidden_states: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify notes.

        Args:
            input_ids: (rows, tokens); a row is a note, or a window of one.
            attention_mask: (rows, tokens), 1 = real token, 0 = padding; all real when left out.
            window_note: (rows,), for each row the number of its note in the batch, counted from 0, when long notes are
                cut into windows; the logits of a note are the mean over its windows. Left out: one row a note.
            labels: (notes,) class indices, or (notes, num_labels) with 0 and 1 for a multi-label model.
            hidden_states: (rows, tokens, H), the encoder's last hidden states if they are known already; it is then
                not run and `input_ids` are not needed.
            token_type_ids: not read. Tokenizers of BERT give them, and a note is one segment: zeros, as when left out.

        Returns:
            logits (notes, num_labels), and the unweighted loss when labels are given; in training of an encoder with
            experts (scratch_model.py) also their weighted `auxiliary_loss`, which is not part of `loss`.
        """
        if attention_mask is None:
            rows_and_tokens = (input_ids if hidden_states is None else hidden_states).shape[:2]
            attention_mask = torch.ones(rows_and_tokens, dtype=torch.long, device=self.device)
        # Without gradients as many rows at a time as there are notes: windows then take no more memory than notes.
        all_at_once = window_note is None or torch.is_grad_enabled()
        at_a_time = len(attention_mask) if all_at_once else int(window_note[-1]) + 1
        inputs, known = (input_ids, False) if hidden_states is None else (hidden_states, True)
        parts = zip(inputs.split(at_a_time), attention_mask.split(at_a_time), strict=True)
        pooled, auxiliary_losses = zip(*(self.encode(*part, known) for part in parts), strict=True)
        auxiliary_loss = auxiliary_losses[0]  # one part is all in training
        logits = self.classifier(self.dropout(torch.cat(pooled))).float()
        if window_note is not None:
            notes = int(window_note.max()) + 1
            total = logits.new_zeros(notes, logits.shape[1]).index_add_(0, window_note, logits)
            logits = total / torch.bincount(window_note, minlength=notes).unsqueeze(1)  # (notes, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        if auxiliary_loss is not None and self.config.tuning != "frozen":
            output["auxiliary_loss"] = auxiliary_loss
        return output

    def encode(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor, known: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (rows, tokens), or hidden states (rows, tokens, H) if they are `known` -> (rows, H) and a loss."""
        hidden_states, auxiliary_loss = inputs, None
        if not known:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.tuning != "frozen"):
                encoded = self.encoder(input_ids=inputs, attention_mask=attention_mask)
            hidden_states, auxiliary_loss = encoded.last_hidden_state, encoded.get("auxiliary_loss")
        if not torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(self.classifier.weight.dtype)
        return self.head(hidden_states, attention_mask, self.pool(attention_mask)), auxiliary_loss


def attention_projections(model: EncoderWithHeadForSequenceClassification) -> list[str]:
    """The full names of the linear layers inside the encoder's attention blocks: where LoRA goes.

    Covers the naming of BERT, RoBERTa and CamemBERT (`attention.self.query`), DistilBERT (`attention.q_lin`), DeBERTa,
    ModernBERT (`attn.Wqkv`) and our small Transformers (`qkv`) alike.

    Raises:
        ValueError: if the encoder has no such layer.
    """
    names = [
        f"encoder.{name}"
        for name, module in model.encoder.named_modules()
        if isinstance(module, nn.Linear) and any(part in name for part in ("attention", "attn", "qkv"))
    ]
    if not names:
        raise ValueError(
            f"No attention projection found in {type(model.encoder).__name__}: use --tuning frozen or full with it."
        )
    return names


# Within this repository the Auto classes know the model; elsewhere they get it from the copy of this file that
# `save_pretrained` puts beside the weights. Such a copy registers nothing: it would stand in for the copies that other
# models bring.
if not __name__.startswith("transformers_modules"):
    AutoConfig.register(EncoderWithHeadConfig.model_type, EncoderWithHeadConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(
        EncoderWithHeadConfig, EncoderWithHeadForSequenceClassification, exist_ok=True
    )
EncoderWithHeadConfig.register_for_auto_class()
EncoderWithHeadForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
