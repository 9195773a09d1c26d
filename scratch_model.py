"""Two small Transformers trained from scratch: the paper's answer to small data and a small budget.

A pre-LayerNorm Transformer encoder with a pooled linear classifier, and the same with Mixture-of-Experts feed-forward
layers (Switch Transformer routing), as in arXiv 2407.19299 and arXiv 2303.12892. Both are one class: `num_experts=0`
is the plain one. The same encoder under a masked-language-model head is what pretrain.py trains. Their tokenizer is
trained on the training notes alone, or with them on further text of one's own (tokenization.py). Notation: B rows,
T tokens, H width, F feed-forward width, E experts; `attention_mask` is 1 for a real token and 0 for padding. Sizes
are ours: the public text gives none.

This file is uploaded with every such model (custom code on the Hub), so it imports nothing of this repository.

    model = ScratchForSequenceClassification(ScratchConfig(vocab_size=6000, num_labels=2, num_experts=4))
"""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput


@strict
class ScratchConfig(PreTrainedConfig):
    """The defaults give 2.0 million parameters, and 2.9 million with four experts (with a vocabulary of 6,000)."""

    model_type = "scratch-transformer"

    vocab_size: int = 6000
    hidden_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 768
    relative_reach: int = 64
    dropout: float = 0.1
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True  # of ScratchForMaskedLM
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    ngram_buckets: int = 0  # a power of two; 0: no n-gram branch
    encoder_weight: float | None = None  # of its logits beside the branch's; None: the branch is not fitted yet
    window_overlap: int = 0  # tokens at the beginning of a note's window that are the end of the one before it
    num_experts: int = 0
    expert_capacity_factor: float = 1.25  # Switch Transformer, section 2.2
    router_aux_loss_coef: float = 0.01  # alpha of the Switch Transformer, equation 4
    thresholds: list[float] | None = None


SCRATCH_MODELS = {"transformer": 0, "moe-transformer": 4}  # name -> experts

# A matrix product of a shape that is new to it costs oneDNN (PyTorch on a CPU) 3 milliseconds of compiling, ten times
# the product itself: so where the tokens decide how many rows there are, the number comes in such steps.
ROW_STEP = 64


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
        if inputs.device.type != "cpu":
            return super().forward(inputs)
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

    Every expert has equal room and leaves the rest of it empty, so that all of them are one batched matrix product: on
    a CPU twice as fast as groups of their own sizes (ours). In training that is what the capacity would be without
    padding, so that all sizes are functions of (B, T); in evaluation it is what the fullest expert needs, of all
    tokens if it takes all: then the layer computes E times as much.

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

        place = (sent.cumsum(dim=0) * sent).sum(dim=1)  # first come first served, counted from 1; of padding 0
        room = None
        if self.training:
            room = min(len(tokens), math.ceil(self.capacity_factor * len(tokens) / self.num_experts))
            capacity = torch.ceil(self.capacity_factor * real.sum() / self.num_experts).clamp(max=room)
            place = place.masked_fill(place > capacity, 0)
        outputs = self.run_experts(tokens, expert, place, room)
        outputs = outputs * gate.unsqueeze(1).to(outputs.dtype)
        return outputs.view(hidden_states.shape), balance

    @torch.compiler.disable  # how much room an expert needs in evaluation, only the tokens tell
    def run_experts(
        self, tokens: torch.Tensor, expert: torch.Tensor, place: torch.Tensor, room: int | None
    ) -> torch.Tensor:
        """Each token (N, H) through the feed-forward layer of its expert -> (N, H).

        `expert` (N,) is a number below E, `place` (N,) the token's place there, counted from 1. Tokens at place 0 go
        to no expert; zeros come out for them. `room`: the largest place that there may be; None: looked up.
        """
        count, device = len(tokens), tokens.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else tokens.dtype
        if room is None:
            room = -(-int(place.max()) // ROW_STEP) * ROW_STEP
        rows = self.num_experts * room
        # (N,): where each token goes; those that no expert takes to one row behind the last
        row = torch.where(place > 0, expert * room + place - 1, rows)
        # (E room,): whose row it is; empty rows are those of a token behind the last
        owner = torch.full((rows + 1,), count, device=device)
        owner[row] = torch.arange(count, device=device)

        # `index_copy` moves rows both ways because its gradient is a gather; that of a gather would be a slow scatter.
        inputs = tokens.new_zeros(rows + 1, tokens.shape[1], dtype=dtype).index_copy(0, row, tokens.to(dtype))[:-1]
        inputs = inputs.view(self.num_experts, room, tokens.shape[1])
        wide = torch.baddbmm(self.up_bias.to(dtype), inputs, self.up_weight.to(dtype))
        outputs = torch.baddbmm(self.down_bias.to(dtype), F.gelu(wide), self.down_weight.to(dtype)).flatten(0, 1)
        return outputs.new_zeros(count + 1, outputs.shape[1]).index_copy(0, owner[:-1], outputs)[:count]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention; `query`, `key`, `value` (B, heads, T, D) -> as `query`.

    `visible`, True where a key may be attended to, is broadcast to (B, heads, T, T); None: everywhere. `scale` is
    1 / sqrt(D) when left out. `bias` (heads, T, T) is added to the scores. Written out where a gradient is wanted of
    bfloat16 on a CPU: that of `scaled_dot_product_attention` takes three times as long, though forward it takes half.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or not query.requires_grad:
        mask = visible
        if bias is not None:
            mask = bias.to(query.dtype).unsqueeze(0)
            if visible is not None:
                mask = mask.masked_fill(~visible, torch.finfo(query.dtype).min)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)  # (B, heads, T, T)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if visible is not None:
        # Not minus infinity: a query that sees nothing, which only padding is, would become NaN and stay it.
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) @ value


