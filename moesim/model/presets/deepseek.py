"""DeepSeek, and Kimi K2 which follows its layers."""

from moesim.model.layers import Experts, Model, Published
from moesim.model.presets.parts import behind_dense, mla


def deepseek() -> list[Model]:
    """DeepSeek-V2 arXiv:2405.04434 section 3.1.2 and appendix B (Lite); V3 arXiv:2412.19437 section 4.2."""
    lite = Experts(experts=64, top_k=6, width=1408, shared_width=2 * 1408)
    v2 = Experts(experts=160, top_k=6, width=1536, shared_width=2 * 1536, groups=8, top_groups=3)
    v3 = Experts(experts=256, top_k=8, width=2048, shared_width=2048, score_correction=True, groups=8, top_groups=4)
    return [
        Model(
            name="deepseek-v2-lite",
            hidden=2048,
            vocab=102400,
            layers=behind_dense(1, 10944, 26, mla(16, None), lite),
            source="hf:deepseek-ai/DeepSeek-V2-Lite; arXiv:2405.04434 appendix B",
            published=Published(total="15.7B", active="2.4B", active_embedding=False),
        ),
        Model(
            name="deepseek-v2",
            hidden=5120,
            vocab=102400,
            layers=behind_dense(1, 12288, 59, mla(128, 1536), v2),
            source="hf:deepseek-ai/DeepSeek-V2; arXiv:2405.04434 section 3.1.2",
            published=Published(total="236B", active="21B", active_embedding=False),
        ),
        Model(
            name="deepseek-v3",
            hidden=7168,
            vocab=129280,
            layers=behind_dense(3, 18432, 58, mla(128, 1536), v3),
            mtp_layers=1,
            dtype="fp8_block",
            expert_dtype="fp8_block",
            source="hf:deepseek-ai/DeepSeek-V3; arXiv:2412.19437 section 4.2",
            published=Published(total="671B", active="37B", active_embedding=False),
        ),
    ]


def kimi() -> list[Model]:
    """Kimi K2 arXiv:2507.20534 table 2: DeepSeek-V3's layers with more experts, fewer heads, no groups."""
    experts = Experts(experts=384, top_k=8, width=2048, shared_width=2048, score_correction=True)
    return [
        Model(
            name="kimi-k2",
            hidden=7168,
            vocab=163840,
            layers=behind_dense(1, 18432, 60, mla(64, 1536), experts),
            dtype="fp8_block",
            expert_dtype="fp8_block",
            source="hf:moonshotai/Kimi-K2-Instruct; github.com/MoonshotAI/Kimi-K2",
            published=Published(total="1T", active="32B", active_embedding=False),
        )
    ]
