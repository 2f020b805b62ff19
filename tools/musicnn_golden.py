"""What musicnn's own TensorFlow graph gives for a synthetic sound: golden values for the tests.

    python -m venv tf && tf/bin/pip install tensorflow-cpu tf-keras librosa
    tf/bin/pip install --no-deps musicnn==0.1.0
    tf/bin/python tools/musicnn_golden.py tests/encoders/musicnn.golden.npz

The graph is fed with the log-mel spectrogram in float32: the package rounds it to float16, which
overflows in loud music. Made with TensorFlow 2.21, librosa 0.11 and NumPy 2.
"""

import os
import sys
from pathlib import Path

import numpy as np

RATE, PATCH = 16_000, 187
NAMES = ("timbral", "temporal", "cnn1", "cnn2", "cnn3", "mean_pool", "max_pool", "penultimate")


def synthetic_audio(seconds: float = 6.5) -> np.ndarray:
    """Four gliding partials that pulse, and some noise: (n_samples,) float32, by a formula."""
    n = np.arange(round(seconds * RATE))
    t = n / RATE
    tones = sum(
        np.sin(2 * np.pi * hz * t * (1 + 0.02 * t)) / k
        for k, hz in enumerate((110, 277, 440, 1400), start=1)
    )
    noise = (n * 1_103_515_245 + 12_345) % 65_521 / 65_521 - 0.5
    pulse = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)
    return (0.05 * tones * pulse + 0.02 * noise).astype(np.float32)


def main(out: str) -> None:
    """Run both checkpoints over the patches that fit into the sound; keep averages over time."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tf.compat.v1.layers is not in Keras 3
    import librosa
    import musicnn
    import tensorflow as tf
    from musicnn import models

    tf.compat.v1.disable_eager_execution()
    mel = librosa.feature.melspectrogram(
        y=synthetic_audio(), sr=RATE, hop_length=256, n_fft=512, n_mels=96, pad_mode="reflect"
    )
    log_mel = np.log10(10_000 * mel.T + 1).astype(np.float32)
    n_patches = len(log_mel) // PATCH
    patches = log_mel[: n_patches * PATCH].reshape(n_patches, PATCH, 96)
    golden = {"log_mel": log_mel.mean(0)}
    for name in ("MSD_musicnn", "MTT_musicnn"):
        tf.compat.v1.reset_default_graph()
        x = tf.compat.v1.placeholder(tf.float32, [None, PATCH, 96])
        training = tf.compat.v1.placeholder(tf.bool)
        logits, *features = models.define_model(x, training, name, 50)
        with tf.compat.v1.Session() as session:
            folder = Path(musicnn.__file__).parent / name
            tf.compat.v1.train.Saver().restore(session, f"{folder}/")
            tags, *features = session.run(
                [tf.sigmoid(logits), *features], {x: patches, training: False}
            )
        golden[f"{name}.tags"] = tags  # (patches, 50)
        for key, value in zip(NAMES, features, strict=True):
            if key in NAMES[:5]:  # (patches, frames, ...): their means are all of mean_pool
                value = value.reshape(n_patches, PATCH, -1).mean(1)
            if key != "mean_pool":
                golden[f"{name}.{key}"] = value.reshape(n_patches, -1)
    np.savez_compressed(out, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
