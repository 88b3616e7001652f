"""The parts of the small base, before any training: Stable Diffusion's classes at a sixtieth of its widths."""

import json
from pathlib import Path
from typing import Any

import torch

from raydr.grades import STAGES

PX, FACTOR, CHANNELS, TOKENS, WIDTH = 64, 2, 6, 32, 64


def build_tokenizer(folder: Path) -> Any:
    """A CLIPTokenizer whose merges make one token of each word of our prompts, letters otherwise."""
    from transformers import CLIPTokenizer

    alphabet = [chr(c) for c in range(33, 127)]
    words = [
        "a",
        "color",
        "fundus",
        "image",
        "from",
        "dataset",
        "in",
        "stage",
        ".",
        "ddr",
        "eyepacs",
        "aptos",
        "messidor",
        "idrid",
    ]
    words += [word for stage in STAGES for word in stage.lower().split()]
    vocabulary = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys(words):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            vocabulary[pieces[0]] = None
    tokens = ["<|startoftext|>", "<|endoftext|>", *vocabulary]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_parts(seed: int, folder: Path) -> tuple[Any, Any, Any, Any, Any]:
    """Randomly initialised tokenizer (saved in `folder`), text encoder, VAE, UNet and scheduler."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(24, 48),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=PX,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=PX // FACTOR,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(48, 96, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    return tokenizer, text, vae, unet, scheduler
