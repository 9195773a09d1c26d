"""Two small Transformers trained from scratch: the paper's answer to small data and a small budget.

A pre-LayerNorm Transformer encoder with a pooled linear classifier, and the same with Mixture-of-Experts feed-forward
layers (Switch Transformer routing), as in arXiv 2407.19299 and arXiv 2303.12892. Both are one class: `num_experts=0`
is the plain one. Their tokenizer is trained on the training notes alone (tokenization.py). Notation: B rows,
T tokens, H width, F feed-forward width, E experts; `attention_mask` is 1 for a real token and 0 for padding. Sizes
are ours: the public text gives none.

This file is uploaded with every model (custom code on the Hub), so it imports nothing of this repository.

    model = ScratchForSequenceClassification(ScratchConfig(vocab_size=6000, num_labels=2, num_experts=4))
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


@strict
class ScratchConfig(PreTrainedConfig):
    """The defaults give 2.1 million parameters, and 3.0 million with four experts (with a vocabulary of 6,000)."""

    model_type = "scratch-transformer"

    vocab_size: int = 6000
    hidden_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 768
    max_position_embeddings: int = 256
    dropout: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    num_experts: int = 0
    expert_capacity_factor: float = 1.25  # Switch Transformer, section 2.2
    router_aux_loss_coef: float = 0.01  # alpha of the Switch Transformer, equation 4
    thresholds: list[float] | None = None


# A matrix product of a shape that is new to it costs oneDNN (PyTorch on a CPU) 3 milliseconds of compiling, ten times
# the product itself: so groups of tokens come in few sizes.
GROUP_ROWS = 64


class FastDropout(nn.Dropout):
    """Dropout whose mask costs a CPU little: 16 random bits an element, four elements a draw.

    `nn.Dropout` draws a number an element on one core, and compiled with `torch.compile` an even slower one: a quarter
    to a third of a training step of this model. The probability is rounded to a multiple of 1 / 65,536.
    """

    def __init__(self, probability: float):
        super().__init__(probability)
        self.threshold = round(probability * 2**16)  # of the 65,536 values of 16 bits, so many mean "drop"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Any shape, kept; in evaluation the input itself."""
        if not self.training or not self.threshold:
            return inputs
        draws = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64, device=inputs.device)
        bits = draws.random_(-(2**63), None).view(torch.int16)[: inputs.numel()].view(inputs.shape)
        keep = bits >= self.threshold - 2**15
        return inputs * (keep * (2**16 / (2**16 - self.threshold))).to(inputs.dtype)