class RelativePositions(nn.Module):
    """What each attention head adds to its scores, by how far the key stands from the query and on which side.

    A learned number for each head and distance, as T5's (arXiv 1910.10683, section 2.1) without its buckets; it starts
    as a penalty that grows with the distance, as ALiBi's (arXiv 2108.12409, section 3), but with a slope of its own on
    each side: the first head of four looks right, the second left, the third around itself, the fourth widely. So a
    model knows its neighbours from the first step, where one with learned absolute positions has to find out how to
    look beside itself, and in masked-language modelling had hardly done so after 1.2 million tokens (ours).

    Parameters: heads (2 reach + 1); distances beyond `reach` count as `reach`.
    """

    SLOPES = ((8.0, 0.25), (0.25, 8.0), (1.0, 1.0), (0.06, 0.06))  # to the left and to the right of the query

    def __init__(self, config: ScratchConfig):
        super().__init__()
        self.reach = config.relative_reach
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads, 2 * self.reach + 1))

    def reset_parameters(self):
        distance = torch.arange(-self.reach, self.reach + 1)
        heads = torch.arange(len(self.bias))
        left, right = torch.tensor(self.SLOPES)[heads % len(self.SLOPES)].T[:, :, None]  # each (heads, 1)
        penalty = torch.where(distance < 0, -left * distance, right * distance)
        further = 2.0 ** (heads // len(self.SLOPES))[:, None]  # from the fifth head on they look further
        init.copy_(self.bias, -penalty / further)

    def forward(self, tokens: int) -> torch.Tensor:
        """-> (heads, tokens, tokens), the row is the query's place and the column the key's."""
        distance = torch.arange(1 - tokens, tokens, device=self.bias.device).clamp(-self.reach, self.reach)
        by_distance = self.bias[:, distance + self.reach]  # (heads, 2 tokens - 1)
        # Row i is the stretch that begins at distance -i: windows of it, not an index a score, whose gradient is slow.
        return by_distance.unfold(1, tokens, 1).flip(1)


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
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        visible: torch.Tensor | None,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One block.

        `hidden_states` (B, T, H), `attention_mask` (B, T), `visible` and `bias` as for `attend` -> (B, T, H), and the
        feed-forward's loss, if any.
        """
        rows, tokens, hidden = hidden_states.shape
        qkv = self.qkv(self.attention_norm(hidden_states)).view(rows, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, H / heads)
        attended = attend(query, key, value, visible, bias=bias)
        attended = attended.transpose(1, 2).reshape(rows, tokens, hidden)
        hidden_states = hidden_states + self.dropout(self.output(attended))
        update, auxiliary_loss = self.feed_forward(self.feed_forward_norm(hidden_states), attention_mask)
        return hidden_states + self.dropout(update), auxiliary_loss


# of an odd number, modulo 2^64; from the 64th character of a word on, order is lost
WORD_POWERS = torch.full((64,), 0x2545F4914F6CDD1D).cumprod(dim=0)


class NgramBranch(nn.Module):
    """Logistic regression on hashed n-grams of words and of characters: what words and phrases say by themselves.

    Every word, every two in a row, and every run of three to five characters, all in lower case, fall into one of
    `buckets` numbers (hashing trick, Weinberger et al. 2009), so that no list of them is kept: nothing in the model
    spells one out. Words, characters, and the words at either end of a note are a vector each, of log(1 + count) x
    inverse document frequency and length 1. Fitted apart (ngrams.py), not trained with the encoder (ours).

    Parameters: 3 (classes + 1) buckets + classes.
    """

    WORD_ORDERS, CHARACTER_ORDERS = range(1, 3), range(3, 6)
    SPELLED = 24  # characters of a token that count
    VECTORS = ("words", "characters", "ends")
    END_WORDS = 20  # so many first and as many last words of a note are counted apart
    END_MARKS = (
        0x3C6EF372FE94F82B,
        0x510E527FADE682D1,
    )  # what makes a first and a last word another than the same word

    def __init__(self, config: ScratchConfig):
        super().__init__()
        self.buckets, self.window_overlap = config.ngram_buckets, config.window_overlap
        # how each token is spelled: the numbers of its characters (ngrams.py), then zeros
        self.register_buffer("spelling", torch.zeros(config.vocab_size, self.SPELLED, dtype=torch.int32))
        vectors = len(self.VECTORS)
        self.idf = nn.Parameter(torch.empty(vectors, self.buckets), requires_grad=False)
        self.weight = nn.Parameter(torch.empty(config.num_labels, vectors * self.buckets), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(config.num_labels), requires_grad=False)

    def count(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, window_note: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How often each bucket occurs in each note: in words, characters, words at the ends.

        `input_ids`, `attention_mask` (rows, tokens) and `window_note` (rows,) as for the model -> a sparse tensor
        (notes, 3, buckets), coalesced: most buckets do not occur in a note.
        """
        characters = self.spelling[input_ids].long() * attention_mask.unsqueeze(2)
        note = torch.arange(len(input_ids), device=input_ids.device) if window_note is None else window_note
        goes_on = F.pad(note[1:] == note[:-1], (1, 0), value=False)  # rows that the same note's window precedes
        characters[goes_on, : 1 + self.window_overlap] = 0  # the special token that a window begins with, and overlap
        characters = self.join_windows(characters.flatten(1), note)
        words = self.join_words(characters)
        is_word = words != 0
        lengths = is_word.sum(dim=1, keepdim=True)
        words, is_word = words[:, : lengths.max()], is_word[:, : lengths.max()]
        place = torch.arange(words.shape[1], device=words.device)
        start, end = self.END_MARKS
        found = [
            (0, *self.find_runs(words, is_word, self.WORD_ORDERS)),
            (1, *self.find_runs(characters, characters != 0, self.CHARACTER_ORDERS)),
            (2, *self.find_runs(words + start, is_word & (place < self.END_WORDS), self.WORD_ORDERS)),
            (2, *self.find_runs(words + end, is_word & (place >= lengths - self.END_WORDS), self.WORD_ORDERS)),
        ]
        places = [torch.stack([note, torch.full_like(note, vector), bucket]) for vector, note, bucket in found]
        indices, shape = torch.cat(places, dim=1), (len(words), len(self.VECTORS), self.buckets)
        ones = torch.ones(indices.shape[1], device=indices.device)
        # said, because PyTorch warns where it is not
        return torch.sparse_coo_tensor(indices, ones, shape, check_invariants=False).coalesce()

    @staticmethod
    def join_windows(characters: torch.Tensor, note: torch.Tensor) -> torch.Tensor:
        """The numbers of characters (rows, N), 0 where there is none, of the notes `note` (rows,) -> (notes, M).

        A note's rows stand one after the other; its characters are moved together, and zeros follow.
        """
        real = characters != 0
        lengths = note.new_zeros(int(note[-1]) + 1).index_add(0, note, real.sum(dim=1))
        begins = lengths.cumsum(dim=0) - lengths  # so many characters the notes before it have
        place = real.flatten().cumsum(dim=0).view_as(real) - 1 - begins[note].unsqueeze(1)
        joined = characters.new_zeros(len(lengths), max(1, int(lengths.max())))
        joined[note.unsqueeze(1).expand_as(real)[real], place[real]] = characters[real]
        return joined

    @staticmethod
    def join_words(characters: torch.Tensor) -> torch.Tensor:
        """The numbers of characters (B, N), as spelled -> a number for each word, (B, N), then zeros.

        A word is a run of letters and digits, or one other character that is not white space.
        """
        in_word = characters % 2 == 1
        first = in_word & ~F.pad(in_word, (1, -1)) | ~in_word & (characters > 2 * ord(" "))
        word = first.cumsum(dim=1) - 1
        # a polynomial of the word's characters modulo 2^64
        places = torch.arange(characters.shape[1], device=characters.device).expand_as(characters)
        power = (places - torch.where(first, places, 0).cummax(dim=1).values).clamp(max=len(WORD_POWERS) - 1)
        valued = torch.where(first | in_word, characters * WORD_POWERS.to(characters.device)[power], 0)
        return torch.zeros_like(characters).scatter_add(1, word.clamp(min=0), valued)

    def find_runs(self, numbers: torch.Tensor, real: torch.Tensor, orders: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every run in `numbers` (B, N), the number of its note and its bucket; `real` (B, N): what counts."""
        notes, buckets = [numbers.new_zeros(0)], [numbers.new_zeros(0)]
        hashed, whole = torch.zeros_like(numbers), torch.ones_like(real)
        for order in range(1, min(orders.stop, numbers.shape[1] + 1)):
            places = numbers.shape[1] - order + 1
            # a polynomial of the numbers modulo 2^64, its bits then mixed; a run counts if all of it is real
            hashed = hashed[:, :places] * 0x1E3779B97F4A7C15 + numbers[:, order - 1 :] + 1
            whole = whole[:, :places] * real[:, order - 1 :]
            if order in orders:
                mixed = (hashed ^ (hashed >> 32)) * 0x56E8FEB86659FD93
                bucket = (mixed ^ (mixed >> 32)) & (self.buckets - 1)
                note, start = whole.nonzero(as_tuple=True)
                notes.append(note)
                buckets.append(bucket[note, start])
        return torch.cat(notes), torch.cat(buckets)

    @torch.compiler.disable  # how many buckets there are, only the notes tell
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, window_note: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (notes, classes); the arguments as for `count`."""
        with torch.autocast(input_ids.device.type, enabled=False):
            counts = self.count(input_ids, attention_mask, window_note)
            note, vector, bucket = counts.indices()
            values = counts.values().log1p() * self.idf[vector, bucket].float()
            squares = values.new_zeros(counts.shape[:2]).index_put((note, vector), values**2, accumulate=True)
            values = values / squares.sqrt().clamp(min=1e-12)[note, vector]
            column = vector * self.buckets + bucket
            products = self.weight[:, column].float() * values  # (classes, buckets of all notes)
            return self.bias.float().repeat(len(counts), 1).index_add(0, note, products.T)


class ScratchPreTrainedModel(PreTrainedModel):
    """What the encoder and the models around it share: the configuration, and how weights begin."""

    config_class = ScratchConfig
    base_model_prefix = "encoder"
    accepts_loss_kwargs = False  # see EncoderWithHeadForSequenceClassification: transformers#47688
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, NgramBranch):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
            init.zeros_(module.spelling)
        elif isinstance(module, RelativePositions):
            module.reset_parameters()
        elif isinstance(module, SwitchFeedForward):
            nn.init.normal_(module.up_weight, std=std)
            nn.init.normal_(module.down_weight, std=std)
            nn.init.zeros_(module.up_bias)
            nn.init.zeros_(module.down_bias)


class ScratchModel(ScratchPreTrainedModel):
    """The encoder: token embeddings, blocks with relative positions, LayerNorm.

    With experts, every other block has them, beginning with the second (Switch Transformer, section 2.2).
    """

    def __init__(self, config: ScratchConfig):
        super().__init__(config)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
                f"{config.num_attention_heads}."
            )
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.positions = RelativePositions(config)
        self.layers = nn.ModuleList(
            ScratchLayer(
                config, SwitchFeedForward(config) if config.num_experts and number % 2 else FeedForward(config)
            )
            for number in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = FastDropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        """`input_ids`, `attention_mask` (B, T), all real when left out -> `last_hidden_state` (B, T, H).

        While training with experts the output also has `auxiliary_loss`, the weighted load-balancing loss.
        """
        visible = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden_states = self.dropout(self.token_embedding(input_ids))
        bias = self.positions(input_ids.shape[1])
        auxiliary_losses = []
        for layer in self.layers:
            hidden_states, auxiliary_loss = layer(hidden_states, attention_mask, visible, bias)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)
        output = BaseModelOutput(last_hidden_state=self.norm(hidden_states))
        if self.training and auxiliary_losses:
            output["auxiliary_loss"] = self.config.router_aux_loss_coef * torch.stack(auxiliary_losses).mean()
        return output


