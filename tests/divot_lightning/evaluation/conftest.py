"""Small models that the tests of metrics and judges make for themselves."""

import json

import pytest
import torch


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A transformers folder of a tiny random CLIP model of 16x16 pixels."""
    from transformers import CLIPConfig, CLIPModel

    from divot_datamodules.text_tokenizer import word_level_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = word_level_tokenizer(["a red circle moves up", "the blue square left"])
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
