"""Published scaling laws, each with its source and the range it was fitted in. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """Where a law comes from and where it was fitted; outside it is an extrapolation and the plan says so."""

    name: str
    source: str
    parameters: tuple[float, float]  # non-embedding parameters N
    tokens: tuple[float, float]  # training tokens D

    @property
    def range(self) -> str:
        """Where it was fitted, in words."""
        low, high = self.parameters
        fewest, most = self.tokens
        return f"N = {low:.0e}…{high:.0e}, D = {fewest:.0e}…{most:.0e}"

    def covers(self, parameters: float, tokens: float) -> bool:
        """Whether (N, D) lies in the fitted range."""
        low, high = self.parameters
        fewest, most = self.tokens
        return low <= parameters <= high and fewest <= tokens <= most

    def remark(self, parameters: float, tokens: float) -> str:
        """ "" inside the fitted range, else what is outside."""
        if self.covers(parameters, tokens):
            return ""
        return f"{self.name} was fitted for {self.range}; here N = {parameters:.1e}, D = {tokens:.1e}: extrapolated"


STEP_LAW = Law("Step Law", "Li et al. 2025, arXiv 2503.04715", (6e7, 1.1e9), (2e9, 1e11))
LOSS_LAW = Law("Chinchilla loss law, refitted", "Besiroglu et al. 2024, arXiv 2404.10102", (4e7, 1.7e10), (2e8, 4e11))

# L = E + A/N^α + B/D^β, natural log, per token of that paper's vocabulary: use ratios, refit losses.
LOSS_E, LOSS_A, LOSS_B, LOSS_ALPHA, LOSS_BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658

# Where the law is extrapolated to tiny models it asks for more than Adam bears; above a billion parameters for less than is used.
LEARNING_RATE_RANGE = (1e-4, 5e-3)
# Continuing a trained model: a tenth of the law's rate. From a billion parameters on that is the usual 1e-5…5e-5; small ones get
# more, since 3e-5 hardly moves them. Measured with 2.6 M parameters, 120,000 tokens, one seed: dev loss 4.920 before, 4.916 at
# 3e-5, 4.903 at 3e-4, 4.926 at 1e-3, 5.002 at 2.5e-3.
CONTINUING_SHARE = 0.1
# The usual 1e-4…3e-4 (Hu et al. 2021 and the peft documentation's examples).
LORA_LEARNING_RATE = 2e-4


def step_law_learning_rate(parameters: float, tokens: float) -> float:
    """Peak learning rate 1.79·N^-0.713·D^0.307 (Step Law); N without embeddings, D training tokens."""
    return float(1.79 * parameters**-0.713 * tokens**0.307)


def step_law_batch_tokens(tokens: float) -> float:
    """Batch 0.58·D^0.571 in tokens (Step Law); independent of N."""
    return float(0.58 * tokens**0.571)


def loss(parameters: float, tokens: float) -> float:
    """Training loss in nats a token, Besiroglu's refit of the Chinchilla law."""
    return float(LOSS_E + LOSS_A / parameters**LOSS_ALPHA + LOSS_B / tokens**LOSS_BETA)


def training_flops(parameters: float, tokens: float) -> float:
    """C = 6·N·D (Kaplan et al. 2020, section 2.1): forward 2, backward 4 operations a parameter and token."""
    return 6.0 * parameters * tokens


def optimal_parameters(flops: float) -> float:
    """N that minimises `loss` under C = 6·N·D: G·(C/6)^(β/(α+β)), G = (αA/βB)^(1/(α+β)) (Hoffmann et al. 2022, eq. 4)."""
    total = LOSS_ALPHA + LOSS_BETA
    g = (LOSS_ALPHA * LOSS_A / (LOSS_BETA * LOSS_B)) ** (1 / total)
    return float(g * (flops / 6) ** (LOSS_BETA / total))