class ScratchForMaskedLM(ScratchPreTrainedModel):
    """The encoder under BERT's masked-language-model head, whose output matrix is the token embedding's."""

    _tied_weights_keys = {"decoder.weight": "encoder.token_embedding.weight"}

    def __init__(self, config: ScratchConfig):
        super().__init__(config)
        self.encoder = ScratchModel(config)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_norm = nn.LayerNorm(config.hidden_size)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """`input_ids`, `attention_mask` (B, T) -> logits (B, T, vocabulary).

        With `labels` (B, T), -100 where there is nothing to predict, also the loss, its mean over the others; while
        training with experts the weighted load-balancing loss is part of it.
        """
        encoded = self.encoder(input_ids, attention_mask)
        logits = self.decoder(self.transform_norm(F.gelu(self.transform(encoded.last_hidden_state))))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
            loss = loss + encoded.get("auxiliary_loss", 0.0)
        return MaskedLMOutput(loss=loss, logits=logits)


class ScratchForSequenceClassification(ScratchPreTrainedModel):
    """The encoder, mean over real tokens, linear classifier.

    With an n-gram branch its logits are added to the encoder's times `encoder_weight` in evaluation; training sees the
    encoder's alone. Of a note in several windows training sees one, drawn anew each time, so that a long note costs no
    more than a short one (ours).
    """

    def __init__(self, config: ScratchConfig):
        super().__init__(config)
        self.encoder = ScratchModel(config)
        self.dropout = FastDropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        if config.ngram_buckets:
            self.ngrams = NgramBranch(config)
        self.post_init()

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
                cut into windows, which stand one after the other; the logits of a note are the mean over its windows,
                but for its n-grams, which are counted together. Left out: one row a note.
            labels: (notes,) class indices, or (notes, num_labels) with 0 and 1 for a multi-label model.

        Returns:
            logits (notes, num_labels); the unweighted loss when labels are given; while training with experts also
            `auxiliary_loss`, the weighted load-balancing loss, which is not part of `loss`.
        """
        if self.training and window_note is not None:
            windows = torch.bincount(window_note)
            drawn = (torch.rand(len(windows), device=windows.device) * windows).long()  # below each note's number
            row = windows.cumsum(dim=0) - windows + drawn
            input_ids, window_note = input_ids[row], None
            attention_mask = None if attention_mask is None else attention_mask[row]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # As many rows at a time as there are notes, so that notes in windows take no more memory than others.
        at_a_time = len(input_ids) if window_note is None else int(window_note[-1]) + 1
        parts = zip(input_ids.split(at_a_time), attention_mask.split(at_a_time), strict=True)
        pooled, auxiliary_losses = zip(*(self.pool(*part) for part in parts), strict=True)
        logits = self.classifier(self.dropout(torch.cat(pooled))).float()
        logits = self.mean_of_windows(logits, window_note)  # (notes, num_labels)
        if self.config.ngram_buckets and self.config.encoder_weight is not None and not self.training:
            ngrams = self.ngrams(input_ids, attention_mask, window_note)
            logits = torch.add(ngrams, logits, alpha=self.config.encoder_weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        if auxiliary_losses[0] is not None:
            output["auxiliary_loss"] = auxiliary_losses[0]  # there is no other: training sees one window a note
        return output

    def pool(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`input_ids`, `attention_mask` (B, T) -> mean over real tokens (B, H), and the encoder's loss, if any."""
        encoded = self.encoder(input_ids, attention_mask)
        hidden_states = encoded.last_hidden_state  # (B, T, H)
        weights = attention_mask.to(hidden_states.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.bmm(weights.unsqueeze(1), hidden_states).squeeze(1), encoded.get("auxiliary_loss")

    @staticmethod
    def mean_of_windows(logits: torch.Tensor, window_note: torch.Tensor | None) -> torch.Tensor:
        """`logits` (rows, num_labels) -> (notes, num_labels)."""
        if window_note is None:
            return logits
        notes = int(window_note.max()) + 1
        total = logits.new_zeros(notes, logits.shape[1]).index_add_(0, window_note, logits)
        return total / torch.bincount(window_note, minlength=notes).unsqueeze(1)


# Within this repository the Auto classes know the model; elsewhere they get it from the copy of this file that
# `save_pretrained` puts beside the weights. Such a copy registers nothing: it would stand in for the copies that other
# models bring.
if not __name__.startswith("transformers_modules"):
    AutoConfig.register(ScratchConfig.model_type, ScratchConfig, exist_ok=True)
    AutoModel.register(ScratchConfig, ScratchModel, exist_ok=True)
    AutoModelForMaskedLM.register(ScratchConfig, ScratchForMaskedLM, exist_ok=True)
    AutoModelForSequenceClassification.register(ScratchConfig, ScratchForSequenceClassification, exist_ok=True)
ScratchConfig.register_for_auto_class()
ScratchModel.register_for_auto_class("AutoModel")
ScratchForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ScratchForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