class FeedForward(nn.Module):
    """`W_2 GELU(W_1 x + b_1) + b_2`, for each token. Parameters: 2 H F + F + H."""

    def __init__(self, config: ScratchConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`hidden_states` (B, T, H) -> (B, T, H), and no auxiliary loss."""
        return self.down(F.gelu(self.up(hidden_states))), None


class SwitchFeedForward(nn.Module):
    """A feed-forward layer of E experts of which each token uses one, as in the Switch Transformer.

    Source: Fedus, Zoph and Shazeer 2022 (arXiv 2101.03961): the router picks the expert with the largest probability p
    and scales its output by p (equation 2); an expert takes at most `capacity` tokens (equation 3), later ones pass
    by on the residual connection alone; the loss E * sum_i f_i P_i keeps the experts evenly used (equations 4 to 6),
    with f_i the share of tokens sent to expert i and P_i its mean probability.

    Padding is not routed: it takes no place in an expert and no part in the loss, and the capacity is a share of the
    real tokens. In evaluation there is no capacity limit, so that a note's logits do not depend on the other notes of
    its batch (ours).

    The tokens are sorted by expert and go through two grouped matrix products, with less than GROUP_ROWS empty rows an
    expert, where one row a unit of capacity would leave many more (ours). Every size but that of the groups is a
    function of (B, T): the layer waits for no count of tokens.

    Parameters: E (2 H F + F + H) + E H.
    """

    def __init__(self, config: ScratchConfig):
        super().__init__()
        experts, hidden, wide = config.num_experts, config.hidden_size, config.intermediate_size
        self.num_experts = experts
        self.capacity_factor = config.expert_capacity_factor
        self.router = nn.Linear(hidden, experts, bias=False)
        self.up_weight = nn.Parameter(torch.empty(experts, hidden, wide))
        self.up_bias = nn.Parameter(torch.zeros(experts, 1, wide))
        self.down_weight = nn.Parameter(torch.empty(experts, wide, hidden))
        self.down_bias = nn.Parameter(torch.zeros(experts, 1, hidden))

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden_states` (B, T, H), `attention_mask` (B, T) -> (B, T, H), and the load-balancing loss (a scalar)."""
        tokens, real = hidden_states.flatten(0, 1), attention_mask.flatten().bool()  # (N, H) and (N,), N = B T
        # In float32 whatever the autocast: a rounded router sends tokens elsewhere (section 2.4).
        with torch.autocast(tokens.device.type, enabled=False):
            probabilities = F.linear(tokens.float(), self.router.weight.float()).softmax(dim=-1)  # (N, E)
        gate, expert = probabilities.max(dim=-1)  # each (N,)
        sent = F.one_hot(expert, self.num_experts) * real.unsqueeze(1)  # (N, E), 1 where a real token chose the expert
        share = sent.sum(dim=0) / real.sum()
        mean_probability = (probabilities * real.unsqueeze(1)).sum(dim=0) / real.sum()
        balance = self.num_experts * (share * mean_probability).sum()

        kept = real
        if self.training:
            place = (sent.cumsum(dim=0) * sent).sum(dim=1)  # first come first served, counted from 1
            kept = kept & (place <= torch.ceil(self.capacity_factor * real.sum() / self.num_experts))
        # Every row is to have an expert; what the last one computes for padding and dropped tokens is thrown away.
        expert = torch.where(kept, expert, self.num_experts - 1)
        outputs = self.run_experts(tokens, expert)
        outputs = outputs * (gate * kept).unsqueeze(1).to(outputs.dtype)
        return outputs.view(hidden_states.shape), balance

    def run_experts(self, tokens: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        """Each token (N, H) through the feed-forward layer of its expert (N,), a number below E -> (N, H)."""
        count, device = len(tokens), tokens.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else tokens.dtype
        # Rows R >= N, a number that N and E decide; each expert has a multiple of GROUP_ROWS, the last one the rest.
        rows = (-(-count // GROUP_ROWS) + self.num_experts) * GROUP_ROWS
        sizes = F.one_hot(expert, self.num_experts).sum(dim=0)  # (E,)
        room = (sizes + GROUP_ROWS - 1) // GROUP_ROWS * GROUP_ROWS
        ends = room.cumsum(dim=0)
        expert, order = expert.sort(stable=True)
        row_of_sorted = torch.arange(count, device=device) + ((ends - room) - (sizes.cumsum(dim=0) - sizes))[expert]
        row = torch.empty_like(order).index_copy(0, order, row_of_sorted)  # (N,): where each token goes
        is_empty = torch.ones(rows, dtype=torch.long, device=device).index_fill(0, row, 0)
        # (R,): whose row it is; empty rows get the numbers from N on, so that every number occurs once
        owner = (count - 1 + is_empty.cumsum(dim=0)).index_copy(0, row, torch.arange(count, device=device))
        ends = ends.index_fill(0, torch.tensor([self.num_experts - 1], device=device), rows)
        expert_of_row = torch.bucketize(torch.arange(rows, device=device), ends, right=True)
        # picks the biases: the gradient of a product adds up faster than that of indexing
        one_hot = F.one_hot(expert_of_row, self.num_experts).to(dtype)

        # `index_copy` moves rows both ways because its gradient is a gather; that of a gather would be a slow scatter.
        inputs = tokens.new_zeros(rows, tokens.shape[1], dtype=dtype).index_copy(0, row, tokens.to(dtype))
        wide = grouped_product(inputs, self.up_weight.to(dtype), ends)
        wide = wide.addmm_(one_hot, self.up_bias.squeeze(1).to(dtype))
        outputs = grouped_product(F.gelu(wide), self.down_weight.to(dtype), ends)
        outputs = outputs.addmm_(one_hot, self.down_bias.squeeze(1).to(dtype))
        return torch.zeros_like(outputs).index_copy(0, owner, outputs)[:count]


def grouped_product(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`rows` (N, in) in E groups, each times its own matrix of `weights` (E, in, out) -> (N, out).

    Group e ends before row `ends[e]`, the last at N. Elsewhere than in bfloat16, `F.grouped_mm` lacks devices and
    cannot be compiled: there it is one product a group.
    """
    if rows.dtype == torch.bfloat16:
        return F.grouped_mm(rows, weights, offs=ends.int())
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([group @ weight for group, weight in zip(rows.split(sizes), weights, strict=True)])


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention; `query`, `key`, `value` (B, heads, T, D) -> as `query`.

    `visible`, True where a key may be attended to, is broadcast to (B, heads, T, T); None: everywhere. `scale` is
    1 / sqrt(D) when left out. Written out for bfloat16 on a CPU, where the gradient of `scaled_dot_product_attention`
    takes three times as long.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)  # (B, heads, T, T)
    if visible is not None:
        # Not minus infinity: a query that sees nothing, which only padding is, would become NaN and stay it.
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) @ value


class ScratchLayer(nn.Module):
    """Pre-LayerNorm block: `x + Attention(LN(x))`, then `x + FeedForward(LN(x))`.

    No dropout inside the attention: it would push `scaled_dot_product_attention` off its fast path (ours).
    """

    def __init__(self, config: ScratchConfig, feed_forward: nn.Module):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = feed_forward
        self.dropout = FastDropout(config.dropout)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`hidden_states` (B, T, H), `attention_mask` (B, T) -> (B, T, H), and the feed-forward's loss, if any."""
        rows, tokens, hidden = hidden_states.shape
        qkv = self.qkv(self.attention_norm(hidden_states)).view(rows, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, H / heads)
        attended = attend(query, key, value, attention_mask[:, None, None, :].bool())
        attended = attended.transpose(1, 2).reshape(rows, tokens, hidden)
        hidden_states = hidden_states + self.dropout(self.output(attended))
        update, auxiliary_loss = self.feed_forward(self.feed_forward_norm(hidden_states), attention_mask)
        return hidden_states + self.dropout(update), auxiliary_loss


class ScratchForSequenceClassification(PreTrainedModel):
    """Token and position embeddings, blocks, LayerNorm, mean over real tokens, linear classifier.

    With experts, every other block has them, beginning with the second (Switch Transformer, section 2.2).
    """

    config_class = ScratchConfig
    accepts_loss_kwargs = False  # see EncoderWithHeadForSequenceClassification: transformers#47688
    _supports_sdpa = True

    def __init__(self, config: ScratchConfig):
        super().__init__(config)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
                f"{config.num_attention_heads}."
            )
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            ScratchLayer(
                config, SwitchFeedForward(config) if config.num_experts and number % 2 else FeedForward(config)
            )
            for number in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = FastDropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, SwitchFeedForward):
            nn.init.normal_(module.up_weight, std=std)
            nn.init.normal_(module.down_weight, std=std)
            nn.init.zeros_(module.up_bias)
            nn.init.zeros_(module.down_bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        window_note: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify notes.

        Args:
            input_ids: (rows, tokens); a row is a note, or a window of one.
            attention_mask: (rows, tokens), 1 = real token, 0 = padding; all real when left out.
            window_note: (rows,), for each row the number of its note in the batch, counted from 0, when long notes are
                cut into windows; the logits of a note are the mean over its windows. Left out: one row a note.
            labels: (notes,) class indices, or (notes, num_labels) with 0 and 1 for a multi-label model.

        Returns:
            logits (notes, num_labels); the unweighted loss when labels are given; while training with experts also
            `auxiliary_loss`, the weighted load-balancing loss, which is not part of `loss`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        positions = self.position_embedding.weight[: input_ids.shape[1]]
        hidden_states = self.dropout(self.token_embedding(input_ids) + positions)
        auxiliary_losses = []
        for layer in self.layers:
            hidden_states, auxiliary_loss = layer(hidden_states, attention_mask)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)
        hidden_states = self.norm(hidden_states)  # (rows, tokens, H)
        weights = attention_mask.to(hidden_states.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        pooled = torch.bmm(weights.unsqueeze(1), hidden_states).squeeze(1)  # (rows, H)
        logits = self.classifier(self.dropout(pooled)).float()
        if window_note is not None:
            notes = int(window_note.max()) + 1
            total = logits.new_zeros(notes, logits.shape[1]).index_add_(0, window_note, logits)
            logits = total / torch.bincount(window_note, minlength=notes).unsqueeze(1)  # (notes, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        if self.training and auxiliary_losses:
            output["auxiliary_loss"] = self.config.router_aux_loss_coef * torch.stack(auxiliary_losses).mean()
        return output


# Within this repository the Auto classes know the model; elsewhere they get it from the copy of this file that
# `save_pretrained` puts beside the weights. Such a copy registers nothing: it would stand in for the copies that other
# models bring.
if not __name__.startswith("transformers_modules"):
    AutoConfig.register(ScratchConfig.model_type, ScratchConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(ScratchConfig, ScratchForSequenceClassification, exist_ok=True)
ScratchConfig.register_for_auto_class()
ScratchForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
