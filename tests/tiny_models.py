"""Tiny transformers models with random weights, saved as hub models lie."""

import torch
import transformers

from tune.encoders import transformers as ours

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WAVE = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
# name -> (model, its configuration, feature extractor, its arguments)
TINY = {
    "wav2vec2": ("Wav2Vec2Model", SMALL | WAVE, "Wav2Vec2", {"do_normalize": True}),
    "hubert": ("HubertModel", SMALL | WAVE | STABLE, "Wav2Vec2", {"do_normalize": True}),
    "wavlm": ("WavLMModel", SMALL | WAVE, "Wav2Vec2", {"do_normalize": True}),
    "data2vec": (
        "Data2VecAudioModel",
        SMALL | WAVE | {"num_conv_pos_embeddings": 2},
        "Wav2Vec2",
        {"do_normalize": True},
    ),
    "sew": ("SEWModel", SMALL | WAVE | {"conv_dim": [16] * 13}, "Wav2Vec2", {}),
    "w2v-bert": (
        "Wav2Vec2BertModel",
        SMALL | {"feature_projection_input_dim": 40},
        "SeamlessM4T",
        {"feature_size": 20, "num_mel_bins": 20},
    ),
    "ast": (
        "ASTModel",
        SMALL | {"max_length": 128, "num_mel_bins": 32},
        "AST",
        {"max_length": 128, "num_mel_bins": 32},
    ),
    "whisper": (
        "WhisperModel",
        {
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 100,
            "max_source_positions": 100,
            "num_mel_bins": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "max_target_positions": 20,
        },
        "Whisper",
        {"feature_size": 16, "chunk_length": 2},
    ),
    "clap": (
        "ClapModel",
        {
            "audio_config": {
                "spec_size": 64,
                "num_mel_bins": 16,
                "window_size": 2,
                "patch_embeds_hidden_size": 16,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "hidden_size": 32,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "enable_fusion": True,
                "projection_dim": 16,
            },
            "text_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "vocab_size": 50,
                "projection_dim": 16,
            },
        },
        "Clap",
        {"feature_size": 16, "max_length_s": 2, "truncation": "fusion"},
    ),
}


def save_tiny(folder, name, **changes):
    """Save a tiny model with random weights, and its feature extractor, as a hub model lies."""
    kind, config, extractor, given = TINY[name]
    config_class = getattr(transformers, kind).config_class
    torch.manual_seed(5)
    with ours._quiet():
        getattr(transformers, kind)(config_class(**config)).save_pretrained(folder)
    made = getattr(transformers, f"{extractor}FeatureExtractor")(**{**given, **changes})
    made.save_pretrained(folder)
    return folder