def size_advice(parameters: float, tokens: float) -> str:
    """In words: how the loss law would share this training's operations between parameters and tokens; advice, nothing more.

    Args:
        parameters: non-embedding parameters.
        tokens: training tokens.
    """
    flops = training_flops(parameters, tokens)
    best = optimal_parameters(flops)
    enough = flops / (6 * best)
    gain = 1 - loss(best, enough) / loss(parameters, tokens)
    advice = (
        f"the same operations spent on {best:.2g} parameters and {enough:.2g} tokens would lower the loss by {gain:.1%} "
        f"({LOSS_LAW.name}, {LOSS_LAW.source})"
    )
    remark = LOSS_LAW.remark(parameters, tokens) or LOSS_LAW.remark(best, enough)
    return f"{advice}; {remark}" if remark else advice


def advice(parameters: float, tokens: float) -> list[dict[str, str | float]]:
    """What the laws would choose for a model and its data, each with its formula, source and whether it was fitted there.

    Args:
        parameters: non-embedding parameters N.
        tokens: training tokens D.

    Returns:
        Rows of {"what", "value", "unit", "formula", "source", "range", "remark"}; the remark is "" inside the fitted range.
    """
    flops = training_flops(parameters, tokens)
    best = optimal_parameters(flops)
    rows = (
        ("learning rate", step_law_learning_rate(parameters, tokens), "", "1.79·N^-0.713·D^0.307", STEP_LAW, parameters, tokens),
        ("batch", step_law_batch_tokens(tokens), "tokens", "0.58·D^0.571", STEP_LAW, parameters, tokens),
        ("size", best, "parameters", "G·(C/6)^(β/(α+β)), C = 6·N·D", LOSS_LAW, best, flops / 6 / best),
        ("data", flops / 6 / best, "tokens", "C/(6·N*)", LOSS_LAW, best, flops / 6 / best),
        (
            "data for this size",
            tokens_for(parameters),
            "tokens",
            "the D whose N* is N",
            LOSS_LAW,
            parameters,
            tokens_for(parameters),
        ),
    )
    return [
        {
            "what": what, "value": float(f"{value:.4g}"), "unit": unit, "formula": formula, "source": f"{law.name}, {law.source}",
            "range": law.range, "remark": law.remark(n, d),
        }
        for what, value, unit, formula, law, n, d in rows
    ]  # fmt: skip


def tokens_for(parameters: float) -> float:
    """Tokens at which a model of this size is the optimal one: `optimal_parameters(6·N·D) = N` solved for D."""
    total = LOSS_ALPHA + LOSS_BETA
    g = (LOSS_ALPHA * LOSS_A / (LOSS_BETA * LOSS_B)) ** (1 / total)
    return float((parameters / g) ** (total / LOSS_BETA) / parameters)


@dataclass(frozen=True)
class Chosen:
    """A number and why it is this one."""

    value: float
    why: str


def learning_rate(parameters: float, tokens: float, *, start: str, lora: bool) -> Chosen:
    """A peak learning rate without a search: Step Law kept inside `LEARNING_RATE_RANGE`, a share of it to continue a model.

    Args:
        parameters: non-embedding parameters.
        tokens: training tokens.
        start: `model.start` of the configuration; anything but `scratch` continues a trained model.
        lora: low-rank adaptation.
    """
    if lora:
        return Chosen(LORA_LEARNING_RATE, f"usual start for LoRA ({LORA_LEARNING_RATE:g})")
    asked = step_law_learning_rate(parameters, max(tokens, 1.0))
    low, high = LEARNING_RATE_RANGE
    value = min(max(asked, low), high)
    why = f"{STEP_LAW.name} ({STEP_LAW.source}) gives {asked:.2e}"
    if value != asked:
        why += f", kept within {low:g}…{high:g}"
    if start != "scratch":
        value *= CONTINUING_SHARE
        why += f"; × {CONTINUING_SHARE:g} for a trained model that is continued"
    if remark := STEP_LAW.remark(parameters, tokens):
        why += f"; {remark}"
    return Chosen(value, why)
